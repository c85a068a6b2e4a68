"""The command line: results, exit codes, and one clear sentence for each kind of bad input."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.cli import main
from probflow.solvers.embedded import PAIRS
from probflow.studies import builtin, figures
from probflow.studies.config import read_study

STUDY = """
solvers  = ["ddim", "accelerated-sde"]
measures = ["tv", "path-kl"]
[target]
kind = "gaussian-mixture"
weights = [0.35, 0.65]
means   = [-1.2, 0.8]
stds    = [0.30, 0.45]
[grid]
kind  = "exponential"
start = 3.0
end   = 0.01005033585350145
steps = [8, 16, 32, 64, 128]
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_rates_writes_the_whole_report(study_file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report"
    assert run("rates", study_file, "--out", out, "--jobs", 1, "--no-progress") == 0
    for name in ("report.md", "results.jsonl", "orders.json", "provenance.json"):
        assert (out / name).is_file()
    assert list((out / "figures").glob("*.pdf"))
    assert list((out / "tables").glob("*.tex"))
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 5
    keys = "target solver grid steps nfe h_max measure error se floor eoc in_window status note"
    assert set(rows[0]) == {*keys.split(), "h_lambda"}
    refused = [row for row in rows if row["solver"] == "ddim" and row["measure"] == "path-kl"]
    assert all(row["status"].startswith("refused: ddim is deterministic") for row in refused)
    assert all(row["error"] is None for row in refused)
    orders = {
        (order["solver"], order["measure"]): order
        for order in json.loads((out / "orders.json").read_text())
    }
    wanted = {"solver", "measure", "axis", "order", "low", "high", "claim", "verdict", "reason"}
    assert wanted <= set(orders["ddim", "tv"])
    assert orders["ddim", "tv"]["claim"] == 1
    assert orders["accelerated-sde", "path-kl"]["claim"] == 1
    assert "accelerated-sde" in capsys.readouterr().out


def test_rates_is_byte_identical_on_a_second_run_and_for_any_number_of_jobs(
    study_file: Path, tmp_path: Path
) -> None:
    for name, jobs in (("a", 1), ("b", 2)):
        arguments = ("rates", study_file, "--out", tmp_path / name, "--jobs", jobs)
        assert run(*arguments, "--no-progress") == 0
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_paper_grid_is_fitted_in_steps(tmp_path: Path) -> None:
    text = STUDY.replace('kind  = "exponential"', 'kind = "paper"\nc0 = 1.0\nc1 = 2.0')
    text = text.replace("start = 3.0\n", "").replace("end   = 0.01005033585350145\n", "")
    path = tmp_path / "paper.toml"
    path.write_text(text.replace('"path-kl"', '"w2"').replace("[8, 16, 32,", "[32, 48,"))
    assert run("rates", path, "--out", tmp_path / "out", "--jobs", 1, "--no-progress") == 0
    orders = json.loads((tmp_path / "out" / "orders.json").read_text())
    assert {order["axis"] for order in orders} == {"T"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("solvers ", "solvrs ", "unknown key 'solvrs'; near names: solvers"),
        ('"ddim"', '"dimm"', "no solver is named 'dimm'; near names: ddim"),
        ('"tv"', '"tvv"', "measures: got 'tvv'; near names: tv; allowed are tv, kl, w2"),
        ("[8, 16", "[0, 16", "steps: need a whole number >= 1, got 0"),
        ("[8, 16", "[16, 16", "steps: need increasing step counts"),
        ("steps = [8, 16, 32, 64, 128]", "", "[grid] needs steps"),
        ("start = 3.0", "start = 0.001", "start must be the noisier"),
        ("start = 3.0", "start = 300.0", "outside the process"),
        ("start = 3.0", 'start = "x"', "[grid]: start: need a number, got 'x'"),
        (
            '"exponential"',
            '"expo"',
            "[grid] kind: got 'expo'; near names: exponential; allowed",
        ),
        ("stds    = [0.30, 0.45]", "stds = [0.3]", "stds: need shape (2,) or (2, 1), got (1,)"),
        ('"gaussian-mixture"', '"cauchy"', "[target] kind: got 'cauchy', allowed are"),
        ("weights = [0.35, 0.65]\n", "", "[target] needs the key 'weights'"),
        (
            "[grid]",
            '[process]\nkind = "vq"\n[grid]',
            "[process] kind: got 'vq'; near names: ve",
        ),
        ("[grid]", "[grid", "is not valid TOML"),
        ("solvers ", 'name = ""\nsolvers ', "name: must not be empty, got ''"),
    ],
)
def test_bad_study_files(
    study_file: Path, tmp_path: Path, capsys, old: str, new: str, message: str
) -> None:
    assert old in STUDY
    study_file.write_text(STUDY.replace(old, new))
    assert run("rates", study_file, "--out", tmp_path / "out", "--no-progress") == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "study.toml" in captured.err
    assert not (tmp_path / "out").exists()


def test_missing_files_and_unwritable_folders(study_file: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run("rates", tmp_path / "none.toml") == 2
    assert "there is no file" in capsys.readouterr().err
    assert run("rates", study_file, "--out", file / "x") == 2
    assert "is not a folder" in capsys.readouterr().err
    text = STUDY.replace('"gaussian-mixture"', '"empirical"\ndata = "none.npy"')
    for line in ("weights = [0.35, 0.65]\n", "means   = [-1.2, 0.8]\n", "stds    = [0.30, 0.45]\n"):
        text = text.replace(line, "")
    study_file.write_text(text)
    assert run("rates", study_file, "--out", tmp_path / "out") == 2
    assert "[target] data: there is no file" in capsys.readouterr().err
    for wrong in (np.array(["a", "b"]), np.array([1.0 + 2.0j])):
        np.save(tmp_path / "none.npy", wrong)
        assert run("rates", study_file, "--out", tmp_path / "out") == 2
        assert "one numeric array of real numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--jobs", 0), "jobs: need a whole number >= 1"),
        (("--seed", -1), "seed: need a whole number in"),
    ],
)
def test_bad_flags(study_file: Path, tmp_path: Path, capsys, arguments, message: str) -> None:
    assert run("rates", study_file, "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_solvers_lists_the_registry(capsys) -> None:
    assert run("solvers") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*pf.solver_names(), *PAIRS))


@pytest.mark.parametrize("name", pf.solver_names(aliases=True))
def test_solvers_prints_each(name: str, capsys) -> None:
    assert run("solvers", name) == 0
    text = capsys.readouterr().out
    solver = pf.get_solver(name)
    assert solver.equation.splitlines()[0] in text
    assert solver.reference in text
    assert "x' =" in text
    assert run("solvers", name, "--latex") == 0
    latex = capsys.readouterr().out
    rows = re.findall(r"^(?:[fj]\d+|x') =", text.split("step 1 of 4")[1], re.MULTILINE)
    assert latex.count(r"\\") == len(rows) + 1


@pytest.mark.parametrize("name", PAIRS)
def test_solvers_prints_embedded_pairs(name: str, capsys) -> None:
    assert run("solvers", name) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}\n")
    assert PAIRS[name].reference in text
    assert f"order:      {PAIRS[name].order} in TV" in text
    assert run("solvers", name, "--latex") == 2
    assert "has no plan on a grid" in capsys.readouterr().err


def test_solvers_bad_name(capsys) -> None:
    assert run("solvers", "dpm-solver") == 2
    assert "near names: dpm-solver-" in capsys.readouterr().err


def test_solvers_bad_flags(capsys) -> None:
    for step in (-1, 4, 99):
        assert run("solvers", "ddim", "--step", step) == 2
        captured = capsys.readouterr()
        assert f"--step: need a whole number from 0 to 3, got {step}" in captured.err
        assert not captured.out
    assert run("solvers", "ddim", "--steps", 1) == 0
    assert "step 0 of 1" in capsys.readouterr().out
    assert run("solvers", "--latex") == 2
    assert "--latex: prints a tableau, so it needs the name" in capsys.readouterr().err
    assert run("solvers", "ddim", "--markdown") == 2
    assert "--markdown: prints the list, so it takes no name, got ddim" in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end() -> None:
    """As ``| head`` does: no traceback."""
    command = [sys.executable, "-m", "probflow.cli", "solvers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_study_file_with_a_byte_order_mark(study_file: Path) -> None:
    plain = read_study(study_file)
    study_file.write_bytes(b"\xef\xbb\xbf" + study_file.read_bytes())
    assert [c.solver for c in read_study(study_file).curves] == [c.solver for c in plain.curves]


@pytest.mark.parametrize(("target", "shape"), [("digits", (64,)), ("mixture", (1,))])
def test_sample_from_targets(tmp_path: Path, target: str, shape: tuple[int, ...]) -> None:
    common = ("sample", "--target", target, "-n", 9, "--steps", 8, "--no-progress")
    assert run(*common, "--out", tmp_path / "a") == 0
    assert run(*common, "--out", tmp_path / "b", "--solver", "accelerated-sde", "--seed", 1) == 0
    a, b = (np.load(tmp_path / name / "samples.npy") for name in "ab")
    assert a.shape == b.shape == (9, *shape)
    assert not np.allclose(a, b)
    assert (tmp_path / "a" / "samples.png").stat().st_size > 1000


def test_sample_from_a_study_file(study_file: Path, tmp_path: Path) -> None:
    arguments = ("sample", "--target", study_file, "-n", 4, "--out", tmp_path, "--no-progress")
    assert run(*arguments) == 0
    assert np.load(tmp_path / "samples.npy").shape == (4, 1)


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * t[:, None, None, None] / 1000


def test_sample_from_a_checkpoint(tmp_path: Path, capsys) -> None:
    path = tmp_path / "network.pt2"
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(2, 3, 8, 8), torch.zeros(2))
    shapes = ({0: batch}, {0: batch})
    torch.export.save(torch.export.export(Network(), example, dynamic_shapes=shapes), path)
    arguments = ["sample", "--checkpoint", path, "--shape", "3,8,8", "--time-scale", 1000]
    arguments += ["-n", 5, "--steps", 4, "--out", tmp_path, "--no-progress"]
    assert run(*arguments) == 0
    process = pf.VP.linear()
    model = pf.Model(Network(), process, time=lambda t: 1000 * t)
    wanted = pf.sample(
        model,
        (5, 3, 8, 8),
        steps=4,
        grid=pf.grids.log_snr(),
        seed=0,
        solver="accelerated-ode-multistep",
    )
    assert np.allclose(np.load(tmp_path / "samples.npy"), wanted.numpy(), atol=1e-5)
    for shape, reason in (("3,9,8", "x.size()[2] == 8"), ("3,8", "out of range")):
        arguments[4] = shape
        capsys.readouterr()
        assert run(*arguments) == 2
        assert "--shape: " in (error := capsys.readouterr().err)
        assert reason in error


@pytest.mark.parametrize("tolerances", [(), ("--rtol", 0.01, "--atol", 0.001)])
def test_sample_with_steps_of_the_solvers_choice(tmp_path: Path, tolerances) -> None:
    arguments = ("sample", "--target", "mixture", "--solver", "dpm-solver-12", "-n", 4)
    assert run(*arguments, *tolerances, "--out", tmp_path) == 0
    options = dict(zip(("rtol", "atol"), tolerances[1::2], strict=False))
    target, process = builtin.mixture(), pf.VP.linear()
    wanted = pf.sample(
        target, (4, 1), "dpm-solver-12", process=process, grid="log-snr", seed=0, **options
    )
    assert np.array_equal(np.load(tmp_path / "samples.npy"), wanted.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "nothing"), "--target: need digits, mixture or a .toml file"),
        (("--steps", 0), "steps: need a whole number >= 1"),
        (("-n", 0), "--number: need at least 1"),
        (("--solver", "dimm"), "near names: ddim"),
        (("--process", "vq"), "--process: got 'vq'; near names: ve; allowed are"),
        (("--checkpoint", "none.pt"), "--checkpoint: there is no file"),
        (("--shape", "3,8,8"), "--shape: says what a --checkpoint is"),
        (("--prediction", "v"), "--prediction: says what a --checkpoint is"),
        (("--time-scale", 1000), "--time-scale: says what a --checkpoint is"),
        (("--solver", "dpm-solver-12", "--steps", 4), "steps: not for dpm-solver-12"),
        (("--rtol", 0.1), "rtol, atol, per_sample: they are for a solver that chooses its steps"),
        (("--grid", "expo"), "kind: got 'expo'; near names: exponential, explicit; allowed are"),
    ],
)
def test_sample_bad_input(tmp_path: Path, capsys, arguments, message: str) -> None:
    assert run("sample", "--out", tmp_path / "out", "--no-progress", *arguments) == 2
    assert message in capsys.readouterr().err


def test_checkpoint_that_is_none(tmp_path: Path, capsys) -> None:
    path = tmp_path / "network.pt"
    path.write_text("nothing")
    assert run("sample", "--checkpoint", path, "--out", tmp_path) == 2
    assert "--shape: needed" in capsys.readouterr().err
    assert run("sample", "--checkpoint", path, "--shape", "3,x", "--out", tmp_path) == 2
    assert "--shape: need whole numbers" in capsys.readouterr().err
    assert run("sample", "--checkpoint", path, "--shape", "3,8,8", "--out", tmp_path) == 2
    assert "neither TorchScript nor torch.export" in capsys.readouterr().err


# Resuming and comparing -------------------------------------------------------------------------


def test_rates_resumes_and_compares(study_file: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """An interrupted study keeps its cells, is refused without --resume, and ends the same."""
    from probflow.studies import runner

    study_file.write_text(STUDY.replace(", 64, 128]", "]"))
    common = ("rates", study_file, "--jobs", 1, "--no-progress", "--out")
    assert run(*common, tmp_path / "whole") == 0
    out = tmp_path / "out"
    append = runner.Store.append
    with monkeypatch.context() as patch:

        def full(self, cell):
            if len(self) == 6:
                raise OSError(28, "No space left on device")
            append(self, cell)

        patch.setattr(runner.Store, "append", full)
        assert run(*common, out) == 2
    capsys.readouterr()
    assert sorted(p.name for p in out.iterdir()) == ["cells.partial.jsonl", "study.json"]
    assert run(*common, out) == 2
    assert (
        "holds an unfinished study; resume it (resume=True, --resume), or remove"
        in capsys.readouterr().err
    )
    with open(out / "cells.partial.jsonl", "a") as file:
        file.write("half a li")
    old = tmp_path / "whole" / "results.jsonl"
    assert run(*common, out, "--resume", "--compare", old) == 0
    captured = capsys.readouterr()
    assert "damaged in line 7; what stood there is measured again" in captured.err
    assert "12 cells, 0 changed beyond noise, 0 verdicts worse" in captured.out
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()


def test_rates_compare_says_what_got_worse(
    study_file: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """A baseline in which a solver was of a higher order than now."""
    study_file.write_text(STUDY.replace('"ddim", ', "").replace(', "path-kl"', ""))
    out = tmp_path / "out"
    common = ("rates", study_file, "--jobs", 1, "--no-progress", "--out", out, "--resume")
    assert run(*common) == 0
    old = tmp_path / "old.jsonl"
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["error"] = 1.0 / row["steps"]  # consistent with order 1, which now is undecided
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(figures, "study_report", lambda *_, **__: None)  # the same report again
    capsys.readouterr()
    assert run(*common, "--compare", old) == 1
    text = capsys.readouterr().out
    assert "5 changed beyond noise, 1 verdicts worse" in text
    assert "consistent -> inconclusive" in text
    (tmp_path / "torn.jsonl").write_text(old.read_text()[:-5])
    for wrong, message in ((tmp_path / "torn.jsonl", "line 5: torn"), (out, "is a folder")):
        assert run(*common, "--compare", wrong) == 2
        assert message in capsys.readouterr().err


# Reports of runs --------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_report_is_that_of_rates_again(study_file: Path, tmp_path: Path, capsys) -> None:
    text = STUDY.replace(", 64, 128]", "]").replace(', "path-kl"', "")
    study_file.write_text("pictures = 4\ntiming = 1\n" + text)
    out = tmp_path / "run"
    arguments = ("rates", study_file, "--jobs", 1, "--no-progress", "--venue", "icml")
    assert run(*arguments, "--out", out) == 0
    before = files_of(out)
    assert {name.rsplit("/", 1)[-1] for name in before} >= {
        *("report.html", "report.md", "study.json", "pictures.jsonl", "timings.jsonl"),
        *("gaussian-mixture-1d-tv-column.pdf", "gaussian-mixture-1d-tv-column.tex"),
        *("gaussian-mixture-1d-tv-work-precision.pdf", "summary-column.tex"),
        *("gaussian-mixture-1d-densities.svg", "gaussian-mixture-1d-trajectory-tv.tex"),
        "gaussian-mixture-1d-tv.tex",
    }
    assert run("report", out, "--venue", "icml") == 0
    assert files_of(out) == before
    capsys.readouterr()
    other = tmp_path / "other"
    assert run("report", out, "--out", other, "--venue", "siam") == 0
    captured = capsys.readouterr().out
    assert "accelerated-sde" in captured
    assert str(other / "report.html") in captured
    assert files_of(out) == before
    assert not [name for name in files_of(other) if "column" in name]
    text = (other / "report.md").read_text()
    assert "TV(q, p) on gaussian-mixture-1d, grid exponential, -ln ab 3 to 0.0100503" in text
    assert "seed 0; float64 on cpu; probflow " in text.lower()


def test_report_of_an_unfinished_study(study_file: Path, tmp_path: Path, monkeypatch) -> None:
    from probflow.studies import runner

    study_file.write_text(STUDY.replace(', "path-kl"', ""))
    out, append = tmp_path / "run", runner.Store.append

    def interrupt(self, cell):
        append(self, cell)
        if len(self) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.Store, "append", interrupt)
    arguments = ("rates", study_file, "--jobs", 1, "--no-progress", "--out", out)
    assert run(*arguments) == 130
    text = (out / "report.md").read_text()
    assert "The study is not complete: 2 of 10 cells are missing." in text
    assert text.startswith("# study\n")
    before = files_of(out)
    assert run("report", out) == 0
    assert files_of(out) == before
    monkeypatch.undo()
    assert run(*arguments, "--resume") == 0
    assert "not complete" not in (out / "report.md").read_text()


def test_report_of_what_is_none(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "cells.jsonl").write_text("half a li")
    for folder, message in (
        ("nowhere", f"run folder: there is no folder {tmp_path / 'nowhere'}"),
        ("empty", f"run folder: {tmp_path / 'empty'} holds no cells of a study"),
        ("torn", f"run folder: {tmp_path / 'torn' / 'cells.jsonl'}, line 1: torn"),
    ):
        assert run("report", tmp_path / folder) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert run("report", tmp_path, "--venue", "jlmr") == 2
    assert "venue: got 'jlmr'; near names: jmlr" in capsys.readouterr().err


def test_a_terminal_without_dashes(study_file: Path, tmp_path: Path, monkeypatch) -> None:
    """The summary has signs that some locales lack; the report is written, and the exit code 0."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    assert run("rates", study_file, "--out", tmp_path / "r", "--jobs", 1, "--no-progress") == 0
    sys.stdout.flush()
    assert b"| 8?128 |" in screen.getvalue()
