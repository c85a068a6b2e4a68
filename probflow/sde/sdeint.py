"""``sdeint`` with torchsde's signature: native for probflow's stochastic solvers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import (
    host_times,
    is_registered,
    refine,
    run_grid,
    unknown_method,
    with_options,
)
from probflow.integrate.noise import BrownianPath, NoiseSource, PathNoise, SeededNoise
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.solvers import Solver, get_solver

__all__ = ["sdeint"]

_OPTIONS = ("seed", "step_size", "check_finite")


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Callable[..., Tensor] | None = None,
    method: Any = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    rtol: Any = 1e-5,
    atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
) -> Any:
    """Integrate an SDE; the signature is torchsde's.

    probflow's stochastic solvers run here; the methods of torchsde (``srk``, its default,
    ``euler``, ``milstein``, ``heun``, ...) are passed on to ``torchsde.sdeint``, with ``ts`` turned
    into torchsde's increasing times where needed.

    Parameters
    ----------
    sde
        A :class:`~probflow.problems.ReverseSDE`; for torchsde's methods any of its SDEs.
    y0
        State at ``ts[0]``, (batch, ...) of any shape (torchsde's methods: two axes).
    ts
        Times, (m,). For a ``ReverseSDE`` either strictly decreasing process times t, or, as
        torchsde needs it, strictly increasing ``s = -t`` <= 0.
    bm
        Brownian motion: ``bm(sa, sb)`` is its increment between two times ``sa < sb`` of torchsde's
        clock ``s = -t``, shape of ``y0``. A Brownian motion of torchsde, or
        ``pf.BrownianPath(seed, shape, ts[0], ts[-1])`` with ``ts`` in s.
    method
        Name, alias, :class:`~probflow.solvers.registry.Solver` or registered step function.
    dt
        Step, in process time: from each output time towards the next in steps of ``dt``, the last
        one shortened so that it lands on it. With ``dt=None``, ``ts`` itself is the grid.
    options
        ``step_size``: same as ``dt``, and used instead of it. ``seed``: whole number that fixes the
        noise where no ``bm`` is given; without one, a seed is drawn from torch's global generator,
        so that ``torch.manual_seed`` makes a run repeatable. ``check_finite``: ``False`` leaves out
        the look at the final state. Further the solver's own options.
    adaptive, rtol, atol, dt_min, names, logqp, extra, extra_solver_state
        Of torchsde, for its methods.

    Returns
    -------
    Tensor
        States at the times ``ts``, shape (m, \\*y0.shape).

    Raises
    ------
    TypeError
        If a probflow solver gets anything but a ``ReverseSDE``, or for an argument of the wrong
        kind.
    ValueError
        For unknown methods and options, deterministic solvers, arguments that only torchsde's
        methods have, and times that do not fit.
    NonFiniteError
        If the model returns NaN or infinity.
    """
    if isinstance(sde, ProbabilityFlowODE):
        raise TypeError(
            "sde: a ProbabilityFlowODE is integrated by pf.odeint; for an SDE solver give "
            "pf.ReverseSDE(ode.process, ode.model)"
        )
    solver = _native(method)
    if solver is None:
        from probflow.adapters import torchsde as peer

        if isinstance(sde, ReverseSDE):
            ts = _torchsde_times(ts)
        return peer.passed_on(
            sde,
            y0,
            ts,
            bm=bm,
            method=method,
            dt=dt,
            adaptive=adaptive,
            rtol=rtol,
            atol=atol,
            dt_min=dt_min,
            options=options,
            names=names,
            logqp=logqp,
            extra=extra,
            extra_solver_state=extra_solver_state,
        )
    check_unsupported(
        solver,
        adaptive=adaptive,
        names=names,
        logqp=logqp,
        extra=extra,
        extra_solver_state=extra_solver_state,
    )
    settings = dict(options or {})
    seed, step = settings.pop("seed", None), settings.pop("step_size", dt)
    check = settings.pop("check_finite", True)
    solver = with_options(solver, settings, _OPTIONS)
    check_sde(sde, solver)
    times = process_times(ts)
    grid = times if step is None else refine(times, step, "dt")
    _check_state(y0)
    if bm is not None and seed is not None:
        raise ValueError("bm, seed: give one of them, not both")
    noise = _seeded(seed, y0) if bm is None else path_noise(bm, y0, grid)
    return run_grid(solver, sde.process, sde.model, y0, grid, times, noise, check_finite=check)


def _native(method: Any) -> Solver | None:
    """The stochastic solver of probflow that ``method`` names; ``None`` for torchsde's."""
    if method is None:
        return None
    if isinstance(method, str):
        from probflow.adapters import torchsde as peer

        # "euler", "heun" and "midpoint" are names of both; for an SDE they are torchsde's.
        if method in peer.own_methods():
            return None
        if not is_registered(method):
            raise unknown_method(method, peer.own_methods(), "torchsde")
    solver = get_solver(method)
    if not solver.stochastic:
        raise ValueError(
            f"method: {solver.name} is deterministic; integrate the probability-flow ODE with it: "
            f"pf.odeint(pf.ProbabilityFlowODE(process, model), y0, t, method={solver.name!r})"
        )
    return solver


def check_sde(sde: Any, solver: Solver) -> None:
    """Raise ``TypeError`` unless ``sde`` is a reverse SDE, saying how to make one."""
    if not isinstance(sde, ReverseSDE):
        raise TypeError(
            f"sde: {solver.name} uses the noise levels of a diffusion, so it needs a "
            f"pf.ReverseSDE, got {type(sde).__name__}. Make one from your network f(x, t): "
            "process = pf.VP.linear(); sde = pf.ReverseSDE(process, pf.Model(f, process, "
            "prediction='eps')). For other SDEs use torchsde's methods: 'euler', 'srk', ..."
        )


def check_unsupported(solver: Solver, **arguments: Any) -> None:
    """Raise ``ValueError`` for an argument that only torchsde's methods have."""
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"{name}: {solver.name} takes fixed steps of the reverse SDE and has no {name}; "
                "leave it out, or use a method of torchsde, such as 'euler' or 'srk'"
            )


def process_times(ts: Any) -> list[float]:
    """Decreasing process times, from those or from increasing ``s = -t``.

    Raises
    ------
    TypeError, ValueError
        If ``ts`` is neither.
    """
    times = host_times(ts, "ts")
    if len(times) == 1 or times[1] < times[0]:
        return times
    if times[-1] > 0.0:
        raise ValueError(
            "ts: a reverse SDE runs from noise to data; give decreasing process times, or "
            f"increasing s = -t <= 0 as torchsde does, got {times[0]:g} to {times[-1]:g}"
        )
    return [0.0 - s for s in times]


def _torchsde_times(ts: Any) -> Any:
    """``ts`` in torchsde's clock; a tensor stays one, with its dtype and device."""
    times = process_times(ts)
    if isinstance(ts, Tensor):
        return -ts if len(ts) > 1 and times[0] == float(ts[0]) else ts
    return [-t for t in times]


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
    if isinstance(bm, BrownianPath):
        try:
            for t in (grid[0], grid[-1]):
                bm.check_time(-t)
        except ValueError as error:
            raise ValueError(
                f"bm: {error}; times of the path are s = -t, so make it as "
                f"pf.BrownianPath(seed, shape, {-grid[0]:g}, {-grid[-1]:g})"
            ) from None
    wide = torch.promote_types(y0.dtype, torch.float32)
    return PathNoise(bm, lambda t: -t, wide)


def _seeded(seed: int | None, y0: Tensor) -> NoiseSource:
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
    wide = torch.promote_types(y0.dtype, torch.float32)
    return SeededNoise(seed, y0.shape, wide, y0.device)


def _check_state(y0: Any) -> None:
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: need a tensor, got {type(y0).__name__}")
    if not y0.is_floating_point() or y0.ndim < 1:
        raise TypeError(
            f"y0: need a real floating-point tensor (batch, ...), got {y0.dtype}, "
            f"shape {tuple(y0.shape)}"
        )
