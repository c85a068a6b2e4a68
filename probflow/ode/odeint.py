"""``odeint`` and its relatives, with torchdiffeq's signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probflow.ode.dense import DenseOutput
from probflow.ode.events import with_gradients
from probflow.ode.options import ADAMS, native_methods, resolve
from probflow.ode.pairs import solve_pair
from probflow.ode.plans import check_function, integrate
from probflow.ode.problem import Problem, traced
from probflow.ode.result import ODEResult
from probflow.ode.solve import solve
from probflow.ode.steppers import as_float
from probflow.problems import ProbabilityFlowODE
from probflow.solvers import find_pair
from probflow.words import check_flags, dictionary

__all__ = ["odeint", "odeint_dense", "odeint_event", "solve_ode"]

_FLAGS = ("dense", "throw", "progress", "reverse_time")
_PLAN_OPTIONS = {"step_size", "grid_constructor", "check_finite"}


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

    Methods: adaptive ``dopri5`` (the default), ``tsit5``, ``dopri8``, ``bosh3``, ``fehlberg2``,
    ``adaptive_heun``; fixed steps ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4`` (the 3/8
    rule), ``explicit_adams``; on a :class:`~probflow.problems.ProbabilityFlowODE` also every
    deterministic solver of :func:`probflow.solver_names`, and with adaptive steps in log-SNR
    ``dpm-solver-12``, ``dpm-solver-23``, ``dpm-solver++-12`` and ``dpm-solver++-23`` (options
    ``first_step``, ``max_num_steps``, ``per_sample``, ``return_info``, ``strict``).
    ``implicit_adams``, ``fixed_adams`` and ``scipy_solver`` are passed on to torchdiffeq.

    Parameters
    ----------
    func
        ``func(t, y)`` of a 0-d tensor and the state, returning dy/dt: shape of ``y``, or a tuple
        for a tuple. The time has the state's dtype, but at least float32. Or a
        :class:`~probflow.problems.ProbabilityFlowODE`. Attributes ``callback_step``,
        ``callback_accept_step`` and ``callback_reject_step`` are called with (t0, y0, dt).
    y0
        State at ``t[0]``: real or complex tensor of any shape, or a tuple of tensors. Half
        precision is carried in float32.
    t
        Times, (m,), strictly increasing or decreasing; a floating-point tensor on any device, an
        array or a sequence. May require a gradient.
    rtol, atol
        Tolerances of the adaptive methods: numbers, tensors that broadcast against the state, or
        for a tuple state tuples of them.
    method
        Name, alias, :class:`~probflow.solvers.registry.Solver` or registered step function.
    options
        As in torchdiffeq. Fixed steps: ``step_size``, ``grid_constructor``, ``interp``,
        ``perturb``; without ``interp`` every time of ``t`` is landed on. Adaptive: ``first_step``,
        ``min_step``, ``max_step``, ``safety``, ``ifactor``, ``dfactor``, ``max_num_steps``,
        ``step_t``, ``jump_t``, ``norm``, ``dtype`` (accepted; times are always float64). More:
        ``per_sample`` (each row of the batch has its own steps; ``func`` gets times (batch,), and
        ``t`` may be (m, batch)), ``controller`` (``"i"``, ``"pi"``, ``"pid"`` or (p, i, d)),
        ``max_order`` of ``explicit_adams``, ``args`` and ``kwargs`` for ``func``, ``gradients``
        (``"direct"``, ``"checkpoint"``, or ``"reversible"``, which takes the steps of another
        scheme, with larger errors), ``return_info`` (return also an
        :class:`~probflow.ode.result.ODEResult`), ``progress``, ``check_finite`` (``False`` leaves
        out the look at the last state; fixed steps, and what is passed on), and ``strict=False``,
        with which unknown options are warnings instead of errors.
    event_fn
        ``event_fn(t, y)``: stop where it, or the first of its components, changes sign; ``t`` then
        is the start and a time after it that gives the direction. Fixed steps need ``step_size``.
        After 100000 steps, or ``max_num_steps``, the search ends with an error.

    Returns
    -------
    Tensor or tuple of Tensor
        States at the times ``t``, (m, \\*y0.shape). With ``event_fn`` a pair: the event's time and
        the states at ``t[0]`` and there. With ``return_info`` a pair with the result object.

    Raises
    ------
    TypeError, ValueError
        For arguments and options that do not fit, before ``func`` is called.
    NonFiniteError
        If ``func`` returns NaN or infinity.
    StepSizeError, MaxStepsError
        If the tolerances cannot be met.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    >>> y = pf.odeint(lambda t, y: -y, torch.ones(1, dtype=torch.float64), t)
    >>> round(float(y[-1]), 7)
    0.3678794
    """
    _check_call(func, t)
    options = dictionary(options)
    pair = find_pair(method)
    if pair is not None:
        result = solve_pair(
            pair, func, y0, t, rtol=rtol, atol=atol, options=options, event_fn=event_fn
        )
        return (result.y, result) if options.get("return_info") else result.y
    name, solver = resolve(method)
    if solver is not None and name is not None and _as_plan(func, t, options, event_fn):
        name = None
    if name is not None:
        result = solve(
            func, y0, t, rtol=rtol, atol=atol, method=name, options=options, event_fn=event_fn
        )
        answer = result.y if event_fn is None else (result.event_t, result.y)
        return (answer, result) if options.get("return_info") else answer
    if solver is not None:
        if event_fn is not None:
            raise ValueError(
                f"event_fn: {solver.name} does not look for events; use one of "
                + ", ".join(name for name in native_methods() if name != ADAMS)
            )
        return integrate(solver, func, y0, t, options)
    from probflow.adapters import torchdiffeq as peer

    return peer.passed_on(
        func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn
    )


def _check_call(func: Any, t: Any) -> None:
    check_function(func)
    if t is None:
        raise TypeError("t: need a 1-D tensor or sequence of times, got None")


def _as_plan(func: Any, t: Any, options: Any, event_fn: Any) -> bool:
    """Whether a general method on a diffusion runs as a plan, which folds the conversions in."""
    if not isinstance(func, ProbabilityFlowODE) or event_fn is not None:
        return False
    if hasattr(func, "callback_step"):
        return False
    return set(options) <= _PLAN_OPTIONS and not traced(t)


def solve_ode(
    func: Any,
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dense: bool = False,
    throw: bool = True,
    progress: bool = False,
) -> ODEResult:
    """Integrate, and tell what happened: as :func:`odeint`, with a result object.

    Parameters
    ----------
    func, y0, t, rtol, atol, options, event_fn
        As :func:`odeint`.
    method
        One of the general methods, or for a :class:`~probflow.problems.ProbabilityFlowODE`
        ``dpm-solver-23`` and its kin (not a solver on a grid that needs a noising process: of those
        :func:`odeint` with the option ``return_info`` tells what happened).
    args, kwargs
        Further arguments of ``func``; they, and ``progress``, may stand in ``options`` instead.
    dense
        Keep the steps, so that ``result.dense(t)`` gives the state at any time.
    throw
        Raise an error if the end is not reached; otherwise the result's ``status`` and ``message``
        say why, and the outputs after it are NaN, with fixed steps from the first on that is not
        finite; an event not found has the time NaN.
    progress
        Show a progress bar.

    Returns
    -------
    ODEResult
        States, number of evaluations, accepted and rejected steps, status, message.

    Raises
    ------
    TypeError, ValueError, NonFiniteError, StepSizeError, MaxStepsError
        As :func:`odeint`; the last three only with ``throw``.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> result = pf.solve_ode(lambda t, y, k: -k * y, torch.ones(1), [0.0, 1.0], args=(2.0,))
    >>> result.success, result.rejected
    (True, 0)
    """
    _check_call(func, t)
    check_flags({"dense": dense, "throw": throw, "progress": progress}, _FLAGS)
    pair = find_pair(method)
    if pair is not None:
        unfit = {"args": args, "kwargs": kwargs, "dense": dense, "progress": progress}
        for argument, value in unfit.items():
            if value:
                raise ValueError(f"{argument}: not available with {pair.name}")
        return solve_pair(
            pair, func, y0, t, rtol=rtol, atol=atol, options=options, event_fn=event_fn,
            throw=throw,
        )  # fmt: skip
    name, solver = resolve(method)
    if name is None:
        raise ValueError(
            f"method: {solver.name if solver else method} has no result object here"
            + (", but in pf.odeint with options={'return_info': True}" if solver else "")
            + f"; allowed are {', '.join(native_methods())}"
        )
    given = _joined(options, args=args, kwargs=kwargs, progress=progress)
    return solve(
        func, y0, t, rtol=rtol, atol=atol, method=name, options=given, event_fn=event_fn,
        dense=dense, throw=throw,
    )  # fmt: skip


def _joined(options: Any, **arguments: Any) -> dict[str, Any]:
    """The options, with the arguments that may stand there, too.

    Raises
    ------
    ValueError
        For what is given in both places, unless it is the same.
    """
    given = dictionary(options)
    for name, value in arguments.items():
        if value is None or value is False or (isinstance(value, (tuple, dict)) and not value):
            continue
        other = given.get(name)
        if other is not None and not _same(value, other):
            raise ValueError(
                f"{name}, options: got {name}={value!r} and options[{name!r}]={other!r}; give one "
                "of them"
            )
        given[name] = value
    return given


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # tensors or arrays of several numbers that are not the same
        return False


def odeint_dense(
    func: Any,
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
) -> DenseOutput:
    """The solution from ``t0`` to ``t1`` as a function of time; torchdiffeq's signature.

    Parameters
    ----------
    func, y0, rtol, atol, options
        As :func:`odeint`.
    t0, t1
        Ends of the interval, numbers or 0-d tensors, in either order.
    method
        Any general method (torchdiffeq: dopri5 only) but ``explicit_adams``.

    Returns
    -------
    DenseOutput
        Call it with a time or a tensor of times (m,).
    """
    ends = [as_float(t0, "t0"), as_float(t1, "t1")]
    method = "dopri5" if method is None else method
    if resolve(method)[0] == ADAMS:
        raise ValueError(f"method: {ADAMS} has no dense output")
    result = solve_ode(
        func, y0, ends, rtol=rtol, atol=atol, method=method, options=options, dense=True
    )
    assert isinstance(result.dense, DenseOutput)
    return result.dense


def odeint_event(
    func: Any,
    y0: Any,
    t0: Any,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """Time and state of an event, with their gradients; torchdiffeq's signature.

    The time t* of the event g(t*, y(t*)) = 0 moves by ``-dg / (g_t + g_y f)`` (implicit function
    theorem) with the initial state, the parameters of ``func`` and those of ``event_fn``.

    Parameters
    ----------
    func, y0
        As :func:`odeint`.
    t0
        Start, 0-d tensor (or a number); may require a gradient.
    event_fn
        ``event_fn(t, y)``; the solve stops where its first component changes sign.
    reverse_time
        Integrate towards smaller times.
    odeint_interface
        ``odeint`` or ``odeint_adjoint``, of probflow or torchdiffeq.
    kwargs
        For ``odeint_interface``.

    Returns
    -------
    tuple
        (event_t, states): a 0-d tensor, and the states at ``t0`` and there, (2, \\*y0.shape). With
        the option ``return_info`` a pair of that and the result object.
    """
    if not callable(event_fn):
        raise TypeError(f"event_fn: need a function of (t, y), got {type(event_fn).__name__}")
    if not callable(odeint_interface):
        raise TypeError(
            f"odeint_interface: need odeint, odeint_adjoint or the like, got {odeint_interface!r}"
        )
    check_flags({"reverse_time": reverse_time}, _FLAGS)
    options = dictionary(kwargs.get("options"))
    problem = Problem(func, y0, options.get("args", ()), options.get("kwargs"))
    time = as_float(t0, "t0")
    if not isinstance(t0, Tensor) or not t0.is_floating_point():
        t0 = torch.tensor(time, dtype=torch.float64, device="cpu")
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    answer = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    if not options.get("return_info"):
        return with_gradients(problem, y0, t[0], event_fn, *answer)
    (event_t, states), result = answer
    event_t, states = with_gradients(problem, y0, t[0], event_fn, event_t, states)
    return (event_t, states), replace(result, y=states, event_t=event_t)
