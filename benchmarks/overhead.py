"""Overhead of the tensor loop: microseconds a step beyond the model, side by side.

Every variant takes the same steps with the same trivial model, whose own time is measured and
subtracted. Time is the processor time of the one thread. Each repeat times all variants one after
the other; ratios are medians over repeats of the ratio within a repeat, so that a machine that is
busy for a while does not favour anybody.

    python benchmarks/overhead.py --repeats 30
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torchdiffeq
import torchsde
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import probflow as pf
from probflow.integrate import run_plan
from probflow.plan import Plan

START, STOP = 1.0, 0.001
HAND = "hand-written loop"


def identity(x: Tensor, t: Tensor) -> Tensor:
    """The model; also the velocity of the plain ODE."""
    return x


def swapped(t: Tensor, x: Tensor) -> Tensor:
    """The same as torchdiffeq calls it."""
    return x


# Hand-written loops: what a careful author writes, with the same arithmetic ---------------------


def rows_of(times: Sequence[float], batch: int | None = None) -> Sequence[Tensor]:
    """One tensor per evaluation: 0-d, or (batch,)."""
    rows = torch.tensor(times, dtype=torch.float32)
    return (rows if batch is None else rows[:, None].expand(-1, batch)).unbind(0)


def hand_euler(f: Callable, x: Tensor, times: Sequence[float]) -> Tensor:
    """x' = x + h f(x)."""
    rows = rows_of(times)
    for t, s, row in zip(times, times[1:], rows, strict=False):
        x = torch.add(x, f(x, row), alpha=s - t)
    return x


def hand_heun(f: Callable, x: Tensor, times: Sequence[float]) -> Tensor:
    """x' = x + h/2 (v1 + v2)."""
    rows = rows_of(times)
    for t, s, row, next_row in zip(times, times[1:], rows, rows[1:], strict=False):
        h = s - t
        v1 = f(x, row)
        v2 = f(torch.add(x, v1, alpha=h), next_row)
        x = torch.add(x, v1, alpha=h / 2).add_(v2, alpha=h / 2)
    return x


def hand_rk4(f: Callable, x: Tensor, times: Sequence[float]) -> Tensor:
    """The 3/8 rule."""
    pairs = list(pairwise(times))
    rows = rows_of([t + c * (s - t) for t, s in pairs for c in (0, 1 / 3, 2 / 3, 1)])
    for k, (t, s) in enumerate(pairs):
        h = s - t
        r1, r2, r3, r4 = rows[4 * k : 4 * k + 4]
        v1 = f(x, r1)
        v2 = f(torch.add(x, v1, alpha=h / 3), r2)
        v3 = f(torch.add(x, v2, alpha=h).add_(v1, alpha=-h / 3), r3)
        v4 = f(torch.add(x, v1, alpha=h).add_(v2, alpha=-h).add_(v3, alpha=h), r4)
        x = torch.add(x, v1, alpha=h / 8).add_(v2, alpha=3 * h / 8)
        x = x.add_(v3, alpha=3 * h / 8).add_(v4, alpha=h / 8)
    return x


def hand_maruyama(f: Callable, x: Tensor, plan: Plan, noise: Callable[[], Tensor]) -> Tensor:
    """x' = c x + b score + a z, with the weights of the plan as floats."""
    weights = [[weight for _, weight in step.update] for step in plan.steps]
    rows = rows_of(plan.times, len(x))
    for (c, b, a), row in zip(weights, rows, strict=False):
        z = noise()
        x = torch.mul(x, c).add_(f(x, row), alpha=b).add_(z, alpha=a)
    return x


class Given:
    """Noise that is there already: the same tensor every time."""

    def __init__(self, x: Tensor) -> None:
        self._z = torch.randn_like(x)

    def __call__(self, *interval: float) -> Tensor:
        """The tensor."""
        return self._z

    def restart(self) -> None:
        """Nothing to do."""


class TrivialSDE:
    """The SDE that costs torchsde least: both coefficients are there already."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, x: Tensor) -> None:
        self._one = torch.ones_like(x)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self._one


# Variants ---------------------------------------------------------------------------------------

Variants = dict[str, Callable[[], object]]


def ode_variants(name: str, peer: str, hand: Callable, x: Tensor, steps: int) -> Variants:
    """All ways to take ``steps`` steps of a general method."""
    grid = torch.linspace(START, STOP, steps + 1)
    ends, size = grid[[0, -1]], (START - STOP) / steps
    times = grid.tolist()
    plan = pf.get_solver(name).plan(None, times)
    options = {"step_size": size}

    def ours(t: Tensor, options: dict | None) -> Callable[[], object]:
        return lambda: pf.odeint(swapped, x, t, method=name, options=options)

    def theirs(t: Tensor, options: dict | None) -> Callable[[], object]:
        return lambda: torchdiffeq.odeint(swapped, x, t, method=peer, options=options)

    return {
        HAND: lambda: hand(identity, x, times),
        "probflow, plan at hand": lambda: run_plan(plan, identity, x),
        "pf.odeint, 2 outputs": ours(ends, options),
        "pf.odeint, n+1 outputs": ours(grid, None),
        "torchdiffeq, 2 outputs": theirs(ends, options),
        "torchdiffeq, n+1 outputs": theirs(grid, None),
    }


def sde_variants(x: Tensor, steps: int) -> Variants:
    """All ways to take ``steps`` Euler-Maruyama steps; torchsde gets the state with two axes."""
    process = pf.VP.linear()
    model = pf.Model(identity, process, prediction="score")
    sde = pf.ReverseSDE(process, model)
    grid = torch.linspace(START, STOP, steps + 1, dtype=torch.float64)
    plan = pf.get_solver("euler-maruyama").plan(process, grid.tolist(), "score")
    given = Given(x)
    flat = x.reshape(len(x), -1)
    trivial = TrivialSDE(flat)
    dt = (START - STOP) / steps

    def theirs() -> Tensor:
        path = torchsde.BrownianInterval(-START, -STOP, size=flat.shape, dtype=x.dtype)
        return torchsde.sdeint(trivial, flat, -grid[[0, -1]], path, method="euler", dt=dt)

    return {
        HAND + ", noise given": lambda: hand_maruyama(identity, x, plan, given),
        "probflow, plan at hand, noise given": lambda: run_plan(plan, model, x, noise=given),
        HAND + ", torch.randn": lambda: hand_maruyama(
            identity, x, plan, lambda: torch.randn(x.shape)
        ),
        "pf.sdeint, seeded noise": lambda: pf.sdeint(
            sde, x, grid, method="euler-maruyama", dt=None, options={"seed": 0}
        ),
        "torchsde euler": theirs,
    }


# Measuring --------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call: there is one thread, and other programs do not count."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def peak_memory(work: Callable[[], object], device: str = "cpu") -> float:
    """Bytes that a call holds at most beyond what was there, by the allocator's own record."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    level = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def measure(variants: Variants, evaluations: int, x: Tensor, steps: int, repeats: int) -> dict:
    """Microseconds a step beyond the model, per variant a list over repeats."""
    t = torch.zeros(())

    def model_alone() -> None:
        for _ in range(steps * evaluations):
            identity(x, t)

    for work in variants.values():
        work()
    table: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        model = seconds(model_alone)
        for name, work in variants.items():
            table[name].append((seconds(work) - model) / steps * 1e6)
    return table


def ratio(table: dict[str, list[float]], name: str, base: str) -> float:
    """Median over repeats of the ratio of two variants."""
    return statistics.median(a / b for a, b in zip(table[name], table[base], strict=True))


def report(title: str, table: dict[str, list[float]], first_call: float | None = None) -> None:
    """Print a Markdown table; the first variant and the first of probflow are the bases."""
    hand, ours = list(table)[:2]
    print(f"\n### {title}\n")
    print("| variant | us/step | over row 1 | over row 2 |\n|---|---:|---:|---:|")
    for name, values in table.items():
        row = f"| {name} | {statistics.median(values):.2f} "
        print(row + f"| {ratio(table, name, hand):.2f} | {ratio(table, name, ours):.2f} |")
    if first_call is not None:
        print(f"\nThe first call for a grid also makes the plan: {first_call:.1f} us/step.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200, help="steps for the small state")
    parser.add_argument("--large-steps", type=int, default=20, help="steps for the large state")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, torchdiffeq {torchdiffeq.__version__}, torchsde "
        f"{torchsde.__version__}, probflow {pf.__version__}, Python {platform.python_version()}, "
        f"1 thread, float32, medians of {options.repeats} interleaved repeats"
    )
    cases = [
        ("euler", "euler", hand_euler, 1),
        ("heun", "heun2", hand_heun, 2),
        ("rk4", "rk4", hand_rk4, 4),
    ]
    with torch.no_grad():
        for shape, steps in (((64,), options.steps), ((256, 3, 32, 32), options.large_steps)):
            x = torch.randn(shape)
            for name, peer, hand, evaluations in cases:
                variants = ode_variants(name, peer, hand, x, steps)
                table = measure(variants, evaluations, x, steps, options.repeats)
                times = torch.linspace(START, STOP, steps + 1).tolist()
                solver = pf.get_solver(name)
                planning = seconds(lambda s=solver, t=times: s.plan(None, t)) / steps * 1e6
                report(f"{name}, state {shape}, {steps} steps", table, planning)
            # torchsde wants (batch, channels).
            x = x if len(shape) > 1 else x.reshape(1, 64)
            variants = sde_variants(x, steps)
            table = measure(variants, 1, x, steps, options.repeats)
            report(f"euler-maruyama, state {tuple(x.shape)}, {steps} steps", table)


if __name__ == "__main__":
    main()
