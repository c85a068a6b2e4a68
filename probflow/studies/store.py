"""Finished cells on disk: JSON lines that survive a kill, a full disk and a torn last line.

A folder holds ``cells.partial.jsonl`` while a study runs: one line is appended as each cell ends.
When the study is complete, all of its cells are written to ``cells.jsonl``, in the study's order,
and the partial file is removed. A line is a JSON object with

=========== ====================================================================================
``format``  ``"probflow-cells/2"``
``key``     hash of all that the result depends on (:func:`probflow.studies.cells.cell_keys`)
``row``     the row, without what only the whole curve tells
``samples`` per-sample contributions, for the covariance of a curve; ``null`` where there are none
``power``   exponent of their mean
``sum``     checksum of the rest
=========== ====================================================================================

A line is used if its checksum is right and its key is that of a cell of the study.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from probflow.studies.cells import Cell
from probflow.studies.lines import Damaged, plain, replacing, seal, text_of, unseal
from probflow.studies.lock import FolderLock
from probflow.studies.rows import COMPLETE, NEW, PARTIAL, Row, row_of

__all__ = ["FORMAT", "Damaged", "Store", "cell_line", "read_cell"]

FORMAT = "probflow-cells/2"

_ROW_FIELDS = [f.name for f in dataclasses.fields(Row) if f.name not in ("eoc", "in_window")]
_KEYS = ("key", "row", "samples", "power")


def cell_line(cell: Cell) -> str:
    """A :class:`Cell` as one line of JSON with a checksum; floats keep every bit."""
    row = {name: plain(getattr(cell.row, name)) for name in _ROW_FIELDS}
    samples = None if cell.samples is None else [plain(float(v)) for v in cell.samples]
    content = {"key": cell.key, "row": row, "samples": samples, "power": cell.power}
    return seal(FORMAT, content)


def read_cell(line: str) -> Cell:
    """The cell of a line.

    Parameters
    ----------
    line
        As :func:`cell_line` writes it.

    Returns
    -------
    Cell
        The same to the last bit.

    Raises
    ------
    Damaged
        If the line is no JSON, or its checksum is wrong.
    ValueError
        If it is something else than a cell, or one of another format.
    """
    content = unseal(line, FORMAT, _KEYS, "cell")
    key, samples, power = content["key"], content["samples"], content["power"]
    numbers = samples is None or isinstance(samples, list)
    if not isinstance(key, str) or not numbers or not isinstance(power, (int, float)):
        raise ValueError("it is no cell of a study")
    try:
        values = None if samples is None else np.array([float(value) for value in samples])
    except (TypeError, ValueError):
        raise ValueError("its samples are no numbers") from None
    return Cell(row_of(content["row"], _ROW_FIELDS), values, power, key)


class Store:
    """The cells of a folder, for one writer.

    Parameters
    ----------
    folder
        Made if it is not there.
    resume
        Use what is there. Otherwise an unfinished study there is refused, and a complete one is
        left alone until this one is complete.
    notify
        Called with a sentence for everything that was found and repaired.

    Raises
    ------
    ValueError
        If another process writes to the folder, if it holds an unfinished study and ``resume`` is
        false, or if a file holds lines that are no cells, cells of another format, or two
        different results of one cell.
    OSError
        If the folder cannot be written to.
    """

    def __init__(
        self, folder: str | Path, *, resume: bool, notify: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folder, self.resumed, self._notify = Path(folder), resume, notify
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        self._places: dict[str, tuple[Path, int]] = {}
        self._sums: dict[str, str] = {}
        self._file = -1
        try:
            if self._lock.note:
                notify(self._lock.note)
            partial = self.folder / PARTIAL
            if resume:
                for path in (self.folder / COMPLETE, partial):
                    if path.exists():
                        self._read(path)
            elif partial.exists() and partial.stat().st_size:
                raise ValueError(
                    f"{self.folder} holds an unfinished study; resume it (resume=True, --resume), "
                    f"or remove {partial}"
                )
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._file = os.open(partial, flags, 0o644)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Cell | None:
        """The stored cell of a key, read from disk; ``None`` if there is none.

        Parameters
        ----------
        key
            Hexadecimal digest.

        Returns
        -------
        Cell or None
            The cell.
        """
        if key not in self._places:
            return None
        path, offset = self._places[key]
        with open(path, "rb") as file:
            file.seek(offset)
            return read_cell(file.readline().decode("utf-8"))

    def append(self, cell: Cell) -> None:
        """Write a cell; a line is on disk as a whole or not at all.

        Parameters
        ----------
        cell
            One with a key; a key that is there already is not written again.

        Raises
        ------
        OSError
            If it cannot be written, for instance to a full disk. What was there stays.
        """
        if cell.key in self._places:
            return
        data = cell_line(cell).encode("utf-8")
        end = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as problem:
            os.ftruncate(self._file, end)
            raise OSError(
                problem.errno,
                f"{problem.strerror}; {len(self)} finished cells are kept, and a resumed study "
                "goes on from there",
                str(self.folder / PARTIAL),
            ) from problem
        self._places[cell.key] = (self.folder / PARTIAL, end)

    def complete(self, keys: Iterable[str], told: Callable[[], None] = lambda: None) -> None:
        """Write the cells of ``keys`` to ``cells.jsonl``, all of it or nothing, and tidy up.

        Cells of other studies in that file stay, behind these, if the study was resumed.

        Parameters
        ----------
        keys
            Keys of the study's cells, in its order.
        told
            Called when the file is there, before the partial one is removed.
        """
        own = dict.fromkeys(key for key in keys if key in self._places)
        others = [key for key in self._places if key not in own]
        with replacing(self.folder / COMPLETE, self.folder / NEW) as new:
            for key in (*own, *others):
                path, offset = self._places[key]
                with open(path, "rb") as old:
                    old.seek(offset)
                    new.write(old.readline().strip() + b"\n")
        told()
        (self.folder / PARTIAL).unlink()
        self._places.clear()

    def close(self) -> None:
        """Let go of the folder; a partial file without a line is removed."""
        try:
            if self._file >= 0:
                os.fsync(self._file)
                if os.fstat(self._file).st_size == 0:
                    (self.folder / PARTIAL).unlink(missing_ok=True)
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading ------------------------------------------------------------------------------------

    def _read(self, path: Path) -> None:
        """Note where each cell of a file is; cut off a torn end."""
        seen: set[str] = set()
        damaged, repeated, good, offset = [], 0, 0, 0
        with open(path, "rb") as file:
            for number, data in enumerate(file, 1):
                try:
                    key, checksum = _key_of(data)
                except Damaged:
                    damaged.append(number)
                except ValueError as problem:
                    raise ValueError(f"{path}, line {number}: {problem}") from None
                else:
                    good += 1
                    repeated += key in seen
                    seen.add(key)
                    if self._sums.setdefault(key, checksum) != checksum:
                        raise ValueError(
                            f"{path}, line {number}: a second, different result of the cell "
                            f"{key}; remove one of them"
                        )
                    self._places.setdefault(key, (path, offset))
                offset += len(data)
        self._report(path, damaged, repeated, good)

    def _report(self, path: Path, damaged: list[int], repeated: int, good: int) -> None:
        if damaged and not good and not _torn_first(path):
            raise ValueError(f"{path} holds no cell of a study")
        if repeated:
            self._notify(f"{path}: {repeated} repeated lines, used once")
        if damaged:
            lines = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
            self._notify(f"{path}: damaged in line {lines}; what stood there is measured again")
        with open(path, "rb+") as file:
            content = file.seek(0, os.SEEK_END)
            if content:
                file.seek(content - 1)
                if file.read(1) != b"\n":
                    file.truncate(_last_newline(file, content) + 1)


def _key_of(data: bytes) -> tuple[str, str]:
    """Key and checksum of a line that holds a sound cell."""
    line = text_of(data)
    return read_cell(line).key, json.loads(line)["sum"]


def _torn_first(path: Path) -> bool:
    """Whether a file is the beginning of a first line of ours."""
    with open(path, "rb") as file:
        start = file.read(64)
    wanted = f'{{"format":"{FORMAT}"'.encode()
    return wanted.startswith(start) or start.startswith(wanted)


def _last_newline(file: Any, end: int) -> int:
    """Offset of the last end of line before ``end``; -1 if there is none."""
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found)
        end = start
    return -1
