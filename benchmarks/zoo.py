"""Every static solver: time a step over its bare tensor operations, time of a plan, and diffusers.

*Overhead.* The arithmetic and the model calls of a run are recorded once and replayed in a plain
loop. With the tensors of times, one for each call of the model, that is what a careful hand-written
loop costs at least. For a few solvers such loops are written out, too, with the weights at hand;
they alone have the derivatives of `accelerated-sde-jvp`. *Plans* of 1000 steps are made on a grid
even in log-SNR. *diffusers*, if it is installed: its scheduler's ``step`` in the loop that a
pipeline runs, on the same state and number of evaluations.

Time is the processor time of the one thread; ratios are medians over interleaved repeats.

    python benchmarks/zoo.py --repeats 20
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from overhead import Given, hand_heun, hand_rk4, peak_memory, rows_of, seconds
from torch import Tensor
from torch.overrides import TorchFunctionMode

import probflow as pf
from probflow.integrate import run_plan
from probflow.plan import Plan

PROCESS = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, 0.01, "neg_log_ab")
Work = Callable[[], object]


def identity(x: Tensor, t: Tensor) -> Tensor:
    """The model: no time of its own."""
    return x


def fresh(x: Tensor, t: Tensor) -> Tensor:
    """A model for the memory: as a network, it returns a tensor of its own."""
    return torch.neg(x)


# The operations alone ---------------------------------------------------------------------------


class Recorder(TorchFunctionMode):
    """Notes the arithmetic of a run and, as its model, the evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        """``identity``, noted."""
        self.calls.append((identity, (x, t), {}))
        return x

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the call and note it if it is arithmetic."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("add", "mul", "add_", "mul_"):
            self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)


def operations(plan: Plan, x: Tensor, noise: Given | None) -> Work:
    """The arithmetic and the evaluations of a run, replayed."""
    with Recorder() as recorder:
        model = pf.Model(recorder.model, PROCESS, prediction=plan.prediction)
        run_plan(plan, model, x, noise=noise, check_finite=False)
    calls = recorder.calls

    def replay() -> None:
        for function, args, kwargs in calls:
            function(*args, **kwargs)

    return replay


def with_times(plan: Plan, x: Tensor, replay: Work) -> Work:
    """The replay after making the tensors of times."""
    times = stage_times(plan)

    def work() -> None:
        rows_of(times, len(x))
        replay()

    return work


# Loops written by hand, with the weights of the plan as floats -----------------------------------

Weights = list[list[list[float]]]


def stage_times(plan: Plan) -> list[float]:
    """Of all evaluations."""
    return [stage.time for step in plan.steps for stage in step.stages]


def weights_of(plan: Plan) -> Weights:
    """Per step, the weights of each combination."""
    return [[[w for _, w in c] for c in step.combinations()] for step in plan.steps]


def hand_one_stage(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """x' = a x + b f (+ c z): ddim, ddpm, edm-euler, ..."""
    times, weights = stage_times(plan), weights_of(plan)

    def loop() -> Tensor:
        y = x
        for (_, (a, b, *c)), row in zip(weights, rows_of(times, len(x)), strict=True):
            y = torch.mul(y, a).add_(identity(y, row), alpha=b)
            if c:
                y.add_(z, alpha=c[0])
        return y

    return loop


def hand_one_slope(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """x' = x + b f: euler."""
    times = stage_times(plan)
    weights = [b for _, (_, b) in weights_of(plan)]

    def loop() -> Tensor:
        y = x
        for b, row in zip(weights, rows_of(times, len(x)), strict=True):
            y = torch.add(y, identity(y, row), alpha=b)
        return y

    return loop


def hand_two_outputs(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """x' = a x + b f + c f_before; the first step has none before; a = 1: ab2."""
    times, weights = stage_times(plan), weights_of(plan)
    scaled = any(update[0] != 1.0 for _, update in weights)

    def loop() -> Tensor:
        y, before = x, None
        for (_, (a, b, *c)), row in zip(weights, rows_of(times, len(x)), strict=True):
            f = identity(y, row)
            y = torch.mul(y, a).add_(f, alpha=b) if scaled else torch.add(y, f, alpha=b)
            if before is not None:
                y.add_(before, alpha=c[0])
            before = f
        return y

    return loop


def hand_two_stages(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """u = a x + b f, x' = c x (+ d f) + e f(u): dpm-solver-2, ..."""
    times, weights = stage_times(plan), weights_of(plan)

    def loop() -> Tensor:
        y, rows = x, iter(rows_of(times, len(x)))
        for _, (a, b), (c, *rest) in weights:
            f = identity(y, next(rows))
            g = identity(torch.mul(y, a).add_(f, alpha=b), next(rows))
            y = torch.mul(y, c)
            for weight, output in zip(rest, (f, g)[-len(rest) :], strict=True):
                y.add_(output, alpha=weight)
        return y

    return loop


def hand_midpoint(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """x' = x + h f(x + h/2 f)."""
    times = stage_times(plan)
    weights = [(a, b) for _, (_, a), (_, b) in weights_of(plan)]

    def loop() -> Tensor:
        y, rows = x, iter(rows_of(times, len(x)))
        for a, b in weights:
            f = identity(y, next(rows))
            y = torch.add(y, identity(torch.add(y, f, alpha=a), next(rows)), alpha=b)
        return y

    return loop


def hand_derivative(plan: Plan, x: Tensor, z: Tensor) -> Work:
    """x' = a x + b f + c z + d j, with the derivative j of f along w z: accelerated-sde-jvp."""
    times = stage_times(plan)
    rows_of_weights = [
        (tangent[0], {register.kind: weight for register, weight in step.update})
        for step, (_, tangent, _) in zip(plan.steps, weights_of(plan), strict=True)
    ]
    weights = [(w, own["x"], own["f"], own["z"], own["j"]) for w, own in rows_of_weights]

    def loop() -> Tensor:
        y = x
        for (w, a, b, c, d), row in zip(weights, rows_of(times, len(x)), strict=True):
            along = torch.mul(z, w)
            f, j = torch.func.jvp(lambda u, t=row: identity(u, t), (y,), (along,), strict=True)
            y = torch.mul(y, a).add_(f, alpha=b).add_(z, alpha=c).add_(j, alpha=d)
        return y

    return loop


HAND: dict[str, Callable[[Plan, Tensor, Tensor], Work]] = {
    "ab2": hand_two_outputs,
    "accelerated-sde-jvp": hand_derivative,
    "ddim": hand_one_stage,
    "ddpm": hand_one_stage,
    "dpm-solver++-2m": hand_two_outputs,
    "dpm-solver-2": hand_two_stages,
    "euler": hand_one_slope,
    "heun": lambda plan, x, z, f=hand_heun: lambda times=plan.times: f(identity, x, times),
    "midpoint": hand_midpoint,
    "rk4": lambda plan, x, z, f=hand_rk4: lambda times=plan.times: f(identity, x, times),
}


def overhead(
    solvers: Iterable[pf.Solver], shape: tuple[int, ...], steps: int, repeats: int
) -> None:
    """Print time a step over that of its operations alone."""
    print(f"\n### State {shape}, {steps} steps\n")
    print("| solver | us/step | over its arithmetic | and tensors of times | over a loop by hand |")
    print("|---|---:|---:|---:|---:|")
    ratios: dict[str, dict[str, float]] = {"arithmetic": {}, "arithmetic and times": {}}
    by_hand: dict[str, float] = {}
    for solver in solvers:
        plan = solver.plan(PROCESS, GRID.times(PROCESS, steps))
        model = pf.Model(identity, PROCESS, prediction=plan.prediction)
        x = torch.randn(shape)
        noise = Given(x) if plan.stochastic else None
        bare = operations(plan, x, noise)
        work: dict[str, Work] = {
            "arithmetic": bare,
            "arithmetic and times": with_times(plan, x, bare),
            "run": lambda p=plan, m=model, y=x, n=noise: run_plan(p, m, y, noise=n),
        }
        if solver.name in HAND:
            work["hand"] = HAND[solver.name](plan, x, torch.randn_like(x))
        times = interleaved(work, repeats)
        tangents = any(stage.tangent for step in plan.steps for stage in step.stages)
        row = []
        for base, values in ratios.items():  # derivatives are not among the recorded operations
            if not tangents:
                values[solver.name] = ratio(times["run"], times[base])
            row.append("" if tangents else f"{values[solver.name]:.2f}")
        if "hand" in times:
            by_hand[solver.name] = ratio(times["run"], times["hand"])
            row.append(f"{by_hand[solver.name]:.2f}")
        us = statistics.median(times["run"]) / steps * 1e6
        print(f"| {solver.name} | {us:.2f} | {' | '.join([*row, ''][:3])} |")
    print()
    for base, values in (ratios | {"a loop by hand": by_hand}).items():
        if values:
            above = ", ".join(name for name, value in values.items() if value > 1.2)
            print(
                f"Over {base}, {len(values)} solvers: {min(values.values()):.2f} to "
                f"{max(values.values()):.2f}, median {statistics.median(values.values()):.2f}. "
                f"Above 1.2: {above or 'none'}."
            )


def interleaved(work: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Processor times of each, one after the other, many times."""
    for each in work.values():
        each()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, each in work.items():
            times[name].append(seconds(each))
    return times


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of the ratio within a repeat."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


# Plans ------------------------------------------------------------------------------------------


def planning(solvers: Iterable[pf.Solver], repeats: int) -> None:
    """Print the least time that a plan of 1000 steps takes, for models of each kind."""
    times = GRID.times(PROCESS, 1000)
    kinds = ("eps", "x0", "v")
    print(
        f"\n### A plan of 1000 steps, ms\n\n| solver | {' | '.join(kinds)} |\n|---|---:|---:|---:|"
    )
    rows = []
    for solver in solvers:
        best = [
            1e3
            * min(
                seconds(lambda s=solver, k=kind: s.plan(PROCESS, times, k)) for _ in range(repeats)
            )
            for kind in kinds
        ]
        rows.append((max(best), solver.name, best))
    for _, name, best in sorted(rows, reverse=True):
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in best)} |")
    slow = sum(worst > 50 for worst, _, _ in rows)
    pace = min(seconds(_python) for _ in range(5 * repeats))
    print(
        f"\n{slow} of {len(rows)} solvers take more than 50 ms, where a loop of 10 000 additions "
        f"to entries of a dictionary takes {1e3 * pace:.2f} ms."
    )


def _python() -> None:
    """A yardstick of the interpreter on this core."""
    sums: dict[tuple[str, int], float] = {}
    for i in range(10_000):
        key = ("x", i % 7)
        sums[key] = sums.get(key, 0.0) + 0.5 * i


# diffusers --------------------------------------------------------------------------------------


def peers() -> dict[str, tuple[str, dict[str, Any]]]:
    """Solver of ours to (scheduler class of diffusers, its options)."""
    return {
        "ddim": ("DDIMScheduler", {"clip_sample": False}),
        "ddpm-posterior": ("DDPMScheduler", {"clip_sample": False}),
        "edm-euler": ("EulerDiscreteScheduler", {}),
        "edm-heun": ("HeunDiscreteScheduler", {}),
        "dpm-solver++-2m": ("DPMSolverMultistepScheduler", {}),
        "dpm-solver++-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
        "deis-tab2": ("DEISMultistepScheduler", {"solver_order": 3}),
        "lms-4": ("LMSDiscreteScheduler", {}),
    }


def diffusers_loop(
    name: str, options: dict[str, Any], x: Tensor, nfe: int, network: Callable = identity
) -> tuple[Work, Work]:
    """What a pipeline runs, without the network and its progress bar; and its set-up alone."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)

    def loop() -> Tensor:
        scheduler.set_timesteps(nfe)
        sample = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps[:nfe]:
            model_input = scheduler.scale_model_input(sample, t)
            sample = scheduler.step(network(model_input, t), t, sample, return_dict=False)[0]
        return sample

    return loop, lambda: scheduler.set_timesteps(nfe)


def against_diffusers(shape: tuple[int, ...], nfe: int, repeats: int) -> None:
    """Print times and memory next to diffusers' schedulers."""
    print(f"\n### Against diffusers, state {shape}, {nfe} evaluations\n")
    print("Overhead is the time beyond the operations alone; memory the peak in units of a state.")
    print("\n| solver | us/evaluation | operations | diffusers | its overhead, ours = 1 | memory |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (peer, options) in peers().items():
        solver = pf.get_solver(name)
        steps = nfe // solver.nfe
        plan = solver.plan(PROCESS, GRID.times(PROCESS, steps), "eps")
        model = pf.Model(identity, PROCESS, prediction="eps")
        x = torch.randn(shape)
        noise = Given(x) if plan.stochastic else None
        ours = lambda p=plan, m=model, y=x, n=noise: run_plan(p, m, y, noise=n)  # noqa: E731
        theirs, setup = diffusers_loop(peer, options, x, nfe)
        bare = operations(plan, x, noise)
        work = {"ours": ours, "theirs": theirs, "setup": setup, "bare": bare}
        times = interleaved(work, repeats)
        # Our plan is made beforehand, too.
        times["theirs"] = [a - b for a, b in zip(times["theirs"], times["setup"], strict=True)]
        us = {key: statistics.median(value) / nfe * 1e6 for key, value in times.items()}
        beyond = (us["theirs"] - us["bare"]) / (us["ours"] - us["bare"])
        times_ours = f"{beyond:.0f}" if us["ours"] > us["bare"] else "ours: none"
        busy = pf.Model(fresh, PROCESS, prediction="eps")
        held = (
            held_states(lambda p=plan, m=busy, y=x, n=noise: run_plan(p, m, y, noise=n), x),
            held_states(diffusers_loop(peer, options, x, nfe, fresh)[0], x),
        )
        memory = f"{held[0]:.1f} against {held[1]:.1f}"
        print(
            f"| {name} | {us['ours']:.1f} | {us['bare']:.1f} | {us['theirs']:.1f} | {times_ours} "
            f"| {memory} |"
        )


def held_states(work: Work, x: Tensor) -> float:
    """Peak memory of a run in units of the state."""
    return peak_memory(work) / (x.numel() * x.element_size())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--solvers", nargs="*", help="only these (default: all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    solvers = [pf.get_solver(name) for name in options.solvers or pf.solver_names()]
    versions = [f"torch {torch.__version__}", f"probflow {pf.__version__}"]
    print(f"{', '.join(versions)}, Python {platform.python_version()}, 1 thread, float32")
    with torch.no_grad():
        overhead(solvers, (64,), options.steps, options.repeats)
        planning(solvers, 5)
        if find_spec("diffusers") is None:
            print("\ndiffusers is not installed: pip install 'probflow-solvers[diffusers]'")
            sys.exit()
        for shape, nfe in (((1, 64), 50), ((8, 4, 64, 64), 20)):
            against_diffusers(shape, nfe, options.repeats)


if __name__ == "__main__":
    main()
