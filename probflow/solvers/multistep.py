r"""Multistep methods: polynomials in log-SNR through stored outputs, integrated exactly.

They differ in what the polynomial interpolates (eps, x0, velocity) and in shortcuts; those with
polynomials in other variables are in :mod:`probflow.solvers.adams`. z, L, S and the two forms of
the equation are those of :mod:`probflow.solvers.forms`; :math:`\ell_j` are Lagrange polynomials,
j = 0 at the start of the step and j = 1, 2, .. at the starts of those before.

The first steps. With k stored outputs an Adams method of order k + 1 errs by h^(k + 2) in a step,
which is enough for a method of order p as long as k >= p - 2. The steps before that are
Runge-Kutta steps of order p - 1 and take p - 2 evaluations more each; ``start="euler"`` begins
with low orders instead, as the usual implementations do, at the price of order 2 for every p: a
first step of error h^(q + 1) leaves the lesser of p and q + 1.
``final="lower"`` lowers the order in the last steps as they do, at the price of order 2 as well.
"""

from __future__ import annotations

from probflow.plan import Linear, StepBuilder
from probflow.solvers.forms import EPS, X0, Form, adams_step, lowered
from probflow.solvers.phi import phis
from probflow.solvers.registry import register
from probflow.words import check_choice

_HO = "Hochbruck, Ostermann 2010 (Exponential integrators, Acta Numerica 19), section 2.5"
_LU = "Lu et al. 2022 (arXiv 2211.01095)"


# Exponential Adams-Bashforth: polynomials in log-SNR --------------------------------------------


@register(
    "exponential-ab2",
    reference=_HO,
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def exponential_ab2(step: StepBuilder, final: str = "keep") -> Linear:
    """x' = L x + S h sum_j w_j eps_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0, 1."""
    return adams_step(step, EPS, 2, final=final)


@register(
    "exponential-ab3",
    reference=_HO,
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def exponential_ab3(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = L x + S h sum_j w_j eps_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 2."""
    return adams_step(step, EPS, 3, start=start, final=final)


@register(
    "exponential-ab4",
    reference=_HO,
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def exponential_ab4(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = L x + S h sum_j w_j eps_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 3."""
    return adams_step(step, EPS, 4, start=start, final=final)


@register(
    "exponential-ab2-x0",
    reference=_HO,
    prediction="x0",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def exponential_ab2_x0(step: StepBuilder, final: str = "keep") -> Linear:
    """x' = L x + S h sum_j w_j x0_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0, 1."""
    return adams_step(step, X0, 2, final=final)


@register(
    "exponential-ab3-x0",
    reference=_HO,
    prediction="x0",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def exponential_ab3_x0(
    step: StepBuilder, start: str = "runge-kutta", final: str = "keep"
) -> Linear:
    """x' = L x + S h sum_j w_j x0_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 2."""
    return adams_step(step, X0, 3, start=start, final=final)


@register(
    "exponential-ab4-x0",
    reference=_HO,
    prediction="x0",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def exponential_ab4_x0(
    step: StepBuilder, start: str = "runge-kutta", final: str = "keep"
) -> Linear:
    """x' = L x + S h sum_j w_j x0_j, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 3."""
    return adams_step(step, X0, 4, start=start, final=final)


# DPM-Solver multistep: derivatives from divided differences -------------------------------------


def dpm_solver_2m_step(step: StepBuilder, form: Form, solver_type: str, final: str) -> Linear:
    """x' = L x + S h phi_1 D, D = f + (f - f_before) h/(2 h_before); see dpm-solver++-2m."""
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    if solver_type == "heun":
        return adams_step(step, form, 2, final=final)
    t, s = step.t, step.s
    output = step.model(step.x, t)
    if not step.previous or lowered(2, step, final) < 2 or s.sigma == 0:
        return form.noisy(step, form.first(step.x, t, s, output))
    before = step.previous[0]
    ratio = (s.lambda_ - t.lambda_) / (t.lambda_ - before.t.lambda_)
    average = Linear.sum([1.0 + ratio / 2, -ratio / 2], [output, before.outputs[0]])
    return form.noisy(step, form.first(step.x, t, s, average))


@register(
    "dpm-solver-2m",
    reference=f"{_LU}, Algorithm 2 on eps, as in the authors' code",
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_2m(step: StepBuilder, solver_type: str = "midpoint", final: str = "keep") -> Linear:
    """x' = L x + S h phi_1 D, D = eps + (eps - eps_before) h/(2 h_before), on eps.

    As ``dpm-solver++-2m``. With ``solver_type`` "heun" it is ``exponential-ab2``.
    """
    return dpm_solver_2m_step(step, EPS, solver_type, final)


@register(
    "dpm-solver++-2m",
    aliases=("dpmpp-2m",),
    reference=f"{_LU}, Algorithm 2",
    prediction="x0",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_pp_2m(
    step: StepBuilder, solver_type: str = "midpoint", final: str = "keep"
) -> Linear:
    """x' = (sigma'/sigma) x - alpha' (e^-h - 1) D, D = x0 + (x0 - x0_before) h/(2 h_before).

    x0_before is the stored prediction of the step before. The first step, and a step to
    sigma' = 0 (h infinite), take D = x0, which is a DDIM step; so does the last step with
    ``final`` = "lower". ``solver_type`` "heun" of usual implementations has the exact phi_2 in
    place of phi_1/2, and is ``exponential-ab2-x0``.
    """
    return dpm_solver_2m_step(step, X0, solver_type, final)


def dpm_solver_3m_step(
    step: StepBuilder,
    form: Form,
    factor: float,
    solver_type: str,
    start: str,
    final: str,
    variant: str = "exact",
) -> Linear:
    """x' = L x + S h (phi_1 f + phi_2 D1 + phi_3 D2), after its start; see dpm-solver++-3m.

    With ``variant`` "diffusers" the weight of D2 has alpha'/2 subtracted in the place of added.
    """
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    check_choice("variant", variant, ("exact", "diffusers"))
    t, s = step.t, step.s
    order, stored = lowered(3, step, final), len(step.previous)
    if s.sigma == 0 or order == 1 or stored < (1 if start == "euler" or order == 2 else 2):
        return adams_step(step, form, 3, start=start, final=final)
    if order == 2 or stored == 1:
        return dpm_solver_2m_step(step, form, solver_type, "keep")
    f = step.model(step.x, t)
    h = s.lambda_ - t.lambda_
    one, two = step.previous
    r0, r1 = (t.lambda_ - one.t.lambda_) / h, (one.t.lambda_ - two.t.lambda_) / h
    d0 = (f - one.outputs[0]) / r0
    d1 = (one.outputs[0] - two.outputs[0]) / r1
    first = d0 + r0 / (r0 + r1) * (d0 - d1)
    second = factor / (r0 + r1) * (d0 - d1)
    weights = form.weights(t, s, phis(3, form.z(t, s)))
    if variant == "diffusers":
        weights[-1] -= s.alpha
    return form.noisy(step, Linear.sum(weights, [step.x, f, first, second]))


@register(
    "dpm-solver-3m",
    reference=f"{_LU}, third-order multistep in the authors' code on eps, with its factor 2",
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def dpm_solver_3m(
    step: StepBuilder,
    factor: float = 2.0,
    solver_type: str = "midpoint",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h (phi_1 eps + phi_2 D1 + phi_3 D2), as ``dpm-solver++-3m`` on eps."""
    return dpm_solver_3m_step(step, EPS, factor, solver_type, start, final)


@register(
    "dpm-solver++-3m",
    aliases=("dpmpp-3m",),
    reference=f"{_LU}, third-order multistep in the authors' code, with its factor 2",
    prediction="x0",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def dpm_solver_pp_3m(
    step: StepBuilder,
    factor: float = 2.0,
    solver_type: str = "midpoint",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h (phi_1 x0 + phi_2 D1 + phi_3 D2), with h D1 and h^2 D2 for x0', x0''.

    D1 = d0 + r0/(r0 + r1) (d0 - d1), D2 = 2 (d0 - d1)/(r0 + r1), d0 = (x0 - x0_1)/r0,
    d1 = (x0_1 - x0_2)/r1, where r0 h and r1 h are the lengths of the two steps before. This is
    ``exponential-ab3-x0`` in other words. Published code has ``factor`` 1 in place of the 2 in D2,
    and is of order 2. ``solver_type`` is that of the step of second order with ``start`` "euler".
    """
    return dpm_solver_3m_step(step, X0, factor, solver_type, start, final)
