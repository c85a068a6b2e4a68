r"""Exact log-density of a deterministic sampler's output in d dimensions.

A deterministic plan maps :math:`x \sim q_T` to y; the density of y is
:math:`p(y) = q_T(x)/|\det \partial y/\partial x|`, with the Jacobian carried through every step.
Total variation and KL against the true law are then means over samples of y:
:math:`TV = \frac{1}{2} E_p|r - 1|`, :math:`KL(q\|p) = E_p[r\ln r - r + 1]`,
:math:`\chi^2(p\|q) = E_p[(1 - r)^2/r]`, r = q(y)/p(y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from probflow.laws.distances import excess
from probflow.laws.registers import Refusal, push
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = ["density_samples"]


def density_samples(
    plan: Plan, process: Any, target: Target, n: int, *, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Contributions whose means are TV, KL(q || p) and chi^2(p || q) of a deterministic plan.

    Parameters
    ----------
    n
        Number of samples of the exact law at the plan's first time.
    generator
        CPU generator; the draws do not depend on the plan.

    Returns
    -------
    dict
        ``tv``, ``kl`` and ``chi2``, each (n,) float64.

    Raises
    ------
    Refusal
        If the plan is stochastic, or det J changes sign (the map is not invertible then).
    """
    start, stop = Point.many(process, [plan.times[0], plan.times[-1]])
    x = target.sample(n, start.alpha, start.sigma, generator=generator)
    y, jacobian = push(plan, process, target, x, jacobian=True)
    sign, log_det = torch.linalg.slogdet(jacobian)
    if not bool((sign > 0).all()):
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps: det J changes sign at "
            f"{int((sign <= 0).sum())} of {n} samples, so the map is not "
            "invertible; take more steps"
        )
    log_q = target.log_prob(y, stop.alpha, stop.sigma)
    log_p = target.log_prob(x, start.alpha, start.sigma) - log_det
    log_r = (log_q - log_p).numpy()
    # r ln r - r + 1 = r (e^{-l} - 1 + l) with l = ln r: the non-negative form again.
    return {
        "tv": 0.5 * np.abs(np.expm1(log_r)),
        "kl": np.exp(log_r) * excess(-log_r),
        "chi2": 4.0 * np.sinh(0.5 * log_r) ** 2,  # (1 - r)^2/r
    }
