"""Scans from study files, and the axis of learned scores."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_study_files import GOOD, scalars, text_of, values

import probflow as pf
from probflow.cli import main
from probflow.studies import scan, study
from probflow.studies.builtin import mixture
from probflow.studies.compare import compare_scans
from probflow.studies.config import read_study
from probflow.studies.fingerprint import digest
from probflow.studies.learned import LearnedScore
from probflow.studies.perturbed import Product, Scaled, ScoreError, correlated
from probflow.studies.scans import read_scans, run_scans, scans_json

LINE = mixture()
VP = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), unit="neg_log_ab")
quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCAN: dict[str, Any] = {
    **{key: value for key, value in GOOD.items() if key != "timing"},
    "solvers": ["rk4"],
    "measures": ["tv"],
    "grid": {"kind": "log-snr", "start": 3.0, "end": -math.log(0.99), "steps": [24]},
    "scan": {"axis": "score", "values": [0.001, 0.002, 0.004, 0.008, 0.016]},
}


def write(path: Path, **changed: Any) -> Path:
    path.write_text(text_of({**SCAN, **changed}))
    return path


class Shifted(torch.nn.Module):
    """The score of N(0, v) on the linear VP process, off by a constant."""

    def __init__(self, variance: float, shift: float) -> None:
        super().__init__()
        self.variance, self.shift = variance, shift

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        ab = torch.exp(-(0.1 * t + 0.5 * (20.0 - 0.1) * t * t)).unsqueeze(-1)
        return self.shift - x / (ab * self.variance + 1.0 - ab)


def network(path: Path, shift: float, variance: float = 0.3) -> Path:
    torch.jit.script(Shifted(variance, shift)).save(str(path))
    return path


# Learned scores ---------------------------------------------------------------------------------


def test_a_learned_score_is_the_network_with_the_exact_laws(tmp_path: Path) -> None:
    base = pf.Gaussian([0.0, 0.0], [0.3, 0.3])
    learned = LearnedScore(network(tmp_path / "net.pt", 0.1), base, VP, "score")
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in ((0.8, 0.6), (torch.full((5,), 0.8), torch.full((5,), 0.6))):
        right = base.score(x, alpha, sigma)
        torch.testing.assert_close(learned.score(x, alpha, sigma), right + 0.1, atol=1e-6, rtol=0)
    score, jacobian = learned.score_and_jacobian(x, 0.8, 0.6)
    torch.testing.assert_close(score, right + 0.1, atol=1e-6, rtol=0)
    wanted = base.score_and_jacobian(x, 0.8, 0.6)[1]
    torch.testing.assert_close(jacobian, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(learned.log_prob(x, 0.8, 0.6), base.log_prob(x, 0.8, 0.6))
    size = learned.l2_error([0.9, 0.5, 0.1], 100, generator=torch.Generator().manual_seed(0))
    assert size == pytest.approx(0.1 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ["strong", "path-kl", "tv", "kl"])
def test_measures_of_a_learned_score_are_those_of_that_error(
    tmp_path: Path, d: int, name: str
) -> None:
    """A constant error by a network and by ScoreError: the same numbers, against the truth."""
    base = pf.Gaussian(np.zeros(d), np.full(d, 0.3))
    learned = LearnedScore(network(tmp_path / "net.pt", 0.1), base, VP, "score")
    solver = "ddpm" if name == "path-kl" else "heun"
    options = {"grid": GRID, "samples": 50}
    [one] = study(learned, solver, (16,), name, **options).rows
    [other] = study(ScoreError(base, 0.1 * math.sqrt(d)), solver, (16,), name, **options).rows
    [exact] = study(base, solver, (16,), name, **options).rows
    assert one.error == pytest.approx(other.error, rel=1e-3)
    assert one.error != pytest.approx(exact.error, rel=0.01)


def test_the_axis_of_learned_scores(tmp_path: Path) -> None:
    base = pf.Gaussian([0.0], [0.3])
    shifts = [0.004 * 2**k for k in range(5)]
    networks = [
        LearnedScore(network(tmp_path / f"net{k}.pt", shift), base, VP, "score")
        for k, shift in enumerate(shifts)
    ]
    result = scan("learned", networks, None, "rk4", 32, grid=GRID)
    assert result.values == pytest.approx(sorted(shifts, reverse=True), rel=1e-5)
    assert result.low < 1.0 < result.high
    known = scan("score", shifts, base, "rk4", 32, grid=GRID)
    for row, other in zip(result.rows, known.rows, strict=True):
        assert row.error == pytest.approx(other.error, rel=1e-3)
        assert row.floor == pytest.approx(other.floor, rel=1e-6)  # the solver's on the exact score
    with pytest.raises(TypeError, match="values: need LearnedScore targets, got float"):
        scan("learned", [0.1], None, "rk4", 8)
    with pytest.raises(ValueError, match="target: needed on the axis 'score'"):
        scan("score", [0.1, 0.2], None, "rk4", 8)


def test_other_weights_are_another_target(tmp_path: Path) -> None:
    """The file's content counts, not its name; a worker that reads another one says so."""
    path = network(tmp_path / "net.pt", 0.1)
    base = pf.Gaussian([0.0], [0.3])
    before = LearnedScore(path, base, VP, "score")
    assert digest(before) == digest(LearnedScore(path, base, VP, "score"))
    sent = pickle.dumps(before)
    assert digest(pickle.loads(sent)) == digest(before)
    network(path, 0.2)
    assert digest(LearnedScore(path, base, VP, "score")) != digest(before)
    with pytest.raises(ValueError, match=r"net.pt changed while the study ran"):
        pickle.loads(sent)


# Correlated targets -----------------------------------------------------------------------------


def test_scaled_and_correlated() -> None:
    wide = pf.GaussianMixture([0.35, 0.65], [-2.4, 1.6], stds=[0.6, 0.9])
    scaled, x = Scaled(LINE, 2.0), torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(scaled.score(x, 0.8, 0.6), wide.score(x, 0.8, 0.6))
    torch.testing.assert_close(scaled.log_prob(x, 0.8, 0.6), wide.log_prob(x, 0.8, 0.6))
    for one, other in zip(scaled.moments(0.8, 0.6), wide.moments(0.8, 0.6), strict=True):
        np.testing.assert_allclose(one, other)
    for name in ("tv", "strong"):
        rows = [study(target, "heun", (8,), name).rows[0] for target in (scaled, wide)]
        assert rows[0].error == pytest.approx(rows[1].error, rel=1e-6)
    index = np.arange(4)
    for decay, matrix in (
        (False, np.full((4, 4), 0.5) + 0.5 * np.eye(4)),
        (True, 0.5 ** np.abs(index[:, None] - index)),
    ):
        product = correlated(LINE, 4, 0.5, decay=decay)
        assert product.name == f"product-4d (correlation 0.5{', decaying' if decay else ''})"
        spread = np.diag(product.moments()[1]) / LINE.moments()[1][0, 0]
        np.testing.assert_allclose(sorted(spread), np.linalg.eigvalsh(matrix))
    assert all(factor is LINE for factor in correlated(LINE, 3).factors)
    with pytest.raises(ValueError, match="correlation: need a number in"):
        correlated(LINE, 2, 1.0)
    with pytest.raises(ValueError, match="d: need a whole number"):
        correlated(LINE, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale: need a finite number > 0"):
        Scaled(LINE, 0.0)


# Study files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "solver", "measure", "target"),
    [
        ({"axis": "score", "values": [0.01, 0.02]}, "ddim", "tv", LINE),
        ({"axis": "dimension", "values": [1, 3]}, "ddim", "kl", lambda d: Product([LINE] * d)),
        (
            {"axis": "dimension", "values": [1, 3], "correlation": 0.5, "decay": True},
            "ddpm",
            "path-kl",
            lambda d: correlated(LINE, d, 0.5, decay=True),
        ),
        (
            {"axis": "smoothness", "values": [0.2, 0.4]},
            "ddim",
            "tv",
            lambda s: pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[s, s]),
        ),
        ({"axis": "early", "values": [0.01, 0.1]}, "ddim", "w2", LINE),
    ],
)
def test_a_file_says_what_scan_is_called_with(
    tmp_path: Path, own: dict, solver: str, measure: str, target: Any
) -> None:
    path = write(tmp_path / "scan.toml", scan=own, solvers=[solver], measures=[measure])
    [job] = read_study(path).scans
    [result] = run_scans([job]).scans
    called = scan(own["axis"], own["values"], target, solver, 24, measure, grid=GRID, process=VP)
    assert [row.error for row in result.rows] == [row.error for row in called.rows]
    assert result.x == called.x


def test_the_reference_of_a_file_is_that_of_the_scan(tmp_path: Path) -> None:
    """In the plane the strong error is that from a fine run, whose steps the file gives."""
    own = {"axis": "score", "values": [0.1, 0.2]}
    target = {"kind": "gaussian-mixture", "weights": [1, 2], "stds": [0.4, 0.7]}
    target["means"] = [[-1.0, 0.3], [1.5, -0.4]]
    given = {"scan": own, "target": target, "measures": ["strong"], "solvers": ["ddim"]}
    errors = []
    for steps in (2, 64):
        path = write(tmp_path / f"{steps}.toml", **given, reference_steps=steps)
        [result] = run_scans(read_study(path).scans).scans
        errors.append(result.rows[0].error)
    assert abs(errors[0] / errors[1] - 1) > 1e-3


def test_every_solver_measure_and_step_count(tmp_path: Path) -> None:
    grid = {**SCAN["grid"], "steps": [4, 8]}
    path = write(tmp_path / "s.toml", solvers=["ddim", "heun"], measures=["tv", "w2"], grid=grid)
    content = read_study(path)
    assert content.curves == ()
    assert len({(j.solver.name, j.measure, j.steps) for j in content.scans}) == 8
    assert {job.settings.seed for job in content.scans} == {GOOD["seed"]}


def test_checkpoints_in_a_file(tmp_path: Path) -> None:
    for k in range(3):
        network(tmp_path / f"net{k}.pt", 0.01 * 2**k)
    own = {"axis": "learned", "checkpoints": [f"net{k}.pt" for k in range(3)]}
    own["prediction"] = "score"
    target = {"kind": "gaussian", "mean": [0.0], "covariance": 0.3}
    [result] = run_scans(
        read_study(write(tmp_path / "s.toml", scan=own, target=target)).scans
    ).scans
    assert result.values == pytest.approx([0.04, 0.02, 0.01], rel=1e-5)
    assert "usable points" in result.reason  # three are too few for a slope


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scan": {"axis": "time", "values": [1.0, 2.0]}}, r"\[scan\] axis: got 'time'"),
        ({"scan": {"axis": "score"}}, r"\[scan\] needs values on the axis 'score'"),
        ({"scan": {"axis": "score", "values": [1.0]}}, "at least two different ones"),
        ({"scan": {"axis": "score", "values": [1.0, 1.0]}}, "at least two different ones"),
        ({"scan": {"axis": "score", "values": [1.0, -1.0]}}, "need positive finite numbers"),
        ({"scan": {"axis": "score", "values": ["a", 1.0]}}, "need positive finite numbers"),
        ({"scan": {"axis": "score", "values": [1, 2], "decay": True}}, "not decay"),
        ({"scan": {"axis": "dimension", "values": [1, 2.5]}}, "d: need a whole number"),
        (
            {"scan": {"axis": "dimension", "values": [1, 2], "decay": 1}},
            "need true or false, got 1",
        ),
        ({"scan": {"axis": "learned", "values": [1.0, 2.0]}}, r"needs checkpoints .*, not values"),
        ({"scan": {"axis": "learned", "checkpoints": ["no.pt", "n.pt"]}}, "there is no file"),
        ({"scan": {"axis": "learned", "checkpoints": [1, 2]}}, "need names of files"),
        ({"timing": 3}, "timing: not for a scan"),
        ({"solvers": ["dimm"]}, "ddim"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_study(write(tmp_path / "scan.toml", **changed))
    assert "scan.toml" in str(caught.value)


@quick
@given(
    axis=st.sampled_from(["score", "jacobian", "dimension", "initial", "early", "smoothness"]),
    place=st.sampled_from(["axis", "values", "correlation", "decay", "checkpoints", "more"]),
    value=values,
    whole=st.booleans(),
)
def test_one_thing_wrong(tmp_path: Path, axis: str, place: str, value: Any, whole: bool) -> None:
    """A scan, or a message that names the file."""
    content = copy.deepcopy(SCAN)
    content["scan"] = {"axis": axis, "values": [1, 2, 4]}
    if whole:
        content["scan"] = value
    else:
        content["scan"][place] = value
    path = tmp_path / "scan.toml"
    path.write_text(text_of(content))
    try:
        jobs = read_study(path).scans
    except ValueError as refusal:
        if str(path) not in str(refusal):
            raise
        return
    for job in jobs:
        assert len(set(job.values)) == len(job.values) >= 2
        assert all(0 < v < math.inf for v in job.values)


@quick
@given(st.dictionaries(st.sampled_from(["axis", "values", "checkpoints", "decay"]), scalars))
def test_any_table(tmp_path: Path, own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scan\.toml"):
        read_study(write(tmp_path / "scan.toml", scan=own))


# The command line and the folder ----------------------------------------------------------------


def test_the_command_line(tmp_path: Path, capsys) -> None:
    path, out = write(tmp_path / "scan.toml"), tmp_path / "out"
    command = ["rates", str(path), "--out", str(out), "--jobs", "1", "--no-progress"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Slopes along L2 size of the score error" in printed
    assert "| rk4 | 24 |" in printed
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["figures", "tables", "scans", "scans.json", "provenance.json", "report.md", "report.html"]
    )
    assert sorted(p.name for p in (out / "figures").iterdir()) == [
        f"scan-tv.{end}" for end in ("pdf", "png", "svg", "tex")
    ]
    text = (out / "report.md").read_text()
    assert text.startswith("# a study\n")
    picture = (out / "figures" / "scan-tv.svg").read_text()
    assert "rk4, T = 24: 1.0" in picture
    assert "L2 size of the score error" in picture
    assert "rk4, T = 24: 1.0" in (out / "report.html").read_text()
    latex = (out / "tables" / "tv.tex").read_text()
    assert latex.count(r"\midrule") == 1
    assert r"\label{tab:scan-tv-rk4-24}" in latex
    assert "value & error & floor" in latex  # x is the value, and there is no standard error
    caption = (out / "figures" / "scan-tv.tex").read_text()
    for page in (latex, caption, text):  # target, grid, measure, window, seed, versions
        for told in ("gaussian-mixture-1d", "grid log-snr", "TV", "seed ", "probflow "):
            assert told in page.replace("$", "").replace("-{}", "-"), told
        assert "fit window" in page.lower()
    [entry] = json.loads((out / "scans.json").read_text())["scans"]
    assert entry["low"] < 1.0 < entry["high"]
    assert [row["status"] for row in entry["rows"]] == ["ok"] * 5
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main([*command, "--resume"]) == 0
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert main([*command, "--timing", "3"]) == 2
    assert "--timing: not for a scan" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*command, "--out", str(tmp_path / "file" / "x")]) == 2
    assert f"cannot write a report to {tmp_path / 'file' / 'x'}" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    assert main([*command, "--out", str(tmp_path / "notes")]) == 2
    assert "holds files but no earlier report" in capsys.readouterr().err
    assert main(["sample", "--target", str(path)]) == 2
    assert "is a scan, with many targets" in capsys.readouterr().err


def test_a_report_from_the_folder_of_a_scan(tmp_path: Path, capsys) -> None:
    """The same bytes, elsewhere too, and at the width of a venue's columns."""
    path, out, other = write(tmp_path / "scan.toml"), tmp_path / "out", tmp_path / "other"
    command = ["rates", str(path), "--out", str(out), "--jobs", "1", "--no-progress"]
    assert main([*command, "--venue", "icml"]) == 0
    written = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    names = {p.as_posix() for p in written}
    assert {"tables/tv-column.tex", "figures/scan-tv-column.pdf", "tables/summary.csv"} <= names
    assert main(["report", str(out), "--out", str(other), "--venue", "icml"]) == 0
    again = {p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    assert again == {p: data for p, data in written.items() if p.parts[0] != "scans"}
    assert read_scans(out) == read_scans(out / "scans.json")
    assert main(["report", str(out)]) == 0
    assert not (out / "figures" / "scan-tv-column.pdf").exists()
    capsys.readouterr()
    (out / "scans.json").write_text("{}")
    assert main(["report", str(out)]) == 2
    assert "scans.json cannot be read" in capsys.readouterr().err


def test_a_scan_against_an_earlier_one(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["rates", str(write(tmp_path / "scan.toml")), "--out", str(out), "--jobs", "1"]
    assert main([*command, "--no-progress"]) == 0
    assert main([*command, "--resume", "--compare", str(out), "--no-progress"]) == 0
    assert "5 cells, 0 changed beyond noise, 0 verdicts worse" in capsys.readouterr().out
    [good] = read_scans(out).scans
    rows = tuple(replace(row, error=2 * row.error) for row in good.rows)
    bad = replace(good, rows=rows, slope=math.nan, low=math.nan, high=math.nan, reason="no power")
    found = compare_scans([good], [bad])
    assert len(found.cells) == 5
    assert found.cells[0].endswith("(+100.0%)")
    [worse] = found.worse
    assert worse.startswith("rk4, tv, T = 24, score: slope 1.0")
    assert worse.endswith("-> nan (no power)")
    assert compare_scans([bad], [good]).worse == ()
    assert compare_scans([bad], [good]).verdicts != ()
    noise = replace(bad, rows=good.rows)  # no error changed
    assert (compare_scans([good], [noise]).worse, compare_scans([good], [good]).verdicts) == (
        (),
        (),
    )
    fewer = replace(good, rows=good.rows[1:], values=good.values[1:], x=good.x[1:])
    [missing] = compare_scans([good], [fewer]).missing
    assert missing.endswith("in the baseline only")
    other = replace(good, rows=tuple(replace(row, solver="heun") for row in good.rows))
    [gone] = compare_scans([good, other], [good]).worse
    assert gone.startswith("heun, tv, T = 24, score: slope 1.0")
    assert gone.endswith("gone with its scan")
    with pytest.raises(ValueError, match="has no value of these scans"):
        compare_scans([], [good])


def test_resumed_after_a_stop_between_two_scans(tmp_path: Path, monkeypatch) -> None:
    """What is finished is not measured again, and the result is the same."""
    from probflow.studies import work

    path = write(tmp_path / "scan.toml", measures=["tv", "kl"])
    jobs = read_study(path).scans
    whole = scans_json(run_scans(jobs))
    count = [0]
    real = work.measure_cells

    def stop(task, reference=None):
        count[0] += 1
        if count[0] == 10:
            raise KeyboardInterrupt
        return real(task, reference)

    monkeypatch.setattr(work, "measure_cells", stop)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_scans(jobs, out=out)
    assert not (out / "scans.json").exists()
    result = run_scans(jobs, out=out, resume=True)
    assert scans_json(result) == whole == (out / "scans.json").read_text()
    assert count[0] == 10 + 2 * 6 - 9
