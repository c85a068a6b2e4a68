"""``odeint`` with torchdiffeq's signature: native for probflow's solvers, else passed on."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.integrate.loop import run_plan
from probflow.integrate.noise import NoiseSource
from probflow.models import Model
from probflow.plan import Plan
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.processes import Process
from probflow.solvers import Solver, all_solvers, get_solver, solver_names

__all__ = ["odeint"]

_OPTIONS = ("step_size", "grid_constructor", "check_finite")


def odeint(
    func: Any,
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``, ``y(t[0]) = y0``; the signature is torchdiffeq's.

    probflow's deterministic solvers run here; a method that only torchdiffeq has
    (``dopri5``, the default, ``scipy_solver``, ...) and everything with ``event_fn`` is passed on
    to ``torchdiffeq.odeint`` unchanged; only, adaptive methods are told to land on the times ``t``
    of a ``ProbabilityFlowODE``, because its process may not exist beyond the last.

    Parameters
    ----------
    func
        A :class:`~probflow.problems.ProbabilityFlowODE`, which every solver accepts, or any
        function ``func(t, y)`` of a 0-d tensor and the state, for the general methods ``euler``,
        ``midpoint``, ``heun``, ``rk4`` (the 3/8 rule, as torchdiffeq's).
    y0
        State at ``t[0]``: (batch, ...) for a ``ProbabilityFlowODE``; any shape, or a tuple of
        tensors, for a plain function.
    t
        Times, (m,): strictly decreasing (for diffusion: sampling) or increasing (encoding). A
        floating-point tensor on any device, an array or a sequence; read to the host once.
    rtol, atol
        Tolerances of torchdiffeq's adaptive methods; fixed-step methods have none.
    method
        Name, alias, :class:`~probflow.solvers.registry.Solver` or registered step function.
    options
        ``step_size``: steps of this length from each output time towards the next, the last one
        shortened so that it lands on it. (torchdiffeq steps over the output times and
        interpolates, linearly by default.) ``grid_constructor``: ``(func, y0, t) -> grid``,
        a tensor of times from ``t[0]`` to ``t[-1]`` with all of ``t`` in it. Without either, ``t``
        is the grid. ``check_finite``: ``False`` leaves out the look at the final state, which
        waits for the device once and cannot be taken under ``torch.func.vmap``. Further the
        solver's own options, such as ``r1`` of ``dpm-solver-2``.
    event_fn
        See torchdiffeq.

    Returns
    -------
    Tensor or tuple of Tensor
        States at the times ``t``, shape (m, \\*y0.shape).

    Raises
    ------
    TypeError
        If a solver that needs a noising process gets a plain function, or for an argument of the
        wrong kind.
    ValueError
        For unknown methods and options, stochastic solvers, times that are not monotone or
        outside the process.
    NonFiniteError
        If ``func`` returns NaN or infinity.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    >>> y = pf.odeint(lambda t, y: -y, torch.ones(1, dtype=torch.float64), t, method="rk4")
    >>> round(float(y[-1]), 5)
    0.36788
    """
    check_function(func)
    solver = _native(method)
    if solver is not None and event_fn is None:
        return integrate(solver, func, y0, t, options)
    from probflow.adapters import torchdiffeq as peer

    if solver is not None and solver.name not in peer.own_methods():
        raise ValueError(
            f"event_fn: {solver.name} does not look for events; use a method of torchdiffeq: "
            + ", ".join(peer.own_methods())
        )
    return peer.passed_on(
        func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn
    )


def _native(method: Any) -> Solver | None:
    """The deterministic solver of probflow that ``method`` names; ``None`` for torchdiffeq's."""
    if method is None:
        return None
    if isinstance(method, str) and not is_registered(method):
        from probflow.adapters import torchdiffeq as peer

        if method in peer.own_methods():
            return None
        raise unknown_method(method, peer.own_methods(), "torchdiffeq")
    solver = get_solver(method)
    if solver.stochastic:
        raise ValueError(
            f"method: {solver.name} is stochastic; integrate the reverse SDE with it: "
            f"pf.sdeint(pf.ReverseSDE(process, model), y0, ts, method={solver.name!r})"
        )
    return solver


def is_registered(name: str) -> bool:
    """Whether a name, in either spelling, is one of probflow's solvers or an alias."""
    return name.strip().lower().replace("_", "-") in solver_names(aliases=True)


def unknown_method(method: str, theirs: Sequence[str], peer: str) -> ValueError:
    """The error for a name that neither probflow nor the peer knows, with near ones."""
    ours = solver_names(aliases=True)
    key = method.strip().lower().replace("_", "-")
    spelled = {name.replace("_", "-"): name for name in (*theirs, *ours)}
    near = [spelled[k] for k in difflib.get_close_matches(key, spelled, n=4, cutoff=0.5)]
    hint = f"; near names: {', '.join(near)}" if near else ""
    return ValueError(
        f"method: neither probflow nor {peer} has a method {method!r}{hint} "
        f"(all: pf.solver_names(); {peer}: {', '.join(theirs)})"
    )


def check_function(func: Any, solver: Solver | None = None) -> None:
    """Raise ``TypeError`` if ``func`` cannot be integrated (by ``solver``), saying what can."""
    if isinstance(func, ReverseSDE):
        raise TypeError(
            "func: a ReverseSDE is integrated by pf.sdeint; for an ODE solver give "
            "pf.ProbabilityFlowODE(sde.process, sde.model)"
        )
    if isinstance(func, Model):
        raise TypeError(
            "func: a Model is a denoiser, called as model(x, t), and not the right-hand side of "
            "an ODE; give pf.ProbabilityFlowODE(model.process, model)"
        )
    if not callable(func):
        raise TypeError(
            f"func: need func(t, y) or a pf.ProbabilityFlowODE, got {type(func).__name__}"
        )
    if solver is not None and solver.needs == "process" and not _structured(func):
        general = ", ".join(s.name for s in all_solvers() if s.needs == "ode")
        raise TypeError(
            f"func: {solver.name} uses the noise levels of a diffusion, so it needs a "
            "pf.ProbabilityFlowODE, not a plain function. Make one from your network f(x, t): "
            "process = pf.VP.linear(); ode = pf.ProbabilityFlowODE(process, pf.Model(f, process, "
            "prediction='eps')); a network that returns dx/dt has prediction='velocity'. "
            f"Methods for plain functions func(t, y): {general}, and torchdiffeq's"
        )


def _structured(func: Any) -> bool:
    return isinstance(func, ProbabilityFlowODE)


# Native integration -----------------------------------------------------------------------------


def integrate(
    solver: Solver, func: Any, y0: Any, t: Any, options: Mapping[str, Any] | None = None
) -> Any:
    """Integrate with one of probflow's deterministic solvers; arguments as :func:`odeint`."""
    settings = dict(options or {})
    step_size = settings.pop("step_size", None)
    constructor = settings.pop("grid_constructor", None)
    check = settings.pop("check_finite", True)
    solver = with_options(solver, settings, _OPTIONS)
    check_function(func, solver)
    outputs = host_times(t, "t")
    if isinstance(y0, tuple):
        return _integrate_tuple(solver, func, y0, t, options)
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: need a tensor or a tuple of tensors, got {type(y0).__name__}")
    grid = outputs
    if step_size is not None and constructor is not None:
        raise ValueError("step_size, grid_constructor: give one of them, not both")
    if step_size is not None:
        grid = refine(outputs, step_size, "step_size")
    elif constructor is not None:
        times = t if isinstance(t, Tensor) else torch.tensor(outputs, dtype=torch.float64)
        grid = host_times(constructor(func, y0, times), "grid_constructor")
    if _structured(func):
        return run_grid(solver, func.process, func.model, y0, grid, outputs, check_finite=check)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return func(time, x)

    return run_grid(solver, None, velocity, y0, grid, outputs, check_finite=check)


def _integrate_tuple(solver: Solver, func: Any, y0: tuple, t: Any, options: Any) -> tuple:
    """Integrate a tuple of tensors as one flat vector, as torchdiffeq does."""
    if _structured(func):
        raise TypeError("y0: the state of a ProbabilityFlowODE is one tensor, got a tuple")
    if not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError("y0: need a tensor or a tuple of tensors")
    shapes = [part.shape for part in y0]
    sizes = [part.numel() for part in y0]

    def split(flat: Tensor, lead: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
        parts = flat.split(sizes, dim=-1)
        return tuple(p.reshape((*lead, *shape)) for p, shape in zip(parts, shapes, strict=True))

    def flat_func(time: Tensor, flat: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in func(time, split(flat))])

    flat = torch.cat([part.reshape(-1) for part in y0])
    states = integrate(solver, flat_func, flat, t, options)
    return split(states, (len(states),))


def with_options(solver: Solver, settings: Mapping[str, Any], others: Sequence[str]) -> Solver:
    """The solver with its own options set.

    Raises
    ------
    ValueError
        For an option that is neither its own nor one of ``others``, naming all.
    """
    unknown = sorted(set(settings) - set(solver.options))
    if unknown:
        allowed = ", ".join((*others, *solver.options))
        raise ValueError(f"options: {solver.name} has no option {unknown[0]!r}, allowed: {allowed}")
    return solver.with_options(**settings) if settings else solver


def host_times(t: Any, name: str) -> list[float]:
    """Times as floats, read to the host once.

    Raises
    ------
    TypeError
        Unless ``t`` holds floating-point numbers (a sequence may hold whole numbers).
    ValueError
        Unless it is one-dimensional, finite and strictly monotone, and asks for no gradient.
    """
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            raise TypeError(f"{name}: need floating-point times, got a tensor of {t.dtype}")
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: gradients with respect to times are not formed natively; pass "
                f"{name}.detach(), or use torchdiffeq.odeint_adjoint after pf.register()"
            )
        values = np.asarray(t.detach().tolist(), dtype=np.float64)
    else:
        try:
            values = np.asarray(t, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: need a 1-D tensor or sequence of times, got {t!r}") from None
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: need at least one time in one dimension, got {values.shape}")
    gaps = np.diff(values)
    if not np.isfinite(values).all() or not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError(f"{name}: times must be finite and strictly increasing or decreasing")
    return values.tolist()


def refine(times: Sequence[float], step: Any, name: str) -> list[float]:
    """Steps of length ``step`` from each time towards the next, the last one shortened.

    A remainder that the rounding of times to float32 explains makes no step of its own (at most
    1e-6 of the times, and 1% of a step): the last step is longer by it.

    Raises
    ------
    ValueError
        Unless ``step`` is positive and finite.
    """
    length = float(step)
    if not 0.0 < length < math.inf:
        raise ValueError(f"{name}: need a positive finite step, got {step!r}")
    grid = [times[0]]
    for start, stop in pairwise(times):
        slack = min(1e-6 * max(abs(start), abs(stop)), 1e-2 * length)
        count = max(1, math.ceil((abs(stop - start) - slack) / length))
        signed = math.copysign(length, stop - start)
        grid += [start + k * signed for k in range(1, count)]
        grid.append(stop)
    return grid


def run_grid(
    solver: Solver,
    process: Process | None,
    model: Any,
    y0: Tensor,
    grid: Sequence[float],
    outputs: Sequence[float],
    noise: NoiseSource | None = None,
    *,
    check_finite: bool = True,
) -> Tensor:
    """States at the ``outputs``, which are among the times of the ``grid``; (m, \\*y0.shape).

    Raises
    ------
    ValueError
        If the grid does not run from the first output to the last, through all others.
    """
    if len(outputs) == 1:
        return torch.stack([y0])
    position = {time: index for index, time in enumerate(grid)}
    wanted = [position.get(time, -1) for time in outputs]
    if -1 in wanted or wanted[0] != 0 or wanted[-1] != len(grid) - 1:
        raise ValueError(
            "grid_constructor: the grid must run from t[0] to t[-1] and contain every time of t"
        )
    plan = _plan(solver, process, grid, model.prediction if process is not None else None)
    run = partial(run_plan, plan, model, y0, noise=noise, check_finite=check_finite)
    if len(wanted) == len(grid):
        return run(trajectory=True)
    if len(wanted) == 2:
        return torch.stack([y0, run()])
    # A fine grid with few outputs: keep those only.
    numbers, states = {index - 1 for index in wanted}, [y0]

    def collect(number: int, time: float, state: Tensor) -> None:
        if number in numbers:
            states.append(state)

    run(callback=collect)
    return torch.stack(states)


# Plans of recent calls: training and adjoints integrate over the same times again and again, and
# tracing a solver costs about as much as running it on a small state.
_PLANS: dict[Any, Plan] = {}


def _plan(
    solver: Solver, process: Process | None, times: Sequence[float], prediction: str | None
) -> Plan:
    """The plan of a solver on a grid, remembered for the 32 latest (solver, process, grid)."""
    levels = None
    if process is not None:
        process.check_times(times, "t")
        # The levels themselves are part of the key, so that a process that was changed in place
        # does not meet its old plan.
        array = np.asarray(times)
        levels = tuple(np.asarray(f(array)).tobytes() for f in (process.alpha, process.sigma))
    settings = tuple(sorted(solver.options.items()))
    written = (solver.name, solver.function, solver.prediction, solver.coordinates, solver.memory)
    key = (*written, settings, process, levels, tuple(times), prediction)
    plan = _PLANS.pop(key, None)
    if plan is None:
        plan = solver.plan(process, times, prediction)
    _PLANS[key] = plan
    while len(_PLANS) > 32:
        _PLANS.pop(next(iter(_PLANS)), None)
    return plan
