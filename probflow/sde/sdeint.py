"""``sdeint`` with torchsde's signature, and beyond it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import is_registered, unknown_method
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.sde.methods import default_method
from probflow.sde.plans import process_times, run_plan_solver
from probflow.sde.problem import prepare, tolerances_of
from probflow.sde.settings import METHODS, NOISE_TYPES
from probflow.solvers import Solver, get_solver
from probflow.words import check_flags

__all__ = ["sdeint"]


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
    r"""Integrate an SDE :math:`dY = f(t, Y)\,dt + g(t, Y)\,dW`; the signature is torchsde's.

    Gradients flow through the steps to ``y0`` and the parameters of ``sde``; for long runs see
    :func:`probflow.sdeint_adjoint`.

    Parameters
    ----------
    sde
        Any object with ``sde_type`` (``"ito"``, ``"stratonovich"``), ``noise_type``
        (``"diagonal"``, ``"scalar"``, ``"additive"``, ``"general"``), a drift ``f(t, y)`` of the
        shape of ``y`` and a diffusion ``g(t, y)``: shape of ``y`` for diagonal noise, otherwise
        (batch, ..., m), m = 1 for scalar noise. ``f_and_g``, ``g_prod(t, y, v)`` and
        ``f_and_g_prod`` are used where they are. ``t`` is a 0-d tensor. For probflow's solvers a
        :class:`~probflow.problems.ReverseSDE`.
    y0
        State at ``ts[0]``, (batch, ...) of any shape. Half precision is carried in float32.
    ts
        Times, (m,), strictly increasing or decreasing; the result is a step's end at each. With
        decreasing times the same equation is integrated against the same path from its later to
        its earlier times: with dt < 0 and increments W(t') - W(t). For a Stratonovich SDE that is
        the path reversed in time, back to where it came from. For an Ito SDE the coefficients of a
        step are those at its *later* time (a backward Ito integral), as in a reverse-time SDE of
        diffusion models written in process time; it does not retrace a forward Ito path. For a
        ``ReverseSDE``: decreasing process times t, or increasing ``s = -t`` <= 0.
    bm
        Brownian motion ``bm(ta, tb)``, ta < tb (``return_U=True``, ``return_A=True`` where a
        method needs them), shape of ``y`` for diagonal noise, otherwise (batch, m). torchsde's or
        probflow's. For a ``ReverseSDE`` its clock is s = -t. Left out, it is a
        :class:`~probflow.BrownianInterval`.
    method
        ``"euler"``, ``"milstein"``, ``"srk"`` (Ito), ``"milstein"``, ``"midpoint"``, ``"heun"``,
        ``"euler_heun"``, ``"reversible_heun"``, ``"log_ode"`` (Stratonovich); for a ``ReverseSDE``
        also probflow's stochastic solvers by name, alias or object. By default ``"srk"``, for
        general noise ``"euler"``, for Stratonovich SDEs ``"midpoint"``.
    dt
        Length of the steps, counted from ``ts[0]``; the times ``ts`` are further ends of steps.
        (probflow's solvers count from each output time.) First step if ``adaptive``. With
        ``dt=None``, ``ts`` itself is the grid.
    adaptive, rtol, atol, dt_min
        Choose the steps so that a step and its two halves differ by at most ``atol + rtol |y|`` in
        the root mean square, but none shorter than ``dt_min`` (with a warning); for another
        estimate of the error see ``error_estimate``.
    options
        ``seed``: whole number that fixes the noise where no ``bm`` is given; without one, a seed is
        drawn from torch's global generator, so that ``torch.manual_seed`` makes a run repeatable.
        One seed is one path for dt, dt/2, dt/4, ...; for other step lengths share one ``bm``.
        ``first_sample``: number of the batch's first row, for a chunk of a larger batch; rows k, k
        + 1, ... of the whole have the noise of a chunk with ``first_sample=k``.
        ``check_finite``: ``False`` leaves out the look at the final state (fixed steps only).
        ``step_size``: used instead of ``dt``. ``grad_free`` (milstein): differences instead of
        derivatives. ``error_estimate`` (adaptive steps): ``"halves"``, or ``"embedded"``, the
        difference to a step of lower order from the same evaluations: Euler's, for ``srk`` without
        additive noise Milstein's, which costs one diffusion. ``strict``: with ``False`` unknown
        options are a warning.
    names
        Other names of the functions, by role: ``drift``, ``diffusion``, ``prior_drift``,
        ``diffusion_prod``, ``drift_and_diffusion``, ``drift_and_diffusion_prod``.
    logqp
        Also return the increments of :math:`\int \frac{1}{2} |u|^2\,dt`, g u = f - h with the prior
        drift ``h(t, y)``: the log-ratio of the paths' laws.
    extra
        Also return the solver's memory at the last time (``reversible_heun``: f, g, z).
    extra_solver_state
        Memory to start from.

    Returns
    -------
    Tensor or tuple
        States at the times ``ts``, shape (m, \*y0.shape); with ``logqp`` also the log-ratio's
        increments, (m - 1, batch); with ``extra`` also the memory, a tuple.

    Raises
    ------
    TypeError, ValueError
        For an argument or an output of ``sde`` that does not fit, naming it.
    NonFiniteError
        If the run ends in NaN or infinity, naming the step and its times.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> class Geometric(pf.SDEIto):
    ...     def f(self, t, y):
    ...         return 0.1 * y
    ...     def g(self, t, y):
    ...         return 0.2 * y
    >>> y0 = torch.ones(3, 1)
    >>> ys = pf.sdeint(Geometric("diagonal"), y0, [0.0, 0.5, 1.0], dt=0.1, options={"seed": 0})
    >>> ys.shape
    torch.Size([3, 3, 1])
    """
    if isinstance(sde, ProbabilityFlowODE):
        raise TypeError(
            "sde: a ProbabilityFlowODE is integrated by pf.odeint; for an SDE solver give "
            "pf.ReverseSDE(ode.process, ode.model)"
        )
    found = find_method(method, sde)
    controls = {"adaptive": adaptive, "names": names, "logqp": logqp, "extra": extra}
    controls["extra_solver_state"] = extra_solver_state
    check_flags(controls, ("adaptive", "logqp", "extra"))
    tolerances_of(rtol, atol, dt_min, 0.0, used=bool(adaptive))
    if isinstance(found, Solver):
        return run_plan_solver(found, sde, y0, ts, bm, dt, options, **controls)
    if found not in METHODS:
        from probflow.adapters import torchsde as peer

        if isinstance(sde, ReverseSDE):
            ts = [0.0 - t for t in process_times(ts)]
        tolerances = {"rtol": rtol, "atol": atol, "dt_min": dt_min}
        return peer.passed_on(
            sde, y0, ts, bm=bm, method=found, dt=dt, options=options, **tolerances, **controls
        )
    if found == METHODS.adjoint_reversible_heun:
        raise ValueError(
            "method: adjoint_reversible_heun is an adjoint_method of pf.sdeint_adjoint; the method "
            "is reversible_heun"
        )
    warn_of_adaptive_euler(sde, found, adaptive)
    problem = prepare(
        sde, y0, ts, bm, found, dt, adaptive, rtol, atol, dt_min, options, names, logqp
    )
    run = problem.integrate(problem.y0, problem.memory(extra_solver_state))
    return problem.result(torch.stack(run.states), run.memory, extra)


def find_method(method: Any, sde: Any) -> Solver | str:
    """A native name (torchsde's own ones first), a solver of probflow, or a name of torchsde's.

    Raises
    ------
    ValueError
        For a deterministic solver, and an unknown name, with the near ones.
    """
    if method is None:
        return default_method(getattr(sde, "sde_type", ""), getattr(sde, "noise_type", ""))
    if (isinstance(method, str) and not is_registered(method)) or method in METHODS:
        name = method.strip().lower().replace("-", "_")
        if name in METHODS:
            return name
        from probflow.adapters import torchsde as peer

        if method in peer.own_methods():
            return method
        raise unknown_method(method, METHODS.all(), "torchsde")
    try:
        solver = get_solver(method)
    except (TypeError, ValueError) as error:
        raise type(error)(f"method{str(error).removeprefix('solver')}") from None
    if not solver.stochastic:
        raise ValueError(
            f"method: {solver.name} is deterministic; integrate the probability-flow ODE with it: "
            f"pf.odeint(pf.ProbabilityFlowODE(process, model), y0, t, method={solver.name!r})"
        )
    return solver


def warn_of_adaptive_euler(sde: Any, method: str, adaptive: bool) -> None:
    """Say that step control by an Euler step can select a wrong limit."""
    noise = getattr(sde, "noise_type", None)
    if adaptive and method == METHODS.euler and noise != NOISE_TYPES.additive:
        warnings.warn(
            "adaptive: with steps chosen along the path, Euler-Maruyama need not converge to the "
            f"solution for {noise} noise (Gaines and Lyons 1997); use milstein or srk, or "
            "adaptive=False",
            stacklevel=3,
        )
