r"""``odeint_adjoint``: gradients by the continuous adjoint, with torchdiffeq's signature.

With the adjoint :math:`a(t) = \partial L / \partial y(t)` and :math:`\dot y = f(t, y, \theta)`,

.. math::
    \dot a = -\Big(\frac{\partial f}{\partial y}\Big)^T a, \qquad
    \frac{\partial L}{\partial \theta} =
        \int_{t_0}^{t_1} \Big(\frac{\partial f}{\partial \theta}\Big)^T a \, dt, \qquad
    \frac{\partial L}{\partial t_1} = a(t_1)^T f(t_1, y(t_1)),

solved backwards together with the state (Pontryagin 1962; Chen et al. 2018, arXiv 1806.07366,
appendix B). The memory does not grow with the number of steps. The gradients are those of the
exact solution up to the tolerances, not those of the steps that were taken.

With steps for each sample, of lengths :math:`h_i`, states and adjoints are solved for alone; the
integral over a step is the method's own quadrature, one vector-Jacobian product a stage:

.. math::
    \frac{\partial L}{\partial \theta} \mathrel{+}=
        \sum_j \sum_i b_j h_i \Big(\frac{\partial f}{\partial \theta}(t_{ij}, y_{ij})\Big)^T a_{ij}.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import host_times
from probflow.ode.control import error_norm, tolerance
from probflow.ode.events import real
from probflow.ode.odeint import odeint
from probflow.ode.once import once
from probflow.ode.options import (
    backward_options,
    checked_options,
    is_adaptive,
    native_methods,
    resolve,
)
from probflow.ode.per_sample import Taken, per_sample_times
from probflow.ode.plans import adjoint_rule, check_function
from probflow.ode.problem import Layout, Problem
from probflow.ode.result import ODEResult
from probflow.ode.solve import refuse_transforms, solve
from probflow.ode.steps import combine
from probflow.solvers import Solver
from probflow.tableaus import TABLEAUS
from probflow.words import check_hook, dictionary

__all__ = ["odeint_adjoint"]

# Options that belong to the forward solve alone.
_FORWARD = ("norm", "args", "kwargs", "gradients", "return_info", "progress")
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def odeint_adjoint(
    func: Any,
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """As :func:`odeint`, with gradients by the continuous adjoint; torchdiffeq's signature.

    Parameters
    ----------
    func, y0, t, rtol, atol, method, options, event_fn
        As :func:`odeint`. ``func`` is an ``nn.Module``, or ``adjoint_params`` is given. Callbacks
        ``callback_step_adjoint``, ``callback_accept_step_adjoint`` and
        ``callback_reject_step_adjoint`` of ``func`` are called in the backward solve, with its
        state: the adjoint of the time (), y, the adjoint of y, those of the parameters; the parts
        of a tuple ``y0`` joined in one vector.
    adjoint_rtol, adjoint_atol
        Tolerances of the backward solve; by default those of the forward solve (the smallest,
        where there are several).
    adjoint_method
        Method of the backward solve; by default ``method``, or for a solver that needs a noising
        process the general method of its order, see
        :func:`~probflow.ode.plans.adjoint_rule`.
    adjoint_options
        Options of the backward solve; by default ``options`` without ``norm``. ``norm`` may be a
        function of the tuple (time's adjoint, y, adjoint of y, adjoints of the parameters), with y
        and its adjoint unpacked where ``y0`` is a tuple, or ``"seminorm"``, which leaves the
        parameters out: they do not feed back into the others, so that fewer steps do (Kidger, Chen,
        Lyons 2021, arXiv 2009.09457). By default the largest norm of the four. With ``per_sample``
        the tuple has no adjoints of the parameters, and the norm is one number a sample.
    adjoint_params
        Tensors to find gradients for; by default the parameters of ``func``. Those that require
        none are left out.

    Returns
    -------
    Tensor or tuple
        As :func:`odeint`. With ``event_fn`` the gradient of the event's time is 0, as in
        torchdiffeq; :func:`odeint_event` gives the right one.

    Raises
    ------
    TypeError, ValueError
        As :func:`odeint`; if ``func`` is no ``nn.Module`` and ``adjoint_params`` is missing; if
        ``adjoint_method`` differs from ``method`` and ``options`` are given without
        ``adjoint_options``; if it has fixed steps and ``options`` have ``per_sample``.
    RuntimeError
        In the backward pass, if a second derivative is asked for.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> rate = torch.tensor(0.5, requires_grad=True)
    >>> y0, t = torch.ones(1), torch.tensor([0.0, 1.0])
    >>> y = pf.odeint_adjoint(lambda t, y: -rate * y, y0, t, adjoint_params=(rate,))
    >>> y[-1].sum().backward()  # the derivative of exp(-rate)
    >>> round(float(rate.grad), 4)
    -0.6065
    """
    check_function(func)
    refuse_transforms("odeint_adjoint:", "use pf.odeint, whose steps themselves are differentiated")
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        raise ValueError(
            "adjoint_params: needed where func is no nn.Module: the tensors to find gradients for, "
            "() if there are none"
        )
    inferred = adjoint_method is None or adjoint_method == method
    if not inferred and options is not None and adjoint_options is None:
        raise ValueError(
            "adjoint_options: needed beside options where adjoint_method differs from method, for "
            "the options of one need not fit the other"
        )
    name, solver = resolve(method)
    if name is None and solver is None:
        from probflow.adapters import torchdiffeq as peer

        return peer.adjoint_passed_on(
            func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn,
            adjoint_rtol=adjoint_rtol, adjoint_atol=adjoint_atol, adjoint_method=adjoint_method,
            adjoint_options=adjoint_options, adjoint_params=adjoint_params,
        )  # fmt: skip
    settings = dictionary(options)
    if settings.get("gradients", "direct") not in ("direct", None):
        raise ValueError(
            "gradients: not available with odeint_adjoint; use pf.odeint, whose gradients with "
            "options={'gradients': 'checkpoint'} save memory, too"
        )
    apart = bool(settings.get("per_sample"))
    problem = Problem(func, y0, settings.get("args", ()), settings.get("kwargs"), apart)
    given = parameters(func) if adjoint_params is None else _tensors(adjoint_params)
    params = tuple(p for p in dict.fromkeys(given) if p.requires_grad)
    for argument, value in (("adjoint_rtol", adjoint_rtol), ("adjoint_atol", adjoint_atol)):
        # Those for each part of the backward state are checked when there is one.
        several = isinstance(value, (tuple, list)) or (isinstance(value, Tensor) and value.ndim)
        if value is not None and not several:
            tolerance(argument, value, problem)
    rule = _backward(name, solver, adjoint_method)
    if apart and not (rule in native_methods() and is_adaptive(rule)):
        raise ValueError(
            f"adjoint_method: with per_sample need a method that chooses its steps, got {rule!r}"
        )
    for callback in (name + "_adjoint" for name in _CALLBACKS):
        check_hook(f"func.{callback}", getattr(func, callback, None), "a function of (t0, y0, dt)")
        if apart and hasattr(func, callback):
            raise ValueError(f"{callback}: not available with per_sample; leave it off func")
    if adjoint_options is not None:
        own = dictionary(adjoint_options, "adjoint_options")
    else:
        own = {option: value for option, value in settings.items() if option not in _FORWARD}
    if rule in native_methods():
        allowed = (*backward_options(rule), *(("per_sample",) if apart else ()))
        if adjoint_options is None:  # options of a structured solver do not concern the general one
            own = {option: value for option, value in own.items() if option in allowed}
        own = checked_options(rule, own, allowed, "adjoint_options")
        if apart and own.setdefault("per_sample", True) is not True:
            raise ValueError("adjoint_options: per_sample is that of options")
    if callable(own.get("norm")) and len(params) < len(set(given)):
        warnings.warn(
            "adjoint_params: those that require no gradient are left out, of the tuple that the "
            "norm gets too",
            stacklevel=2,
        )
    if rule in TABLEAUS:
        own["norm"] = _adjoint_norm(problem, settings.get("norm"), own.get("norm"))
    backward = {
        "method": rule,
        "options": own,
        "rtol": _smallest(rtol) if adjoint_rtol is None else adjoint_rtol,
        "atol": _smallest(atol) if adjoint_atol is None else adjoint_atol,
    }
    forward = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "options": {**settings, "return_info": True} if name else settings,
        "event_fn": event_fn,
    }
    call = _Call(func, problem, forward, backward, [])
    parts = y0 if problem.layout.is_tuple else (y0,)
    event_t, *states = _Adjoint.apply(call, t, len(parts), *parts, *params)
    solution = tuple(states) if problem.layout.is_tuple else states[0]
    answer = solution if event_fn is None else (event_t, solution)
    if settings.get("return_info") and call.results:
        return answer, replace(call.results[0], y=solution)
    return answer


def parameters(module: torch.nn.Module) -> tuple[Tensor, ...]:
    """The parameters of a module, those of a replica within ``DataParallel`` too."""
    if not getattr(module, "_is_replica", False):
        return tuple(module.parameters())
    members = (value for part in module.modules() for value in vars(part).values())
    return tuple(v for v in members if isinstance(v, Tensor) and v.requires_grad)


def _tensors(params: Any) -> tuple[Tensor, ...]:
    """The argument ``adjoint_params``, checked."""
    single = isinstance(params, Tensor) or not isinstance(params, Iterable)
    given = None if single else tuple(params)
    if given is None or not all(isinstance(param, Tensor) for param in given):
        raise TypeError(
            "adjoint_params: need a sequence of tensors, such as tuple(module.parameters()), got "
            f"{params!r}"
        )
    return given


def _backward(name: str | None, solver: Solver | None, adjoint_method: Any) -> Any:
    """Method of the backward solve, by its general name if it has one."""
    if adjoint_method is not None:
        name, solver = resolve(adjoint_method)
    if name is None and solver is not None:
        rule = adjoint_rule(solver)
        return resolve(rule)[0] or rule
    return name or adjoint_method


def _smallest(value: Any) -> Any:
    """A tolerance for the adjoint system, whose state has other parts than the forward one."""
    if isinstance(value, (tuple, list)):
        return min(_smallest(part) for part in value)
    return float(value.min()) if isinstance(value, Tensor) else value


# Norms ------------------------------------------------------------------------------------------


def _adjoint_norm(problem: Problem, state_norm: Any, norm: Any) -> Callable[[Any], Tensor]:
    """Norm of the backward solve's state (time, y, adjoint of y, \\*adjoints of parameters)."""
    layout = problem.layout
    of_state = error_norm(problem, state_norm)

    def largest(parts: Sequence[Tensor], count: int) -> Tensor:
        time, y, adjoint, *rest = parts
        norms = [time.abs(), of_state(y), of_state(adjoint)]
        norms += [part.abs().square().mean().sqrt() for part in rest[:count] if part.numel()]
        return torch.stack([value.to(norms[0]) for value in norms]).amax(0)

    if norm is None:
        return lambda parts: largest(parts, len(parts))
    if norm == "seminorm":
        return lambda parts: largest(parts, 0)
    if not callable(norm):
        raise TypeError(f"norm: need a function or 'seminorm' in adjoint_options, got {norm!r}")
    if not layout.is_tuple:
        return norm

    def unpacked(parts: Sequence[Tensor]) -> Tensor:
        time, y, adjoint, *rest = parts
        return norm((time, *layout.split(y), *layout.split(adjoint), *rest))

    return unpacked


# The two passes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What both passes know.

    Attributes
    ----------
    func, problem
        The user's function, and the same on one tensor.
    forward, backward
        Arguments of :func:`odeint` for the two solves.
    results
        The forward solve's result object, once there is one.
    """

    func: Any
    problem: Problem
    forward: dict[str, Any]
    backward: dict[str, Any]
    results: list[ODEResult]

    def join(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """States at each time, from the parts (m, ...) of the user's state."""
        layout = self.problem.layout
        rows = zip(*parts, strict=True) if layout.is_tuple else parts[0]
        return [layout.join(row).to(self.problem.wide) for row in rows]


class _Adjoint(torch.autograd.Function):
    """(event's time or None, \\*states) of the initial state's parts and the parameters."""

    @staticmethod
    def forward(ctx: Any, call: _Call, t: Any, count: int, *tensors: Tensor) -> tuple[Any, ...]:
        parts, params = tensors[:count], tensors[count:]
        y0 = parts if call.problem.layout.is_tuple else parts[0]
        answer = odeint(call.func, y0, t, **call.forward)
        if (call.forward["options"] or {}).get("return_info"):
            answer, result = answer
            call.results.append(result)
        event_t, states = (None, answer) if call.forward["event_fn"] is None else answer
        states = states if isinstance(states, tuple) else (states,)
        ctx.call, ctx.count = call, count
        ctx.adjoint_options = call.backward["options"]  # where torchdiffeq has them
        ctx.times = _output_times(call.problem, t, event_t)
        ctx.like = t if isinstance(t, Tensor) else None
        ctx.save_for_backward(*states, *params)
        return (event_t, *states)

    @staticmethod
    @once("odeint_adjoint")
    def backward(ctx: Any, _: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, count, problem = ctx.call, ctx.count, ctx.call.problem
        states, params = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        timed = ctx.needs_input_grad[1]
        by_time, by_y0, by_params = _sweep(
            call, ctx.times, call.join(states), call.join(grads), params, timed
        )
        by_t = None
        if timed:
            by_t = torch.stack(by_time)
            if by_t.ndim > ctx.like.ndim:  # times that all samples have in common
                by_t = by_t.sum(1)
            by_t = by_t.to(ctx.like)
            if call.forward["event_fn"] is not None:  # the second time only told the direction
                by_t[1:] = 0.0
        parts = problem.state(by_y0)
        parts = parts if isinstance(parts, tuple) else (parts,)
        by_params = [_like(grad, param) for grad, param in zip(by_params, params, strict=True)]
        return None, by_t, None, *parts, *by_params


def _output_times(problem: Problem, t: Any, event_t: Tensor | None) -> Tensor:
    """Times of the states, (m,) on the host, or those of each sample (m, batch)."""
    given = t.detach() if isinstance(t, Tensor) else t
    if problem.layout.lead:
        return per_sample_times(given, problem.y0)
    times = host_times(given, "t", bounded=event_t is None)
    if event_t is not None:
        times = [times[0], float(event_t)]
    return torch.tensor(times, dtype=torch.float64, device="cpu")


def _sweep(
    call: _Call,
    times: Tensor,
    states: Sequence[Tensor],
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    timed: bool,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Gradients of the times, the initial state and the parameters.

    Parameters
    ----------
    times, states, grads
        Output times (m,) or (m, batch), states there and gradients of the loss with respect to
        them.
    params
        Tensors to find gradients for.
    timed
        Whether those of the times are wanted.
    """
    problem = call.problem
    adjoint, apart = grads[-1], problem.layout.lead
    system = _augmented(call, () if apart else params, timed)
    time = real(adjoint).new_zeros(times.shape[1:])
    by_time = [time] * len(times)
    by_params = [torch.zeros_like(param) for param in params]
    for i in range(len(times) - 1, 0, -1):
        interval = times[[i, i - 1]]
        if timed:
            slope = problem(interval[0].to(adjoint.device, problem.time_dtype), states[i])
            by_time[i] = _inner(grads[i], slope, apart)
            time = time - by_time[i]
        if apart:
            state = (time, states[i], adjoint)
            taken = _quadrature(call, state, params, by_params) if params else None
            solution = solve(system, state, interval, **call.backward, taken=taken).y
        else:
            solution = odeint(
                system, (time, states[i], adjoint, *by_params), interval, **call.backward
            )
        time, _, adjoint, *rest = (part[-1] for part in solution)
        time, adjoint = real(time), adjoint + grads[i - 1]
        by_params = by_params if apart else rest
    by_time[0] = time
    return by_time, adjoint, by_params


def _quadrature(
    call: _Call, state: tuple[Tensor, ...], params: Sequence[Tensor], totals: list[Tensor]
) -> Taken:
    """Adds the integral over each sample's step to the gradients of the parameters."""
    tableau, split = TABLEAUS[call.backward["method"]], Layout(state, per_sample=True).split

    def taken(
        before: Tensor, stages: Sequence[Tensor], times: Sequence[Tensor], length: Tensor
    ) -> None:
        for time, weights, share in zip(times, tableau.a, tableau.b, strict=False):
            if share == 0.0:
                continue
            _, y, adjoint = split(combine(before, stages, weights, length))
            h = length.reshape(-1, *(1,) * (adjoint.ndim - 1))
            with torch.enable_grad():
                slope = call.problem(time, y)
            if not slope.requires_grad:
                continue
            found = torch.autograd.grad(slope, params, adjoint * (-share * h), allow_unused=True)
            for total, grad in zip(totals, found, strict=True):
                if grad is not None:
                    total += grad

    return taken


def _augmented(call: _Call, params: Sequence[Tensor], timed: bool) -> Callable[..., Any]:
    """Right-hand side for (adjoint of the time, y, adjoint of y, \\*adjoints of parameters)."""
    problem = call.problem

    def system(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        time, y, adjoint, *rest = state
        with torch.enable_grad():
            t = t.detach().to(problem.time_dtype).requires_grad_(timed)
            y = y.detach().to(problem.wide).requires_grad_()
            slope = problem(t, y)
            found: list[Tensor | None] = [None] * (2 + len(params))
            if slope.requires_grad:
                wanted = (t, y, *params) if timed else (y, *params)
                found[-len(wanted) :] = torch.autograd.grad(
                    slope, wanted, -adjoint.to(slope.dtype), allow_unused=True, retain_graph=True
                )
        by_t, by_y, *by_params = (
            torch.zeros_like(part) if grad is None else grad
            for grad, part in zip(found, (time, adjoint, *rest), strict=True)
        )
        return by_t, slope.detach(), by_y, *by_params

    for name in _CALLBACKS:
        callback = getattr(call.func, name + "_adjoint", None)
        if callback is not None:
            setattr(system, name, callback)
    return system


def _inner(a: Tensor, b: Tensor, lead: int) -> Tensor:
    """Real inner product of two states; with samples apart (batch,)."""
    return real(a.conj() * b).reshape((*a.shape[:lead], -1)).sum(-1)


def _like(grad: Tensor, param: Tensor) -> Tensor:
    return (grad if param.is_complex() else real(grad)).to(param.dtype)
