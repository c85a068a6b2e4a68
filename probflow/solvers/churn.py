r"""Samplers that add noise to go back up, and integrate the probability-flow ODE down.

Adding noise is the forward process, without error, so that the law of the states errs by what the
ODE steps err. For noise added a few times over a long way see :func:`probflow.grids.restart`.
"""

from __future__ import annotations

from math import inf

from probflow.plan import Linear, StepBuilder
from probflow.plan.columns import exp, log, sqrt
from probflow.solvers.registry import no_sde, register
from probflow.words import check_choice, check_real


@register(
    "edm-churn",
    aliases=("edm-stochastic",),
    reference="Karras et al. 2022 (arXiv 2206.00364), Algorithm 2",
    prediction="eps",
    coordinates="ve",
    nfe=2,
    stochastic=True,
    orders={"tv": 2},
    sde=no_sde,
)
def edm_churn(
    step: StepBuilder,
    S_churn: float = 5.0,
    S_tmin: float = 0.0,
    S_tmax: float = inf,
    S_noise: float = 1.0,
    method: str = "heun",
) -> Linear:
    """y^ = y + S_noise sqrt(r^2 - rho^2) Z, r = (1 + gamma) rho; then ``edm-heun`` from r to rho'.

    gamma = min(S_churn/n, sqrt(2) - 1) for S_tmin <= rho <= S_tmax, with n steps in all, and 0
    elsewhere; r is at most the noisiest level of the process. S_churn = 0 is ``edm-heun``.
    ``method`` is "heun", "dpm2" (``edm-dpm2`` instead) or "euler" (``edm-euler``, of order 1).
    """
    check_choice("method", method, ("heun", "dpm2", "euler"))
    check_real("S_churn", S_churn, "[0, inf)")
    check_real("S_noise", S_noise, "[0, inf)")
    if not 0 <= S_tmin <= S_tmax:
        raise ValueError(f"S_tmin, S_tmax: need 0 <= S_tmin <= S_tmax, got {S_tmin}, {S_tmax}")
    t, s, x, rho = step.t, step.s, step.x, step.t.rho
    if S_tmin <= rho <= S_tmax:
        gamma = min(S_churn / step.steps, sqrt(2) - 1, exp(t.lambda_ - step.lambda_min) - 1)
        if gamma > 0:
            rho = (1 + gamma) * rho
            x = x + S_noise * sqrt(rho**2 - t.rho**2) * step.noise()
            t = step.at_lambda(-log(rho))
    eps = step.model(x, t)
    x, h = eps.input, s.rho - rho
    if s.sigma == 0 or method == "euler":
        return x + h * eps
    if method == "dpm2":
        r = step.at_lambda(0.5 * (t.lambda_ + s.lambda_))
        return x + h * step.model(x + (r.rho - rho) * eps, r)
    return x + h / 2 * (eps + step.model(x + h * eps, s))
