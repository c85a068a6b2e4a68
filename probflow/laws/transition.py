r"""Steps of a stochastic plan in d dimensions: exact paths, densities of their kernels.

Exact paths need no reverse chain: :math:`x/\alpha = x_0 + W(\sigma^2/\alpha^2)` with one Brownian
path W, which all plans share. The density of a step from x to y is closed for one kernel. Where a
step is a product of two, a noise before the score and one after it, it is an integral over the
state u between them, :math:`k(y|x) = \int k_1(u|x)\,k_2(y|u)\,du`. Then u is drawn from a normal
law that is close to its posterior, and the integrand divided by that law's density is a weight with
the right mean (importance sampling).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.brownian import BrownianInterval
from probflow.laws.registers import (
    BentNormal,
    ExactModel,
    Kernel,
    NormalKernel,
    Refusal,
    kernels,
)
from probflow.plan import Plan, Point, Step

__all__ = [
    "Transition",
    "chain",
    "exact_paths",
    "log_kernel",
    "log_normal",
    "log_weights",
    "reverse_pair",
]

Factors = tuple[Kernel, ...]


@dataclass(frozen=True)
class Transition:
    """A step of a plan with states of exact paths at its two ends.

    Parameters
    ----------
    factors
        The kernels of the sampler's step, first to last.
    start
        Point at which the step starts, the noisier one.
    x, y
        (n, d) states of the paths at the step's start and end.
    log_forward
        (n,) log-density of x given y under the forward process.
    """

    factors: Factors
    start: Point
    x: Tensor
    y: Tensor
    log_forward: Tensor


def chain(plan: Plan) -> list[tuple[Step, Factors]]:
    """The steps of a stochastic plan with their kernels.

    Parameters
    ----------
    plan
        A stochastic plan.

    Returns
    -------
    list of tuple
        (step, its kernels), first to last.

    Raises
    ------
    Refusal
        For a deterministic plan, or a step that :func:`~probflow.laws.registers.kernels` refuses.
    """
    if not plan.stochastic:
        raise Refusal(
            f"{plan.solver} is deterministic: its kernel is a point mass, so the path KL is "
            "infinite"
        )
    return [(step, kernels(step, plan.solver)) for step in plan.steps]


def reverse_pair(process: Any, step: Step) -> tuple[Point, Point, float, float]:
    """Points t and s of a step, and (a, v) with ``x_t | x_s ~ N(a x_s, v I)``.

    Parameters
    ----------
    process
        The noising process.
    step
        A step from t to s, from noise to data.

    Returns
    -------
    tuple
        Point of t, point of s, a and v > 0 (v <= 0 where time rises).
    """
    t, s = Point.many(process, [step.start, step.stop])
    a = t.alpha / s.alpha
    # v = sigma^2 (1 - e^{-2h}), h the gain of log-SNR: no cancellation.
    v = -(t.sigma**2) * math.expm1(2 * (t.lambda_ - s.lambda_))
    return t, s, a, v


def exact_paths(
    plan: Plan, process: Any, steps: Sequence[tuple[Step, Factors]], end: Tensor, seed: int
) -> Iterator[Transition]:
    """Exact paths from their ends on, the last step first.

    Parameters
    ----------
    plan, process
        A stochastic plan and its process.
    steps
        Its :func:`chain`.
    end
        (n, d) samples of the true law at the plan's last time.
    seed
        Of the Brownian path, which depends on neither the solver nor the number of steps.

    Yields
    ------
    Transition
        One of each step.

    Raises
    ------
    Refusal
        Where time rises in a step.
    """
    start, stop = Point.many(process, [plan.times[0], plan.times[-1]])
    ends = stop.rho**2, start.rho**2
    length = ends[1] - ends[0]
    w = BrownianInterval(
        *ends, end.shape, end.dtype, entropy=seed, dt=length, tol=length * 2.0**-40
    )
    y = end
    for step, factors in reversed(steps):
        t, s, a, v = reverse_pair(process, step)
        if not v > 0:
            raise Refusal(f"{plan.solver}: time rises in a step, so the plan has no reverse chain")
        noise = t.alpha * w(s.rho**2, t.rho**2)
        x = a * y + noise
        yield Transition(factors, t, x, y, log_normal(noise, v))
        y = x


# Densities --------------------------------------------------------------------------------------


def log_normal(residual: Tensor, variance: float) -> Tensor:
    """Log-density of N(0, variance I) at residuals (..., d).

    Parameters
    ----------
    residual
        (..., d).
    variance
        Of each element, > 0.

    Returns
    -------
    Tensor
        The leading shape (...), dtype of ``residual``.
    """
    d = residual.shape[-1]
    return -0.5 * (residual.square().sum(-1) / variance + d * math.log(2 * math.pi * variance))


def log_kernel(kernel: Kernel, model: ExactModel, x: Tensor, y: Tensor) -> Tensor:
    """Log-density of one kernel from x to y, both (n, d).

    Parameters
    ----------
    kernel
        One of :func:`~probflow.laws.registers.kernels`.
    model
        The exact model.
    x, y
        States before and after, float64.

    Returns
    -------
    Tensor
        (n,), float64.

    Raises
    ------
    Refusal
        For a second noise inside the model, or where the inverse of a half-noise step is not found.
    """
    if isinstance(kernel, NormalKernel):
        return log_normal(y - kernel.means(x, model)[0], kernel.std**2)
    if isinstance(kernel, BentNormal):
        factors = kernel.factors(x, model)
        root = torch.linalg.cholesky((factors @ factors.mT).sum(0))
        residual = (y - kernel.means(x, model)[0])[:, :, None]
        z = torch.linalg.solve_triangular(root, residual, upper=False)[:, :, 0]
        return log_normal(z, 1.0) - root.diagonal(dim1=1, dim2=2).log().sum(1)
    if kernel.outer is not None:
        raise Refusal(
            f"a step with a second noise inside the model: in {x.shape[1]} dimensions its kernel "
            "is an integral over that noise, without closed form"
        )
    wanted = y - kernel.shift * x - kernel.added(x, torch.zeros_like(x), model)
    u = kernel.r * x
    # Newton on H(u) = wanted with the first Jacobian kept: H is nearly linear over one step, and
    # its Jacobian is what costs.
    jacobian = kernel.inner_jacobian(u, model)
    for _ in range(200):
        step = torch.linalg.solve(jacobian, wanted - kernel.inner(u, model))
        u = u + step
        if float(step.abs().max()) <= 1e-11 * (1.0 + float(u.abs().max())):
            break
    else:
        raise Refusal("the density of a half-noise step: Newton's method did not converge")
    log_det = torch.linalg.slogdet(kernel.inner_jacobian(u, model)).logabsdet
    z = (u - kernel.r * x) / kernel.e
    return log_normal(z, 1.0) - log_det - x.shape[1] * math.log(abs(kernel.e))


def log_weights(
    factors: Factors,
    model: ExactModel,
    x: Tensor,
    y: Tensor,
    pairs: int,
    *,
    generator: torch.Generator,
    solver: str = "the step",
) -> Tensor:
    """Logs of independent weights whose means are the density of a step from x to y, (n, d) each.

    One kernel has its density: a single column. Of two, each weight is the mean over a pair of
    opposite draws, which takes off what is odd in them: the largest part.

    Parameters
    ----------
    factors
        The kernels of the step.
    pairs
        Number of weights, where they are drawn.
    generator
        CPU generator of the draws.
    solver
        Name, for messages.

    Returns
    -------
    Tensor
        (n, 1) or (n, pairs) float64.

    Raises
    ------
    Refusal
        For a kernel without noise or without a known density, and for other products of kernels.
    """
    if any(isinstance(factor, NormalKernel) and not factor.std > 0 for factor in factors):
        raise Refusal(f"{solver}: a step without noise has no density given where it starts")
    if len(factors) == 1:
        return log_kernel(factors[0], model, x, y)[:, None]
    first, second = factors[0], factors[1]
    if len(factors) > 2 or not (
        isinstance(first, NormalKernel) and isinstance(second, NormalKernel)
    ):
        raise Refusal(
            f"{solver}: a step is no kernel of known density and no product of two normal ones"
        )
    n, d = x.shape
    # Posterior of u ~ N(centre, e^2) given y, with the mean of y taken as linear in u.
    centre = first.means(x, model)[0]
    mean, slope = second.means(centre, model, jacobian=True)
    assert slope is not None
    slope = slope / second.std
    root = torch.linalg.cholesky(torch.eye(d, dtype=x.dtype) / first.std**2 + slope.mT @ slope)
    pull = slope.mT @ ((y - mean) / second.std)[:, :, None]
    half = torch.randn(n, d, pairs, dtype=x.dtype, generator=generator)
    z = torch.cat((half, -half), dim=2)
    u = torch.cholesky_solve(pull, root) + torch.linalg.solve_triangular(root.mT, z, upper=True)
    log_first = log_normal(u.mT, first.std**2)
    at = (centre[:, None] + u.mT).reshape(-1, d)
    to = y.repeat_interleave(2 * pairs, dim=0)
    log_second = log_kernel(second, model, at, to).reshape(n, 2 * pairs)
    log_drawn = log_normal(z.mT, 1.0) + root.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
    log = (log_first + log_second - log_drawn).reshape(n, 2, pairs)
    return log.logsumexp(dim=1) - math.log(2.0)
