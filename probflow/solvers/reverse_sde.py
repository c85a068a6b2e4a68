r"""Solvers of the reverse SDEs with the marginal laws of the forward process.

For every :math:`\eta \ge 0`, from noise to data,

.. math:: dx = \Big[f x - \frac{1 + \eta}{2} g^2 \nabla \ln p_t(x)\Big] dt
          + \sqrt{\eta}\, g\, d\bar W .

eta = 0 is the probability-flow ODE, eta = 1 the time reversal of the forward SDE. The exponential
ones (L, S, h, z, N: see :mod:`probflow.solvers.forms`) are exact in the linear part and in the law
of its noise N, and replace x0 or eps by a polynomial; with eta = 0 each is the ODE method of its
name. The option ``eta`` is a number, or a function of rho = sigma/alpha, taken at the middle of
each step (in log-SNR); ``s_noise`` multiplies all noises. A step to sigma' = 0 is a DDIM step.

Orders. The noise is additive once the linear part is removed, which makes weak order 2 (that of
laws, total variation among them) cheap. Let F be what multiplies h, with slope F', and W the noise.
Within a step the solution has F' INT W dt, whose covariance with the step's own noise is h^2/2,
and the mean h^2/4 F'' of the second-order term. A Runge-Kutta stage at c, with the path's noise
there and the weight 1/(2c), has both, whatever c. A multistep method extrapolates through the
outputs of earlier steps, so that the noise of a step enters F one step late; the sum over the
steps has the same covariances but for the last step's, once h^2. So both kinds have order 2.
More points do not help: the variance h^3/3 of INT W dt takes noises of its own.
On one path all have strong order 1: what one increment per interval says of the exact noise term
is right to a relative h, and INT W dt is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import Column, Number, exp, one_by_one_unless, sqrt
from probflow.solvers.forms import (
    EPS,
    X0,
    Form,
    adams_step,
    check_s_noise,
    heun_2,
    krogstad_4,
    kutta_3,
    midpoint_2,
    runge_kutta,
)
from probflow.solvers.multistep import dpm_solver_2m_step, dpm_solver_3m_step
from probflow.solvers.registry import register
from probflow.words import check_real

Eta = float | Callable[[float], float]

_LU = "Lu et al. 2022 (arXiv 2211.01095)"
_K = "k-diffusion"
_SEEDS = "Gonzalez et al. 2023 (arXiv 2305.14267)"


def level(name: str, value: Eta, t: Point, s: Point) -> Number:
    """A noise level for the step from t to s: a number, or a function of rho at its middle."""
    number: Any = value
    if callable(value):
        number = value(exp(-0.5 * (t.lambda_ + s.lambda_)) if s.sigma > 0 else 0.0)
    if isinstance(number, Column):
        one_by_one_unless((number >= 0) & (number < inf))
        return number
    kind = "a number or a function of sigma/alpha that returns one"
    return check_real(name, number, "[0, inf)", kind=kind)


def form_of(base: Form, step: StepBuilder, eta: Eta, s_noise: float) -> Form:
    """The form of a method, with the noise that the options of its family ask for."""
    return Form(base.sign, level("eta", eta, step.t, step.s), check_s_noise(s_noise))


def eta_of(options: Mapping[str, Any]) -> Eta | None:
    """eta of the reverse SDE; none has that law once the noise is scaled."""
    return options["eta"] if options["s_noise"] == 1.0 else None


#: Registers a method of order 2 in law.
register_sde = partial(register, stochastic=True, orders={"tv": 2, "strong": 1}, sde=eta_of)


# SDE-DPM-Solver++ --------------------------------------------------------------------------------


@register(
    "sde-dpm-solver++-1",
    aliases=("sde-dpmpp-1", "sde-exponential-ab1"),
    reference=f"{_LU}, SDE-DPM-Solver++1",
    prediction="x0",
    stochastic=True,
    orders={"tv": 1, "strong": 1, "path-kl": 0.5},
    sde=eta_of,
)
def sde_dpm_solver_pp_1(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = sigma'/sigma e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) x0 + N.

    Var N = sigma'^2 (1 - e^(-2 eta h)). For eta = 1 this is ``ddpm-posterior``.
    """
    form = form_of(X0, step, eta, s_noise)
    x0 = step.model(step.x, step.t)
    return form.noisy(step, form.first(step.x, step.t, step.s, x0))


@register_sde(
    "sde-dpm-solver++-2m",
    aliases=("sde-dpmpp-2m", "dpmpp-2m-sde"),
    reference=f"{_LU}, SDE-DPM-Solver++(2M); {_K}'s sample_dpmpp_2m_sde",
    prediction="x0",
    memory=1,
)
def sde_dpm_solver_pp_2m(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h phi_1 D + N, D = x0 + (x0 - x0_before) h/(2 h_before).

    With ``solver_type="heun"`` phi_2 stands in place of phi_1/2: ``sde-exponential-ab2``. The first
    step, one to sigma' = 0, and the last with ``final`` = "lower", takes D = x0.
    """
    return dpm_solver_2m_step(step, form_of(X0, step, eta, s_noise), solver_type, final)


@register_sde(
    "sde-dpm-solver++-3m",
    aliases=("sde-dpmpp-3m", "dpmpp-3m-sde"),
    reference=f"{_K}'s sample_dpmpp_3m_sde, with its factor 2",
    prediction="x0",
    memory=2,
)
def sde_dpm_solver_pp_3m(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    factor: float = 2.0,
    solver_type: str = "midpoint",
    start: str = "runge-kutta",
    final: str = "keep",
    variant: str = "exact",
) -> Linear:
    """x' = L x + S h (phi_1 x0 + phi_2 D1 + phi_3 D2) + N, D1 and D2 as in ``dpm-solver++-3m``.

    Published code has ``factor`` 1 in place of the 2 in D2, and ``start`` "euler" with
    ``solver_type`` "heun" in the second step. Of order 3 for eta = 0 only; for small eta the third
    order shows at coarse steps. ``variant`` "diffusers" has alpha' D2 less, as written there: in
    the weight of D2, alpha' ((1 - e^z + z)/z^2 + 1/2), 1/2 is subtracted. Its order is 1.
    """
    form = form_of(X0, step, eta, s_noise)
    return dpm_solver_3m_step(step, form, factor, solver_type, start, final, variant)


@register_sde(
    "sde-dpm-solver-2m",
    reference=f"{_LU}, SDE-DPM-Solver-2M in the authors' code",
    prediction="eps",
    memory=1,
)
def sde_dpm_solver_2m(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h phi_1 D + N, D = eps + (eps - eps_before) h/(2 h_before).

    As ``sde-dpm-solver++-2m``, on eps. With one output it is ``seeds-1``.
    """
    return dpm_solver_2m_step(step, form_of(EPS, step, eta, s_noise), solver_type, final)


@register_sde(
    "sde-dpm-solver-3m",
    reference="dpm-solver-3m with the exact noise of the reverse SDE",
    prediction="eps",
    memory=2,
)
def sde_dpm_solver_3m(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    factor: float = 2.0,
    solver_type: str = "midpoint",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h (phi_1 eps + phi_2 D1 + phi_3 D2) + N, as ``sde-dpm-solver++-3m`` on eps."""
    form = form_of(EPS, step, eta, s_noise)
    return dpm_solver_3m_step(step, form, factor, solver_type, start, final)


@register_sde(
    "dpm-solver++-sde",
    aliases=("dpmpp-sde",),
    reference=f"{_K}'s sample_dpmpp_sde; {_LU}, section 4.3",
    prediction="x0",
    nfe=2,
)
def dpm_solver_pp_sde(
    step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Linear:
    """x' = L x + S h phi_1 [x0 + (x0_r - x0)/(2 r)] + N.

    x0_r is evaluated at r of h, after a step of ``sde-dpm-solver++-1``; its noise is that of the
    same path, of which N is the rest: N = L_r N_r + the noise from r on.
    """
    form = form_of(X0, step, eta, s_noise)
    return runge_kutta(step, form, [check_real("r", r, "(0, 1]")], midpoint_2(r))


# Exponential Adams and Runge-Kutta methods --------------------------------------------------------


@register_sde(
    "sde-exponential-ab2",
    reference="exponential-ab2-x0 with the exact noise of the reverse SDE",
    prediction="x0",
    memory=1,
)
def sde_exponential_ab2(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j x0_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0, 1."""
    return adams_step(step, form_of(X0, step, eta, s_noise), 2, final=final)


@register_sde(
    "sde-exponential-ab3",
    reference="exponential-ab3-x0 with the exact noise of the reverse SDE",
    prediction="x0",
    memory=2,
)
def sde_exponential_ab3(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j x0_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 2."""
    return adams_step(step, form_of(X0, step, eta, s_noise), 3, start=start, final=final)


@register_sde(
    "sde-exponential-ab4",
    reference="exponential-ab4-x0 with the exact noise of the reverse SDE",
    prediction="x0",
    memory=3,
)
def sde_exponential_ab4(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j x0_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 3."""
    return adams_step(step, form_of(X0, step, eta, s_noise), 4, start=start, final=final)


@register_sde(
    "sde-exponential-ab2-eps",
    reference="exponential-ab2 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=1,
)
def sde_exponential_ab2_eps(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j eps_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0, 1."""
    return adams_step(step, form_of(EPS, step, eta, s_noise), 2, final=final)


@register_sde(
    "sde-exponential-ab3-eps",
    reference="exponential-ab3 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=2,
)
def sde_exponential_ab3_eps(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j eps_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 2."""
    return adams_step(step, form_of(EPS, step, eta, s_noise), 3, start=start, final=final)


@register_sde(
    "sde-exponential-ab4-eps",
    reference="exponential-ab4 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=3,
)
def sde_exponential_ab4_eps(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L x + S h sum_j w_j eps_j + N, w_j = INT_0^1 e^((1 - u) z) l_j(u) du, j = 0 .. 3."""
    return adams_step(step, form_of(EPS, step, eta, s_noise), 4, start=start, final=final)


@register_sde(
    "sde-exponential-rk2",
    reference="exponential-rk2 on x0 with the exact noise of the reverse SDE",
    prediction="x0",
    nfe=2,
)
def sde_exponential_rk2(
    step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0, c2: float = 0.5
) -> Linear:
    """x' = L x + S h [phi_1 x0 + phi_2/c2 (x0_2 - x0)] + N, x0_2 on the path at c2 of h."""
    form = form_of(X0, step, eta, s_noise)
    return runge_kutta(step, form, [check_real("c2", c2, "(0, 1]")], heun_2(c2))


@register_sde(
    "sde-exponential-rk3",
    reference="exponential-rk3 on x0, c = 0, 1/3, 2/3, with the exact noise of the reverse SDE",
    prediction="x0",
    nfe=3,
)
def sde_exponential_rk3(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = L x + S h [phi_1 x0 + 3/2 phi_2 (x0_3 - x0)] + N, x0_2 and x0_3 at h/3 and 2 h/3."""
    form = form_of(X0, step, eta, s_noise)
    return runge_kutta(step, form, [1 / 3, 2 / 3], kutta_3(1 / 3, 2 / 3))


@register_sde(
    "sde-exponential-rk4",
    reference="exponential-rk4 on x0 with the exact noise of the reverse SDE",
    prediction="x0",
    nfe=4,
)
def sde_exponential_rk4(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = L x + S h [b1 x0 + b2 (x0_2 + x0_3) + b4 x0_4] + N, c = (0, 1/2, 1/2, 1)."""
    return runge_kutta(step, form_of(X0, step, eta, s_noise), [0.5, 0.5, 1.0], krogstad_4)


# SEEDS: Runge-Kutta methods on eps ---------------------------------------------------------------


@register(
    "seeds-1",
    reference=f"{_SEEDS}, SEEDS-1; {_LU}, SDE-DPM-Solver-1",
    prediction="eps",
    stochastic=True,
    orders={"tv": 1, "strong": 1, "path-kl": 0.5},
    sde=eta_of,
)
def seeds_1(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = alpha'/alpha x - (1 + eta) sigma' (e^h - 1) eps + sigma' sqrt(eta (e^2h - 1)) Z."""
    form = form_of(EPS, step, eta, s_noise)
    eps = step.model(step.x, step.t)
    return form.noisy(step, form.first(step.x, step.t, step.s, eps))


@register_sde(
    "seeds-2",
    reference=f"{_SEEDS}, SEEDS-2",
    prediction="eps",
    nfe=2,
)
def seeds_2(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = L x + S h phi_1 eps_r + N, eps_r at h/2 after a step of ``seeds-1``, on one path."""
    return runge_kutta(step, form_of(EPS, step, eta, s_noise), [0.5], midpoint_2(0.5))


@register_sde(
    "seeds-3",
    reference=f"{_SEEDS}, SEEDS-3",
    prediction="eps",
    nfe=3,
)
def seeds_3(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = L x + S h [phi_1 eps + 3/2 phi_2 (eps_3 - eps)] + N: ``dpm-solver-3`` on a path."""
    form = form_of(EPS, step, eta, s_noise)
    return runge_kutta(step, form, [1 / 3, 2 / 3], kutta_3(1 / 3, 2 / 3))


# In process time ---------------------------------------------------------------------------------


@register_sde(
    "sde-heun",
    reference="Kloeden, Platen 1992, section 15.1; Song et al. 2021 (arXiv 2011.13456), eq. 6",
    prediction="score",
    nfe=2,
    family="sde",
)
def sde_heun(step: StepBuilder, eta: Eta = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = x + h/2 (F(x, t) + F(x + h F + N, s)) + N, F = f x - (1 + eta)/2 g^2 score.

    Var N = eta |h| (g^2 + g'^2)/2, with h = s - t < 0. A step to sigma' = 0 takes x0.
    """
    t, s = step.t, step.s
    form = form_of(X0, step, eta, s_noise)
    score = step.model(step.x, t)
    if s.sigma == 0:
        return s.alpha / t.alpha * (step.x + t.sigma**2 * score)
    h = s.t - t.t

    def drift(x: Linear, score: Linear, at: Point) -> Linear:
        return at.drift * x - (1 + form.eta) / 2 * at.diffusion**2 * score

    std = s_noise * sqrt(form.eta * abs(h) * (t.diffusion**2 + s.diffusion**2) / 2)
    noise = std * step.noise() if std else Linear({})
    first = drift(step.x, score, t)
    end = step.x + h * first + noise
    return step.x + h / 2 * (first + drift(end, step.model(end, s), s)) + noise
