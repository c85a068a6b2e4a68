r"""Density ratios of stochastic samplers in any dimension, as means over exact paths.

The marginal density of a stochastic sampler is an integral over all of its noises. Its ratio to the
true one at a point y is an expectation over paths that are simple to draw. The exact reverse chain,
given that it ends at y, is the forward process started at y, so that with sampler kernels k and
true reverse kernels :math:`k^*`

.. math:: p(y)/q(y) = E\Bigl[\prod_t k(X_s | X_t)/k^*(X_s | X_t) \Bigm| X_{end} = y\Bigr],

over forward paths from y. By Bayes the :math:`k^*` leave only forward kernels and the true
densities at both ends. Where the density of a step is itself an integral, a weight that has it as
its mean stands in its place (:mod:`probflow.laws.transition`).

From several paths for each y, :math:`\chi^2(p\Vert q) = E_q(p/q - 1)^2` has an estimate without
bias, the mean of products of *different* paths. A total variation has none: its modulus takes noise
for distance. :math:`TV \le \tfrac12\sqrt{\chi^2}` (Cauchy, Schwarz).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.laws.registers import ExactModel
from probflow.laws.transition import chain, exact_paths, log_weights
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = ["chi2_samples", "ratio_samples"]

#: Paths from each point. The noise of a ratio is about the path divergence over their number.
PATHS = 32


def chi2_samples(
    plan: Plan, process: Any, target: Target, n: int, *, generator: torch.Generator
) -> np.ndarray:
    """Per-point contributions whose mean is chi^2(p || q) of a stochastic plan.

    Parameters
    ----------
    n
        Number of points y, of 32 paths each.
    generator
        CPU generator; points and forward paths depend on neither solver nor step count.

    Returns
    -------
    ndarray
        (n,) float64, of either sign.

    Raises
    ------
    Refusal
        As :func:`ratio_samples`.
    """
    excess = ratio_samples(plan, process, target, n, PATHS, generator=generator) - 1.0
    pairs = excess.sum(dim=1).square() - excess.square().sum(dim=1)
    return (pairs / (PATHS * (PATHS - 1))).numpy()


def ratio_samples(
    plan: Plan, process: Any, target: Target, n: int, paths: int, *, generator: torch.Generator
) -> Tensor:
    """Weights whose means over the paths are p(y)/q(y) at samples y of the true law q.

    Parameters
    ----------
    n, paths
        Number of points, and of paths from each.
    generator
        As for :func:`chi2_samples`.

    Returns
    -------
    Tensor
        (n, paths) float64.

    Raises
    ------
    Refusal
        For deterministic plans, steps whose kernel has no closed form, and times that rise.
    """
    steps = chain(plan)
    model = ExactModel(plan, process, target)
    start, stop = Point.many(process, [plan.times[0], plan.times[-1]])
    y = target.sample(n, stop.alpha, stop.sigma, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    end = y.repeat_interleave(paths, dim=0)
    log_weight = -target.log_prob(y, stop.alpha, stop.sigma).repeat_interleave(paths)
    x = end
    for step in exact_paths(plan, process, steps, end, seed):
        x = step.x
        log_weight += log_weights(
            *(step.factors, model, x, step.y, 1), generator=generator, solver=plan.solver
        )[:, 0]
        log_weight -= step.log_forward
    log_weight += target.log_prob(x, start.alpha, start.sigma)
    return log_weight.exp().reshape(n, paths)
