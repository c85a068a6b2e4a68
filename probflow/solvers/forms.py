r"""The exact solution over a step, for eps or x0, and steps that replace its integral by a sum.

With log-SNR :math:`\lambda` and :math:`h = \lambda_s - \lambda_t`, the flow from t to s is

.. math:: x' = L x + S h \int_0^1 e^{(1-\theta) z} f(\lambda_t + \theta h)\, d\theta,

where for f = eps :math:`L = \alpha'/\alpha, S = -\sigma', z = h` (Lu et al. 2022, arXiv
2206.00927, eq. 3.4) and for f = x0 :math:`L = \sigma'/\sigma, S = \alpha', z = -h` (Lu et al.
2022, arXiv 2211.01095, eq. 8). The two are the exponential integrators of x/sigma and x/alpha.

The reverse SDEs with the same marginal laws, for every :math:`\eta \ge 0`,

.. math:: dx = \Big[f x - \frac{1 + \eta}{2} g^2 \nabla \ln p_t(x)\Big] dt
          + \sqrt{\eta}\, g\, d\bar W, \qquad
          g^2 dt = -2 \sigma^2 d\lambda,

run from noise to data, have the same solution plus a normal term N: for eps
:math:`L = \alpha'/\alpha, S = -(1 + \eta)\sigma', z = h`,
:math:`Var N = \eta \sigma'^2 (e^{2h} - 1)`; for x0
:math:`L = (\sigma'/\sigma) e^{-\eta h}, S = (1 + \eta)\alpha', z = -(1 + \eta)h`,
:math:`Var N = \sigma'^2 (1 - e^{-2\eta h})`. eta = 0 is the flow, eta = 1 the time reversal of the
forward SDE. To sigma' = 0 all of them take a DDIM step, without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import exp, expm1, sqrt
from probflow.solvers.phi import adams, moments, phi, phis
from probflow.words import check_choice, check_real

__all__ = ["EPS", "X0", "Form", "Tableau", "adams_step", "kutta_3", "runge_kutta"]

#: From z to the weights of the stages after the first, and of the update.
Tableau = Callable[[float], tuple[Sequence[Sequence[float]], Sequence[float]]]


class Noisy(Protocol):
    """A linear part with noise."""

    def linear(self, t: Point, s: Point) -> float:
        """Factor of the state between two points."""

    def std(self, t: Point, s: Point) -> float:
        """Standard deviation of the noise between them."""


@dataclass(frozen=True)
class Form:
    """The exact solution in terms of eps (``sign`` 1) or x0 (``sign`` -1).

    ``eta`` is that of the reverse SDE, 0 for the flow; ``s_noise`` a factor of all its noises.
    """

    sign: float
    eta: float = 0.0
    s_noise: float = 1.0

    def linear(self, t: Point, s: Point) -> float:
        """L: the factor of the state."""
        if self.sign > 0:
            return s.alpha / t.alpha
        ratio = s.sigma / t.sigma
        return ratio * exp(self.eta * (t.lambda_ - s.lambda_)) if self.eta else ratio

    def scale(self, s: Point) -> float:
        """S: the factor of the integral."""
        return (1.0 + self.eta) * (-s.sigma if self.sign > 0 else s.alpha)

    def z(self, t: Point, s: Point) -> float:
        """Argument of the phi functions."""
        h = s.lambda_ - t.lambda_
        return h if self.sign > 0 else -(1.0 + self.eta) * h

    def std(self, t: Point, s: Point) -> float:
        """Standard deviation of the noise term."""
        if self.eta == 0 or s.sigma == 0:
            return 0.0
        h = s.lambda_ - t.lambda_
        variance = self.eta * expm1(2 * h) if self.sign > 0 else -expm1(-2 * self.eta * h)
        return self.s_noise * s.sigma * sqrt(variance)

    def step(
        self, x: Linear, t: Point, s: Point, weights: Sequence[float], outputs: Sequence[Linear]
    ) -> Linear:
        """x' = L x + S h sum of weight times output."""
        return Linear.sum(self.weights(t, s, weights), [x, *outputs])

    def weights(self, t: Point, s: Point, weights: Sequence[float]) -> list[float]:
        """L, and S h times each weight."""
        factor = self.scale(s) * (s.lambda_ - t.lambda_)
        return [self.linear(t, s), *[factor * w for w in weights]]

    def first(self, x: Linear, t: Point, s: Point, output: Linear) -> Linear:
        """One output for the whole step (DDIM), also to sigma' = 0, where h is infinite."""
        if self.sign > 0:
            eta = self.eta if s.sigma > 0 else 0.0
            weight = (1.0 + eta) * s.alpha * t.rho * expm1(t.lambda_ - s.lambda_)
        else:
            weight = -s.alpha * expm1(self.z(t, s))
        return self.linear(t, s) * x + weight * output

    def noisy(self, step: StepBuilder, update: Linear) -> Linear:
        """The update plus the noise term of the whole step."""
        std = self.std(step.t, step.s)
        return Linear.sum([1.0, std], [update, step.noise()]) if std else update


EPS, X0 = Form(1.0), Form(-1.0)


def runge_kutta(
    step: StepBuilder,
    form: Form,
    nodes: Sequence[float],
    tableau: Tableau,
    to: Point | None = None,
) -> Linear:
    """A step with stages at the fractions 0 and ``nodes`` of h; to sigma' = 0, a DDIM step.

    Without noise (eta = 0) it may lead to another point than the end of the step, ``to``.
    """
    t, s = step.t, to or step.s
    if s.sigma == 0:
        return form.first(step.x, t, s, step.model(step.x, t))
    h = s.lambda_ - t.lambda_
    points = {node: step.at_lambda(t.lambda_ + node * h) for node in nodes if node != 1}
    points[1.0] = s
    stages, update = tableau(form.z(t, s))
    outputs = [step.model(step.x, t)]
    noise = noise_at(step, form, points) if form.eta else {}
    for node, weights in zip(nodes, stages, strict=True):
        r = points[node]
        # The weights are those of the whole step, so that h stands for the stage's, too.
        factor = form.scale(r) * h
        all_weights = [form.linear(t, r), *[factor * weight for weight in weights]]
        terms = [step.x, *outputs]
        if noise:
            all_weights.append(1.0)
            terms.append(noise[node])
        outputs.append(step.model(Linear.sum(all_weights, terms), r))
    new = form.step(step.x, t, s, update, outputs)
    return new + noise[1.0] if noise else new


def noise_at(step: StepBuilder, form: Noisy, points: dict[float, Point]) -> dict[float, Linear]:
    """The noise term of the exact solution at points, by their fractions of h, of which 1 is one.

    One path: from a point to the next the term is multiplied by L, and a new noise is added.
    """
    t, s = step.t, step.s
    terms: dict[float, Linear] = {}
    before, begin, term = t, 0.0, Linear({})
    for node, r in sorted(points.items()):
        end = 1.0 if node == 1 else (r.t - t.t) / (s.t - t.t)
        weights = form.linear(before, r), form.std(before, r)
        term = Linear.sum(weights, [term, step.noise(begin, end)])
        terms[node] = term
        before, begin = r, end
    return terms


def euler_1(z: float) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
    """Order 1: DDIM."""
    return [], [phi(1, z)]


def heun_2(c2: float) -> Tableau:
    """Order 2 (Hochbruck, Ostermann 2005, eq. 5.3)."""

    def tableau(z: float) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
        one, two = phis(2, z)
        return [[c2 * phi(1, c2 * z)]], [one - two / c2, two / c2]

    return tableau


def midpoint_2(c2: float) -> Tableau:
    """Order 2 with phi_1/2 in place of phi_2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 4)."""

    def tableau(z: float) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
        slope = phi(1, z) / (2 * c2)
        return [[c2 * phi(1, c2 * z)]], [phi(1, z) - slope, slope]

    return tableau


def kutta_3(c2: float, c3: float, inner: str = "exact") -> Tableau:
    """Order 3 (Hochbruck, Ostermann 2005, eq. 5.8 and 5.9).

    With ``inner`` "midpoint" the last stage has phi_1/2 in the place of phi_2.
    """
    check_choice("inner", inner, ("exact", "midpoint"))
    gamma = 0.0 if c3 == 2 / 3 else (3 * c3 - 2) * c3 / ((2 - 3 * c2) * c2)

    def tableau(z: float) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
        slope = phi(2, c3 * z) if inner == "exact" else phi(1, c3 * z) / 2
        a32 = gamma * c2 * phi(2, c2 * z) + c3**2 / c2 * slope
        one, two = phis(2, z)
        b3 = two / (gamma * c2 + c3)
        stages = [[c2 * phi(1, c2 * z)], [c3 * phi(1, c3 * z) - a32, a32]]
        return stages, [one - (1 + gamma) * b3, gamma * b3, b3]

    return tableau


def krogstad_4(z: float) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
    """Order 4 (Krogstad 2005; Hochbruck, Ostermann 2005, eq. 5.18)."""
    half1, half2 = phis(2, z / 2)
    one, two, three = phis(3, z)
    stages = [
        [half1 / 2],
        [half1 / 2 - half2, half2],
        [one - 2 * two, 0.0, 2 * two],
    ]
    inner = 2 * two - 4 * three
    return stages, [one - 3 * two + 4 * three, inner, inner, 4 * three - two]


def adams_step(
    step: StepBuilder, form: Form, order: int, *, start: str = "runge-kutta", final: str = "keep"
) -> Linear:
    """The exact integral of the polynomial in log-SNR through the last ``order`` outputs.

    Where fewer are stored, the polynomial through those that are, after the steps of the ``start``
    (see :func:`is_start`). With ``final`` = "lower" the order is at most the number of steps left.
    A step to sigma' = 0 is a DDIM step.
    """
    if is_start(len(step.previous), order - 2, start):
        return starting_step(step, form, order - 1, start)
    t, s = step.t, step.s
    output = step.model(step.x, t)
    if s.sigma == 0:
        return form.first(step.x, t, s, output)
    stored = step.previous[: lowered(order, step, final) - 1]
    h = s.lambda_ - t.lambda_
    nodes = [0.0, *((p.t.lambda_ - t.lambda_) / h for p in stored)]
    outputs = [output, *(p.outputs[0] for p in stored)]
    weights = adams(nodes, moments(len(nodes), form.z(t, s)))
    return form.noisy(step, form.step(step.x, t, s, weights, outputs))


def is_start(stored: int, needed: int, start: str) -> bool:
    """Whether a step with ``stored`` outputs is one of the start of a method that needs more.

    A sum over k stored outputs and the present one errs by h^(k + 2) in a step. ``start``
    "runge-kutta" takes one-step methods until ``needed`` outputs are stored, which makes up for
    that; "heun" takes a single one, of order 2, which leaves order 3; "euler" none, which leaves 2.
    """
    check_choice("start", start, ("runge-kutta", "heun", "euler"))
    return stored < {"runge-kutta": needed, "heun": min(needed, 1), "euler": 0}[start]


def starting_step(step: StepBuilder, form: Form, order: int, start: str) -> Linear:
    """A one-step method of order 2 (``start`` "heun", or if asked), 3 or 4."""
    if start == "heun":
        return runge_kutta(step, form, [1.0], heun_2(1.0))
    if order == 2:
        return runge_kutta(step, form, [0.5], heun_2(0.5))
    if order == 3:
        return runge_kutta(step, form, [1 / 3, 2 / 3], kutta_3(1 / 3, 2 / 3))
    return runge_kutta(step, form, [0.5, 0.5, 1.0], krogstad_4)


def lowered(order: int, step: StepBuilder, final: str) -> int:
    """The order, or the number of steps left where that is less and ``final`` is "lower".

    "lower-below-15" lowers in plans of fewer than 15 steps, as usual implementations do.
    """
    check_choice("final", final, ("keep", "lower", "lower-below-15"))
    if final == "lower" or (final == "lower-below-15" and step.steps < 15):
        return min(order, step.remaining)
    return order


def check_s_noise(s_noise: float) -> float:
    """Return the factor of all noises if it is >= 0 and finite; raise otherwise."""
    return check_real("s_noise", s_noise, "[0, inf)")
