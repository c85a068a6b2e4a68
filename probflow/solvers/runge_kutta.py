r"""Explicit Runge-Kutta methods, in process time (for any ODE), in sigma (EDM) or in log-SNR.

In process time the equation is :math:`dx/dt = v(x, t)`, where v is the velocity: the drift of the
probability-flow ODE, or any function. In sigma the state is :math:`y = x/\alpha`, the time
:math:`\rho = \sigma/\alpha`, and the equation is :math:`dy/d\rho = \epsilon(y, \rho)`; in log-SNR
:math:`\lambda = -\ln\rho` the same is :math:`dy/d\lambda = -\rho\, \epsilon`. The longer tableaus
are those of :mod:`probflow.tableaus`.
"""

from __future__ import annotations

from probflow.plan import Linear, StepBuilder
from probflow.plan.columns import log
from probflow.solvers.registry import register
from probflow.tableaus import BOSH3, DOPRI5, RK4, RK4_CLASSIC, Tableau
from probflow.words import check_choice

_KUTTA = "Hairer, Norsett, Wanner, Solving ODEs I, section II.1"


def _in_time(step: StepBuilder, tableau: Tableau) -> Linear:
    t, s = step.t, step.s
    h = s.t - t.t
    points = [s if c == 1.0 else step.at(t.t + c * h) for c, _ in tableau.later]
    slopes = [step.model(step.x, t)]
    for r, (_, row) in zip(points, tableau.later, strict=True):
        inner = Linear.sum([1.0, *[h * a for a in row]], [step.x, *slopes])
        slopes.append(step.model(inner, r))
    weights = tableau.b[: len(slopes)]
    return Linear.sum([1.0, *[h * b for b in weights]], [step.x, *slopes])


def _in_noise(step: StepBuilder, tableau: Tableau, variable: str) -> Linear:
    """A step for y = x/alpha in sigma or log-SNR; to sigma' = 0, an Euler step in sigma."""
    check_choice("variable", variable, ("sigma", "log-snr"))
    t, s = step.t, step.s
    if s.sigma == 0:
        return step.x + (s.rho - t.rho) * step.model(step.x, t)
    h = s.rho - t.rho if variable == "sigma" else s.lambda_ - t.lambda_
    start = t.rho if variable == "sigma" else t.lambda_
    places = [start + c * h for c, _ in tableau.later]
    if variable == "sigma":
        places = [-log(rho) for rho in places]
    points = [
        s if c == 1.0 else step.at_lambda(place)
        for (c, _), place in zip(tableau.later, places, strict=True)
    ]
    slopes = [1.0 if variable == "sigma" else -r.rho for r in (t, *points)]
    outputs = [step.model(step.x, t)]

    def advanced(weights: tuple[float, ...]) -> Linear:
        factors = [h * weight * slope for weight, slope in zip(weights, slopes, strict=False)]
        return Linear.sum([1.0, *factors], [step.x, *outputs])

    for r, (_, row) in zip(points, tableau.later, strict=True):
        outputs.append(step.model(advanced(row), r))
    return advanced(tableau.b[: len(slopes)])


@register(
    "euler",
    aliases=("ab1",),
    reference="Euler 1768",
    prediction="velocity",
    needs="ode",
    family="ode",
    orders={"tv": 1, "strong": 1},
)
def euler(step: StepBuilder) -> Linear:
    """x' = x + h v(x, t), with h = s - t."""
    h = step.s.t - step.t.t
    return step.x + h * step.model(step.x, step.t)


@register(
    "midpoint",
    reference="Runge 1895; " + _KUTTA,
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def midpoint(step: StepBuilder) -> Linear:
    """x' = x + h v(x + h/2 v(x, t), t + h/2)."""
    h = step.s.t - step.t.t
    v = step.model(step.x, step.t)
    return step.x + h * step.model(step.x + h / 2 * v, step.at(step.t.t + h / 2))


@register(
    "heun",
    reference="Heun 1900; " + _KUTTA,
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def heun(step: StepBuilder) -> Linear:
    """x' = x + h/2 (v1 + v2), with v1 = v(x, t) and v2 = v(x + h v1, s)."""
    h = step.s.t - step.t.t
    v1 = step.model(step.x, step.t)
    v2 = step.model(step.x + h * v1, step.s)
    return step.x + h / 2 * (v1 + v2)


@register(
    "rk4",
    reference="Kutta 1901, the 3/8 rule, which torchdiffeq calls rk4; " + _KUTTA,
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=4,
    orders={"tv": 4, "strong": 4},
)
def rk4(step: StepBuilder) -> Linear:
    """x' = x + h/8 (v1 + 3 v2 + 3 v3 + v4): the 3/8 rule.

    v1 = v(x, t), v2 = v(x + h/3 v1, t + h/3), v3 = v(x + h (v2 - v1/3), t + 2h/3),
    v4 = v(x + h (v1 - v2 + v3), s).
    """
    return _in_time(step, RK4)


@register(
    "rk3",
    reference=f"Ralston 1962; {BOSH3.reference}, the formula of order 3 of bosh3",
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=3,
    orders={"tv": 3, "strong": 3},
)
def rk3(step: StepBuilder) -> Linear:
    """x' = x + h/9 (2 v1 + 3 v2 + 4 v3), with c = (0, 1/2, 3/4).

    v2 = v(x + h/2 v1, t + h/2), v3 = v(x + 3h/4 v2, t + 3h/4).
    """
    return _in_time(step, BOSH3)


@register(
    "rk4-classic",
    reference=RK4_CLASSIC.reference,
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=4,
    orders={"tv": 4, "strong": 4},
)
def rk4_classic(step: StepBuilder) -> Linear:
    """x' = x + h/6 (v1 + 2 v2 + 2 v3 + v4), with c = (0, 1/2, 1/2, 1).

    v2 = v(x + h/2 v1, t + h/2), v3 = v(x + h/2 v2, t + h/2), v4 = v(x + h v3, s).
    """
    return _in_time(step, RK4_CLASSIC)


@register(
    "rk5",
    reference=f"{DOPRI5.reference}, the formula of order 5 of dopri5",
    prediction="velocity",
    needs="ode",
    family="ode",
    nfe=6,
    orders={"tv": 5, "strong": 5},
)
def rk5(step: StepBuilder) -> Linear:
    """x' = x + h sum_i b_i v_i, b = (35/384, 0, 500/1113, 125/192, -2187/6784, 11/84).

    v_i = v(x + h sum_j a_ij v_j, t + c_i h), c = (0, 1/5, 3/10, 4/5, 8/9, 1), j < i.
    """
    return _in_time(step, DOPRI5)


@register(
    "edm-euler",
    reference="Karras et al. 2022 (arXiv 2206.00364), Algorithm 1 without the correction",
    prediction="eps",
    coordinates="ve",
    orders={"tv": 1, "strong": 1},
)
def edm_euler(step: StepBuilder) -> Linear:
    """y' = y + (rho' - rho) eps(y), with y = x/alpha and rho = sigma/alpha (equal to DDIM)."""
    return step.x + (step.s.rho - step.t.rho) * step.model(step.x, step.t)


@register(
    "edm-heun",
    reference="Karras et al. 2022 (arXiv 2206.00364), Algorithm 1",
    prediction="eps",
    coordinates="ve",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def edm_heun(step: StepBuilder) -> Linear:
    """y' = y + (rho' - rho)/2 (eps(y) + eps(y_euler)), with y = x/alpha and rho = sigma/alpha.

    y_euler = y + (rho' - rho) eps(y). A step to sigma = 0 is an Euler step, as in the paper.
    """
    h = step.s.rho - step.t.rho
    eps = step.model(step.x, step.t)
    if step.s.sigma == 0:
        return step.x + h * eps
    return step.x + h / 2 * (eps + step.model(step.x + h * eps, step.s))


@register(
    "edm-rk3",
    reference=f"Ralston 1962; {BOSH3.reference}, the formula of order 3 of bosh3",
    prediction="eps",
    coordinates="ve",
    nfe=3,
    orders={"tv": 3, "strong": 3},
)
def edm_rk3(step: StepBuilder, variable: str = "sigma") -> Linear:
    """y' = y + h/9 (2 k1 + 3 k2 + 4 k3), y = x/alpha: the tableau of ``rk3``.

    k = eps and h = rho' - rho (``variable`` "sigma"), or k = -rho eps and h = lambda' - lambda
    ("log-snr"). A step to sigma = 0 is an Euler step in sigma.
    """
    return _in_noise(step, BOSH3, variable)


@register(
    "edm-rk4",
    reference=RK4_CLASSIC.reference,
    prediction="eps",
    coordinates="ve",
    nfe=4,
    orders={"tv": 4, "strong": 4},
)
def edm_rk4(step: StepBuilder, variable: str = "sigma") -> Linear:
    """y' = y + h/6 (k1 + 2 k2 + 2 k3 + k4), y = x/alpha: the tableau of ``rk4-classic``.

    k, h and the step to sigma = 0 are those of ``edm-rk3``.
    """
    return _in_noise(step, RK4_CLASSIC, variable)


@register(
    "edm-rk5",
    reference=f"{DOPRI5.reference}, the formula of order 5 of dopri5",
    prediction="eps",
    coordinates="ve",
    nfe=6,
    orders={"tv": 5, "strong": 5},
)
def edm_rk5(step: StepBuilder, variable: str = "sigma") -> Linear:
    """y' = y + h sum_i b_i k_i, y = x/alpha: the tableau of ``rk5``.

    k, h and the step to sigma = 0 are those of ``edm-rk3``.
    """
    return _in_noise(step, DOPRI5, variable)
