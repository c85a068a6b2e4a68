r"""Exponential integrators of the probability-flow ODE: exact in its linear part.

With log-SNR :math:`\lambda`, :math:`h = \lambda_s - \lambda_t > 0` for a step from t to s, and a
prime for quantities at s, the solution is (Lu et al. 2022, arXiv 2206.00927, eq. 3.4)

.. math:: x' = \frac{\alpha'}{\alpha} x - \alpha' \int_{\lambda_t}^{\lambda_s}
          e^{-\lambda} \epsilon(x_\lambda, \lambda)\, d\lambda .
"""

from __future__ import annotations

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import expm1
from probflow.solvers.registry import register


def _eps_weight(t: Point, s: Point) -> float:
    """Weight of a constant eps: alpha' (rho' - rho) = -sigma' (e^h - 1), finite at sigma' = 0."""
    return s.alpha * t.rho * expm1(t.lambda_ - s.lambda_)


def _linear_part(t: Point, s: Point) -> float:
    return s.alpha / t.alpha


@register(
    "ddim",
    aliases=("dpm-solver-1", "exponential-ab1", "exponential-ab1-x0", "lms-1"),
    reference="Song, Meng, Ermon 2021 (arXiv 2010.02502), eq. 12 with sigma = 0",
    prediction="eps",
    orders={"tv": 1, "strong": 1},
)
def ddim(step: StepBuilder) -> Linear:
    """x' = (alpha'/alpha) x - sigma' (e^h - 1) eps(x, t), with h = lambda' - lambda."""
    t, s = step.t, step.s
    return _linear_part(t, s) * step.x + _eps_weight(t, s) * step.model(step.x, t)


@register(
    "dpm-solver-2",
    reference="Lu et al. 2022 (arXiv 2206.00927), Algorithm 4 (DPM-Solver-2, general r1)",
    prediction="eps",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_2(step: StepBuilder, r1: float = 0.5) -> Linear:
    """x' = (alpha'/alpha) x - sigma' (e^h - 1) [eps + (eps_r - eps)/(2 r1)].

    eps_r = eps(u, r) at the intermediate time with lambda_r = lambda + r1 h, where
    u = (alpha_r/alpha) x - sigma_r (e^(r1 h) - 1) eps; r1 lies in (0, 1]. A step to sigma' = 0
    (h infinite, so nothing lies between) is a DDIM step.
    """
    if not 0 < r1 <= 1:
        raise ValueError(f"r1: must lie in (0, 1], got {r1}")
    t, s = step.t, step.s
    eps = step.model(step.x, t)
    if s.sigma == 0:
        return _linear_part(t, s) * step.x + _eps_weight(t, s) * eps
    r = s if r1 == 1 else step.at_lambda(t.lambda_ + r1 * (s.lambda_ - t.lambda_))
    eps_r = step.model(_linear_part(t, r) * step.x + _eps_weight(t, r) * eps, r)
    slope = (eps_r - eps) / (2 * r1)
    return _linear_part(t, s) * step.x + _eps_weight(t, s) * (eps + slope)
