"""Content hashes of what a cell depends on: the same content gives the same text anywhere."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["digest", "source_digest"]

#: Attributes that hold copies of others, made on demand.
_CACHES = ("_cache",)

#: What computes a cell from its plan, relative to the package. A solver is not among them: its
#: weights are in the plan.
_SOURCES = (
    *("grids.py", "models.py", "processes", "schedules.py", "targets", "laws", "integrate"),
    *("studies/cells.py", "studies/measure.py", "studies/perturbed.py", "studies/sampled.py"),
    "studies/learned.py",
)


def digest(*values: Any) -> str:
    """SHA-256 (hex) of numbers, texts, arrays, containers, functions and objects made of them.

    An object counts by its class and attributes, a function by its code, defaults and closure.

    Raises
    ------
    TypeError
        For an object whose content cannot be seen, such as an open file.

    Examples
    --------
    >>> digest(1.0, "a") == digest(1.0, "a"), digest(1.0) == digest(1)
    (True, False)
    """
    hasher = hashlib.sha256()
    _feed(hasher, values, ())
    return hasher.hexdigest()


@functools.cache
def source_digest() -> str:
    """Hash of the code that measures cells; of nothing where the package has no files."""
    root = Path(__file__).resolve().parent.parent
    hasher = hashlib.sha256()
    for name in _SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.is_file():
                hasher.update(path.relative_to(root).as_posix().encode())
                hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any, above: tuple[int, ...]) -> None:
    """Feed a value; ``above`` are the objects that hold it, to end at a cycle."""

    def tag(*texts: object) -> None:
        for text in texts:
            data = str(text).encode("utf-8", "surrogatepass")
            hasher.update(b"%d:" % len(data) + data)

    if id(value) in above:
        tag("cycle", len(above) - above.index(id(value)))
        return
    above = (*above, id(value))
    if value is None or (isinstance(value, (bool, int, str)) and type(value) in (bool, int, str)):
        tag(type(value).__name__, value)
    elif type(value) is float:
        tag("float", value.hex())
    elif isinstance(value, (bytes, bytearray)):
        tag("bytes", bytes(value).hex())
    elif isinstance(value, torch.Tensor):
        tag("tensor")
        _feed(hasher, value.detach().cpu().numpy(), above)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        tag("array", value.dtype.str, value.shape)
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.generic):
        _feed(hasher, value.item(), above)
    elif isinstance(value, (list, tuple)):
        tag("list", len(value))
        for item in value:
            _feed(hasher, item, above)
    elif isinstance(value, Mapping):
        tag("map", len(value))
        for key in sorted(value, key=repr):
            _feed(hasher, key, above)
            _feed(hasher, value[key], above)
    elif isinstance(value, (set, frozenset)):
        tag("set", *sorted(digest(item) for item in value))
    elif isinstance(value, (Enum, torch.dtype, torch.device)):
        tag(type(value).__name__, value)
    elif isinstance(value, types.CodeType):
        tag("code", value.co_code.hex(), value.co_names)
        _feed(hasher, value.co_consts, above)
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        tag("function", value.__module__, value.__qualname__)
        _feed(hasher, (value.__code__, value.__defaults__, value.__kwdefaults__, cells), above)
    elif isinstance(value, types.MethodType):
        _feed(hasher, (value.__func__, value.__self__), above)
    elif isinstance(value, functools.partial):
        _feed(hasher, (value.func, value.args, value.keywords), above)
    elif isinstance(value, (type, types.BuiltinFunctionType, np.ufunc)):
        tag("named", getattr(value, "__module__", ""), value.__name__)
    else:
        tag("object", type(value).__module__, type(value).__qualname__)
        _feed(hasher, _content(value), above)


def _content(value: Any) -> Any:
    """What an object is made of, as pickle sees it, without its caches."""
    try:
        parts = value.__reduce_ex__(4)
    except TypeError:
        raise TypeError(
            f"cannot tell the content of a {type(value).__module__}.{type(value).__qualname__}, "
            "so its results cannot be kept in a folder; use numbers, arrays and plain objects"
        ) from None
    if isinstance(parts, str):
        return parts
    make, arguments, state, *more = (*parts, None)[: max(len(parts), 3)]
    if isinstance(state, Mapping):
        state = {name: item for name, item in state.items() if name not in _CACHES}
    return [make, arguments, state, *(None if part is None else list(part) for part in more)]
