r"""Path-space divergence of Markov samplers.

The path KL is :math:`\sum_k E_{x \sim q_{t_k}} KL(q(\cdot|x) \| p(\cdot|x))`: the true reverse
kernel against the sampler's, summed over the steps. It bounds the KL of the final laws, and
:math:`TV \le \sqrt{KL/2}` (Pinsker), so what is reported is that root. The true kernel needs
densities alone: by Bayes, :math:`q(x'|x) = q_s(x') N(x; a x', v I)/q_t(x)` with
:math:`a = \alpha/\alpha'` and :math:`v = \sigma^2 - a^2 \sigma'^2`.

In one dimension everything is quadrature; in d dimensions the expectation is a Monte Carlo mean
over exact pairs (x, x') and has a standard error (:mod:`probflow.laws.transition`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from probflow.laws.distances import excess
from probflow.laws.line import _KernelDensity
from probflow.laws.quadrature import (
    REACH,
    column,
    components,
    require_line,
    support,
    true_log_density,
)
from probflow.laws.registers import ExactModel, Kernel, NormalKernel, Refusal
from probflow.laws.transition import chain, exact_paths, log_weights, reverse_pair
from probflow.plan import Plan, Point, Step
from probflow.targets import Target

__all__ = ["path_kl", "path_kl_samples"]

#: Standard deviation of the log-ratio of a step up to which ``e^l - 1 - l`` is averaged.
SPREAD = 0.5
#: Weights for the density of a step that is a product of two kernels, two draws each.
PAIRS = 4

# Spacing of the trapezoidal sums, in standard deviations of the narrowest component. Normal
# densities would be summed to round-off; what limits the accuracy is where the posterior passes
# from one component to another, over a shorter distance. Measured on mixtures: relative error 3e-5.
SPACING = 0.4
# Noise before the score, in one dimension: relative error below 1e-7, at 4 steps.
_HERMITE = np.polynomial.hermite_e.hermegauss(32)


def path_kl(plan: Plan, process: Any, target: Target) -> float:
    """Path KL(q || p) of a stochastic plan in one dimension, by quadrature.

    Parameters
    ----------
    plan, process, target
        The plan, the process of its times, and the data law.

    Returns
    -------
    float
        The divergence, >= 0; its root over 2 bounds TV.

    Raises
    ------
    Refusal
        For deterministic plans, and steps whose kernel has no closed form.
    """
    require_line(target)
    model = ExactModel(plan, process, target)
    return sum(
        _step_kl(step, factors, process, target, model, plan.solver)
        for step, factors in chain(plan)
    )


def _step_kl(
    step: Step,
    factors: tuple[Kernel, ...],
    process: Any,
    target: Target,
    model: ExactModel,
    solver: str,
) -> float:
    _, _, a, v = reverse_pair(process, step)
    low, high, narrow = support(process, target, step.start)
    x = np.linspace(low, high, int((high - low) / (SPACING * narrow)) + 2)
    weight = np.exp(true_log_density(process, target, step.start, x)) * (x[1] - x[0])
    # True kernel given x: components N(m, r) with 1/r = 1/sd^2 + a^2/v in the law at s.
    centres, stds = components(process, target, step.stop)
    r = 1.0 / (1.0 / stds**2 + a * a / v)
    means = r * (centres / stds**2 + a * x[:, None] / v)
    log_mass = -0.5 * (x[:, None] - a * centres) ** 2 / (v + a * a * stds**2)
    present = log_mass > log_mass.max(axis=1, keepdims=True) - 40.0
    reach = REACH * np.sqrt(r)
    bottom = np.where(present, means - reach, np.inf).min(axis=1)
    top = np.where(present, means + reach, -np.inf).max(axis=1)
    count = int(np.ceil((top - bottom).max() / (SPACING * np.sqrt(r.min())))) + 1
    if count > 20_000:
        raise Refusal(
            f"{solver}: the reverse kernel of a step would take {count} points to resolve"
        )
    y = bottom[:, None] + (top - bottom)[:, None] * np.linspace(0.0, 1.0, count)
    dy = (top - bottom) / (count - 1)
    log_q = (
        true_log_density(process, target, step.stop, y)
        - 0.5 * ((x[:, None] - a * y) ** 2 / v + math.log(2 * math.pi * v))
        - true_log_density(process, target, step.start, x)[:, None]
    )
    log_p = _log_kernel_line(factors, model, x, y, solver)
    q, ell = np.exp(log_q), log_p - log_q
    with np.errstate(invalid="ignore", over="ignore"):
        inner = np.where(q > 0, q * excess(ell), 0.0).sum(axis=1) * dy
        # The non-negative form needs E e^l = 1, but y reaches as far as the true kernel only. Where
        # the sampler's has mass beyond that (or is too narrow for this grid), -l is averaged: the
        # divergence is so large then that nothing cancels.
        plain = np.where(q > 0, -q * ell, 0.0).sum(axis=1) * dy
        mass = np.exp(log_p).sum(axis=1) * dy
    inner = np.where(np.abs(mass - 1.0) > 1e-8, plain, inner)
    if not np.isfinite(inner).all():
        raise Refusal(f"{solver}: a step's divergence is not finite")
    return float(weight @ inner)


def _log_kernel_line(
    factors: tuple[Kernel, ...], model: ExactModel, x: np.ndarray, y: np.ndarray, solver: str
) -> np.ndarray:
    """Log-density of one whole step from x (n,) to y (n, m)."""
    if len(factors) == 1:
        return _KernelDensity(factors[0], model, x).log(slice(None), y)
    first, second = factors[0], factors[1]
    if len(factors) > 2 or not isinstance(first, NormalKernel):
        raise Refusal(f"{solver}: a step of more than two kernels has no cheap density")
    nodes, weights = _HERMITE
    centre = first.means(column(x), model)[0][:, 0].numpy()
    u = centre[:, None] + first.std * nodes
    inner = _KernelDensity(second, model, u.ravel())
    repeated = np.repeat(y[:, None, :], len(nodes), axis=1).reshape(-1, y.shape[1])
    values = inner.log(slice(None), repeated).reshape(len(x), len(nodes), -1)
    return logsumexp(values, b=(weights / weights.sum())[None, :, None], axis=1)


# d dimensions ----------------------------------------------------------------------------------


def path_kl_samples(
    plan: Plan, process: Any, target: Target, n: int, *, generator: torch.Generator
) -> np.ndarray:
    """Per-path contributions whose mean is the path KL(q || p), in any dimension.

    They are read off exact paths, which all plans share. With ``l = ln p(x'|x) - ln q(x'|x)`` both
    ``-l`` and ``e^l - 1 - l`` have the KL as mean, because ``E[e^l - 1] = 0``. The second is
    non-negative and far less noisy where l is small; where l spreads over more than
    :data:`SPREAD`, ``e^l`` has a heavy tail, and the step takes the first.

    Of a step with a noise before the score and one after it, ``e^l`` is known as the mean of
    :data:`PAIRS` weights. The logarithm of such a mean is biased; leaving out one weight at a time
    takes off the bias up to the square of their number (jackknife).

    Parameters
    ----------
    n
        Number of paths.
    generator
        CPU generator; the paths depend on neither solver nor step count.

    Returns
    -------
    ndarray
        (n,) float64.

    Raises
    ------
    Refusal
        For deterministic plans, times that rise, and steps whose kernel is neither known in d
        dimensions nor a product of two normal ones.
    """
    steps = chain(plan)
    model = ExactModel(plan, process, target)
    stop = Point.at(process, plan.times[-1])
    end = target.sample(n, stop.alpha, stop.sigma, generator=generator)
    log_next = target.log_prob(end, stop.alpha, stop.sigma)
    seed = int(torch.randint(2**62, (), generator=generator))
    total = np.zeros(n)
    for step in exact_paths(plan, process, steps, end, seed):
        log_here = target.log_prob(step.x, step.start.alpha, step.start.sigma)
        log_q = log_next + step.log_forward - log_here
        log_p = log_weights(
            *(step.factors, model, step.x, step.y, PAIRS), generator=generator, solver=plan.solver
        )
        total += _divergence((log_p - log_q[:, None]).numpy())
        log_next = log_here
    return total


def _divergence(ell: np.ndarray) -> np.ndarray:
    """Contributions (n,) of a step from logs of weights (n, m) with the mean e^l."""
    m = ell.shape[1]
    whole = logsumexp(ell, axis=1) - math.log(m)
    form = excess if whole.std() < SPREAD else np.negative
    if m == 1:
        return form(whole)
    rests = np.stack([np.delete(ell, i, axis=1) for i in range(m)])
    left = logsumexp(rests, axis=2) - math.log(m - 1)
    return m * form(whole) - (m - 1) * form(left).mean(axis=0)
