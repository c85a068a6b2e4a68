r"""Ancestral samplers: an ODE step to a lower noise level, then exact noise up to the next one.

With rho = sigma/alpha and y = x/alpha, the new level rho' is split into

.. math:: \rho'^2 = \rho_{down}^2 + \rho_{up}^2, \qquad
          \rho_{up} = \eta\,\rho' \sqrt{1 - \rho'^2/\rho^2}, \quad 0 \le \eta \le 1,

a step of the probability-flow ODE leads from rho to rho_down, and noise of standard deviation
rho_up is added. Adding it is the forward process, without error, so that the law of the states
errs by what the ODE steps err: the order in total variation is that of the ODE method, 2 for those
with two evaluations. On one path they follow the reverse SDE of
:mod:`probflow.solvers.forms` whose eta is the square of the one here, with strong order 1. To
sigma' = 0, rho_up = 0: the step is that of the ODE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import exp, expm1, log, sqrt
from probflow.solvers.forms import check_s_noise
from probflow.solvers.registry import register
from probflow.solvers.reverse_sde import eta_of
from probflow.solvers.singlestep import fast_step
from probflow.words import check_real

_K = "k-diffusion"


def _split(t: Point, s: Point, eta: float) -> tuple[float, float]:
    """rho_down and rho_up."""
    check_real("eta", eta, "[0, 1]")
    loss = -expm1(2 * (t.lambda_ - s.lambda_))  # 1 - (rho'/rho)^2
    return s.rho * sqrt(1 - eta**2 * loss), eta * s.rho * sqrt(loss)


def _noise(step: StepBuilder, std: float) -> Linear:
    return std * step.noise() if std else Linear({})


def _squared(options: Mapping[str, Any]) -> float | None:
    """eta of the reverse SDE; none has that law once the noise is scaled."""
    return options["eta"] ** 2 if options.get("s_noise", 1.0) == 1.0 else None


@register(
    "ddim-eta",
    reference="Song, Meng, Ermon 2021 (arXiv 2010.02502), eq. 12 and 16",
    prediction="eps",
    stochastic=True,
    orders={"tv": 1, "strong": 1, "path-kl": 0.5},
    sde=_squared,
)
def ddim_eta(step: StepBuilder, eta: float = 1.0) -> Linear:
    """x' = alpha' x0 + sqrt(sigma'^2 - up^2) eps + up Z, up = alpha' rho_up.

    x0 = (x - sigma eps)/alpha. eta = 0 is DDIM, eta = 1 ``ddpm-posterior``.
    """
    t, s = step.t, step.s
    down, up = _split(t, s, eta)
    eps = step.model(step.x, t)
    return s.alpha / t.alpha * step.x + s.alpha * (down - t.rho) * eps + _noise(step, s.alpha * up)


@register(
    "euler-ancestral",
    aliases=("euler-a",),
    reference=f"{_K}'s sample_euler_ancestral; Song, Meng, Ermon 2021 (arXiv 2010.02502)",
    prediction="eps",
    coordinates="ve",
    stochastic=True,
    orders={"tv": 1, "strong": 1, "path-kl": 0.5},
    sde=_squared,
)
def euler_ancestral(step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """y' = y + (rho_down - rho) eps(y) + s_noise rho_up Z; ``ddim-eta`` in other letters."""
    down, up = _split(step.t, step.s, eta)
    eps = step.model(step.x, step.t)
    return step.x + (down - step.t.rho) * eps + _noise(step, check_s_noise(s_noise) * up)


@register(
    "euler-ancestral-rf",
    reference=f"{_K}'s sample_euler_ancestral for rectified flow, as in ComfyUI and diffusers",
    prediction="x0",
    stochastic=True,
    orders={"tv": 1, "strong": 1, "path-kl": 0.5},
    sde=eta_of,
)
def euler_ancestral_rf(step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """x' = alpha' [rho_down/sigma x + (1 - rho_down/rho) x0 + s_noise rho_up Z], split in a flow.

    With tau = rho/(1 + rho), the time of rectified flow: tau_down = tau' (1 - eta (1 - tau'/tau)),
    rho_up^2 = rho'^2 - rho_down^2. Its paths are those of the reverse SDE with the same eta.
    """
    check_real("eta", eta, "[0, 1]")
    check_s_noise(s_noise)
    t, s = step.t, step.s
    loss = -eta * expm1(t.lambda_ - s.lambda_) / (1 + s.rho)  # 1 - tau_down/tau'
    gap = s.rho * loss * (1 + s.rho) / (1 + s.rho * loss)  # rho' - rho_down
    kept = (s.rho - gap) / t.sigma
    up = sqrt(gap * (2 * s.rho - gap))
    x0 = step.model(step.x, t)
    new = s.alpha * kept * step.x + s.alpha * (1 - kept * t.alpha) * x0
    return new + _noise(step, s.alpha * s_noise * up)


@register(
    "dpm2-ancestral",
    aliases=("dpm2-a", "dpm-2-ancestral"),
    reference=f"{_K}'s sample_dpm_2_ancestral; Lu et al. 2022 (arXiv 2206.00927)",
    prediction="eps",
    coordinates="ve",
    nfe=2,
    stochastic=True,
    orders={"tv": 2, "strong": 1, "path-kl": 0.5},
    sde=_squared,
)
def dpm2_ancestral(step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """y' = y + (rho_down - rho) eps(y + (r - rho) eps, r) + s_noise rho_up Z.

    r = sqrt(rho rho_down), which is rho' for eta = 1. A step to sigma' = 0 is an Euler step.
    """
    t, s = step.t, step.s
    down, up = _split(t, s, eta)
    check_s_noise(s_noise)
    eps = step.model(step.x, t)
    if s.sigma == 0:
        return step.x - t.rho * eps
    r = sqrt(t.rho * down)
    middle = s if eta == 1 else step.at_lambda(-log(r))
    slope = step.model(step.x + (r - t.rho) * eps, middle)
    return step.x + (down - t.rho) * slope + _noise(step, s_noise * up)


@register(
    "dpm-solver++-2s-ancestral",
    aliases=("dpmpp-2s-ancestral", "dpmpp-2s-a"),
    reference=f"{_K}'s sample_dpmpp_2s_ancestral; Lu et al. 2022 (arXiv 2211.01095), Algorithm 1",
    prediction="x0",
    coordinates="ve",
    nfe=2,
    stochastic=True,
    orders={"tv": 2, "strong": 1, "path-kl": 0.5},
    sde=_squared,
)
def dpm_solver_pp_2s_ancestral(step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """y' = e^-h y + (1 - e^-h) x0_r + s_noise rho_up Z, with h = ln(rho/rho_down).

    x0_r is evaluated at r = rho e^(-h/2), where y_r = e^(-h/2) y + (1 - e^(-h/2)) x0. A step to
    sigma' = 0 takes x0.
    """
    t, s = step.t, step.s
    down, up = _split(t, s, eta)
    check_s_noise(s_noise)
    x0 = step.model(step.x, t)
    if s.sigma == 0:
        return x0
    h = log(t.rho / down)
    middle = s if eta == 1 else step.at_lambda(t.lambda_ + h / 2)
    x0_r = step.model(exp(-h / 2) * step.x - expm1(-h / 2) * x0, middle)
    return exp(-h) * step.x - expm1(-h) * x0_r + _noise(step, s_noise * up)


@register(
    "dpm-solver-fast-ancestral",
    reference=f"{_K}'s sample_dpm_fast with eta; Lu et al. 2022 (arXiv 2206.00927), section 3.4",
    prediction="eps",
    nfe=3,
    stochastic=True,
    whole_grid=True,
    orders={"tv": 3},
    sde=_squared,
)
def dpm_solver_fast_ancestral(
    step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0, remainder: int = 2
) -> Linear:
    """x' = alpha'/alpha_d x_d + s_noise alpha' up Z, x_d after a step of ``dpm-solver-fast``.

    It leads to rho_down, but not below the last level of the grid, up^2 = rho'^2 - rho_down^2: the
    last step is that of the ODE, without noise.
    """
    t, s = step.t, step.s
    down, _ = _split(t, s, eta)
    check_s_noise(s_noise)
    if down == s.rho:
        d = s
    elif down <= step.end.rho:
        d = step.end
    else:
        d = step.at_lambda(-log(down))
    reached = fast_step(step, remainder, d)
    if d is s:
        return reached
    up = sqrt((s.rho - d.rho) * (s.rho + d.rho))
    return s.alpha / d.alpha * reached + _noise(step, s_noise * s.alpha * up)


@register(
    "dpm-solver++-sde-stock",
    reference=f"{_K}'s sample_dpmpp_sde as it stands; diffusers' DPMSolverSDEScheduler",
    prediction="x0",
    coordinates="ve",
    nfe=2,
    stochastic=True,
    orders={"tv": 2, "strong": 1},
    sde=_squared,
)
def dpm_solver_pp_sde_stock(
    step: StepBuilder, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Linear:
    """y' = down/rho y + (1 - down/rho) [x0 + (x0_r - x0)/(2 r)] + s_noise up Z.

    x0_r is evaluated at the noise level m, r of the way in log-SNR, after such a step with x0 and
    the noise Z_m. Z_m and Z are increments of one Brownian motion in rho, from rho to m and to
    rho', divided by the roots of their lengths. In ``dpm-solver++-sde`` they belong to the exact
    solution. A step to sigma' = 0 takes x0.
    """
    t, s = step.t, step.s
    check_real("r", r, "(0, 1]")
    check_s_noise(s_noise)
    if s.sigma == 0:
        return step.model(step.x, t)
    m = s if r == 1 else step.at_lambda(t.lambda_ + r * (s.lambda_ - t.lambda_))
    x0 = step.model(step.x, t)

    def stepped(down: float, data: Linear) -> Linear:
        return down / t.rho * step.x + (1 - down / t.rho) * data

    cut = 1.0 if r == 1 else (m.t - t.t) / (s.t - t.t)
    whole = t.rho - s.rho
    first = step.noise(0, cut) if eta else Linear({})
    noise = sqrt((t.rho - m.rho) / whole) * first
    if eta and r < 1:
        noise = noise + sqrt((m.rho - s.rho) / whole) * step.noise(cut, 1)
    down, up = _split(t, m, eta)
    x0_r = step.model(stepped(down, x0) + s_noise * up * first, m)
    down, up = _split(t, s, eta)
    return stepped(down, x0 + (x0_r - x0) / (2 * r)) + s_noise * up * noise
