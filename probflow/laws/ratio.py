r"""Density ratios of stochastic samplers in any dimension, as means over exact paths.

The marginal density of a stochastic sampler is an integral over all of its noises. Its ratio to the
true one at a point y is an expectation over paths that are simple to draw. The exact reverse chain,
given that it ends at y, is the forward process started at y, so that with sampler kernels k and
true reverse kernels :math:`k^*`

.. math:: p(y)/q(y) = E\Bigl[\prod_t k(X_s | X_t)/k^*(X_s | X_t) \Bigm| X_{end} = y\Bigr],

over forward paths from y. By Bayes the :math:`k^*` leave only forward kernels and the true
densities at both ends. Where the law of a step is itself an integral, over a state u between its
two noises, u is drawn from a normal law that is close to its posterior and the weight is divided by
its density: the mean stays the same.

From several paths for each y, :math:`\chi^2(p\Vert q) = E_q(p/q - 1)^2` has an estimate without
bias, the mean of products of *different* paths. A total variation has none: its modulus takes noise
for distance. :math:`TV \le \tfrac12\sqrt{\chi^2}` (Cauchy, Schwarz).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.integrate.brownian import BrownianInterval
from probflow.laws.path import chain, log_kernel, log_normal, reverse_pair
from probflow.laws.registers import ExactModel, Kernel, NormalKernel, Refusal
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
    x_next = y.repeat_interleave(paths, dim=0)
    ends = stop.rho**2, start.rho**2
    finest = (ends[1] - ends[0]) * 2.0**-40
    w = BrownianInterval(*ends, x_next.shape, x_next.dtype, entropy=seed, tol=finest)
    log_weight = -target.log_prob(y, stop.alpha, stop.sigma).repeat_interleave(paths)
    for step, factors in reversed(steps):
        t, s, a, v = reverse_pair(process, step)
        if not v > 0:
            raise Refusal(f"{plan.solver}: time rises in a step, so the plan has no reverse chain")
        noise = t.alpha * w(s.rho**2, t.rho**2)
        x = a * x_next + noise
        log_weight += _log_step(factors, model, x, x_next, generator, plan.solver)
        log_weight -= log_normal(noise, v)
        x_next = x
    log_weight += target.log_prob(x_next, start.alpha, start.sigma)
    return log_weight.exp().reshape(n, paths)


def _log_step(
    factors: tuple[Kernel, ...],
    model: ExactModel,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    solver: str,
) -> Tensor:
    """Log of a weight whose mean is the density of a step from x to y, both (n, d)."""
    if any(isinstance(factor, NormalKernel) and not factor.std > 0 for factor in factors):
        raise Refusal(f"{solver}: a step without noise has no density given where it starts")
    if len(factors) == 1:
        return log_kernel(factors[0], model, x, y)
    first, second = factors[0], factors[1]
    if len(factors) > 2 or not (
        isinstance(first, NormalKernel) and isinstance(second, NormalKernel)
    ):
        raise Refusal(
            f"{solver}: a step is no kernel of known density and no product of two normal ones"
        )
    # Posterior of u ~ N(centre, e^2) given y, with the mean of y taken as linear in u.
    centre = first.means(x, model)[0]
    mean, slope = second.means(centre, model, jacobian=True)
    assert slope is not None
    slope = slope / second.std
    precision = torch.eye(x.shape[1], dtype=x.dtype) / first.std**2 + slope.mT @ slope
    root = torch.linalg.cholesky(precision)
    pull = slope.mT @ ((y - mean) / second.std)[:, :, None]
    z = torch.randn(x.shape, dtype=x.dtype, generator=generator)[:, :, None]
    shift = torch.cholesky_solve(pull, root)
    u = centre + (shift + torch.linalg.solve_triangular(root.mT, z, upper=True))[:, :, 0]
    log_drawn = log_normal(z[:, :, 0], 1.0) + root.diagonal(dim1=1, dim2=2).log().sum(1)
    return log_normal(u - centre, first.std**2) + log_kernel(second, model, u, y) - log_drawn
