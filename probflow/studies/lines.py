"""Lines of JSON that say what they are and carry a checksum, so that none is ever misread.

And files of them, which are replaced as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Damaged", "OtherFormat", "plain", "replacing", "seal", "text_of", "unseal"]


class Damaged(ValueError):
    """A line that was not written in full, or changed since: its content is measured again."""


class OtherFormat(ValueError):
    """A line of another format, ``found``, than the one that is read."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(f"its format is {found!r}, this version reads {wanted!r}")
        self.found = found


def seal(kind: str, content: Mapping[str, Any]) -> str:
    """``content`` as one line of JSON that begins with its ``format`` and ends with its ``sum``."""
    text = _json({"format": kind, **content})
    return f'{text[:-1]},"sum":"{_sum_of(text)}"}}\n'


def unseal(line: str, kind: str, keys: Sequence[str], noun: str) -> dict[str, Any]:
    """The content of a line of :func:`seal`.

    Parameters
    ----------
    kind, keys
        The format, and the content's keys.
    noun
        What the line should hold, for messages.

    Raises
    ------
    Damaged
        If the line is no JSON, or its checksum is wrong.
    OtherFormat
        If it has another format.
    ValueError
        If it is something else.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise Damaged("no JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), str):
        raise ValueError(f"it is no {noun} of a study")
    if content["format"] != kind:
        raise OtherFormat(content["format"], kind)
    checksum = content.pop("sum", None)
    if set(content) != {"format", *keys} or checksum != _checksum(content):
        raise Damaged("wrong checksum")
    return content


def text_of(line: bytes) -> str:
    """The text of a whole line.

    Raises
    ------
    Damaged
        If it has no end, or is no UTF-8.
    """
    if not line.endswith(b"\n"):
        raise Damaged("torn: it has no end")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("no text") from None


@contextmanager
def replacing(path: Path, new: Path) -> Iterator[BinaryIO]:
    """An open file that takes the place of ``path`` at the end, whole or not at all.

    Parameters
    ----------
    path
        The file that is replaced, if it is there.
    new
        What it is called while it is written; gone afterwards.

    Raises
    ------
    OSError
        If it cannot be written, for instance to a full disk; ``path`` stays, and is named.
    """
    try:
        with open(new, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException as problem:
        new.unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.filename is None:
            raise OSError(problem.errno, problem.strerror, str(path)) from problem
        raise


def plain(value: Any) -> Any:
    """Numbers that JSON has no sign for as texts: ``"nan"``, ``"inf"``, ``"-inf"``."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _checksum(content: Any) -> str:
    try:
        text = _json(content)
    except ValueError:  # a NaN that we never write
        return ""
    return _sum_of(text)


def _sum_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
