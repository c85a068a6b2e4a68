r"""Exponential Adams methods for v-prediction, in the angle.

With :math:`y = x/\sqrt{\alpha^2 + \sigma^2}` and :math:`\theta = \mathrm{atan2}(\sigma, \alpha)`,

.. math:: y = \cos\theta\, x_0 + \sin\theta\, \epsilon, \qquad
          v = \cos\theta\, \epsilon - \sin\theta\, x_0,

and the probability flow is :math:`dy/d\theta = v(y, \theta)`. Where :math:`x_0` and
:math:`\epsilon` are constant, (y, v) turns rigidly; about :math:`\theta_t`, with the y and v there,
that is

.. math:: \bar y(\theta) = \cos(\theta - \theta_t)\, y + \sin(\theta - \theta_t)\, v, \qquad
          \bar v(\theta) = \cos(\theta - \theta_t)\, v - \sin(\theta - \theta_t)\, y .

What is left of v is :math:`w = v - \bar v`, zero at :math:`\theta_t`, and the exact solution is

.. math:: y' = \bar y(\theta') + \int_{\theta_t}^{\theta'} w\, d\theta .

An Adams method takes w for the polynomial through its values at stored outputs; a Runge-Kutta
method is applied to :math:`d(y - \bar y)/d\theta = w`. Both are exact for constant :math:`x_0`
and :math:`\epsilon`, and :math:`w = 0` gives DDIM. The turning is not stiff (:math:`\theta` lies
between 0 and :math:`\pi/2`), so that w is integrated with the classical weights. Nothing here is
singular at :math:`\sigma = 0` or :math:`\alpha = 0`: grids may end and begin there.
"""

from __future__ import annotations

from collections.abc import Sequence

from probflow.plan import Linear, StepBuilder
from probflow.plan.columns import cos, log, sin, tan
from probflow.solvers.phi import adams, moments
from probflow.solvers.registry import register
from probflow.tableaus import HEUN3, MIDPOINT, Tableau
from probflow.words import check_choice

_REFERENCE = "Salimans, Ho 2022 (arXiv 2202.00512), appendix D, eq. 27 for constant v"


class _Turn:
    """The rigid turn about the start of a step, and what a polynomial in the angle adds to it."""

    def __init__(self, step: StepBuilder, v: Linear) -> None:
        self.x, self.start, self.v = step.x, step.t.theta, v
        self.h = step.s.theta - step.t.theta

    def state(
        self, at: float, weights: Sequence[float], outputs: Sequence[Linear], angles: list[float]
    ) -> Linear:
        """y-bar(at) + h sum_j weight_j w_j, with w_j = v_j - v-bar(angle_j)."""
        turn = at - self.start
        of_x, of_v = cos(turn), sin(turn)
        for weight, angle in zip(weights, angles, strict=True):
            of_x += self.h * weight * sin(angle - self.start)
            of_v -= self.h * weight * cos(angle - self.start)
        factors = [self.h * weight for weight in weights]
        return Linear.sum([of_x, of_v, *factors], [self.x, self.v, *outputs])


def _runge_kutta(step: StepBuilder, turn: _Turn, tableau: Tableau) -> Linear:
    """A step for y - y-bar; w is zero at the start."""
    outputs: list[Linear] = []
    angles: list[float] = []
    for c, row in zip(tableau.c[1 : tableau.stages], tableau.a[1 : tableau.stages], strict=True):
        r = step.at_lambda(-log(tan(turn.start + c * turn.h)))
        outputs.append(step.model(turn.state(r.theta, row[1:], outputs, angles), r))
        angles.append(r.theta)
    return turn.state(step.s.theta, tableau.b[1:], outputs, angles)


def _angle_adams(step: StepBuilder, order: int, start: str = "runge-kutta") -> Linear:
    check_choice("start", start, ("runge-kutta", "euler"))
    turn = _Turn(step, step.model(step.x, step.t))
    if len(step.previous) < order - 2 and start == "runge-kutta":
        return _runge_kutta(step, turn, MIDPOINT if order == 3 else HEUN3)
    stored = step.previous[: order - 1]
    angles = [p.t.theta for p in stored]
    nodes = [0.0, *((angle - turn.start) / turn.h for angle in angles)]
    weights = adams(nodes, moments(len(nodes)))[1:]
    return turn.state(step.s.theta, weights, [p.outputs[0] for p in stored], angles)


@register(
    "exponential-ab1-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    orders={"tv": 1, "strong": 1},
)
def exponential_ab1_v(step: StepBuilder) -> Linear:
    """y' = cos(D) y - sin(D) v, with D = theta - theta': ``ddim``, also from alpha = 0."""
    return _angle_adams(step, 1)


@register(
    "exponential-ab2-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def exponential_ab2_v(step: StepBuilder) -> Linear:
    """y' = cos(D) y - sin(D) v - D b w_1, D = theta - theta', w_1 = v_1 - v-bar(theta_1).

    v-bar(theta_1) = cos(theta_1 - theta) v - sin(theta_1 - theta) y, b = -D/(2 (theta_1 - theta));
    v_1 is the output stored at the step before, at theta_1.
    """
    return _angle_adams(step, 2)


@register(
    "exponential-ab3-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def exponential_ab3_v(step: StepBuilder, start: str = "runge-kutta") -> Linear:
    """y' = cos(D) y - sin(D) v + sum_j w_j INT l_j(theta) dtheta, over the step; j = 1, 2.

    D = theta - theta' and w_j = v_j - v-bar(theta_j), as in ``exponential-ab2-v``; w_0 = 0.
    """
    return _angle_adams(step, 3, start)


@register(
    "exponential-ab4-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def exponential_ab4_v(step: StepBuilder, start: str = "runge-kutta") -> Linear:
    """y' = cos(D) y - sin(D) v + sum_j w_j INT l_j(theta) dtheta, over the step; j = 1 .. 3.

    D = theta - theta' and w_j = v_j - v-bar(theta_j), as in ``exponential-ab2-v``; w_0 = 0.
    """
    return _angle_adams(step, 4, start)
