"""The files of a report: which folder may be written to, and how a new report takes its place.

A report is written completely into a hidden folder in its destination and moved into place at
the end, so a failure never leaves half a report. The file ``provenance.json`` marks a folder as a
report and lists its files; only files on that list are ever replaced or removed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..studies.lock import FolderLock
from ..studies.rows import STORE_FILES
from .tables import json_text, plain

__all__ = ["PROVENANCE", "REPORT_FORMAT", "check_writable", "replace_report", "write_bytes"]
__all__ += ["write_text"]

#: Value of ``"format"`` in ``provenance.json``: how a report knows its own folder.
REPORT_FORMAT = "probflow-report/1"
PROVENANCE = "provenance.json"
#: Where a report is written before its files are moved.
_NEW = ".report"


def check_writable(out_dir: str | Path) -> None:
    """Raise unless a report can be written to ``out_dir``; change nothing on disk.

    Call this before a long study, so that its results do not get lost at the end.

    Parameters
    ----------
    out_dir
        Folder of the report; it and its parents need not exist.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    ValueError
        If it holds files and no earlier report: nothing foreign is ever overwritten.
    """
    out = Path(out_dir)
    place = out
    try:
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"cannot write a report to {out}: {error}") from error
    if out.is_dir() and any(out.iterdir()):
        _own_files(out)


def replace_report(
    out: Path, write: Callable[[Path], None], provenance: Mapping[str, Any]
) -> list[str]:
    """Let ``write`` fill a folder, and put it in the place of the report in ``out``.

    Parameters
    ----------
    out
        Where to; checked by :func:`check_writable`.
    write
        Called with an empty folder.
    provenance
        What ``provenance.json`` says beside the list of files.

    Returns
    -------
    list of str
        The files of the report, relative to ``out``, sorted.

    Raises
    ------
    ValueError
        If another process writes a report there, or files of others are in the way.
    OSError
        If something cannot be written.
    """
    there, private = out.exists(), out / _NEW
    private.mkdir(parents=True, exist_ok=True)
    lock, new = FolderLock(private), private / "report"
    try:
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir()
        write(new)
        files = sorted([*_files_below(new), PROVENANCE])
        write_text(new / PROVENANCE, _provenance_text(provenance, files))
        _move_into_place(new, out, provenance)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        lock.release()
        with suppress(OSError):  # somebody else writes there now
            private.rmdir()
        if not there and not any(out.iterdir()):
            out.rmdir()
    return files


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the same line ends everywhere; errors are those of :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file; the ``OSError`` of a full disk, which names none, names it."""
    try:
        path.write_bytes(data)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, str(path)) from problem


def _provenance_text(provenance: Mapping[str, Any], files: list[str]) -> str:
    own = {"format": REPORT_FORMAT, "files": files}
    return json_text(dict(sorted({**plain(provenance), **own}.items())))


def _files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def _own_files(out: Path) -> list[str]:
    """Files of the earlier report in ``out``, from its provenance; raise if there is none.

    Without a report, a folder may hold the cells of a study that is running or was killed.
    """
    if all(path.name in (*STORE_FILES, _NEW) for path in out.iterdir()):
        return []
    try:
        known = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or known.get("format") != REPORT_FORMAT:
        raise ValueError(
            f"{out} holds files but no earlier report (no {PROVENANCE} of probflow), so nothing "
            "there is overwritten; choose a new or an empty folder"
        )
    files = known.get("files")
    files = files if isinstance(files, list) else []
    # A list that was edited must not lead out of the folder.
    safe = [name for name in files if isinstance(name, str) and _is_inside(name)]
    return sorted({*safe, PROVENANCE})


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _move_into_place(new: Path, out: Path, provenance: Mapping[str, Any]) -> None:
    """Move the files of a finished report, and remove those of an earlier one."""
    files, old = _files_below(new), _own_files(out)
    foreign = [name for name in files if name not in old and os.path.lexists(out / name)]
    if foreign:
        raise ValueError(
            f"{out} holds files in the way of the report that are not of an earlier one: "
            f"{', '.join(foreign)}; move them or choose another folder"
        )
    # A list of the files of both comes first: should the machine stop here, all of them are still
    # known as the report's, and the next run replaces them.
    both = new.parent / PROVENANCE
    write_text(both, _provenance_text(provenance, sorted({*files, *old})))
    os.replace(both, out / PROVENANCE)
    for name in (name for name in files if name != PROVENANCE):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, out / name)
    for name in old:
        if name not in files:
            (out / name).unlink(missing_ok=True)
    os.replace(new / PROVENANCE, out / PROVENANCE)
