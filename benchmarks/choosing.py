"""Error against number of evaluations, 5 to 50, on the line: which solver to choose.

Target and grid as in the order tests: a mixture of two normal laws, even steps in log-SNR from
-ln(ab) = 3 to -ln 0.99. The error is TV between the sampler's law and the true one, by quadrature
and not by samples. A solver of k evaluations a step takes n // k steps.

    python benchmarks/choosing.py --figure docs/figures/choosing.svg
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import probflow as pf
from probflow.laws.line import distances_1d
from probflow.laws.registers import Refusal
from probflow.report.style import solver_marks, style_context
from probflow.studies.builtin import mixture
from probflow.studies.rows import MEASURES_TEX

PROCESS, TARGET = pf.VP.linear(), mixture()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
NFE = (5, 8, 10, 15, 20, 30, 40, 50)
DETERMINISTIC = (
    "ddim",
    "dpm-solver++-2m",
    "edm-heun",
    "dpm-solver++-3m",
    "unipc-3",
    "exponential-ab4",
)
STOCHASTIC = (
    "ddpm",
    "accelerated-sde",
    "euler-ancestral",
    "sde-dpm-solver++-2m",
    "dpm2-ancestral",
    "accelerated-sde-jvp",
    "accelerated-sde-half-noise",
)


def curve(name: str) -> list[tuple[int, float]]:
    """(evaluations, TV) for every budget that the solver can use."""
    solver = pf.get_solver(name)
    points: dict[int, float] = {}
    for budget in NFE:
        for steps in range(max(budget // solver.nfe, 1), 0, -1):
            plan = solver.plan(PROCESS, GRID.times(PROCESS, steps), "eps")
            if plan.nfe <= budget:
                break
        else:
            continue
        try:
            points[plan.nfe] = distances_1d(plan, PROCESS, TARGET)["tv"]
        except Refusal as reason:
            print(f"{name}, {plan.nfe} evaluations: {reason}")
    return sorted(points.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="where to write the figure (SVG)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    curves = {name: curve(name) for name in (*DETERMINISTIC, *STOCHASTIC)}
    print("| solver | " + " | ".join(map(str, NFE)) + " |\n|---|" + "---:|" * len(NFE))
    for name, points in curves.items():
        # The most steps within each budget, all evaluations counted: in brackets where fewer.
        cells = []
        for budget in NFE:
            nfe, tv = max((point for point in points if point[0] <= budget), default=(budget, None))
            taken = "" if nfe == budget else f" ({nfe})"
            cells.append("" if tv is None else f"{tv:.1e}{taken}")
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    if options.figure is None:
        return
    with style_context():
        figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.9), sharey=True, layout="constrained")
        for axis, names, title in zip(
            axes, (DETERMINISTIC, STOCHASTIC), ("deterministic", "stochastic"), strict=True
        ):
            marks = solver_marks(names)
            for name in names:
                nfe, tv = zip(*curves[name], strict=True)
                colour, marker, line = marks[name]
                axis.loglog(nfe, tv, color=colour, marker=marker, linestyle=line, label=name)
            axis.set_title(title)
            axis.set_ylim(1e-7, 1.5)  # room for the legend
            axis.set_xlabel("model evaluations")
            axis.set_xticks(NFE, [str(n) for n in NFE])
            axis.minorticks_off()
            axis.legend(loc="lower left")
        axes[0].set_ylabel(MEASURES_TEX["tv"])
        figure.savefig(options.figure, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
