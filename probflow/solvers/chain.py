r"""Samplers of the discrete-time chain: DDPM and its kin, and the founding paper's.

All but ``euler-maruyama``, their continuous-time kin, are written for a variance-preserving
state Y. For a step from t to s (noise to data)
:math:`\alpha = \bar\alpha_t/\bar\alpha_s` is the one-step ratio (``alpha_ratio`` below) and
:math:`b = 1 - \alpha`; ``score`` is :math:`\nabla \ln p_t`; Z are unit normals.

The founding paper is Li, Huang, Efimov, Wei, Chi, Chen, "Accelerating Convergence of Score-Based
Diffusion Models, Provably", ICML 2024 (arXiv 2403.03852). Which power of the step size each
kernel reaches, and in which measure, is derived in ``docs/theory.md``.
"""

from __future__ import annotations

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import cos, exp, expm1, sin, sqrt
from probflow.solvers.registry import register
from probflow.words import check_choice

_PAPER = "Li, Huang, Efimov, Wei, Chi, Chen 2024 (arXiv 2403.03852)"
_CODE = "TimofeyEfimov/AcceleratedDiffusionSamplers"


def alpha_ratio(t: Point, s: Point) -> float:
    """The one-step ratio ``ab_t/ab_s`` of a step from t to s."""
    return exp(s.neg_log_ab - t.neg_log_ab)


def b_of(t: Point, s: Point) -> float:
    """``1 - alpha_ratio`` without cancellation."""
    return -expm1(s.neg_log_ab - t.neg_log_ab)


@register(
    "ddpm",
    reference=f"{_PAPER}, the vanilla stochastic sampler (noise inside)",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 0.5},
)
def ddpm(step: StepBuilder) -> Linear:
    """Y' = (Y + b score(Y) + sqrt(b) Z)/sqrt(alpha)."""
    t, s = step.t, step.s
    b = b_of(t, s)
    score = step.model(step.x, t)
    return (step.x + b * score + sqrt(b) * step.noise()) / sqrt(alpha_ratio(t, s))


@register(
    "ddpm-beta",
    reference="Ho, Jain, Abbeel 2020 (arXiv 2006.11239), Algorithm 2 with sigma^2 = beta",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 0.5},
)
def ddpm_beta(step: StepBuilder) -> Linear:
    """Y' = (Y + b score(Y))/sqrt(alpha) + sqrt(b) Z."""
    t, s = step.t, step.s
    b = b_of(t, s)
    mean = (step.x + b * step.model(step.x, t)) / sqrt(alpha_ratio(t, s))
    return mean + sqrt(b) * step.noise()


@register(
    "ddpm-posterior",
    reference="Ho, Jain, Abbeel 2020 (arXiv 2006.11239), Algorithm 2 with the posterior variance",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 0.5},
)
def ddpm_posterior(step: StepBuilder) -> Linear:
    """Y' = (Y + b score(Y))/sqrt(alpha) + sqrt(b (1 - ab')/(1 - ab)) Z (DDIM with eta = 1)."""
    t, s = step.t, step.s
    b = b_of(t, s)
    mean = (step.x + b * step.model(step.x, t)) / sqrt(alpha_ratio(t, s))
    return mean + sqrt(b * expm1(-s.neg_log_ab) / expm1(-t.neg_log_ab)) * step.noise()


@register(
    "vanilla-ode",
    reference=f"{_PAPER}, the vanilla deterministic sampler",
    prediction="score",
    coordinates="vp",
    family="chain",
    orders={"tv": 1, "strong": 1},
)
def vanilla_ode(step: StepBuilder) -> Linear:
    """Y' = (Y + b/2 score(Y))/sqrt(alpha). The DDIM-type step of the paper, not eps-DDIM."""
    t, s = step.t, step.s
    return (step.x + b_of(t, s) / 2 * step.model(step.x, t)) / sqrt(alpha_ratio(t, s))


@register(
    "strang",
    reference="Strang 1968 (SIAM J. Numer. Anal. 5); for the probability flow arXiv 2601.17375",
    prediction="score",
    coordinates="vp",
    nfe=2,
    family="chain",
    orders={"tv": 2, "strong": 2},
)
def strang(step: StepBuilder, inner: str = "midpoint") -> Linear:
    """Y' = Y2/a, Y2 = Y1 + h score(Y1 + h/2 score(Y1, t), r), Y1 = Y/a, with a = alpha_ratio^(1/4).

    Strang splitting of dY/du = Y + score(Y), where u = ln(ab)/2 grows by h = -ln(alpha_ratio)/2:
    half the linear flow, the flow of the score with Y alone by the midpoint rule (r half way in u)
    or by Heun's (``inner`` = "heun": Y2 = Y1 + h/2 (score(Y1, t) + score(Y1 + h score(Y1, t), s))),
    and the other half of the linear flow.
    """
    check_choice("inner", inner, ("midpoint", "heun"))
    t, s = step.t, step.s
    h = 0.5 * (t.neg_log_ab - s.neg_log_ab)
    x = exp(0.5 * h) * step.x
    score = step.model(x, t)
    if inner == "midpoint":
        middle = step.at_neg_log_ab(0.5 * (t.neg_log_ab + s.neg_log_ab))
        x = x + h * step.model(x + h / 2 * score, middle)
    else:
        x = x + h / 2 * (score + step.model(x + h * score, s))
    return exp(0.5 * h) * x


def _accelerated(step: StepBuilder, score: Linear, before: Linear | None) -> Linear:
    """Extrapolate sqrt(ab) score, affine in ab, through the times t and t+1 (``before``)."""
    t, s = step.t, step.s
    b = b_of(t, s)
    update = step.x + b / 2 * score
    if before is not None:
        up = step.previous[0].t  # the time t+1, one grid point back towards noise
        update += b**2 / (4 * b_of(up, t)) * (score - sqrt(alpha_ratio(up, t)) * before)
    return update / sqrt(alpha_ratio(t, s))


@register(
    "accelerated-ode",
    reference=f"{_PAPER}, the accelerated deterministic sampler",
    prediction="score",
    coordinates="vp",
    nfe=2,
    memory=1,
    family="chain",
    orders={"tv": 2, "strong": 2},
)
def accelerated_ode(step: StepBuilder) -> Linear:
    """Y' = (Y + b/2 s_t(Y) + b^2/(4 b1) (s_t(Y) - sqrt(a1) s_{t+1}(Y-)))/sqrt(alpha).

    Y- = sqrt(a1) (Y - b1/2 s_t(Y)), where a1 = alpha_{t+1} and b1 = 1 - a1 belong to the grid
    point before t (towards noise). The first step, which has none, is a vanilla step.
    """
    score = step.model(step.x, step.t)
    if not step.previous:
        return _accelerated(step, score, None)
    up = step.previous[0].t
    back = sqrt(alpha_ratio(up, step.t)) * (step.x - b_of(up, step.t) / 2 * score)
    return _accelerated(step, score, step.model(back, up))


@register(
    "accelerated-ode-multistep",
    reference=f"{_PAPER}, with the stored score instead of a second evaluation",
    prediction="score",
    coordinates="vp",
    memory=1,
    family="chain",
    orders={"tv": 2, "strong": 2},
)
def accelerated_ode_multistep(step: StepBuilder) -> Linear:
    """Y' = (Y + b/2 s_t(Y) + b^2/(4 b1) (s_t(Y) - sqrt(a1) s_{t+1}(Y_{t+1})))/sqrt(alpha).

    As ``accelerated-ode``, with the score stored at the step before: one evaluation a step.
    """
    score = step.model(step.x, step.t)
    return _accelerated(step, score, step.previous[0].outputs[0] if step.previous else None)


@register(
    "accelerated-ode-arcsin",
    reference=f"authors' practical deterministic sampler ({_CODE}), in angle form",
    prediction="eps",
    coordinates="vp",
    memory=1,
    orders={"tv": 2, "strong": 2},
)
def accelerated_ode_arcsin(step: StepBuilder) -> Linear:
    """Y' = (cos(th') Y - sin(D) eps_t)/cos(th) + C (eps_{t+1} - eps_t), 1 NFE.

    th = atan2(sqrt(1 - ab), sqrt(ab)), D = th - th', th+ the angle at t+1 and
    C = (D cos(th') - cos(th) sin(D))/(sin(th+ - th) sin(th+ + th)). Two-step Adams-Bashforth with
    eps affine in ab; the authors' arcsin expression is the same number with cancellation. The
    first step is eps-DDIM.
    """
    th, th_s = step.t.theta, step.s.theta
    turn = th - th_s
    eps = step.model(step.x, step.t)
    update = (cos(th_s) * step.x - sin(turn) * eps) / cos(th)
    if step.previous:
        before = step.previous[0]
        weight = turn * cos(th_s) - cos(th) * sin(turn)
        weight /= sin(before.t.theta - th) * sin(before.t.theta + th)
        update += weight * (before.outputs[0] - eps)
    return update


@register(
    "accelerated-sde",
    reference=f"{_PAPER}, the accelerated stochastic sampler (noise inside)",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 1},
)
def accelerated_sde(step: StepBuilder) -> Linear:
    """Y+ = Y + sqrt(b/2) Z; Y' = (Y+ + b score(Y+) + sqrt(b/2) Z+)/sqrt(alpha)."""
    t, s = step.t, step.s
    b = b_of(t, s)
    score = step.model(step.x + sqrt(b / 2) * step.noise(0, 0.5), t)
    noise = step.noise(0.5, 1)
    return (score.input + b * score + sqrt(b / 2) * noise) / sqrt(alpha_ratio(t, s))


@register(
    "accelerated-sde-readme",
    reference=f"authors' README and ImageNet code ({_CODE}): second noise outside",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 0.5},
)
def accelerated_sde_readme(step: StepBuilder) -> Linear:
    """Y+ = Y + sqrt(b/2) Z; Y' = (Y+ + b score(Y+))/sqrt(alpha) + sqrt(b/2) Z+.

    As published in the authors' code. The noise outside the division makes the covariance of the
    kernel wrong by -b^2/2, which costs half an order in path space: 1/2 instead of 1.
    """
    t, s = step.t, step.s
    b = b_of(t, s)
    score = step.model(step.x + sqrt(b / 2) * step.noise(0, 0.5), t)
    mean = (score.input + b * score) / sqrt(alpha_ratio(t, s))
    return mean + sqrt(b / 2) * step.noise(0.5, 1)


@register(
    "accelerated-sde-half-noise",
    reference="derived in docs/theory.md: one noise, half of it inside the score",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    family="chain",
    orders={"tv": 1, "path-kl": 1},
)
def accelerated_sde_half_noise(step: StepBuilder) -> Linear:
    """Y' = (Y + b score(Y + sqrt(b) Z/2) + sqrt(b) Z)/sqrt(alpha), the same Z twice."""
    t, s = step.t, step.s
    b = b_of(t, s)
    noise = sqrt(b) * step.noise()
    score = step.model(step.x + noise / 2, t)
    return (step.x + b * score + noise) / sqrt(alpha_ratio(t, s))


@register(
    "accelerated-sde-jvp",
    reference="derived in docs/theory.md: the covariance of the exact kernel to second order",
    prediction="score",
    coordinates="vp",
    nfe=2,
    stochastic=True,
    family="chain",
    orders={"tv": 2, "path-kl": 1},
)
def accelerated_sde_jvp(step: StepBuilder) -> Linear:
    """Y' = (Y + b score(Y) + sqrt(b) (Z + b/2 J Z))/sqrt(alpha), J the Jacobian of the score at Y.

    J Z by forward-mode differentiation, together with the score: counted as two evaluations.
    """
    t, s = step.t, step.s
    b = b_of(t, s)
    z = sqrt(b) * step.noise()
    score, jz = step.jvp(step.x, t, z)
    return (step.x + b * score + z + b / 2 * jz) / sqrt(alpha_ratio(t, s))


@register(
    "accelerated-sde-3",
    reference="derived in docs/theory.md: three cumulants of the exact kernel",
    prediction="score",
    coordinates="vp",
    nfe=3,
    stochastic=True,
    family="chain",
    orders={"tv": 2, "path-kl": 1.5},
)
def accelerated_sde_3(step: StepBuilder) -> Linear:
    """Y' = (Y + b (7 s(Y) + 9 s(Y + 2/3 r Z) - 4 s(Y + r Z'))/12 + r Z)/sqrt(alpha), r = sqrt(b).

    The mean and the covariance of the exact kernel up to b^3, its third cumulant up to b^4.
    """
    t, s = step.t, step.s
    b = b_of(t, s)
    # Z' is added nowhere, but a noise belongs to a part of the step: two halves make Z.
    first, second = step.noise(0, 0.5), step.noise(0.5, 1)
    z, other = sqrt(0.5) * (first + second), sqrt(0.5) * (first - second)
    at_x = step.model(step.x, t)
    shared = step.model(step.x + 2 / 3 * sqrt(b) * z, t)
    fresh = step.model(step.x + sqrt(b) * other, t)
    drift = 7 / 12 * at_x + 3 / 4 * shared - 1 / 3 * fresh
    return (step.x + b * drift + sqrt(b) * z) / sqrt(alpha_ratio(t, s))


@register(
    "euler-maruyama",
    reference="Song et al. 2021 (arXiv 2011.13456), eq. 6; Maruyama 1955",
    prediction="score",
    stochastic=True,
    family="sde",
    orders={"tv": 1, "path-kl": 0.5},
)
def euler_maruyama(step: StepBuilder) -> Linear:
    """x' = x + h (f x - g^2 score(x)) + g sqrt(-h) Z, with h = s - t < 0: reverse SDE in t."""
    t = step.t
    h = step.s.t - t.t
    score = step.model(step.x, t)
    drift = t.drift * step.x - t.diffusion**2 * score
    return step.x + h * drift + t.diffusion * sqrt(abs(h)) * step.noise()
