"""The drop-in calls beside a hand-written loop and the libraries whose calls they are.

Time a step, waits for the device a step, and peak memory, all in one run on one thread:

    python benchmarks/dropin.py --repeats 30
    python benchmarks/dropin.py --device cuda

The function is the identity, so that everything that is measured is overhead. The hand-written
loops are careful ones: weights as Python floats, in-place sums of fresh tensors, times made at
once; the adaptive one waits for the device once a step. As the calls do, they return the states at
both ends. Ratios are medians over repeats, in each of which all variants run one after the other.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torchdiffeq
import torchsde
from overhead import hand_euler, hand_heun, hand_rk4, peak_memory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import probflow as pf

SHAPES = {"small": (64,), "large": (256, 3, 32, 32)}
FIXED = {"euler": hand_euler, "heun2": hand_heun, "rk4": hand_rk4}
ADAPTIVE = {"rtol": 1e-5, "atol": 1e-7}
END = 20.0  # of the adaptive runs: y' = y takes 49 steps at these tolerances

Variants = dict[str, Callable[[], object]]


def identity(t: Tensor, y: Tensor) -> Tensor:
    """The right-hand side, y' = y."""
    return y


# Hand-written loops -------------------------------------------------------------------------------

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def hand_dopri5(y: Tensor, first_step: float) -> tuple[Tensor, int]:
    """Dormand and Prince's method with one wait for the device in each step."""
    rtol, atol = ADAPTIVE["rtol"], ADAPTIVE["atol"]
    t, h, steps, start = 0.0, first_step, 0, y
    root = 1.0 / math.sqrt(y.numel())
    k1 = identity(torch.zeros((), device=y.device), y)
    while t < END:
        h = min(h, END - t)
        times = torch.tensor([t + c * h for c in NODES], dtype=torch.float32)
        rows = times.to(y.device, non_blocking=True).unbind(0)
        k = [k1]
        for i, weights in enumerate(WEIGHTS):
            point = torch.add(y, k1, alpha=h * weights[0])
            for slope, weight in zip(k[1:], weights[1:], strict=True):
                if weight:
                    point.add_(slope, alpha=h * weight)
            k.append(identity(rows[i + 1], point))
        error = k1 * (h * ERROR[0])
        for slope, weight in zip(k[2:], ERROR[2:], strict=True):
            error.add_(slope, alpha=h * weight)
        scale = torch.maximum(y.abs(), point.abs()).mul_(rtol).add_(atol)
        ratio = float(torch.linalg.vector_norm(error.div_(scale))) * root
        steps += 1
        if ratio <= 1.0:
            t, y, k1 = t + h, point, k[6]
        h *= min(10.0, max(0.2, 0.9 * ratio**-0.2))
    return torch.stack([start, y]), steps


def hand_maruyama(y: Tensor, one: Tensor, steps: int) -> Tensor:
    """y' = y + h f + g dW, with torch.randn for the noise."""
    h, start = 1.0 / steps, y
    root = math.sqrt(h)
    generator = torch.Generator(y.device).manual_seed(0)
    for _ in range(steps):
        dw = torch.randn(y.shape, generator=generator, device=y.device).mul_(root)
        y = torch.add(y, y, alpha=h).add_(one * dw)
    return torch.stack([start, y])


class TrivialSDE:
    """dy = y dt + dW: the coefficients cost nothing."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, like: Tensor) -> None:
        self._one = torch.ones_like(like)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self._one


# Variants: hand-written, ours, the peer's, ours in other ways -------------------------------------


def fixed(name: str, y: Tensor, steps: int) -> tuple[Variants, int]:
    """A fixed-step method over [0, 1]."""
    ends = torch.tensor([0.0, 1.0], device=y.device)
    grid = torch.linspace(0.0, 1.0, steps + 1, device=y.device)
    times, options = grid.tolist(), {"step_size": 1.0 / steps}
    hand = FIXED[name]
    return {
        "hand-written": lambda: torch.stack([y, hand(lambda x, t: x, y, times)]),
        "probflow": lambda: pf.odeint(identity, y, ends, method=name, options=options),
        "torchdiffeq": lambda: torchdiffeq.odeint(identity, y, ends, method=name, options=options),
        "probflow, n+1 outputs": lambda: pf.odeint(identity, y, grid, method=name),
        "torchdiffeq, n+1 outputs": lambda: torchdiffeq.odeint(identity, y, grid, method=name),
    }, steps


def dopri5(y: Tensor) -> tuple[Variants, int]:
    """The adaptive method over [0, END]."""
    ends = torch.tensor([0.0, END], device=y.device)
    options = {"first_step": 0.1}

    def ours(**more: object) -> Callable[[], object]:
        return lambda: pf.odeint(identity, y, ends, **ADAPTIVE, options={**options, **more})

    return {
        "hand-written": lambda: hand_dopri5(y, 0.1),
        "probflow": ours(),
        "torchdiffeq": lambda: torchdiffeq.odeint(
            identity, y, ends, method="dopri5", **ADAPTIVE, options=options
        ),
        "probflow, per sample": ours(per_sample=True),
    }, 49


def euler_maruyama(y: Tensor, steps: int) -> tuple[Variants, int]:
    """Reproducible noise: the hand-written loop's is not the same for other batches or steps."""
    y = y.reshape(len(y), -1) if y.ndim > 1 else y[None]
    sde, ts, dt = TrivialSDE(y), torch.tensor([0.0, 1.0], device=y.device), 1.0 / steps

    def call(library: object, method: str, **more: object) -> Callable[[], object]:
        return lambda: library.sdeint(sde, y, ts, method=method, dt=dt, **more)

    return {
        "hand-written, torch.randn": lambda: hand_maruyama(y, sde._one, steps),
        "probflow": call(pf, "euler", options={"seed": 0}),
        "torchsde": call(torchsde, "euler"),
        "probflow, srk": call(pf, "srk", options={"seed": 0}),
        "torchsde, srk": call(torchsde, "srk"),
    }, steps


def brownian(y: Tensor, steps: int) -> tuple[Variants, int]:
    """Increments over fixed steps, one after the other; ``torch.randn`` makes as many normals."""
    shape = (len(y), y[0].numel()) if y.ndim > 1 else (1, len(y))

    def normals() -> None:
        generator = torch.Generator(y.device).manual_seed(0)
        for _ in range(steps):
            torch.randn(shape, generator=generator, device=y.device)

    def motion(library: object, dt: float | None = 1.0 / steps) -> Callable[[], None]:
        def increments() -> None:
            bm = library.BrownianInterval(0.0, 1.0, shape, device=y.device, entropy=0, dt=dt)
            for k in range(steps):
                bm(k / steps, (k + 1) / steps)

        return increments

    return {
        "torch.randn": normals,
        "probflow": motion(pf),
        "torchsde": motion(torchsde),
        "probflow, no dt": motion(pf, None),
        "torchsde, no dt": motion(torchsde, None),
    }, steps


def cases(state: str, device: str, steps: int, large_steps: int) -> dict[str, tuple[Variants, int]]:
    """All cases for a state, by name."""
    shape = SHAPES[state]
    count = steps if state == "small" else large_steps
    y = torch.rand(shape, generator=torch.Generator().manual_seed(0)).add_(0.5).to(device)
    return {
        **{name: fixed(name, y, count) for name in FIXED},
        "dopri5": dopri5(y),
        "euler-maruyama": euler_maruyama(y, count),
        "brownian": brownian(y, count),
    }


# Measuring ----------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one call: of the one thread, or on an accelerator on the clock until it is done."""
    if device == "cpu":
        start = time.thread_time()
        work()
        return time.thread_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Waits(TorchDispatchMode):
    """Counts how often a value is read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count and go on."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def waits(work: Callable[[], object]) -> int:
    """How often a call reads a value from the device (each element of a list that is read)."""
    with Waits() as counter:
        work()
    return counter.count


def measure(variants: Variants, steps: int, repeats: int, device: str) -> dict[str, list[float]]:
    """Microseconds a step, for each variant a list over the repeats."""
    table: dict[str, list[float]] = {name: [] for name in variants}
    for work in variants.values():
        work()
    for _ in range(repeats):
        for name, work in variants.items():
            table[name].append(seconds(work, device) / steps * 1e6)
    return table


def report(
    state: str, name: str, case: tuple[Variants, int], arguments: argparse.Namespace
) -> None:
    """Print one Markdown table."""
    variants, steps = case
    table = measure(variants, steps, arguments.repeats, arguments.device)
    base = next(iter(table.values()))
    memory = state == "large" and not arguments.no_memory
    print(f"\n### {name}, state {SHAPES[state]}, {steps} steps\n")
    print("| variant | us/step | ratio | values read a step |" + (" peak MiB |" if memory else ""))
    print("|---|---:|---:|---:|" + ("---:|" if memory else ""))
    for variant, values in table.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        row = f"| {variant} | {statistics.median(values):.1f} | {ratio:.2f} "
        row += f"| {waits(variants[variant]) / steps:.2f} |"
        if memory:
            peak = peak_memory(variants[variant], arguments.device) / 2**20
            row += f" {peak:.0f} |"
        print(row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1000, help="fixed steps of the small state")
    parser.add_argument("--large-steps", type=int, default=50, help="of the large state")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", nargs="*", help="some of the cases, by name")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.no_grad():
        device = options.device if options.device == "cpu" else torch.cuda.get_device_name()
        print(
            f"torch {torch.__version__}, torchdiffeq {torchdiffeq.__version__}, torchsde "
            f"{torchsde.__version__}, probflow {pf.__version__}, Python "
            f"{platform.python_version()}, {device}, 1 thread, float32, medians of "
            f"{options.repeats} interleaved repeats"
        )
        for state in SHAPES:
            every = cases(state, options.device, options.steps, options.large_steps)
            for name in options.case or every:
                report(state, name, every[name], options)


if __name__ == "__main__":
    main()
