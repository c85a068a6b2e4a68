"""probflow's stochastic solvers on a reverse SDE: the plan route of ``sdeint``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import host_times, refine, run_grid, with_options
from probflow.integrate.motion import check_covers, drawn_seed
from probflow.integrate.noise import NoiseSource, PathNoise, SeededNoise, check_seed
from probflow.problems import ReverseSDE
from probflow.solvers import Solver
from probflow.words import UnfitError, check_flags, dictionary

__all__ = [
    "check_sde",
    "check_state",
    "check_unsupported",
    "first_sample_of",
    "path_noise",
    "process_times",
    "run_plan_solver",
    "sde_times",
]

_OPTIONS = ("seed", "step_size", "check_finite", "first_sample")


def run_plan_solver(
    solver: Solver,
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Callable[..., Tensor] | None,
    dt: Any,
    options: Mapping[str, Any] | None,
    **unsupported: Any,
) -> Tensor:
    """States of a probflow solver at the times ``ts``; the arguments are those of ``sdeint``.

    Raises
    ------
    TypeError, ValueError
        For anything but a ``ReverseSDE``, and arguments that do not fit.
    """
    check_unsupported(solver, **unsupported)
    settings = dictionary(options)
    said = "step_size" if "step_size" in settings else "dt"
    seed, step = settings.pop("seed", None), settings.pop("step_size", dt)
    first_sample = first_sample_of(settings.pop("first_sample", None), bm)
    check_flags(settings, ("check_finite",))
    check = settings.pop("check_finite", None) in (None, True)
    solver = with_options(solver, settings, _OPTIONS)
    check_sde(sde, solver)
    times = process_times(ts)
    grid = times if step is None else refine(times, step, said)
    check_state(y0)
    if bm is not None and seed is not None:
        raise ValueError("bm, seed: give one of them, not both")
    noise = _seeded(seed, first_sample, y0) if bm is None else path_noise(bm, y0, grid)
    return run_grid(solver, sde.process, sde.model, y0, grid, times, noise, check_finite=check)


def check_sde(sde: Any, solver: Solver) -> None:
    """Raise ``TypeError`` unless ``sde`` is a reverse SDE, saying how to make one."""
    if not isinstance(sde, ReverseSDE):
        raise TypeError(
            f"sde: {solver.name} uses the noise levels of a diffusion, so it needs a "
            f"pf.ReverseSDE, got {type(sde).__name__}. Make one from your network f(x, t): "
            "process = pf.VP.linear(); sde = pf.ReverseSDE(process, pf.Model(f, process, "
            "prediction='eps')). For other SDEs use the general methods: 'euler', 'srk', ..."
        )


def check_unsupported(solver: Solver, **arguments: Any) -> None:
    """Raise ``ValueError`` for an argument that only the general methods have."""
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"{name}: {solver.name} takes fixed steps of the reverse SDE and has no {name}; "
                "leave it out, or use a general method, such as 'euler' or 'srk'"
            )


def sde_times(ts: Any) -> list[float]:
    """Times as floats; a tensor may hold whole numbers, as in torchsde."""
    if isinstance(ts, Tensor):
        if ts.requires_grad and torch.is_grad_enabled():
            raise ValueError("ts: must not require gradients; pass ts.detach()")
        if ts.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            ts = ts.double()
    return host_times(ts, "ts")


def process_times(ts: Any) -> list[float]:
    """Decreasing process times, from those or from increasing ``s = -t``.

    Raises
    ------
    TypeError, ValueError
        If ``ts`` is neither.
    """
    times = sde_times(ts)
    if len(times) == 1 or times[1] < times[0]:
        return times
    if times[-1] > 0.0:
        raise ValueError(
            "ts: a reverse SDE runs from noise to data; give decreasing process times, or "
            f"increasing s = -t <= 0 as torchsde does, got {times[0]:g} to {times[-1]:g}"
        )
    return [0.0 - s for s in times]


def path_noise(bm: Callable[..., Tensor], y0: Tensor, grid: Sequence[float]) -> NoiseSource:
    """Noise of the steps from a Brownian motion in torchsde's clock.

    Raises
    ------
    TypeError, ValueError
        If ``bm`` is not callable, or its shape or interval does not fit.
    """
    if not callable(bm):
        raise TypeError(f"bm: need a Brownian motion bm(sa, sb), got {type(bm).__name__}")
    shape = getattr(bm, "shape", None)
    if shape is not None and tuple(shape) != tuple(y0.shape):
        raise ValueError(f"bm: has shape {tuple(shape)}, the state {tuple(y0.shape)}")
    check_covers(bm, -grid[0], -grid[-1], "ts needs s = -t", "y0.shape")
    wide = torch.promote_types(y0.dtype, torch.float32)
    return PathNoise(bm, lambda t: -t, wide)


def first_sample_of(number: Any, bm: Any) -> int:
    """The option ``first_sample``, 0 by default; ``ValueError`` beside a Brownian motion."""
    if number is not None and bm is not None:
        raise ValueError(
            "bm, first_sample: give one of them, not both; first_sample is an argument of the "
            "Brownian motion, too"
        )
    return 0 if number is None else check_seed(number, "first_sample")


def _seeded(seed: int | None, first_sample: int, y0: Tensor) -> NoiseSource:
    seed = drawn_seed() if seed is None else seed
    wide = torch.promote_types(y0.dtype, torch.float32)
    return SeededNoise(seed, y0.shape, wide, y0.device, first_sample)


def check_state(y0: Any) -> None:
    """Raise ``TypeError`` unless ``y0`` is a real floating-point tensor (batch, ...)."""
    if not isinstance(y0, Tensor):
        raise UnfitError(f"y0: need a tensor, got {type(y0).__name__}")
    if not y0.is_floating_point() or y0.ndim < 1:
        raise TypeError(
            f"y0: need a real floating-point tensor (batch, ...), got {y0.dtype}, "
            f"shape {tuple(y0.shape)}"
        )
