r"""Explicit Runge-Kutta methods, in process time (for any ODE) and in sigma (EDM).

In process time the equation is :math:`dx/dt = v(x, t)`, where v is the velocity: the drift of the
probability-flow ODE, or any function. In sigma the state is :math:`y = x/\alpha`, the time
:math:`\rho = \sigma/\alpha`, and the equation is :math:`dy/d\rho = \epsilon(y, \rho)`.
"""

from __future__ import annotations

from probflow.plan import Linear, StepBuilder
from probflow.solvers.registry import register

_KUTTA = "Hairer, Norsett, Wanner, Solving ODEs I, section II.1"


@register(
    "euler",
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
    h = step.s.t - step.t.t
    v1 = step.model(step.x, step.t)
    v2 = step.model(step.x + h / 3 * v1, step.at(step.t.t + h / 3))
    v3 = step.model(step.x + h * (v2 - v1 / 3), step.at(step.t.t + 2 * h / 3))
    v4 = step.model(step.x + h * (v1 - v2 + v3), step.s)
    return step.x + h / 8 * (v1 + 3 * v2 + 3 * v3 + v4)


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
