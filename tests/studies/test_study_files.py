"""Study files of every kind: a study, or one sentence that names the file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probflow as pf
from probflow.studies.config import PROCESSES, read_study
from probflow.studies.rows import MEASURES

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

GOOD: dict[str, Any] = {
    "name": "a study",
    "solvers": ["ddim", "accelerated-sde"],
    "measures": ["tv", "path-kl"],
    "seed": 3,
    "samples": 16,
    "reference_steps": 32,
    "seeds": 4,
    "timing": 2,
    "target": {
        "kind": "gaussian-mixture",
        "weights": [0.35, 0.65],
        "means": [-1.2, 0.8],
        "stds": [0.3, 0.45],
    },
    "process": {"kind": "vp-linear"},
    "grid": {"kind": "log-snr", "start": 3.0, "end": 0.01, "steps": [2, 4, 8]},
}

scalars = (
    st.booleans()
    | st.integers(-5, 10**20)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec="ascii"), max_size=6)
    | st.sampled_from(["tv", "ddim", "karras", "paper", "gaussian", "empirical", "digits", "edm"])
)
values = scalars | st.lists(scalars, max_size=3) | st.lists(st.lists(scalars, max_size=2))
places = st.sampled_from(
    [(key,) for key in GOOD]
    + [(table, key) for table in ("target", "process", "grid") for key in GOOD[table]]
)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value).replace("\\u007f", "\\u007F")


def text_of(study: dict[str, Any]) -> str:
    known = {key: value for key, value in study.items() if value is not None}
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in known.items())


def check(path: Path) -> bool:
    """Read a file: a sound study (True), or a ValueError of one line that names the file."""
    try:
        study = read_study(path)
    except ValueError as refusal:
        message = str(refusal)
        assert str(path) in message
        assert len(message.splitlines()) <= 3
        return False
    for curve in study.curves:
        assert all(name in MEASURES for name in curve.measures)
        assert list(curve.steps) == sorted(set(curve.steps))
        assert curve.steps[0] >= 1
        assert curve.settings.samples >= 2
        assert study.timing >= 0
        assert 0 <= curve.settings.seed < 2**64
        assert all(math.isfinite(x) for x in (curve.grid.start or 0, curve.grid.end or 0))
    assert study.curves
    return True


def test_the_good_one(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text_of(GOOD))
    assert check(path)
    for kind in PROCESSES:
        if kind not in ("ve", "edm"):  # there -ln ab = 3 is another noise level, and allowed, too
            path.write_text(text_of({**GOOD, "process": {"kind": kind}}))
            assert check(path)


@quick
@given(place=places, value=values, delete=st.booleans(), rename=st.booleans())
def test_one_thing_wrong(tmp_path: Path, place, value, delete: bool, rename: bool) -> None:
    study = copy.deepcopy(GOOD)
    table = study
    for key in place[:-1]:
        table = table[key]
    old = table.pop(place[-1])
    if not delete:
        table[place[-1] + ("x" if rename else "")] = old if rename else value
    path = tmp_path / "study.toml"
    path.write_text(text_of(study))
    read = check(path)
    if rename and not delete:
        assert not read


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("solvers",), [], r"solvers: need a list of names or of tables with a name, got \[\]"),
        (("solvers",), [3], "solvers: need names, or tables with a name and options, got 3"),
        (("solvers",), [{"variant": "bh1"}], r"need names, or tables .*, got {'variant': 'bh1'}"),
        (("solvers",), [{"name": "ddim", "r1": 1}], "solvers: .*ddim .*r1"),
        (("solvers",), [{"name": "unipc-3", "varant": 1}], "near names: variant"),
        (("solvers",), [{"name": "dpm-solver-2", "r1": "x"}], "solvers: r1: .* needs a number"),
        (("solvers",), [{"name": "unipc-3"}, "unipc-3"], "solvers: unipc-3 is given twice"),
        (("solvers",), ["ddin"], "no solver is named 'ddin'; near names: ddim"),
        (("measures",), ["TV"], "measures: got 'TV'; near names: tv; allowed are tv, kl"),
        (("seed",), 1.5, "seed: need a whole number, got 1.5"),
        (("process", "kind"), "vp_liner", "kind: got 'vp_liner'; near names: vp-linear"),
        (("target", "kind"), [1], r"kind: got \[1\], allowed are gaussian"),
        (("target", "weights"), ["a", "b"], "weights: need numbers, got 'a'"),
        (("target", "means"), [True, False], "means: need numbers, got True"),
        (("target", "means"), [[1.0], [2.0, 3.0]], "means: rows differ in length"),
        (("target", "stds"), [], r"stds: is empty, got \[\]"),
        (("grid", "kind"), "restart", "kind: got 'restart', allowed are uniform"),
        (("grid", "kind"), "log_snr", "near names: log-snr; allowed are uniform"),
        (("grid", "start"), "3", "start: need a number, got '3'"),
        (("grid", "steps"), [10**30], "steps: need at most 10000000, got 10000"),
    ],
)
def test_messages_name_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, place, value, message: str
) -> None:
    study = copy.deepcopy(GOOD)
    table = study
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    path = tmp_path / "study.toml"
    path.write_text(text_of(study))
    with pytest.raises(ValueError, match=message):
        read_study(path)


def test_solvers_with_options(tmp_path: Path) -> None:
    """The curves are those of Python's ``pf.get_solver(name, option=...)``."""
    path = tmp_path / "study.toml"
    options = [{"name": "unipc-3", "variant": v} for v in ("bh1", "bh2")]
    path.write_text(text_of({**GOOD, "solvers": ["ddim", *options]}))
    solvers = [curve.solver for curve in read_study(path).curves]
    assert [s.name for s in solvers] == [
        "ddim",
        "unipc-3 (variant=bh1)",
        "unipc-3 (variant=bh2)",
    ]
    assert [s.options for s in solvers[1:]] == [
        pf.get_solver(o["name"], variant=o["variant"]).options for o in options
    ]
    scan = {"axis": "score", "values": [0.1, 0.2]}
    path.write_text(text_of({**GOOD, "solvers": options, "scan": scan, "timing": None}))
    jobs = read_study(path).scans
    assert {job.solver.options["variant"] for job in jobs} == {"bh1", "bh2"}
    assert len({job.folder for job in jobs}) == len(jobs)


@quick
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["name", "variant", "r1", "seed"]), values)
        | st.fixed_dictionaries(
            {"name": st.sampled_from(["unipc-3", "dpm-solver-2", "ddram", "ddim"])},
            optional={"variant": values, "r1": values, "seed": values},
        ),
        max_size=3,
    )
)
def test_any_options(tmp_path: Path, solvers: list[dict[str, Any]]) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text_of({**GOOD, "solvers": solvers}))
    check(path)


@quick
@given(cut=st.integers(0, 400), junk=st.binary(max_size=12))
def test_damaged_files(tmp_path: Path, cut: int, junk: bytes) -> None:
    """Cut off, or overwritten by any bytes."""
    whole = text_of(GOOD).encode()
    path = tmp_path / "study.toml"
    path.write_bytes(whole[:cut] + junk)
    check(path)
    path.write_bytes(whole[:cut] + junk + whole[cut + len(junk) :])
    check(path)


@quick
@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "more"]),
        values | st.dictionaries(st.sampled_from(["kind", "start", "steps", "data"]), values),
    )
)
def test_any_table(tmp_path: Path, study: dict[str, Any]) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text_of(study))
    check(path)


@pytest.mark.parametrize("name", ["folder", "none.toml"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert not check(tmp_path / name)
