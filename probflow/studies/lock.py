"""One writer for a folder: a lock file that says which process on which machine holds it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from probflow.studies.rows import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]


class FolderLock:
    """A lock on a folder, held until :meth:`release` or the death of the process.

    The file holds process id and host. On one machine the operating system's own lock on it
    (``flock``) decides, so one left behind by a process that was killed is taken over; one of
    another machine cannot be judged from here and is respected.

    Parameters
    ----------
    folder
        An existing folder.

    Raises
    ------
    ValueError
        If another process holds it; the message says which.

    Attributes
    ----------
    note
        What was found and taken over, in words; empty if there was nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.note = folder / LOCK, ""
        while True:
            flags = os.O_RDWR | os.O_CREAT | (0 if fcntl else os.O_EXCL)
            try:
                self._file = os.open(self.path, flags, 0o644)
            except FileExistsError:
                raise self._held(self._holder()) from None
            if self._take():
                return

    def _take(self) -> bool:
        """Lock the open file and sign it; False if it was removed meanwhile."""
        holder = self._holder()
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise self._held(holder) from None
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
            os.close(self._file)
            return False
        holder = self._holder()
        host = socket.gethostname()
        if holder and holder.get("host") != host:
            os.close(self._file)
            raise self._held(holder)
        if holder:
            self.note = f"took over {self.path}: process {holder.get('pid')} is no longer there"
        signature = json.dumps({"pid": os.getpid(), "host": host}) + "\n"
        os.ftruncate(self._file, 0)
        os.write(self._file, signature.encode())
        return True

    def _holder(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _held(self, holder: dict[str, Any]) -> ValueError:
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
        return ValueError(
            f"{self.path.parent} is being written to by {who}; if that is gone, remove {self.path}"
        )

    def release(self) -> None:
        """Give the folder free."""
        if fcntl:  # removed while still locked: nobody locks a file that is about to go
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        if not fcntl:
            self.path.unlink(missing_ok=True)
