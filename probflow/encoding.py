"""Data to noise and back by the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probflow.grids import as_grid
from probflow.integrate.loop import NonFiniteError
from probflow.models import Model
from probflow.ode.odeint import odeint
from probflow.ode.options import native_methods
from probflow.problems import ProbabilityFlowODE, as_model
from probflow.processes import Process
from probflow.solvers import get_solver, solver_names
from probflow.tableaus import TABLEAUS
from probflow.words import dictionary, is_real

__all__ = ["decode", "encode"]

TOLERANCE = 1e-5  # by default, relative and absolute


def encode(
    model: Any,
    x: Tensor,
    solver: Any = "dopri5",
    steps: int | None = None,
    *,
    process: Process | None = None,
    t0: float | None = None,
    t1: float | None = None,
    grid: Any = None,
    rtol: Any = None,
    atol: Any = None,
    options: Mapping[str, Any] | None = None,
    gradients: bool = False,
) -> Tensor:
    """Data to noise: the state at t1 of the probability-flow ODE that starts from ``x`` at t0.

    Song et al. 2021 (arXiv 2011.13456, section 4.3). :func:`decode` is the way back, up to the
    solver's error.

    Parameters
    ----------
    model
        A :class:`probflow.Model`, or a target (then ``process`` is needed).
    x
        Data, (batch, ...).
    solver
        An adaptive method of :func:`probflow.odeint`, which chooses its steps for each sample, or
        any deterministic solver with ``steps``: a general method or one of
        :func:`probflow.solver_names`.
    steps, grid
        As in :func:`probflow.sample`; the grid is taken from its data end to its noise end.
    process, t0, t1, rtol, atol, options, gradients
        As in :func:`probflow.log_likelihood`.

    Returns
    -------
    Tensor
        Shape and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError, NonFiniteError, StepSizeError, MaxStepsError
        As :func:`probflow.log_likelihood`.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> law, process = pf.Gaussian([1.0, -1.0], 0.25), pf.VP.linear()
    >>> x = torch.zeros(3, 2, dtype=torch.float64)
    >>> z = pf.encode(law, x, "heun", 50, process=process)
    >>> bool((pf.decode(law, z, "heun", 50, process=process) - x).abs().max() < 0.01)
    True
    """
    span = dict(steps=steps, grid=grid, t0=t0, t1=t1, rtol=rtol, atol=atol, options=options)
    return _transported(model, process, x, "x", solver, span, gradients)


def decode(
    model: Any,
    z: Tensor,
    solver: Any = "dopri5",
    steps: int | None = None,
    *,
    process: Process | None = None,
    t0: float | None = None,
    t1: float | None = None,
    grid: Any = None,
    rtol: Any = None,
    atol: Any = None,
    options: Mapping[str, Any] | None = None,
    gradients: bool = False,
) -> Tensor:
    """Noise to data: the state at t0 of the probability-flow ODE that starts from ``z`` at t1.

    Parameters
    ----------
    z
        Noise, (batch, ...).
    model, solver, steps, process, t0, t1, grid, rtol, atol, options, gradients
        As those of :func:`encode`.

    Returns
    -------
    Tensor
        Shape and dtype of ``z``.

    Raises
    ------
    TypeError, ValueError, NonFiniteError, StepSizeError, MaxStepsError
        As :func:`encode`.
    """
    span = dict(steps=steps, grid=grid, t0=t0, t1=t1, rtol=rtol, atol=atol, options=options)
    return _transported(model, process, z, "z", solver, span, gradients, to_data=True)


def _transported(
    model: Any,
    process: Process | None,
    state: Tensor,
    name: str,
    solver: Any,
    span: Mapping[str, Any],
    gradients: bool,
    to_data: bool = False,
) -> Tensor:
    """The state at the other end of the flow."""
    model = as_model(model, process)
    check_state(state, name)
    adaptive = _solver_is_adaptive(solver)
    ends, settings, tolerances = route(model.process, adaptive, to_data=to_data, **span)
    watched, seen = observed(model)
    ode = ProbabilityFlowODE(model.process, watched)
    settings.pop("return_info", None)  # there is one answer
    with outside_inference(gradients), naming_sample(seen):
        start = state.clone() if state.is_inference() else state
        return odeint(ode, start, ends, method=solver, options=settings, **tolerances)[-1]


class _Seen:
    """A model's function that remembers its last output and which samples were finite."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.output: Any = None
        self.finite: Tensor | None = None

    def __call__(self, x: Tensor, time: Tensor, **kwargs: Any) -> Tensor:
        self.output = output = self.function(x, time, **kwargs)
        if isinstance(output, Tensor) and output.shape == x.shape:
            finite = torch.isfinite(output.detach()).reshape(len(x), -1).all(1)
            self.finite = finite if self.finite is None else self.finite & finite
        return output


def observed(model: Model) -> tuple[Model, _Seen]:
    """The same model, and what is seen of its outputs."""
    seen = _Seen(model.function)
    same = Model(seen, model.process, model.prediction, time=model.time, kwargs=model.kwargs)
    return same, seen


@contextmanager
def naming_sample(seen: _Seen) -> Iterator[None]:
    """Add the first bad sample to an error that does not name one."""
    try:
        yield
    except NonFiniteError as error:
        if seen.finite is None or bool(seen.finite.all()) or "sample" in str(error):
            raise
        bad = seen.finite.tolist().index(False)
        raise NonFiniteError(f"{error}; the first bad sample is {bad}") from error


@contextmanager
def outside_inference(gradients: bool) -> Iterator[None]:
    """Derivatives can be formed; a graph is kept with ``gradients`` only, ``True`` or ``False``."""
    if not isinstance(gradients, bool):
        raise TypeError(f"gradients: need True or False, got {gradients!r}")
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def route(
    process: Process,
    adaptive: bool,
    steps: int | None,
    grid: Any,
    t0: float | None,
    t1: float | None,
    rtol: Any,
    atol: Any,
    options: Mapping[str, Any] | None,
    to_data: bool = False,
) -> tuple[list[float], dict[str, Any], dict[str, Any]]:
    """First and last time, from data to noise or ``to_data``; options with the grid; tolerances.

    Raises
    ------
    TypeError, ValueError
        For times, a grid or options that do not fit the process or the kind of method.
    """
    settings = dictionary(options)
    for name, value in (("t0", t0), ("t1", t1)):
        if value is not None:
            _check_time(process, value, name)
    if adaptive:
        if steps is not None or grid is not None:
            raise ValueError(
                "steps, grid: an adaptive method chooses its own steps; give rtol and atol, or a "
                "method with fixed steps such as 'rk4'"
            )
        ends = float(process.end if t0 is None else t0), float(process.start if t1 is None else t1)
        if not ends[0] < ends[1]:
            raise ValueError(
                f"t0, t1: need t0 (data) < t1 (noise), got {ends[0]:g} and {ends[1]:g}"
            )
        tolerances = {"rtol": rtol, "atol": atol}
        tolerances = {name: TOLERANCE if v is None else v for name, v in tolerances.items()}
        return list(ends[::-1] if to_data else ends), {"per_sample": True, **settings}, tolerances
    if rtol is not None or atol is not None:
        raise ValueError(
            "rtol, atol: they are for an adaptive method, which chooses its steps; a method with "
            f"fixed steps has steps and grid, got rtol={rtol!r}, atol={atol!r}"
        )
    for name in ("step_size", "grid_constructor"):
        if name in settings:
            raise ValueError(f"options: {name!r} is not for here; give steps and grid")
    recipe = as_grid(process.default_grid if grid is None else grid)
    if t0 is not None or t1 is not None:
        if recipe.kind in ("explicit", "paper") or (recipe.start, recipe.end) != (None, None):
            raise ValueError("t0, t1: the grid has its own ends; leave them out")
        recipe = replace(recipe, start=t1, end=t0, unit="t")
    times = recipe.times(process, steps).tolist()
    times = times if to_data else times[::-1]
    return [times[0], times[-1]], {"grid_constructor": lambda func, y0, t: times, **settings}, {}


def _check_time(process: Process, value: Any, name: str) -> None:
    if not is_real(value):
        raise TypeError(f"{name}: need a number, got {value!r}")
    process.check_times(float(value), name)


def spelled(method: Any) -> str:
    """A method's name as the general methods have it; empty for what is no name."""
    return method.strip().lower().replace("-", "_") if isinstance(method, str) else ""


def is_adaptive(method: Any) -> bool:
    """Whether a name is that of an adaptive general method."""
    key = spelled(method)
    return key in TABLEAUS and TABLEAUS[key].adaptive


def _solver_is_adaptive(solver: Any) -> bool:
    """Whether a deterministic solver is adaptive; raises if it is none."""
    if spelled(solver) in native_methods():
        return is_adaptive(solver)
    try:
        found = get_solver(solver)
    except ValueError as error:
        raise ValueError(f"{error}; general methods: {', '.join(native_methods())}") from None
    if found.stochastic:
        names = ", ".join(name for name in solver_names() if not get_solver(name).stochastic)
        raise ValueError(
            f"solver: {found.name} draws noise, but data and noise are paired by the "
            f"probability-flow ODE; deterministic are {names}, {', '.join(native_methods())}"
        )
    return False


def check_state(x: Any, name: str) -> None:
    """Raise unless ``x`` is a finite floating-point tensor (batch, ...)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: need a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: need floating-point numbers, got a tensor of {x.dtype}")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"{name}: need at least one sample, (batch, ...), got {tuple(x.shape)}")
    finite = torch.isfinite(x.detach()).reshape(len(x), -1).all(1)
    if not bool(finite.all()):
        bad = finite.tolist().index(False)
        raise NonFiniteError(f"{name}: sample {bad} holds NaN or infinity")
