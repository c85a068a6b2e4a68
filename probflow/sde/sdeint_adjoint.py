"""``sdeint_adjoint`` with torchsde's signature: gradients without storing the steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from probflow.sde.adaptive import Tolerances, run_adaptive
from probflow.sde.adjoint import AdjointSystem
from probflow.sde.loop import node_times, run_fixed
from probflow.sde.methods import Memory, Method, choose, default_adjoint_method
from probflow.sde.noise import mirrored_query
from probflow.sde.parts import mirrored
from probflow.sde.problem import Problem, check_options, embedded_of, prepare, tolerances_of
from probflow.sde.sdeint import find_method, warn_of_adaptive_euler
from probflow.sde.settings import METHODS, SDE_TYPES
from probflow.sde.system import System
from probflow.solvers import Solver
from probflow.words import check_flags, dictionary, near

__all__ = ["sdeint_adjoint"]

Function = Callable[..., Sequence[Tensor]]


def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Callable[..., Tensor] | None = None,
    method: Any = None,
    adjoint_method: str | None = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
) -> Any:
    r"""Integrate an SDE, with gradients from an adjoint equation; the signature is torchsde's.

    States are those of :func:`probflow.sdeint`. The backward pass stores none of the steps: it
    integrates the adjoint SDE along the same Brownian path from the last time to the first (Li,
    Wong, Chen and Duvenaud 2020), through the steps of the forward pass. Its gradients carry an
    error of discretisation, which falls with ``dt``. With ``method="reversible_heun"`` they are
    those of the discrete solution, up to rounding (Kidger, Foster, Li and Lyons 2021, arXiv
    2105.13493), for adaptive steps, too.

    With ``create_graph=True`` the backward pass differentiates the steps themselves instead, to
    any order: they are taken again for each derivative, with memory that grows with their number.
    A last derivative without a graph goes through the adjoint again, where it passes the states.

    Parameters
    ----------
    sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min
        As for :func:`probflow.sdeint`; ``method`` is one of torchsde's names.
    adjoint_method
        Method of the adjoint equation: ``"euler"``, ``"milstein"``, ``"midpoint"``, ``"heun"``,
        ``"euler_heun"``, for SDEs of either type; ``"adjoint_reversible_heun"`` for
        ``"reversible_heun"``, and its default. Otherwise the default is ``"midpoint"`` for
        Stratonovich SDEs, ``"milstein"`` for Ito SDEs with diagonal noise and ``"euler"`` for
        other Ito SDEs.
    adjoint_adaptive, adjoint_rtol, adjoint_atol
        Adaptive steps in the backward pass.
    options, names, logqp, extra, extra_solver_state
        As for :func:`probflow.sdeint`.
    adjoint_options
        ``error_estimate`` and ``strict`` for the adjoint, as of :func:`probflow.sdeint`.
    adjoint_params
        Tensors whose gradients are formed; by default the parameters of ``sde`` that require them.

    Returns
    -------
    Tensor or tuple
        As :func:`probflow.sdeint`.

    Raises
    ------
    TypeError, ValueError
        As :func:`probflow.sdeint`; further if ``sde`` is no module and ``adjoint_params`` are
        missing, for probflow's own solvers, and for adjoint methods that do not fit.
    NonFiniteError
        As :func:`probflow.sdeint`.
    """
    if adjoint_params is None and not isinstance(sde, torch.nn.Module):
        raise ValueError(
            "adjoint_params: sde is no torch.nn.Module, so give the tensors whose gradients are "
            "wanted, or () for none"
        )
    flags = {"adaptive": adaptive, "adjoint_adaptive": adjoint_adaptive}
    flags |= {"logqp": logqp, "extra": extra}
    check_flags(flags, flags)
    tolerances_of(rtol, atol, dt_min, 0.0, used=bool(adaptive))
    tolerances_of(adjoint_rtol, adjoint_atol, dt_min, 0.0, "adjoint_", used=bool(adjoint_adaptive))
    found = find_method(method, sde)
    if isinstance(found, Solver) or found not in METHODS:
        name = found.name if isinstance(found, Solver) else found
        raise ValueError(
            f"method: {name} has no adjoint; differentiate through pf.sdeint, or use one of "
            f"{', '.join(m for m in METHODS if not m.startswith('adjoint'))}"
        )
    if found == METHODS.adjoint_reversible_heun:
        raise ValueError("method: adjoint_reversible_heun is an adjoint_method")
    warn_of_adaptive_euler(sde, found, adaptive)
    params = _tensors(sde.parameters() if adjoint_params is None else adjoint_params)
    problem = prepare(
        sde, y0, ts, bm, found, dt, adaptive, rtol, atol, dt_min, options, names, logqp
    )
    adjoint, embedded = _adjoint(problem, adjoint_method, adjoint_options, bool(adjoint_adaptive))
    tolerances = None
    if adjoint_adaptive:
        first = problem.grid[1] - problem.grid[0] if len(problem.grid) > 1 else 1.0
        tolerances = tolerances_of(
            adjoint_rtol, adjoint_atol, dt_min, first, "adjoint_", embedded=embedded
        )
    memory = problem.memory(extra_solver_state)
    job = Job(problem, adjoint, tolerances, len(memory))
    wanted = [p for p in params if p.requires_grad]
    ys, *memory_at_end = _Solve.apply(job, problem.y0, *memory, *wanted)
    return problem.result(ys, tuple(memory_at_end), extra)


def _tensors(params: Any) -> tuple[Tensor, ...]:
    """The tensors of ``adjoint_params``; ``TypeError`` for anything else.

    A tensor alone is refused, too: its rows are other tensors, which the SDE does not depend on.
    """
    sequence = isinstance(params, Iterable) and not isinstance(params, Tensor)
    tensors = tuple(params) if sequence else ()
    if not sequence or not all(isinstance(p, Tensor) for p in tensors):
        raise TypeError(f"adjoint_params: need a sequence of tensors, got {params!r}")
    return tensors


@dataclass(frozen=True)
class Job:
    """A problem, and how its gradients are formed: a method, or ``None`` for the reversible one."""

    problem: Problem
    adjoint: Method | None
    tolerances: Tolerances | None
    memory_size: int


def _adjoint(
    problem: Problem, name: str | None, options: Mapping[str, Any] | None, adaptive: bool
) -> tuple[Method | None, bool]:
    """The method (``None`` for the reversible one), and whether its estimate is embedded."""
    sde, forward = problem.first, problem.method.name
    name = name or default_adjoint_method(forward, sde.sde_type, sde.noise_type)
    settings = dictionary(options, "adjoint_options")
    check_flags(settings, ("grad_free", "strict"))
    exact = name == METHODS.adjoint_reversible_heun
    allowed = ("strict",) if exact else ("grad_free", "error_estimate", "strict")
    check_options(settings, name, allowed, "adjoint_options")
    if exact:
        if forward != METHODS.reversible_heun:
            raise ValueError(
                f"adjoint_method: adjoint_reversible_heun goes with method='reversible_heun', got "
                f"method={forward!r}"
            )
        return None, False
    if forward == METHODS.reversible_heun:
        warnings.warn(
            f"adjoint_method: with {name!r} the gradients of reversible_heun are approximate; "
            "'adjoint_reversible_heun' makes them exact",
            stacklevel=3,
        )
    noise = "general" if sde.noise_type == "additive" else sde.noise_type
    other = SDE_TYPES.stratonovich if sde.sde_type == SDE_TYPES.ito else SDE_TYPES.ito
    fitting = _fitting(noise)
    if name not in fitting:
        raise ValueError(
            f"adjoint_method: {name!r} does not integrate the adjoint of this SDE"
            f"{near(name, fitting)}; need one of {', '.join(fitting)}"
        )
    for sde_type in (sde.sde_type, other):
        try:
            method = choose(name, sde_type, noise)
        except ValueError:
            continue
        break
    if settings.get("grad_free"):
        raise ValueError(
            "adjoint_options: grad_free needs the diffusion itself, and an adjoint equation has "
            "products with it only; leave it out"
        )
    return method, embedded_of(settings, method, noise, adaptive, "adjoint_")


def _fitting(noise: str) -> list[str]:
    names = ["euler", "midpoint", "heun", "euler_heun"]
    return names if noise == "general" else [*names, "milstein"]


class _Solve(torch.autograd.Function):
    """States and final memory, with the adjoint as backward pass."""

    @staticmethod
    def forward(ctx: Any, job: Job, y0: Tensor, *rest: Tensor) -> Any:
        memory = tuple(x.detach() for x in rest[: job.memory_size])
        run = job.problem.integrate(y0.detach(), memory)
        ys = torch.stack(run.states)
        ctx.job, ctx.grid = job, run.grid
        ctx.save_for_backward(y0, *rest, ys, *run.memory)
        return (ys, *(x.clone() for x in run.memory))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        job, saved = ctx.job, ctx.saved_tensors
        count = len(saved) - 1 - job.memory_size  # inputs: y0, memory, parameters
        inputs, ys, end = saved[:count], saved[count], saved[count + 1 :]
        size = 1 + job.memory_size
        if torch.is_grad_enabled():

            def steps(y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
                run = job.problem.integrate(y, rest[: size - 1])
                return (torch.stack(run.states), *run.memory)

            shared = range(size, count)
            return (None, *_Replay.apply(_gradients_of(steps, count), shared, *inputs, *grads))
        params = inputs[size:]
        if job.adjoint is None:
            begin = inputs[1 : 1 + job.memory_size]
            return (None, *_reversed_heun(job, ctx.grid, ys, begin, end, grads, params))
        return (None, *_adjoint_run(job, ctx.grid, ys, grads[0], params))


def _adjoint_run(
    job: Job, grid: Sequence[float], ys: Tensor, grad_ys: Tensor, params: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients by y0, memory (none) and parameters from the adjoint SDE."""
    problem, method = job.problem, job.adjoint
    assert method is not None
    forward = problem.system
    mirror = System(mirrored(forward.parts), forward.sde_type, forward.noise_type)
    sde = AdjointSystem(mirror, method.sde_type == SDE_TYPES.ito, params, ys.shape[1:])
    query = mirrored_query(problem.noise(""), "")
    position = {time: k for k, time in enumerate(grid)}
    a, p = grad_ys[-1], [torch.zeros_like(x) for x in params]
    for k in range(len(problem.times) - 1, 0, -1):
        start, stop = position[problem.times[k - 1]], position[problem.times[k]]
        steps = [0.0 - t for t in reversed(grid[start : stop + 1])]
        z = sde.join(ys[k], a, p)
        ends = [steps[0], steps[-1]]
        if job.tolerances is None:
            run = run_fixed(sde, method, steps, ends, z, (), query)
        else:
            run = run_adaptive(
                sde, method, job.tolerances, ends, z, (), query, -problem.sign,
                "gradient with which the backward pass begins",
            )  # fmt: skip
        a, *p = sde.gradients(run.states[-1])
        a = a + grad_ys[k - 1]
    return [a, *(None,) * job.memory_size, *p]


def _reversed_heun(
    job: Job,
    grid: Sequence[float],
    ys: Tensor,
    begin: Memory,
    end: Memory,
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of the reversible Heun method, its steps undone one by one; one evaluation each.

    Kidger, Foster, Li and Lyons 2021 (arXiv 2105.13493, algorithm 2).
    """
    problem, sde = job.problem, job.problem.system
    position = {time: k for k, time in enumerate(problem.times)}
    rows = node_times(grid, grid, (0.0,), ys)
    y, (f, g, z) = ys[-1], end
    grad_ys, a_f, a_g, a_z = grads
    a_y, a_p = grad_ys[-1], [torch.zeros_like(p) for p in params]
    graph = _with_graph(sde, rows[-1][0], z) if len(grid) > 1 else None
    for k, (start, stop) in reversed(list(enumerate(pairwise(grid)))):
        h, w = stop - start, problem.query(start, stop)
        a_f, a_g = a_f.add(a_y, alpha=0.5 * h), a_g + _outer(sde, a_y, 0.5 * w)
        assert graph is not None
        d_z, *d_p = _pair_gradients(graph, (a_f, a_g), params)
        a_z, a_p = a_z + d_z, [x + d for x, d in zip(a_p, d_p, strict=True)]
        z = (2.0 * y - z).sub(f, alpha=h) - sde.prod(g, w)
        if k == 0:
            y = ys[0]
        else:
            graph = _with_graph(sde, rows[k][0], z)
            f0, g0 = (x.detach() for x in graph[1:])
            y = y.sub(f + f0, alpha=0.5 * h) - sde.prod(g + g0, 0.5 * w)
            f, g = f0, g0
        a_f, a_g = (0.5 * a_y + a_z) * h, _outer(sde, 0.5 * a_y + a_z, w)
        a_y, a_z = a_y + 2.0 * a_z, -a_z
        if (output := position.get(start)) is not None:
            y, a_y = ys[output], a_y + grad_ys[output]
    return [a_y, a_f, a_g, a_z, *a_p]


def _with_graph(sde: System, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return (z, *sde.f_and_g(t, z))


def _pair_gradients(
    graph: tuple[Tensor, Tensor, Tensor], weights: tuple[Tensor, Tensor], params: Sequence[Tensor]
) -> list[Tensor]:
    z, *outputs = graph
    inputs = (z, *params)
    pairs = [(x, d) for x, d in zip(outputs, weights, strict=True) if x.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    values, directions = zip(*pairs, strict=True)
    found = torch.autograd.grad(values, inputs, directions, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]


def _outer(sde: System, a: Tensor, w: Tensor) -> Tensor:
    """Gradient by g of <a, g w>."""
    if sde.diagonal:
        return a * w
    return a.unsqueeze(-1) * w.reshape(len(w), *(1,) * (a.ndim - 1), -1)


def _gradients_of(function: Function, count: int) -> Function:
    """Gradients by the ``count`` inputs of a function, as one of these and the outputs' gradients.

    All inputs require gradients.
    """

    def gradients(*tensors: Tensor) -> list[Tensor]:
        inputs, grads = tensors[:count], tensors[count:]
        pairs = [(x, d) for x, d in zip(function(*inputs), grads, strict=True) if x.requires_grad]
        found: Sequence[Tensor | None] = [None] * count
        if pairs:
            outputs, weights = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, inputs, weights, create_graph=True, allow_unused=True
            )
        return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]

    return gradients


class _Replay(torch.autograd.Function):
    """``function(*tensors)``, run again for each derivative, of whatever order.

    Every tensor becomes a leaf, so that its gradient is that of the function alone, but for the
    parameters in the places ``shared``, which the function finds where they are.
    """

    @staticmethod
    def forward(ctx: Any, function: Function, shared: range, *tensors: Tensor) -> Any:
        ctx.function, ctx.shared = function, shared
        ctx.save_for_backward(*tensors)
        with torch.enable_grad():
            outputs = function(
                *(x if k in shared else x.detach().requires_grad_() for k, x in enumerate(tensors))
            )
        return tuple(x.detach() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        gradients = _gradients_of(ctx.function, len(tensors))
        return (None, None, *_Replay.apply(gradients, ctx.shared, *tensors, *grads))
