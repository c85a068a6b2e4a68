"""What figures need beyond cells: errors along a trajectory, densities, samples; and their file.

``pictures.jsonl`` in the folder of a run has one line a picture (:mod:`probflow.studies.lines`).
Numbers are rounded to five digits: they are looked at, not computed with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probflow.studies.lines import replacing, seal, unseal
from probflow.studies.rows import NEW_PICTURES, PICTURES

__all__ = [
    "Densities",
    "Images",
    "Picture",
    "Plane",
    "Trajectory",
    "read_pictures",
    "write_pictures",
]

FORMAT = "probflow-pictures/1"


@dataclass(frozen=True)
class Trajectory:
    """Errors after each step of some solvers on one grid.

    Parameters
    ----------
    target, grid, measure, steps
        Names, and the number of steps T.
    lambdas
        (T,) log-SNR at the end of each step, ``ln(alpha/sigma)``.
    errors, se
        Errors and their standard errors by solver, each (T,); NaN where there is none.
    refused
        Why there is no number, by solver: the first reason.
    """

    target: str
    grid: str
    measure: str
    steps: int
    lambdas: np.ndarray
    errors: Mapping[str, np.ndarray]
    se: Mapping[str, np.ndarray]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """Whether any solver has something to show."""
        return bool(self.errors)


@dataclass(frozen=True)
class Densities:
    """Densities at the end of the grid in one dimension: the true one and those of solvers.

    Parameters
    ----------
    target, grid, steps
        Names, and the number of steps.
    x, true
        (n,) places and the true density there.
    densities
        Densities of the solvers' laws at ``x`` (exact, no samples), by solver.
    refused
        Why a solver has none.
    """

    target: str
    grid: str
    steps: int
    x: np.ndarray
    true: np.ndarray
    densities: Mapping[str, np.ndarray]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """Whether any solver has something to show."""
        return bool(self.densities)


@dataclass(frozen=True)
class Plane:
    """The true density in two dimensions, and samples of solvers.

    Parameters
    ----------
    target, grid, steps
        Names, and the number of steps.
    x, y, true
        (n,) and (m,) places, and the true density there, (m, n).
    points
        (k, 2) samples by solver.
    refused
        Why a solver has none.
    """

    target: str
    grid: str
    steps: int
    x: np.ndarray
    y: np.ndarray
    true: np.ndarray
    points: Mapping[str, np.ndarray]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """Whether any solver has something to show."""
        return bool(self.points)


@dataclass(frozen=True)
class Images:
    """Sampled images in groups, one group after the other.

    Parameters
    ----------
    target, grid
        Names.
    groups
        What each group is, for instance ``"at most 10 NFE"``.
    images
        (groups * count, height, width) by solver.
    low, high
        Values of the lightest and the darkest pixel.
    refused
        Why a solver has none.
    nfe
        Model calls of a sample in each group, by solver; empty where they were not kept.
    """

    target: str
    grid: str
    groups: tuple[str, ...]
    images: Mapping[str, np.ndarray]
    low: float
    high: float
    refused: Mapping[str, str] = field(default_factory=dict)
    nfe: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """Whether any solver has something to show."""
        return bool(self.images)


Picture = Trajectory | Densities | Plane | Images
_KINDS: dict[str, type] = {"trajectory": Trajectory, "densities": Densities}
_KINDS |= {"plane": Plane, "images": Images}


def write_pictures(folder: Path, pictures: Iterable[Picture]) -> None:
    """Put ``pictures.jsonl`` in the place of an earlier one, whole or not at all.

    Parameters
    ----------
    folder
        Where to.
    pictures
        What to keep.

    Raises
    ------
    OSError
        If it cannot be written; the earlier one stays.
    """
    names = {kind: name for name, kind in _KINDS.items()}
    with replacing(folder / PICTURES, folder / NEW_PICTURES) as file:
        for picture in pictures:
            fields = dataclasses.fields(picture)
            values = {f.name: _plain(getattr(picture, f.name)) for f in fields}
            line = seal(FORMAT, {"kind": names[type(picture)], "picture": values})
            file.write(line.encode())


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """The pictures of a folder; none if it has none.

    Parameters
    ----------
    folder
        That of a run.

    Returns
    -------
    tuple of Picture
        In the order in which they were made.

    Raises
    ------
    ValueError
        If a line is damaged or no picture; the message names it.
    """
    path = folder / PICTURES
    if not path.is_file():
        return ()
    pictures = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                content = unseal(line, FORMAT, ("kind", "picture"), "picture")
                values = {name: _read(value) for name, value in content["picture"].items()}
                pictures.append(_KINDS[content["kind"]](**values))
            except (ValueError, KeyError, TypeError) as problem:
                raise ValueError(f"{path}, line {number}: {problem}") from None
    return tuple(pictures)


def _plain(value: Any) -> Any:
    """What JSON can hold; ``None`` where there is no number."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4e}") if np.isfinite(value) else None
    return value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _read(item) for name, item in value.items()}
    if isinstance(value, list):
        texts = bool(value) and isinstance(value[0], str)
        return tuple(value) if texts else np.array(value, dtype=np.float64)
    return value
