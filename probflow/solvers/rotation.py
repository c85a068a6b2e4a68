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

The reverse SDEs of :mod:`probflow.solvers.reverse_sde` are, for :math:`\eta \ge 0`,

.. math:: dy = [\eta \tan\theta\, y + (1 + \eta)\, v]\, d\theta + \text{noise}, \qquad
          y' = \frac{\cos^\eta\theta_t}{\cos^\eta\theta'} y + (1 + \eta)
          \int_{\theta_t}^{\theta'} \frac{\cos^\eta\theta}{\cos^\eta\theta'} v\, d\theta + N,

with Var N = 1 - (cos theta_t/cos theta')^(2 eta). The methods are the same, the weights those of
this integral. To :math:`\sigma' = 0` they take a DDIM step, without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import Number, atan2, cos, exp, expm1, log, log1p, sin, sqrt, tan
from probflow.solvers.forms import check_s_noise, is_start, lowered, noise_at
from probflow.solvers.phi import adams, gauss, moments
from probflow.solvers.registry import register
from probflow.solvers.reverse_sde import Eta, eta_of, level, register_sde
from probflow.tableaus import HEUN2, HEUN3, MIDPOINT, Tableau

_REFERENCE = "Salimans, Ho 2022 (arXiv 2202.00512), appendix D, eq. 27 for constant v"


#: theta where alpha = 0, as atan2 gives it.
_RIGHT_ANGLE = atan2(1.0, 0.0)


class _Turn:
    """The rigid turn about the start of a step, and what a polynomial in the angle adds to it."""

    def __init__(self, step: StepBuilder, eta: Eta, s_noise: float) -> None:
        self.t, self.x, self.start = step.t, step.x, step.t.theta
        self.eta: Number = level("eta", eta, step.t, step.s)
        self.s_noise = check_s_noise(s_noise)
        self.v = step.model(step.x, step.t)
        self.h = step.s.theta - self.start

    def state(
        self, r: Point, weights: Sequence[float], outputs: Sequence[Linear], angles: list[float]
    ) -> Linear:
        """The state at r without its noise; each output v_j gives w_j = v_j - v-bar(angle_j)."""
        of_x, of_v = self._rigid(r)
        factors = []
        for weight, angle in zip(weights, angles, strict=True):
            turn, factor = angle - self.start, self.h * weight
            if self.eta:
                factor = factor * (1 + self.eta) * self._shrunk(angle, r.theta)
            of_x += factor * sin(turn)
            of_v -= factor * cos(turn)
            factors.append(factor)
        return Linear.sum([of_x, of_v, *factors], [self.x, self.v, *outputs])

    def _rigid(self, r: Point) -> tuple[float, float]:
        """Weights of y and v in the state for w = 0."""
        turn = r.theta - self.start
        if not self.eta:
            return cos(turn), sin(turn)
        of_x, of_v = self.linear(self.t, r), 0.0
        for angle, weight in self._rule(r):
            factor = (1 + self.eta) * weight * self._shrunk(angle, r.theta)
            of_x -= factor * sin(angle - self.start)
            of_v += factor * cos(angle - self.start)
        return of_x, of_v

    def _rule(self, r: Point) -> list[tuple[float, float]]:
        """Angles from theta_t to that of r, and weights of an integral over them.

        Gauss-Legendre in log-SNR, dtheta = -sin theta cos theta dlambda, where cos^eta theta is
        analytic up to a distance of pi/2 from the real axis; from alpha = 0 in a root of the angle.
        """
        if self.t.alpha == 0:  # cos^eta theta begins as the power eta: a smooth one of w^6
            length = r.theta - self.start
            halves = [(0.5 * (1 + node), 0.5 * weight) for node, weight in gauss(40)]
            return [(self.start + length * w**6, 6 * length * w**5 * dw) for w, dw in halves]
        h = r.lambda_ - self.t.lambda_
        panels = ceil(h)
        half = 0.5 * h / panels
        rule = []
        for panel in range(panels):
            for node, weight in gauss(10):
                rho = self.t.rho * exp(-half * (2 * panel + 1 + node))
                rule.append((atan2(rho, 1.0), -half * weight * rho / (1 + rho**2)))
        return rule

    def _shrunk(self, start: float, stop: float) -> float:
        return (cos(start) / cos(stop)) ** self.eta if start < _RIGHT_ANGLE else 0.0

    def linear(self, t: Point, s: Point) -> float:
        """What the linear part leaves of y."""
        return self._shrunk(t.theta, s.theta)

    def std(self, t: Point, s: Point) -> float:
        """Standard deviation of the noise between two points."""
        if t.alpha == 0:
            return self.s_noise
        # 1 - (cos theta_t/cos theta_s)^2, without cancellation
        loss = -(sin(t.theta) ** 2) * expm1(2 * (t.lambda_ - s.lambda_))
        return self.s_noise * sqrt(-expm1(self.eta * log1p(-loss)))


def _runge_kutta(step: StepBuilder, turn: _Turn, tableau: Tableau) -> Linear:
    """A step for y - y-bar; w is zero at the start."""
    nodes, end = tableau.c[1 : tableau.stages], step.s
    points = {c: step.at_lambda(-log(tan(turn.start + c * turn.h))) for c in nodes if c != 1}
    points[1.0] = end
    noise = noise_at(step, turn, points) if turn.eta else {}
    outputs: list[Linear] = []
    angles: list[float] = []
    for c, row in zip(nodes, tableau.a[1 : tableau.stages], strict=True):
        r = points[c]
        state = turn.state(r, row[1:], outputs, angles)
        outputs.append(step.model(state + noise[c] if noise else state, r))
        angles.append(r.theta)
    new = turn.state(end, tableau.b[1:], outputs, angles)
    return new + noise[1.0] if noise else new


def _angle_adams(
    step: StepBuilder,
    order: int,
    start: str = "runge-kutta",
    final: str = "keep",
    eta: Eta = 0.0,
    s_noise: float = 1.0,
) -> Linear:
    turn = _Turn(step, eta, s_noise)
    if turn.eta and step.s.sigma == 0:
        turn.eta = 0.0
        return turn.state(step.s, (), (), [])
    if is_start(len(step.previous), order - 2, start):
        first = {"heun": HEUN2, "runge-kutta": MIDPOINT if order == 3 else HEUN3}
        return _runge_kutta(step, turn, first[start])
    stored = step.previous[: lowered(order, step, final) - 1]
    angles = [p.t.theta for p in stored]
    nodes = [0.0, *((angle - turn.start) / turn.h for angle in angles)]
    weights = adams(nodes, moments(len(nodes)))[1:]
    new = turn.state(step.s, weights, [p.outputs[0] for p in stored], angles)
    return new + turn.std(step.t, step.s) * step.noise() if turn.eta else new


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
def exponential_ab2_v(step: StepBuilder, final: str = "keep") -> Linear:
    """y' = cos(D) y - sin(D) v - D b w_1, D = theta - theta', w_1 = v_1 - v-bar(theta_1).

    v-bar(theta_1) = cos(theta_1 - theta) v - sin(theta_1 - theta) y, b = -D/(2 (theta_1 - theta));
    v_1 is the output stored at the step before, at theta_1.
    """
    return _angle_adams(step, 2, final=final)


@register(
    "exponential-ab3-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    memory=2,
    orders={"tv": 3, "strong": 3},
)
def exponential_ab3_v(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """y' = cos(D) y - sin(D) v + sum_j w_j INT l_j(theta) dtheta, over the step; j = 1, 2.

    D = theta - theta' and w_j = v_j - v-bar(theta_j), as in ``exponential-ab2-v``; w_0 = 0.
    """
    return _angle_adams(step, 3, start, final)


@register(
    "exponential-ab4-v",
    reference=_REFERENCE,
    prediction="v",
    coordinates="vp",
    memory=3,
    orders={"tv": 4, "strong": 4},
)
def exponential_ab4_v(step: StepBuilder, start: str = "runge-kutta", final: str = "keep") -> Linear:
    """y' = cos(D) y - sin(D) v + sum_j w_j INT l_j(theta) dtheta, over the step; j = 1 .. 3.

    D = theta - theta' and w_j = v_j - v-bar(theta_j), as in ``exponential-ab2-v``; w_0 = 0.
    """
    return _angle_adams(step, 4, start, final)


@register(
    "sde-exponential-ab1-v",
    reference="exponential-ab1-v with the exact noise of the reverse SDE",
    prediction="v",
    coordinates="vp",
    stochastic=True,
    orders={"tv": 1, "strong": 1},
    sde=eta_of,
)
def sde_exponential_ab1_v(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
) -> Linear:
    """y' = L y + (1 + eta) INT L(theta) v-bar dtheta + N, L(theta) = (cos theta/cos theta')^eta.

    v-bar is the rigid turn from y and v; Var N = 1 - L^2, L that of the whole step.
    """
    return _angle_adams(step, 1, eta=eta, s_noise=s_noise)


@register_sde(
    "sde-exponential-ab2-v",
    reference="exponential-ab2-v with the exact noise of the reverse SDE",
    prediction="v",
    coordinates="vp",
    memory=1,
)
def sde_exponential_ab2_v(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    final: str = "keep",
) -> Linear:
    """``sde-exponential-ab1-v`` + (1 + eta) sum_j L_j w_j INT l_j(theta) dtheta; j = 1.

    w_j as in ``exponential-ab2-v``, L_j = (cos theta_j/cos theta')^eta.
    """
    return _angle_adams(step, 2, final=final, eta=eta, s_noise=s_noise)


@register_sde(
    "sde-exponential-ab3-v",
    reference="exponential-ab3-v with the exact noise of the reverse SDE",
    prediction="v",
    coordinates="vp",
    memory=2,
)
def sde_exponential_ab3_v(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """``sde-exponential-ab1-v`` + (1 + eta) sum_j L_j w_j INT l_j(theta) dtheta; j = 1, 2.

    w_j as in ``exponential-ab3-v``, L_j = (cos theta_j/cos theta')^eta.
    """
    return _angle_adams(step, 3, start, final, eta, s_noise)


@register_sde(
    "sde-exponential-ab4-v",
    reference="exponential-ab4-v with the exact noise of the reverse SDE",
    prediction="v",
    coordinates="vp",
    memory=3,
)
def sde_exponential_ab4_v(
    step: StepBuilder,
    eta: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """``sde-exponential-ab1-v`` + (1 + eta) sum_j L_j w_j INT l_j(theta) dtheta; j = 1 .. 3.

    w_j as in ``exponential-ab4-v``, L_j = (cos theta_j/cos theta')^eta.
    """
    return _angle_adams(step, 4, start, final, eta, s_noise)
