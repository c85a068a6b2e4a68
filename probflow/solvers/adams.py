r"""Adams methods whose polynomial is one in rho = sigma/alpha or in process time: LMS, PNDM, DEIS.

On eps the equation is :math:`d(x/\alpha) = \epsilon\, d\rho`, and a step is a DDIM step with a
weighted mean of the last outputs. The methods differ in the weights. In process time alone, on
the velocity, they are the plain Adams-Bashforth methods. Starts and lowered ends are those of
:mod:`probflow.solvers.multistep`, whose polynomials are in log-SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from probflow.plan import Linear, StepBuilder
from probflow.plan.columns import exp, expm1, log
from probflow.solvers.forms import EPS, Form, is_start, lowered, starting_step
from probflow.solvers.phi import adams, gauss, moments
from probflow.solvers.registry import register
from probflow.solvers.reverse_sde import Eta, form_of, register_sde
from probflow.words import check_choice

_DEIS = "Zhang, Chen 2023 (arXiv 2204.13902)"


# Polynomials in rho ------------------------------------------------------------------------------


def _rho_weights(step: StepBuilder, order: int) -> list[float]:
    """Weights of the polynomial in rho through the last ``order`` outputs, or fewer if stored."""
    h = step.s.rho - step.t.rho
    nodes = [0.0, *((p.t.rho - step.t.rho) / h for p in step.previous[: order - 1])]
    return adams(nodes, moments(len(nodes)))


def _average(step: StepBuilder, form: Form, weights: list[float]) -> Linear:
    """DDIM step, or with noise one of SEEDS-1, with a weighted mean of the last outputs."""
    stored = step.previous[: len(weights) - 1]
    outputs = [step.model(step.x, step.t), *(p.outputs[0] for p in stored)]
    return form.noisy(step, form.first(step.x, step.t, step.s, Linear.sum(weights, outputs)))


def _adams(
    step: StepBuilder,
    order: int,
    weights: Callable[[StepBuilder, int], list[float]],
    start: str = "runge-kutta",
    final: str = "keep",
    form: Form = EPS,
) -> Linear:
    """Step of an Adams method on eps, after its start."""
    if is_start(len(step.previous), order - 2, start):
        return starting_step(step, form, order - 1, start)
    to_data = form.eta and step.s.sigma == 0  # a DDIM step, or differences of noises would stay
    return _average(step, form, [1.0] if to_data else weights(step, lowered(order, step, final)))


@register(
    "lms-2",
    aliases=("deis-rhoab1",),
    reference=f"k-diffusion's sample_lms; {_DEIS}, rho-AB-DEIS 1",
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def lms_2(step: StepBuilder, final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(rho) drho, over the step; j = 0, 1."""
    return _adams(step, 2, _rho_weights, final=final)


@register(
    "lms-3",
    aliases=("deis-rhoab2",),
    reference=f"k-diffusion's sample_lms; {_DEIS}, rho-AB-DEIS 2",
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def lms_3(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(rho) drho, over the step; j = 0 .. 2."""
    return _adams(step, 3, _rho_weights, start, final)


@register(
    "lms-4",
    aliases=("deis-rhoab3", "lms"),
    reference=f"k-diffusion's sample_lms; {_DEIS}, rho-AB-DEIS 3",
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def lms_4(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(rho) drho, over the step; j = 0 .. 3."""
    return _adams(step, 4, _rho_weights, start, final)


def _constant_weights(step: StepBuilder, order: int) -> list[float]:
    """Weights for steps of equal length, whatever they are."""
    count = min(order, len(step.previous) + 1)
    return adams([-float(j) for j in range(count)], moments(count))


def _ipndm(step: StepBuilder, order: int, weights: str, start: str, final: str) -> Linear:
    check_choice("weights", weights, ("variable", "constant"))
    if weights == "variable":
        return _adams(step, order, _rho_weights, start, final)
    return _adams(step, order, _constant_weights, "euler", final)


@register(
    "ipndm-2",
    reference="Liu et al. 2022 (arXiv 2202.09778), eq. 12; " + _DEIS + ", section H.2",
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def ipndm_2(step: StepBuilder, weights: str = "variable", final: str = "keep") -> Linear:
    """x' = alpha'/alpha x - sigma' (e^h - 1) sum_j w_j eps_j, j = 0, 1.

    As published, w = (3/2, -1/2) (``weights="constant"``), which is of order 2 on grids uniform in
    log-SNR only. By default w_j is the mean of l_j(rho) over the step, and the method is ``lms-2``.
    """
    return _ipndm(step, 2, weights, "euler", final)


@register(
    "ipndm-3",
    reference="Liu et al. 2022 (arXiv 2202.09778), eq. 12; " + _DEIS + ", section H.2",
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def ipndm_3(
    step: StepBuilder,
    weights: str = "variable",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x - sigma' (e^h - 1) sum_j w_j eps_j, j = 0 .. 2.

    As published, w = (23, -16, 5)/12 (``weights="constant"``), which is of order 2 at most. By
    default w_j is the mean of l_j(rho) over the step, and the method is ``lms-3``.
    """
    return _ipndm(step, 3, weights, start, final)


@register(
    "ipndm-4",
    reference="Liu et al. 2022 (arXiv 2202.09778), eq. 12; " + _DEIS + ", section H.2",
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def ipndm_4(
    step: StepBuilder,
    weights: str = "variable",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x - sigma' (e^h - 1) sum_j w_j eps_j, j = 0 .. 3.

    As published, w = (55, -59, 37, -9)/24 (``weights="constant"``), which is of order 2 at most. By
    default w_j is the mean of l_j(rho) over the step, and the method is ``lms-4``.
    """
    return _ipndm(step, 4, weights, start, final)


@register(
    "pndm",
    reference="Liu et al. 2022 (arXiv 2202.09778), Algorithm 2 (F-PNDM)",
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def pndm(
    step: StepBuilder,
    weights: str = "variable",
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + alpha' (rho' - rho) e, e = sum_j w_j eps_j, j = 0 .. 3.

    The first three steps have e = (e1 + 2 e2 + 2 e3 + e4)/6 instead, the outputs at the four
    stages of Kutta's method with DDIM steps in between: the authors' pseudo Runge-Kutta steps, 9
    evaluations more. By default the w_j are those of ``lms-4`` and the two inner stages lie half
    way in rho, where e is Kutta's method of order 4. As published (``weights="constant"``)
    w = (55, -59, 37, -9)/24 and the inner stages lie half way in time, which is of order 2 at most
    where rho is not affine in t.

    ``start="heun"`` takes a single step with e = (e1 + e4)/2 instead, e4 the output after a DDIM
    step, and then sums of 2 and 3 outputs: 1 evaluation more (diffusers: ``skip_prk_steps``). Its
    error h^3 leaves order 3.
    """
    check_choice("weights", weights, ("variable", "constant"))
    t, s = step.t, step.s
    if not is_start(len(step.previous), 3, start):
        return _ipndm(step, 4, weights, "euler", final)
    first = step.model(step.x, t)
    if s.sigma == 0:
        return EPS.first(step.x, t, s, first)
    if start == "heun":
        last = step.model(EPS.first(step.x, t, s, first), s)
        return EPS.first(step.x, t, s, 0.5 * (first + last))
    if weights == "constant":
        half = step.at(0.5 * (t.t + s.t))
    else:
        half = step.at_lambda(-log(0.5 * (t.rho + s.rho)))
    second = step.model(EPS.first(step.x, t, half, first), half)
    third = step.model(EPS.first(step.x, t, half, second), half)
    fourth = step.model(EPS.first(step.x, t, s, third), s)
    mean = Linear.sum([1 / 6, 1 / 3, 1 / 3, 1 / 6], [first, second, third, fourth])
    return EPS.first(step.x, t, s, mean)


# DEIS: polynomials in process time ----------------------------------------------------------------


def _means(step: StepBuilder, count: int) -> list[float]:
    """Means over rho of the powers of (t - t_start)/(t_stop - t_start), to 1e-13.

    Gauss-Legendre in log-SNR, drho = -rho dlambda. t(lambda) is analytic up to a distance of pi/2
    from the real axis, so that panels of length 1 need 10 nodes and short ones fewer. To
    sigma' = 0, where log-SNR is infinite, it is one panel in rho, in which t is smooth there.
    """
    t, s = step.t, step.s
    if count == 1:
        return [1.0]
    lambdas, factors = [], []
    if s.sigma == 0:
        for node, weight in gauss(40):
            lambdas.append(t.lambda_ - log(0.5 * (1.0 + node)))
            factors.append(0.5 * weight)
    else:
        h = s.lambda_ - t.lambda_
        panels = ceil(abs(h))
        half = 0.5 * h / panels
        rule = gauss(4 if abs(h) < 0.05 else 6 if abs(h) < 0.25 else 10)
        total = -expm1(-h)
        for panel in range(panels):
            for node, weight in rule:
                depth = half * (2 * panel + 1 + node)  # lambda - lambda_t
                lambdas.append(t.lambda_ + depth)
                factors.append(half * weight * exp(-depth) / total)
    length = s.t - t.t
    means = [1.0] + [0.0] * (count - 1)
    for value, factor in zip(lambdas, factors, strict=True):
        u = (step.at_lambda(value).t - t.t) / length
        for k in range(1, count):
            factor *= u
            means[k] += factor
    return means


def _t_weights(step: StepBuilder, order: int) -> list[float]:
    """Weights of the polynomial in t through the last ``order`` outputs, or fewer if stored."""
    h = step.s.t - step.t.t
    nodes = [0.0, *((p.t.t - step.t.t) / h for p in step.previous[: order - 1])]
    return adams(nodes, _means(step, len(nodes)))


@register(
    "deis-tab1",
    reference=f"{_DEIS}, eq. 15, t-AB-DEIS 1",
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def deis_tab1(step: StepBuilder, final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(t) drho, over the step; j = 0, 1."""
    return _adams(step, 2, _t_weights, final=final)


@register(
    "deis-tab2",
    reference=f"{_DEIS}, eq. 15, t-AB-DEIS 2",
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def deis_tab2(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(t) drho, over the step; j = 0 .. 2."""
    return _adams(step, 3, _t_weights, start, final)


@register(
    "deis-tab3",
    aliases=("deis",),
    reference=f"{_DEIS}, eq. 15, t-AB-DEIS 3",
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def deis_tab3(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = alpha'/alpha x + alpha' sum_j eps_j INT l_j(t) drho, over the step; j = 0 .. 3."""
    return _adams(step, 4, _t_weights, start, final)


# With noise --------------------------------------------------------------------------------------

# In the reverse SDEs, too, what multiplies x is alpha'/alpha: on eps the family of a method has
# 1 + eta times its weights.


@register_sde(
    "sde-lms-2",
    aliases=("sde-deis-rhoab1",),
    reference="lms-2 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=1,
)
def sde_lms_2(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(rho) drho + N; j = 0, 1."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 2, _rho_weights, final=final, form=form)


@register_sde(
    "sde-lms-3",
    aliases=("sde-deis-rhoab2",),
    reference="lms-3 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=2,
)
def sde_lms_3(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(rho) drho + N; j = 0 .. 2."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 3, _rho_weights, start, final, form)


@register_sde(
    "sde-lms-4",
    aliases=("sde-deis-rhoab3",),
    reference="lms-4 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=3,
)
def sde_lms_4(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(rho) drho + N; j = 0 .. 3."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 4, _rho_weights, start, final, form)


@register_sde(
    "sde-deis-tab1",
    reference="deis-tab1 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=1,
)
def sde_deis_tab1(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(t) drho + N; j = 0, 1."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 2, _t_weights, final=final, form=form)


@register_sde(
    "sde-deis-tab2",
    reference="deis-tab2 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=2,
)
def sde_deis_tab2(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(t) drho + N; j = 0 .. 2."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 3, _t_weights, start, final, form)


@register_sde(
    "sde-deis-tab3",
    reference="deis-tab3 with the exact noise of the reverse SDE",
    prediction="eps",
    memory=3,
)
def sde_deis_tab3(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = alpha'/alpha x + (1 + eta) alpha' sum_j eps_j INT l_j(t) drho + N; j = 0 .. 3."""
    form = form_of(EPS, step, eta, s_noise)
    return _adams(step, 4, _t_weights, start, final, form)


# Adams-Bashforth in process time -----------------------------------------------------------------


def _adams_bashforth(
    step: StepBuilder, order: int, start: str = "runge-kutta", final: str = "keep"
) -> Linear:
    t, h = step.t, step.s.t - step.t.t
    v = step.model(step.x, t)
    if is_start(len(step.previous), order - 2, start):
        if start == "heun":
            return step.x + h / 2 * (v + step.model(step.x + h * v, step.s))
        if order == 3:
            return step.x + h * step.model(step.x + h / 2 * v, step.at(t.t + h / 2))
        v2 = step.model(step.x + h / 3 * v, step.at(t.t + h / 3))
        v3 = step.model(step.x + 2 * h / 3 * v2, step.at(t.t + 2 * h / 3))
        return step.x + h / 4 * (v + 3 * v3)
    stored = step.previous[: lowered(order, step, final) - 1]
    nodes = [0.0, *((p.t.t - t.t) / h for p in stored)]
    weights = [h * weight for weight in adams(nodes, moments(len(nodes)))]
    return Linear.sum([1.0, *weights], [step.x, v, *(p.outputs[0] for p in stored)])


@register(
    "ab2",
    reference="Bashforth, Adams 1883; Hairer, Norsett, Wanner, Solving ODEs I, section III.5",
    prediction="velocity",
    needs="ode",
    family="ode",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def ab2(step: StepBuilder, final: str = "keep") -> Linear:
    """x' = x + sum_j v_j INT l_j(t) dt, over the step; j = 0, 1."""
    return _adams_bashforth(step, 2, final=final)


@register(
    "ab3",
    reference="Bashforth, Adams 1883; Hairer, Norsett, Wanner, Solving ODEs I, section III.5",
    prediction="velocity",
    needs="ode",
    family="ode",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def ab3(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = x + sum_j v_j INT l_j(t) dt, over the step; j = 0 .. 2. The first is a midpoint step."""
    return _adams_bashforth(step, 3, start, final)


@register(
    "ab4",
    reference="Bashforth, Adams 1883; Hairer, Norsett, Wanner, Solving ODEs I, section III.5",
    prediction="velocity",
    needs="ode",
    family="ode",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def ab4(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """x' = x + sum_j v_j INT l_j(t) dt, over the step; j = 0 .. 3.

    The first two steps are of Heun's third-order method.
    """
    return _adams_bashforth(step, 4, start, final)
