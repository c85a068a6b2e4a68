"""``odeint`` with torchdiffeq's signature: native for probflow's solvers, else passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from probflow.integrate.grid import is_registered, unknown_method
from probflow.ode.plans import check_function, integrate
from probflow.solvers import Solver, get_solver

__all__ = ["odeint"]


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
