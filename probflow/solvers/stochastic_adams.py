r"""SA-Solver and ER-SDE: stochastic Adams methods with their own ways to say how much noise.

Weak order 2 and strong order 1, for the reasons given in :mod:`probflow.solvers.reverse_sde`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import Column, Number, exp, isfinite, log, one_by_one_unless, sqrt
from probflow.solvers.forms import EPS, X0, Form, check_s_noise, is_start, starting_step
from probflow.solvers.phi import adams, gauss, moments
from probflow.solvers.registry import order_left, register
from probflow.solvers.reverse_sde import Eta, level
from probflow.words import check_choice, check_real, check_whole

# SA-Solver ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Square:
    tau: Callable[[float], float]

    def __call__(self, rho: float) -> float:
        return self.tau(rho) ** 2


def _tau_squared(options: Mapping[str, Any]) -> Eta | None:
    tau = options["tau"]
    if options["s_noise"] != 1.0:
        return None
    return _Square(tau) if callable(tau) else tau**2


def _sa_solver(
    step: StepBuilder,
    base: Form,
    predictor: int,
    corrector: int,
    tau: Eta,
    s_noise: float,
    start: str,
    variant: str,
    final: str,
) -> Linear:
    check_whole("predictor", predictor, 1, 4)
    check_whole("corrector", corrector, 0, 4)
    check_choice("variant", variant, ("exact", "published"))
    check_choice("final", final, ("keep", "lower"))
    check_s_noise(s_noise)
    left = step.remaining if final == "lower" else 4
    needed = max(predictor - 2, 0)  # as UniPC's: what the corrector gains makes up for one less

    def form(t: Point, s: Point) -> Form:
        return Form(base.sign, level("tau", tau, t, s) ** 2, s_noise)

    def sum_of(t: Point, s: Point, nodes: list[Point]) -> tuple[float, list[float]]:
        """Factor S h, and weights of outputs at the nodes."""
        h = s.lambda_ - t.lambda_
        fractions = [(node.lambda_ - t.lambda_) / h for node in nodes]
        own = form(t, s)
        means = moments(len(nodes), own.z(t, s))
        if variant == "published" and len(nodes) == 2:
            means[1] = 0.5
        return own.scale(s) * h, adams(fractions, means)

    t, s, previous, x = step.t, step.s, step.previous, step.x
    if is_start(len(previous), needed, start):
        order = min(predictor if corrector else predictor - 1, 3)
        return starting_step(step, form(t, s), order, start)
    output = step.model(x, t)
    if corrector and previous and not is_start(len(previous) - 1, needed, start):
        up = previous[0].t
        old = [p.t for p in previous]
        factor, after = sum_of(up, t, [t, *old][: min(corrector, left + 2)])
        _, before = sum_of(up, t, old[: min(predictor, left + 1)])
        outputs = [output, *(p.outputs[0] for p in previous)]
        x = Linear.sum(
            [1.0, *(factor * w for w in after), *(-factor * v for v in before)],
            [x, *outputs[: len(after)], *outputs[1 : 1 + len(before)]],
        )
    own = form(t, s)
    if s.sigma == 0:  # from where the output was evaluated: the model's x0
        return own.first(step.x, t, s, output)
    stored = previous[: min(predictor, left) - 1]
    _, weights = sum_of(t, s, [t, *(p.t for p in stored)])
    return own.noisy(step, own.step(x, t, s, weights, [output, *(p.outputs[0] for p in stored)]))


def _order_left(options: Mapping[str, Any]) -> float:
    """In law the corrector's number of outputs, or without one the predictor's, at most 2."""
    predictor, corrector, tau = (options[key] for key in ("predictor", "corrector", "tau"))
    if callable(tau) or tau > 0:
        return min(corrector or predictor, 2)
    return min(corrector or predictor, predictor + 1, order_left(options) + bool(corrector))


@register(
    "sa-solver",
    reference="Xue et al. 2023 (arXiv 2309.05019), Algorithm 1 on x0",
    prediction="x0",
    memory=4,
    stochastic=True,
    orders={"tv": 2, "strong": 1},
    sde=_tau_squared,
    leaves=_order_left,
)
def sa_solver(
    step: StepBuilder,
    predictor: int = 3,
    corrector: int = 4,
    tau: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    variant: str = "exact",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j x0_j + N, xc = x + S- h- sum_j (w-_j - v-_j) x0_j; eta = tau^2.

    ``predictor`` (1 to 4) outputs give x' and v-, ``corrector`` (1 to 4; 0: none) outputs w-, the
    newest of them at the state x that the step before has predicted; both with the same N. So one
    evaluation serves a correction and the next prediction. ``tau`` is a number or a function of
    sigma/alpha, such as 1 in an interval and 0 outside. The first steps are Runge-Kutta steps
    until the outputs suffice for the order at tau = 0, or (``start="euler"``) of low order. In law
    the order is the number of the corrector's outputs, or without one the predictor's, at most 2.
    With tau = 0 predictor 3 and corrector 4 are ``unipc-3``, but for its first two steps.
    ``variant`` "published" has 1/2 in the place of phi_2 where there are two outputs, as the
    authors' code. With ``final`` = "lower" no predictor has more outputs than steps are left, and
    no corrector more than two beyond.
    """
    return _sa_solver(step, X0, predictor, corrector, tau, s_noise, start, variant, final)


@register(
    "sa-solver-eps",
    reference="Xue et al. 2023 (arXiv 2309.05019), Algorithm 1 on eps",
    prediction="eps",
    memory=4,
    stochastic=True,
    orders={"tv": 2, "strong": 1},
    sde=_tau_squared,
    leaves=_order_left,
)
def sa_solver_eps(
    step: StepBuilder,
    predictor: int = 3,
    corrector: int = 4,
    tau: Eta = 1.0,
    s_noise: float = 1.0,
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j eps_j + N: ``sa-solver`` on eps.

    Var N = tau^2 sigma'^2 (e^2h - 1) grows with the step, where on x0 it stays below sigma'^2: with
    long steps (below some 16) the corrector amplifies it; ``corrector=0`` does not.
    """
    return _sa_solver(step, EPS, predictor, corrector, tau, s_noise, start, "exact", final)


# ER-SDE ------------------------------------------------------------------------------------------


def er_sde_5(rho: float) -> float:
    """phi(rho) = rho (exp(rho^0.3) + 10): the default noise scale of the paper, its ER SDE 5."""
    return rho * (exp(rho**0.3) + 10.0)


@dataclass(frozen=True)
class _EtaOf:
    """eta = d ln phi/d ln rho - 1, by a central difference."""

    phi: Callable[[float], float]

    def __call__(self, rho: float) -> float:
        d = 1e-4
        ends = log(self.phi(rho * exp(d))), log(self.phi(rho * exp(-d)))
        return max(0.0, (ends[0] - ends[1]) / (2 * d) - 1.0)


def _eta_of_phi(options: Mapping[str, Any]) -> Eta | None:
    return _EtaOf(options["phi"]) if options["s_noise"] == 1.0 else None


def _phi_at(phi: Callable[[float], float], rho: Number) -> Number:
    if not callable(phi):
        raise TypeError(f"phi: need a function of sigma/alpha, got {phi!r}")
    value = phi(rho)
    if isinstance(value, Column):
        one_by_one_unless((value > 0) & isfinite(value))
        return value
    return check_real(f"phi({float(rho):g})", value, "(0, inf)")


def _means(phi: Callable[[float], float], t: Point, s: Point, count: int) -> list[float]:
    """Integrals of ((r - rho)/(rho' - rho))^k, k < ``count``, against d(phi'/phi(r)).

    By parts: 1 - r_phi for k = 0, and k INT theta^(k - 1) (1 - phi'/phi) dtheta, by Gauss-Legendre
    in log-SNR on panels of length 1/2 at most.
    """
    last = _phi_at(phi, s.rho)
    means = [1.0 - last / _phi_at(phi, t.rho)] + [0.0] * (count - 1)
    if count == 1:
        return means
    h = s.lambda_ - t.lambda_
    panels = ceil(2 * h)
    half, length = 0.5 * h / panels, s.rho - t.rho
    for panel in range(panels):
        for node, weight in gauss(8):
            rho = t.rho * exp(-half * (2 * panel + 1 + node))
            theta = (rho - t.rho) / length
            term = half * weight * rho / -length * (1.0 - last / _phi_at(phi, rho))
            for k in range(1, count):
                means[k] += k * term
                term *= theta
    return means


def _er_sde(step: StepBuilder, order: int, phi: Callable[[float], float], s_noise: float) -> Linear:
    check_s_noise(s_noise)
    t, s = step.t, step.s
    x0 = step.model(step.x, t)
    if s.sigma == 0:
        return x0
    r = _phi_at(phi, s.rho) / _phi_at(phi, t.rho)
    q = _phi_at(phi, s.rho) / s.rho / (_phi_at(phi, t.rho) / t.rho)
    variance = s.rho**2 * (1.0 - q) * (1.0 + q)  # rho'^2 - r^2 rho^2
    if q > 1 + 1e-12:
        raise ValueError("phi: phi(rho)/rho must not decrease, or there is no reverse SDE with it")
    stored = step.previous[: order - 1]
    nodes = [0.0, *((p.t.rho - t.rho) / (s.rho - t.rho) for p in stored)]
    weights = adams(nodes, _means(phi, t, s, len(nodes)))
    new = Linear.sum([r, *weights], [step.x, x0, *(p.outputs[0] for p in stored)])
    std = s_noise * sqrt(max(variance, 0.0))
    return new + std * step.noise() if std else new


_ER = "Cui et al. 2023 (arXiv 2309.06169)"


@register(
    "er-sde-1",
    reference=f"{_ER}, ER-SDE-Solver-1",
    prediction="x0",
    coordinates="ve",
    stochastic=True,
    orders={"tv": 1, "strong": 1},
    sde=_eta_of_phi,
)
def er_sde_1(
    step: StepBuilder, phi: Callable[[float], float] = er_sde_5, s_noise: float = 1.0
) -> Linear:
    """y' = r y + (1 - r) x0 + sqrt(rho'^2 - r^2 rho^2) Z, r = phi(rho')/phi(rho).

    phi says how much noise: it is that of the reverse SDE with eta = d ln phi/d ln rho - 1, so
    that phi = rho is the ODE and phi = rho^2 has eta = 1. A step to sigma' = 0 takes x0.
    """
    return _er_sde(step, 1, phi, s_noise)


@register(
    "er-sde-2",
    reference=f"{_ER}, ER-SDE-Solver-2",
    prediction="x0",
    coordinates="ve",
    memory=1,
    stochastic=True,
    orders={"tv": 2, "strong": 1},
    sde=_eta_of_phi,
)
def er_sde_2(
    step: StepBuilder, phi: Callable[[float], float] = er_sde_5, s_noise: float = 1.0
) -> Linear:
    """y' = r y + sum_j x0_j INT l_j d(phi'/phi) + N, l_j in rho, j = 0, 1; r and N as before."""
    return _er_sde(step, 2, phi, s_noise)


@register(
    "er-sde-3",
    reference=f"{_ER}, ER-SDE-Solver-3, with the exact polynomial",
    prediction="x0",
    coordinates="ve",
    memory=2,
    stochastic=True,
    orders={"tv": 2, "strong": 1},
    sde=_eta_of_phi,
)
def er_sde_3(
    step: StepBuilder, phi: Callable[[float], float] = er_sde_5, s_noise: float = 1.0
) -> Linear:
    """y' = r y + sum_j x0_j INT l_j d(phi'/phi) + N, l_j in rho, j = 0 .. 2; r and N as before.

    The published step takes the first difference of x0 for its slope at the start of the step,
    which is right to first order only; here the slope is that of the quadratic polynomial.
    """
    return _er_sde(step, 3, phi, s_noise)
