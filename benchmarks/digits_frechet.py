"""Solvers on the learned score of the digits: strong error, Frechet distance and time for NFE.

    python benchmarks/train_digits.py --out digits.pt2
    python benchmarks/digits_frechet.py --checkpoint digits.pt2 --out docs/figures

Prints Markdown tables; writes `digits-learned.svg` (errors against NFE) and
`digits-learned-samples.png`. All solvers run on the log-SNR grid from t = 1 to t = 0.001, where
sigma is 0.0105; there is no further step to sigma = 0, so that much noise is left in the samples.
At a budget each solver takes the largest number of steps that it pays for.

Strong error: RMS per coordinate against `rk4` with many steps on the same network, in float64.
Frechet distance: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) between means and covariances of a small
classifier's features of generated samples and of all digits. It depends on the number of samples,
so its floor is that of as many exact samples of the digits with the same noise left in them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from train_digits import PROCESS, split

import probflow as pf
from probflow.integrate.loop import run_plan
from probflow.models import load_network
from probflow.plan import Plan
from probflow.report import image_grid, save_figure, solver_marks
from probflow.report.curves import X_NAME, curve_handle, draw_curve
from probflow.report.page import finish_figure, label_ticks, new_figure
from probflow.report.style import FLOOR, GREY, style_context
from probflow.report.venues import page_width
from probflow.studies.builtin import steps_for
from probflow.studies.config import digits
from probflow.studies.learned import Learned

GRID = pf.grids.log_snr()
BUDGETS = (5, 10, 20, 50)
FINER = (100, 200, 400)  # for the strong error alone
SOLVERS = (
    "ddim",
    "accelerated-ode",
    "accelerated-ode-arcsin",
    "dpm-solver++-2m",
    "edm-heun",
    "dpm-solver++-3m",
    "deis-tab3",
    "unipc-3",
    "ddpm",
    "accelerated-sde",
)


class Classifier(nn.Module):
    """64 pixels to 10 digits through 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32), nn.Tanh())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10) of images (batch, 64)."""
        return self.head(self.body(x))


def train_classifier(seed: int = 0, steps: int = 1500) -> tuple[nn.Module, float]:
    """A classifier's features, and the share of the held-out digits that it names.

    Trained with Adam on the training digits and noise of standard deviation 0.1.
    """
    training, held_out = split(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(training) + len(held_out), generator=generator)
    labels = torch.from_numpy(digit_labels()).long()[order]
    torch.manual_seed(seed)
    network = Classifier()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        which = torch.randint(len(training), (128,), generator=generator)
        x = training[which] + 0.1 * torch.randn(128, 64, generator=generator)
        loss = nn.functional.cross_entropy(network(x), labels[which])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        named = network(held_out).argmax(1) == labels[len(training) :]
    return network.body.eval().requires_grad_(False), float(named.float().mean())


def digit_labels() -> np.ndarray:
    """Labels of the digits, (1797,)."""
    with np.load(Path(pf.__file__).parent / "data" / "digits.npz") as content:
        return content["labels"]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of features (n, d), float64."""
    wide = features.double()
    return wide.mean(0), torch.cov(wide.T)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared Frechet (Wasserstein-2) distance of normal laws with these moments.

    Dowson and Landau 1982, eq. 7; the trace of the root is the sum of the roots of the eigenvalues
    of the symmetric C^(1/2) C' C^(1/2).
    """
    (m, C), (m2, C2) = a, b
    values, vectors = torch.linalg.eigh(C)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C2 @ root).clamp(min=0).sqrt().sum()
    return float((m - m2).square().sum() + C.trace() + C2.trace() - 2 * cross)


def nearest(x: Tensor, data: Tensor) -> float:
    """Median over ``x`` (n, 64) of the RMS distance per pixel to the nearest of ``data``."""
    return float(torch.cdist(x.double(), data.double()).amin(1).median()) / 8


def plan_for(name: str, steps: int) -> Plan:
    """The plan of a solver for an eps network on the grid of this script."""
    return pf.get_solver(name).plan(PROCESS, GRID.times(PROCESS, steps), "eps")


@torch.no_grad()
def strong_errors(
    network: nn.Module, path: Path, samples: int, reference_steps: int
) -> tuple[dict[str, list[tuple[int, float]]], float, float]:
    """Errors of the deterministic solvers against the flow of the same network.

    Returns
    -------
    (dict, float, float)
        For each solver (NFE, RMS error) of all budgets; the reference's own error, from a run with
        half its steps (Richardson); the distance of a run of unipc-3 with 50 steps in float32 from
        the same in float64.
    """
    model = Learned(path, digits()).model(PROCESS)
    x = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def rms(difference: Tensor) -> float:
        return float(difference.square().mean().sqrt())

    exact = run_plan(plan_for("rk4", reference_steps), model, x)
    own = rms(exact - run_plan(plan_for("rk4", reference_steps // 2), model, x)) / 15
    table = {}
    for name in SOLVERS:
        if not pf.get_solver(name).stochastic:
            steps = [steps_for(pf.get_solver(name), nfe, GRID)[0] for nfe in (*BUDGETS, *FINER)]
            plans = [plan_for(name, count) for count in steps]
            table[name] = [(plan.nfe, rms(run_plan(plan, model, x) - exact)) for plan in plans]
    plan, single = plan_for("unipc-3", 50), x.float()
    rounded = run_plan(plan, pf.Model(network, PROCESS), single).double()
    return table, own, rms(rounded - run_plan(plan, model, single.double()))


class Measured(NamedTuple):
    """Distances, one a seed, and CPU seconds a sample."""

    distances: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.distances)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return statistics.stdev(self.distances)

    def minus(self, other: Measured) -> Measured:
        """Differences, seed by seed: solvers with the same seeds share their noise."""
        pairs = zip(self.distances, other.distances, strict=True)
        return Measured([a - b for a, b in pairs], self.seconds)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


class Distances:
    """Frechet distances of samples to all digits, with as many samples each time.

    Parameters
    ----------
    features
        What :func:`train_classifier` returned.
    number
        Samples a distance.
    seeds
        How many distances to take.
    """

    def __init__(self, features: nn.Module, number: int, seeds: int) -> None:
        self.features, self.number, self.seeds = features, number, seeds
        self.real = moments(features(digits().data.float()))

    def __call__(self, draw: Callable[[int], Tensor]) -> Measured:
        """The distances of what ``draw`` makes of each seed, and its median time."""
        distances, times = [], []
        for seed in range(self.seeds):
            start = time.thread_time()
            x = draw(seed)
            times.append((time.thread_time() - start) / self.number)
            distances.append(frechet(moments(self.features(x)), self.real))
        return Measured(distances, statistics.median(times))

    def exact(self) -> Measured:
        """The floor: samples of the digits' law at the end of the grid."""
        end = PROCESS.end
        alpha, sigma = float(PROCESS.alpha(end)), float(PROCESS.sigma(end))

        def draw(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return digits().sample(self.number, alpha, sigma, generator=generator).float()

        return self(draw)

    def of(self, network: nn.Module, name: str, steps: int) -> Measured:
        """Those of a solver on a network."""
        model, shape = pf.Model(network, PROCESS), (self.number, 64)
        return self(lambda seed: pf.sample(model, shape, name, steps, grid=GRID, seed=seed))


def figure(
    strong: Mapping[str, list[tuple[int, float]]],
    distances: Mapping[str, list[tuple[int, Measured]]],
    floor: Measured,
    flow: Measured,
    footer: str,
) -> Any:
    """Strong error and Frechet distance against NFE, with the floor as a band."""
    marks = solver_marks(SOLVERS)
    with style_context():
        fig, (left, right) = new_figure(page_width(2), 1, 2)
        for name, points in strong.items():
            nfe, error = zip(*points, strict=True)
            draw_curve(left, nfe, error, [False] * len(nfe), marks[name])
        low, high = (floor.mean + sign * 2 * floor.deviation for sign in (-1, 1))
        right.axhspan(low, high, color=FLOOR, linewidth=0, zorder=0.5)
        right.axhline(flow.mean, color=GREY, linestyle=(0, (4, 2.5)), linewidth=0.8, zorder=1)
        look = {"transform": right.get_yaxis_transform(), "fontsize": 5.5, "color": GREY}
        right.text(0.02, flow.mean * 1.03, "flow of the network", va="bottom", **look)
        right.text(0.02, low * 0.97, "exact samples, mean and 2 deviations", va="top", **look)
        for name, cells in distances.items():
            nfe, mean, deviation = zip(*[(n, m.mean, m.deviation) for n, m in cells], strict=True)
            draw_curve(right, nfe, mean, [False] * len(nfe), marks[name])
            right.errorbar(nfe, mean, deviation, fmt="none", ecolor=marks[name].colour)
        left.set(title="strong error, float64", ylabel="RMS per coordinate")
        right.set(title="samples, float32", ylabel="Frechet distance (squared)")
        for ax, budgets in ((left, (*BUDGETS, *FINER)), (right, BUDGETS)):
            ax.set(xscale="log", yscale="log", xlabel=X_NAME["nfe"])
            label_ticks(ax, budgets)
        handles = [curve_handle(marks[name], name) for name in SOLVERS]
        finish_figure(fig, panel_height=2.6, legends=[(0.0, 1.0, handles)], footer=footer)
    return fig


def pictures(network: nn.Module, count: int = 5) -> Any:
    """Samples of every solver at every budget from the same noise."""
    model = pf.Model(network, PROCESS)
    rows, nfe = {}, {}
    for name in SOLVERS:
        plans = [steps_for(pf.get_solver(name), budget, GRID) for budget in BUDGETS]
        x = [pf.sample(model, (count, 64), name, n, grid=GRID, seed=0) for n, _ in plans]
        nfe[name] = [calls for _, calls in plans]
        rows[name] = list(torch.cat(x).reshape(-1, 8, 8).numpy())
    labels = [f"at most {budget} NFE" for budget in BUDGETS]
    return image_grid(rows, labels, vmin=-1.0, vmax=1.0, nfe=nfe)


def print_table(header: Sequence[Any], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(map(str, header)) + " |\n|---" + "|---:" * (len(header) - 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and draw; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("digits.pt2"), help="of train_digits.py"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("digits-report"), help="folder of the figures"
    )
    parser.add_argument("--number", type=int, default=1000, help="samples a Frechet distance")
    parser.add_argument("--seeds", type=int, default=5, help="Frechet distances a cell, >= 2")
    parser.add_argument("--samples", type=int, default=128, help="of the strong error")
    parser.add_argument("--reference-steps", type=int, default=512)
    options = parser.parse_args(arguments)
    for name in ("number", "seeds", "samples", "reference_steps"):
        if getattr(options, name) < 2:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag}: need at least 2, got {getattr(options, name)}")
    torch.set_num_threads(1)
    path = options.checkpoint
    try:
        network = load_network(path, "--checkpoint")
    except ValueError as problem:
        parser.error(str(problem))

    features, accuracy = train_classifier()
    print(f"Classifier: {accuracy:.1%} of the held-out digits named")
    distance = Distances(features, options.number, options.seeds)
    floor, flow = distance.exact(), distance.of(network, "rk4", 50)
    print(f"Frechet distance of exact samples: {floor}")
    print(f"of the network's flow (rk4, 200 evaluations): {flow}")
    for name in ("ddpm", "accelerated-sde"):
        print(f"of {name} with 200 evaluations: {distance.of(network, name, 200)}")
    training, held_out = split(0)
    model = pf.Model(network, PROCESS)
    x = pf.sample(model, (len(held_out), 64), "rk4", 50, grid=GRID, seed=0)
    print(
        f"Median RMS distance to the nearest training digit: held-out digits "
        f"{nearest(held_out, training):.3f}, samples {nearest(x, training):.3f}"
    )

    cells: dict[str, list[tuple[int, Measured]]] = {}
    for name in SOLVERS:
        plans = [steps_for(pf.get_solver(name), budget, GRID) for budget in BUDGETS]
        cells[name] = [(nfe, distance.of(network, name, steps)) for steps, nfe in plans]
    print_table(
        ["Frechet distance (NFE)", *BUDGETS],
        {f"`{name}`": [f"{m} ({nfe})" for nfe, m in row] for name, row in cells.items()},
    )
    print_table(
        ["less that of the flow", *BUDGETS],
        {f"`{name}`": [str(m.minus(flow)) for _, m in row] for name, row in cells.items()},
    )
    print_table(
        ["CPU us an image", *BUDGETS],
        {f"`{name}`": [f"{1e6 * m.seconds:.0f}" for _, m in row] for name, row in cells.items()},
    )
    strong, own, rounding = strong_errors(network, path, options.samples, options.reference_steps)
    print_table(
        ["strong error", *BUDGETS, *FINER],
        {f"`{name}`": [f"{error:.2e}" for _, error in row] for name, row in strong.items()},
    )
    print(f"\nError of the reference: {own:.1e}. unipc-3, 50 steps, in float32: {rounding:.1e}")

    footer = (
        f"{path.name}; log-SNR grid to sigma = {float(PROCESS.sigma(PROCESS.end)):.4f}; strong "
        f"error: {options.samples} samples, rk4 with {options.reference_steps} steps as reference; "
        f"Frechet distance: {options.number} samples, bars: standard deviation of "
        f"{options.seeds} seeds"
    )
    errors = figure(strong, cells, floor, flow, footer)
    save_figure(errors, options.out / "digits-learned", ("svg",))
    save_figure(pictures(network), options.out / "digits-learned-samples", ("png",), dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
