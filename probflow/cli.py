"""The command line: ``probflow rates``, ``report``, ``solvers`` and ``sample``."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probflow._version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    It is 1 if ``--compare`` finds a verdict that got worse or nobody reads the output to its end,
    2 for bad input, 130 if interrupted.
    """
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a dash where the locale has none is a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of ``| head``, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 1
    except (ValueError, TypeError, OSError) as problem:
        print(f"probflow: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("probflow: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="probflow",
        description="Diffusion samplers as ODE/SDE solvers, with measured orders of convergence.",
    )
    parser.add_argument("--version", action="version", version=f"probflow {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    rates = commands.add_parser("rates", help="measure orders of convergence and write a report")
    rates.add_argument("study", nargs="?", help="study file (TOML); the built-in study without one")
    rates.add_argument("--out", default="probflow-report", help="folder of the report")
    rates.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    rates.add_argument(
        "--resume", action="store_true", help="keep what was finished in --out, measure the rest"
    )
    rates.add_argument(
        "--compare",
        metavar="OLD.jsonl",
        help="cells.jsonl or results.jsonl of an earlier run; exit code 1 if a verdict got worse",
    )
    rates.add_argument(
        "--timing",
        type=int,
        default=None,
        metavar="N",
        help="take the wall time of N runs of each plan (overrides the study's; 0: none)",
    )
    rates.add_argument(
        "--pictures",
        type=int,
        default=None,
        metavar="STEPS",
        help="also show trajectories, densities and samples at so many steps (0: none)",
    )
    rates.add_argument("--seed", type=int, default=None, help="overrides the study's seed")
    rates.add_argument("--no-progress", action="store_true", help="no progress bar")
    _add_venue(rates)
    rates.set_defaults(run=_rates)

    report = commands.add_parser("report", help="write the report of a run, finished or partial")
    report.add_argument("folder", metavar="RUN_DIR", help="folder with the cells of a study")
    report.add_argument("--out", default=None, help="folder of the report; RUN_DIR by default")
    _add_venue(report)
    report.set_defaults(run=_report)

    solvers = commands.add_parser("solvers", help="list the solvers, or print one")
    solvers.add_argument("name", nargs="?", help="solver to print: equation, tableau, reference")
    solvers.add_argument("--grid", default="log-snr", help="kind of grid for the tableau")
    solvers.add_argument("--steps", type=int, default=4, help="number of steps of that grid")
    solvers.add_argument("--step", type=int, help="which step to print (0 is the first)")
    form = solvers.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print the tableau as LaTeX")
    form.add_argument("--bibtex", action="store_true", help="print what to cite for it")
    form.add_argument("--markdown", action="store_true", help="print the list as Markdown")
    solvers.set_defaults(run=_solvers)

    sample = commands.add_parser("sample", help="draw samples; write them and a picture")
    source = sample.add_mutually_exclusive_group()
    source.add_argument(
        "--target", default="digits", help="digits, mixture, or a study file with a [target]"
    )
    source.add_argument(
        "--checkpoint", help="TorchScript (.pt) or torch.export (.pt2) model f(x, t)"
    )
    sample.add_argument("--shape", help="shape of one sample for a checkpoint, e.g. 3,32,32")
    sample.add_argument("--prediction", help="what the checkpoint predicts; eps by default")
    sample.add_argument(
        "--time-scale", type=float, help="model time / process time of the checkpoint; 1 by default"
    )
    sample.add_argument("--process", default="vp-linear", help="noising process")
    sample.add_argument("--solver", default="accelerated-ode-multistep")
    sample.add_argument(
        "--steps", type=int, help="20 by default; none for a solver that chooses its steps"
    )
    sample.add_argument("--rtol", type=float, help="relative tolerance of such a solver")
    sample.add_argument("--atol", type=float, help="absolute tolerance of such a solver")
    sample.add_argument("--grid", default="log-snr", help="kind of grid")
    sample.add_argument("-n", "--number", type=int, default=64, help="number of samples")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", default="probflow-samples", help="folder for the results")
    sample.add_argument("--no-progress", action="store_true", help="no progress bar")
    sample.set_defaults(run=_sample)
    return parser


def _add_venue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--venue",
        default=None,
        metavar="NAME",
        help="widths of figures and tables: neurips, iclr, icml, aistats, jmlr, tmlr, siam",
    )


# probflow rates --------------------------------------------------------------------------------


def _rates(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from probflow.integrate.noise import check_seed
    from probflow.report import check_writable, page_width
    from probflow.studies import builtin, folder
    from probflow.studies.compare import compare, read_baseline
    from probflow.studies.config import read_study
    from probflow.studies.figures import study_report
    from probflow.studies.pictures import pictures_of
    from probflow.studies.runner import StudyInterrupted, run_curves
    from probflow.studies.shown import read_pictures, write_pictures

    out = Path(arguments.out)
    content = None if arguments.study is None else read_study(arguments.study)
    if content is not None and content.scans:
        return _scans(arguments, content)
    check_writable(out)
    page_width(2, arguments.venue)
    baseline = None if arguments.compare is None else read_baseline(arguments.compare)
    if arguments.seed is not None:
        check_seed(arguments.seed)
    timing, steps = arguments.timing, arguments.pictures
    if content is None:
        title, layout = "Orders of convergence: the built-in study", folder.BUILT_IN
        curves = builtin.builtin_curves(arguments.seed or 0)
    else:
        title, layout, curves = content.name, folder.PLAIN, list(content.curves)
        timing = content.timing if timing is None else timing
        steps = content.pictures if steps is None else steps
        if arguments.seed is not None:
            curves = [replace(c, settings=replace(c.settings, seed=arguments.seed)) for c in curves]
    if steps is not None and steps < 0:
        raise ValueError(f"--pictures: need a whole number >= 0, got {steps}")
    try:
        result = run_curves(
            curves,
            jobs=arguments.jobs,
            progress=not arguments.no_progress,
            out=out,
            resume=arguments.resume,
            timing=timing or 0,
            title=title,
            layout=layout,
            notify=lambda text: print(f"probflow: {text}", file=sys.stderr),
        )
    except StudyInterrupted as stop:
        if not stop.study.rows:
            raise
        _write_report(out, out, arguments.venue)
        print("probflow: interrupted; the report holds what was finished", file=sys.stderr)
        return 130
    pictures = list(pictures_of(curves, steps)) if steps else []
    if layout == folder.BUILT_IN:
        pictures.append(builtin.digit_images(seed=arguments.seed or 0))
    if pictures:
        write_pictures(out, pictures)
    about = folder.describe(curves, title=title, layout=layout)
    study_report(out, result, about, read_pictures(out), venue=arguments.venue)
    print(result.table())
    print(f"\nReport: {out / 'report.md'}, {out / 'report.html'}")
    if baseline is None:
        return 0
    comparison = compare(baseline, result)
    print(f"\n{comparison.text()}")
    return 1 if comparison.worse else 0


def _scans(arguments: argparse.Namespace, content: Any) -> int:
    """A study file with a ``[scan]`` table: errors along an axis, and slopes."""
    from dataclasses import replace

    from probflow.studies.compare import compare_scans
    from probflow.studies.scans import read_scans, run_scans

    for name in ("timing", "pictures"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name}: not for a scan")
    jobs = content.scans
    if arguments.seed is not None:
        jobs = [replace(job, settings=replace(job.settings, seed=arguments.seed)) for job in jobs]
    baseline = None if arguments.compare is None else read_scans(arguments.compare)
    run = run_scans(
        jobs,
        title=content.name,
        out=arguments.out,
        resume=arguments.resume,
        workers=arguments.jobs,
        progress=not arguments.no_progress,
        venue=arguments.venue,
    )
    _print_scans(run, Path(arguments.out))
    if baseline is None:
        return 0
    comparison = compare_scans(baseline.scans, run.scans)
    print(f"\n{comparison.text()}")
    return 1 if comparison.worse else 0


def _print_scans(run: Any, out: Path) -> None:
    from probflow.report import to_markdown
    from probflow.report.scans import scan_summary
    from probflow.studies.axes import AXES

    print(to_markdown(scan_summary(run.scans, AXES[run.scans[0].axis].meaning)))
    print(f"\nReport: {out / 'report.md'}, {out / 'report.html'}")


# probflow report -------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    from probflow.studies.rows import SCANS
    from probflow.studies.scans import read_scans, scan_report

    folder = Path(arguments.folder)
    out = folder if arguments.out is None else Path(arguments.out)
    if (folder / SCANS).is_file():
        run = read_scans(folder)
        scan_report(out, run, venue=arguments.venue)
        _print_scans(run, out)
    else:
        _write_report(folder, out, arguments.venue)
    return 0


def _write_report(run: Path, out: Path, venue: str | None) -> None:
    """The report of the run in a folder, and its summary on the screen."""
    from probflow.report import check_writable, page_width
    from probflow.studies.figures import study_report
    from probflow.studies.folder import load

    page_width(2, venue)
    found = load(run)
    check_writable(out)
    study_report(
        *(out, found.study, found.description, found.pictures, found.notes),
        complete=found.complete,
        venue=venue,
    )
    print(found.study.table())
    for note in found.notes:
        print(f"\n{note}")
    print(f"\nReport: {out / 'report.md'}, {out / 'report.html'}")


# probflow solvers ------------------------------------------------------------------------------


def _solvers(arguments: argparse.Namespace) -> int:
    if arguments.bibtex:
        from probflow.citations import cite

        print(cite() if arguments.name is None else cite(arguments.name))
        return 0
    if arguments.markdown and arguments.name is not None:
        raise ValueError(f"--markdown: prints the list, so it takes no name, got {arguments.name}")
    from probflow.describe import pair_text, solver_table, tableau, tableau_latex
    from probflow.solvers.embedded import PAIRS

    if arguments.name in PAIRS and not arguments.latex:
        print(pair_text(PAIRS[arguments.name]))
        return 0
    if arguments.name is None:
        if arguments.latex:
            raise ValueError("--latex: prints a tableau, so it needs the name of a solver")
        print(solver_table(markdown=arguments.markdown))
        return 0
    from probflow.grids import Grid
    from probflow.processes import VP
    from probflow.solvers import get_solver

    solver = get_solver(arguments.name)
    process = VP.linear()
    times = Grid(arguments.grid).times(process, arguments.steps)
    plan = solver.plan(process, times)
    last = len(plan.steps) - 1
    step = min(1, last) if arguments.step is None else arguments.step
    if not 0 <= step <= last:
        raise ValueError(f"--step: need a whole number from 0 to {last}, got {step}")
    if arguments.latex:
        print(tableau_latex(plan, step))
        return 0
    measures = {"tv": "TV and W2", "strong": "strong error", "path-kl": "sqrt(path KL)"}
    claims = [
        f"{solver.orders[key]:g} in {text}"
        for key, text in measures.items()
        if key in solver.orders
    ]
    print(solver.name + (f" (also {', '.join(solver.aliases)})" if solver.aliases else ""))
    print(f"\n{solver.equation}\n")
    print(f"order:      {'; '.join(claims)}")
    print(f"NFE:        {solver.nfe} a step ({plan.nfe} for {len(plan.steps)} steps)")
    print(f"written in: {solver.prediction}, coordinates {solver.coordinates}")
    for key, value in solver.options.items():
        print(f"option:     {key} = {value}")
    print(f"reference:  {solver.reference}")
    print(f"\nOn the {arguments.grid} grid of {process.name} with {arguments.steps} steps:")
    print(tableau(plan, step))
    return 0


# probflow sample -------------------------------------------------------------------------------


def _sample(arguments: argparse.Namespace) -> int:
    from probflow.grids import Grid
    from probflow.integrate.sample import sample
    from probflow.report import save_figure
    from probflow.solvers.registry import find_pair
    from probflow.studies.config import PROCESSES
    from probflow.studies.samples import samples_figure
    from probflow.words import check_choice

    out = Path(arguments.out)
    check_choice("--process", arguments.process, PROCESSES)
    if arguments.number < 1:
        raise ValueError(f"--number: need at least 1, got {arguments.number}")
    if not arguments.checkpoint:
        for name in ("shape", "prediction", "time_scale"):
            if getattr(arguments, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: says what a --checkpoint is; a target has its own")
    process, steps = PROCESSES[arguments.process](), arguments.steps
    adaptive = find_pair(arguments.solver) is not None
    model, shape = (
        _checkpoint(arguments, process) if arguments.checkpoint else _named_target(arguments.target)
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ValueError(f"--out: {out} cannot be made a folder ({problem.strerror})") from None
    x = sample(
        model,
        (arguments.number, *shape),
        arguments.solver,
        20 if steps is None and not adaptive else steps,
        process=process,
        grid=Grid(arguments.grid),
        seed=arguments.seed,
        progress=not (arguments.no_progress or adaptive),
        rtol=arguments.rtol,
        atol=arguments.atol,
    )
    np.save(out / "samples.npy", x.numpy())
    figure = samples_figure(x.numpy(), None if arguments.checkpoint else model, process)
    save_figure(figure, out / "samples", ("png",))
    print(f"{len(x)} samples of shape {tuple(x.shape[1:])}: {out / 'samples.npy'}")
    print(f"Picture: {out / 'samples.png'}")
    return 0


def _named_target(name: str) -> tuple[Any, tuple[int, ...]]:
    from probflow.studies import builtin
    from probflow.studies.config import digits, read_study

    if name == "digits":
        return digits(), (64,)
    if name == "mixture":
        return builtin.mixture(), (1,)
    if not name.endswith(".toml"):
        raise ValueError(f"--target: need digits, mixture or a .toml file, got {name!r}")
    study = read_study(name)
    if not study.curves:
        raise ValueError(f"--target: {name} is a scan, with many targets")
    target = study.curves[0].target
    return target, (target.dim,)


def _checkpoint(arguments: argparse.Namespace, process: Any) -> tuple[Any, tuple[int, ...]]:
    import torch

    from probflow.models import Model, load_network

    path = Path(arguments.checkpoint)
    if not path.is_file():
        raise ValueError(f"--checkpoint: there is no file {path}")
    if not arguments.shape:
        raise ValueError("--shape: needed with --checkpoint, e.g. --shape 3,32,32")
    try:
        shape = tuple(int(size) for size in arguments.shape.split(","))
    except ValueError:
        raise ValueError(
            f"--shape: need whole numbers like 3,32,32, got {arguments.shape!r}"
        ) from None
    network = load_network(path, "--checkpoint")
    scale = 1.0 if arguments.time_scale is None else arguments.time_scale
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"--time-scale: need a finite number other than 0, got {scale}")
    try:
        with torch.no_grad():
            network(torch.zeros(arguments.number, *shape), torch.full((arguments.number,), scale))
    except (AssertionError, IndexError, RuntimeError) as problem:  # guards of torch.export, kernels
        reason = str(problem).strip().splitlines()[-1]
        raise ValueError(
            f"--shape: {path} takes no {arguments.number} samples of shape {shape} ({reason})"
        ) from None
    prediction = arguments.prediction or "eps"
    return Model(network, process, prediction, time=lambda t: scale * t), shape


if __name__ == "__main__":
    raise SystemExit(main())
