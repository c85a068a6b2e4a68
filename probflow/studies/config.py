"""Study files: TOML in, curves out, with one clear sentence for anything that does not fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from probflow.grids import GRIDS, Grid
from probflow.processes import EDM, VE, VP, FlowMatching, Process
from probflow.solvers import Solver, get_solver
from probflow.studies.axes import AXES
from probflow.studies.cells import Curve
from probflow.studies.learned import Learned, LearnedScore
from probflow.studies.measure import Settings
from probflow.studies.perturbed import correlated
from probflow.studies.rows import MEASURES
from probflow.studies.runner import make_curves
from probflow.studies.scans import ScanJob
from probflow.targets import Empirical, Gaussian, GaussianMixture, Target
from probflow.words import check_choice, is_real, near

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["StudyFile", "digits", "read_study", "target_from_table"]

PROCESSES: dict[str, Callable[[], Process]] = {
    "vp-linear": VP.linear,
    "vp-cosine": VP.cosine,
    "ve": VE,
    "edm": EDM,
    "flow-matching": FlowMatching,
}


@dataclass(frozen=True)
class StudyFile:
    """A study file's content, checked.

    Attributes
    ----------
    name
        Title of the report: the file's ``name``, or its stem.
    curves
        What to measure.
    timing
        Number of runs of each plan whose wall time is taken; 0 takes none.
    scans
        What to measure in a file with a ``[scan]`` table, in the place of curves.
    pictures
        Number of steps of the pictures in the report; 0 makes none.
    """

    name: str
    curves: tuple[Curve, ...]
    timing: int = 0
    scans: tuple[ScanJob, ...] = ()
    pictures: int = 0


def read_study(path: str | Path) -> StudyFile:
    """Read a study file; its format is in ``docs/guide.md``.

    Parameters
    ----------
    path
        The file; paths in it are relative to its folder.

    Returns
    -------
    StudyFile
        Curves or scans, and the settings of the run.

    Raises
    ------
    ValueError
        For a file that is missing, is no TOML, or has unknown or ill-typed keys: the message names
        file and key.
    """
    path = Path(path)
    try:
        table = tomllib.loads(
            path.read_text(encoding="utf-8-sig")
        )  # some editors begin with a mark
    except FileNotFoundError:
        raise ValueError(f"study file: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"study file: {path} cannot be read ({problem})") from None
    except tomllib.TOMLDecodeError as problem:
        raise ValueError(f"study file: {path} is not valid TOML ({problem})") from None
    try:
        return _parse(table, path)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path}: {problem}") from None


def _parse(table: Mapping[str, Any], path: Path) -> StudyFile:
    allowed = {
        "solvers": list,
        "measures": list,
        "target": dict,
        "grid": dict,
        "process": dict,
        "seed": int,
        "samples": int,
        "reference_steps": int,
        "seeds": int,
        "timing": int,
        "scan": dict,
        "pictures": int,
        "name": str,
    }
    _check_keys(table, allowed, "the study", required=("solvers", "measures", "target", "grid"))
    grid_table = dict(table["grid"])
    steps = grid_table.pop("steps", None)
    if not isinstance(steps, list):
        raise ValueError("[grid] needs steps, a list of increasing whole numbers")
    process_table = table.get("process", {})
    _check_keys(process_table, {"kind": str}, "[process]")
    kind = process_table.get("kind")
    if kind is not None:
        check_choice("[process] kind", kind, PROCESSES)
    settings = Settings(**{f.name: table[f.name] for f in fields(Settings) if f.name in table})
    solvers = [_solver(item) for item in table["solvers"]]
    if not solvers:
        raise ValueError("solvers: need a list of names or of tables with a name, got []")
    if not table["measures"] or not all(isinstance(name, str) for name in table["measures"]):
        raise ValueError(f"measures: need a list of names, got {table['measures']!r}")
    for name in table["measures"]:
        check_choice("measures", name, MEASURES)
    process = None if kind is None else PROCESSES[kind]()
    name = table.get("name", path.stem)
    if not name.strip():
        raise ValueError(f"name: must not be empty, got {name!r}")
    if "scan" in table:
        for key in ("timing", "pictures"):
            if key in table:
                raise ValueError(f"{key}: not for a scan")
        jobs = _scans(table, path.parent, solvers, steps, _grid(grid_table), process, settings)
        return StudyFile(name, (), scans=jobs)
    curves = make_curves(
        targets=[target_from_table(table["target"], path.parent)],
        solvers=solvers,
        steps=steps,
        measures=table["measures"],
        grid=_grid(grid_table),
        process=process,
        settings=settings,
    )
    counts = {key: table.get(key, 0) for key in ("timing", "pictures")}
    for key, count in counts.items():
        if count < 0:
            raise ValueError(f"{key}: need a whole number >= 0, got {count}")
    return StudyFile(name, tuple(curves), **counts)


def _solver(item: Any) -> Solver:
    """The solver of a name, or of a table of a name and options."""
    table = item if isinstance(item, Mapping) else {"name": item}
    options = {key: value for key, value in table.items() if key != "name"}
    if not isinstance(table.get("name"), str):
        raise ValueError(f"solvers: need names, or tables with a name and options, got {item!r}")
    try:
        return get_solver(table["name"]).with_options(**options)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"solvers: {str(problem).removeprefix('solver: ')}") from None


def _scans(
    table: Mapping[str, Any],
    folder: Path,
    solvers: Sequence[Solver],
    steps: list[Any],
    grid: Grid,
    process: Process | None,
    settings: Settings,
) -> tuple[ScanJob, ...]:
    """The scans of a ``[scan]`` table: each solver in each measure at each number of steps."""
    own = table["scan"]
    number = (int, float)
    allowed: dict[str, Any] = {"axis": str, "values": list, "correlation": number, "decay": bool}
    allowed |= {"checkpoints": list, "prediction": str, "time_scale": number}
    _check_keys(own, allowed, "[scan]", required=("axis",))
    axis = own["axis"]
    check_choice("[scan] axis", axis, AXES)
    needed = "checkpoints" if axis == "learned" else "values"
    options = {"dimension": {"correlation", "decay"}, "learned": {"prediction", "time_scale"}}
    for key in sorted(set(own) - {"axis", needed} - options.get(axis, set())):
        raise ValueError(f"[scan] needs {needed} on the axis {axis!r}, not {key}")
    if needed not in own:
        raise ValueError(f"[scan] needs {needed} on the axis {axis!r}")
    values = own[needed]
    target: Any
    if axis == "learned":
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError("[scan] checkpoints: need names of files")
        truth = target_from_table(table["target"], folder)
        network = {key: own[key] for key in ("prediction", "time_scale") if key in own}
        trained_on = process or VP.linear()
        values = [LearnedScore(folder / value, truth, trained_on, **network) for value in values]
        target = None
    else:
        for value in values:
            if not is_real(value) or not 0 < value < math.inf:
                raise ValueError(f"[scan] values: need positive finite numbers, got {value!r}")
        target = _along(axis, own, table["target"], folder)
        if not isinstance(target, Target):
            for value in values:
                target(value)  # what is wrong with one shows here
    if len(set(values)) < max(2, len(values)):
        raise ValueError(f"[scan] {needed}: need at least two different ones")
    # Solvers, measures, steps and the grid are checked as those of a study.
    sample = target if isinstance(target, Target) else Gaussian([0.0], [1.0])
    curves = make_curves(
        targets=[sample],
        solvers=solvers,
        steps=steps,
        measures=table["measures"],
        grid=grid,
        process=process,
        settings=settings,
    )
    return tuple(
        ScanJob(axis, tuple(values), target, c.solver, count, name, grid, process, settings)
        for c in curves
        for name in c.measures
        for count in c.steps
    )


def _along(axis: str, own: Mapping[str, Any], table: Mapping[str, Any], folder: Path) -> Any:
    """The target of a scan, or a function that makes one of a value."""
    if axis == "smoothness":
        if table.get("kind") != "gaussian-mixture" or not isinstance(table.get("stds"), list):
            raise ValueError("[target]: the axis 'smoothness' needs a gaussian-mixture with stds")
        count = len(table["stds"])

        def smooth(length: float) -> Target:
            return target_from_table({**table, "stds": [float(length)] * count}, folder)

        return smooth
    target = target_from_table(table, folder)
    if axis != "dimension":
        return target
    if target.dim != 1:
        raise ValueError("[target]: the axis 'dimension' needs one on the line")
    correlation, decay = own.get("correlation", 0.0), own.get("decay", False)
    if decay and not correlation:
        raise ValueError("[scan] decay: says how a correlation falls; give correlation, too")
    return lambda d: correlated(target, d, correlation, decay=decay)


#: Kinds of grids whose parts do not fit a table.
_WITH_PARTS = ("explicit", "restart")


def _grid(table: Mapping[str, Any]) -> Grid:
    number = (int, float)
    allowed: dict[str, Any] = {"kind": str, "start": number, "end": number}
    allowed |= {"rho": number, "c0": number, "c1": number}
    _check_keys(table, allowed, "[grid]", required=("kind",))
    check_choice("[grid] kind", table["kind"], [k for k in GRIDS if k not in _WITH_PARTS])
    options = {key: float(table[key]) for key in ("rho", "c0", "c1") if key in table}
    ends = {key: float(table[key]) for key in ("start", "end") if key in table}
    if table["kind"] != "paper" and len(ends) < 2:
        raise ValueError("[grid] needs start and end, as -ln alphas_cumprod")
    return Grid(table["kind"], ends.get("start"), ends.get("end"), "neg_log_ab", options)


def target_from_table(table: Mapping[str, Any], folder: Path) -> Target:
    """The target of a ``[target]`` table; data files are looked up from ``folder``.

    Parameters
    ----------
    table
        The table's keys and values.
    folder
        Where paths begin.

    Returns
    -------
    Target
        The target.

    Raises
    ------
    ValueError
        For unknown kinds, keys or values, or a data file that is missing or not numeric.
    """
    kind = table.get("kind")
    keys: dict[str, dict[str, Any]] = {
        "gaussian": {"mean": list, "covariance": (list, int, float)},
        "gaussian-mixture": {
            "weights": list,
            "means": list,
            "stds": list,
            "covariances": list,
        },
        "empirical": {"data": str},
        "checkpoint": {
            "model": str,
            "data": str,
            "prediction": str,
            "time_scale": (int, float),
        },
    }
    check_choice("[target] kind", kind, keys)
    allowed = {"kind": str, **keys[str(kind)]}
    required = {"gaussian": ("mean", "covariance"), "empirical": ("data",)}
    required |= {"checkpoint": ("model", "data")}
    _check_keys(table, allowed, "[target]", required=required.get(str(kind), ("weights", "means")))
    values = {key: value for key, value in table.items() if key != "kind"}
    for key, value in values.items():
        if isinstance(value, list):
            _shape(f"[target] {key}", value)
    if kind == "empirical":
        return _empirical(values["data"], folder)
    if kind == "checkpoint":
        values["data"] = _empirical(values["data"], folder)
    try:
        if kind == "gaussian":
            return Gaussian(**values)
        if kind == "gaussian-mixture":
            covariances = values.pop("covariances", None)
            weights, means = values.pop("weights"), values.pop("means")
            return GaussianMixture(weights, means, covariances, **values)
        return Learned(folder / values.pop("model"), **values)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"[target] {problem}") from None


def _empirical(data: str, folder: Path) -> Empirical:
    if data == "digits":
        return digits()
    path = folder / data
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"[target] data: there is no file {path}") from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"[target] data: {path} is no .npy array ({problem})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise ValueError(f"[target] data: {path} must hold one numeric array of real numbers")
    return Empirical(array.astype(np.float64), name=path.stem)


def digits() -> Empirical:
    """The 1 797 handwritten digits of 8 x 8 pixels, scaled to [-1, 1] (float64, d = 64).

    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), the test part as in
    scikit-learn; see ``probflow/data/README.md``.
    """
    with (
        resources.as_file(resources.files("probflow") / "data" / "digits.npz") as path,
        np.load(path) as content,
    ):
        images = content["images"].astype(np.float64)
    return Empirical(images / 8.0 - 1.0, name="digits")


def _shape(where: str, value: Any) -> tuple[int, ...]:
    """Shape of nested lists of numbers."""
    if isinstance(value, list):
        shapes = {_shape(where, item) for item in value}
        if len(shapes) == 1:
            return (len(value), *shapes.pop())
        raise ValueError(
            f"{where}: {'rows differ in length' if value else 'is empty'}, got {value}"
        )
    if not is_real(value):
        raise ValueError(f"{where}: need numbers, got {value!r}")
    return ()


_WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _kinds(kinds: Any) -> str:
    """What a value may be, in words."""
    every = kinds if isinstance(kinds, tuple) else (kinds,)
    return " or ".join(_WORDS[kind] for kind in every if not (kind is int and float in every))


def _check_keys(
    table: Any, allowed: Mapping[str, Any], where: str, required: tuple[str, ...] = ()
) -> None:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, got {table!r}")
    for key, value in table.items():
        if key not in allowed:
            raise ValueError(
                f"{where} has the unknown key {key!r}{near(key, allowed)} "
                f"(allowed: {', '.join(allowed)})"
            )
        if not isinstance(value, allowed[key]) or isinstance(value, bool) != (allowed[key] is bool):
            raise ValueError(f"{where}: {key}: need {_kinds(allowed[key])}, got {value!r}")
    for key in required:
        if key not in table:
            raise ValueError(f"{where} needs the key {key!r}")
