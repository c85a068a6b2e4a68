r"""First-order rejection sampling (FORS): the exact reverse kernel, from scores alone.

Chen, Chewi, Daskalakis, Rakhlin 2026 (arXiv 2602.01338), known at second hand; the acceptance
probability and the weights of the path were derived anew. For a variance-preserving state y at the
end of a step, with x at its start, the reverse kernel is :math:`p(y | x) \propto p_{t-1}(y)\,N(x;
\sqrt\alpha y, b)`. Proposals are normal,

.. math:: y \sim N(\hat x, \eta I),\quad \hat x = (x + b s_t(x))/\sqrt\alpha,\quad
          1/\eta = \alpha/b + 1/(1 - \bar\alpha'),

and what is missing in the density is, up to a constant, :math:`\int \lambda \langle D_{t-1}(g_r) -
D_t(x), dg_r\rangle` with the denoiser D and :math:`\lambda = \sqrt{\bar\alpha'}/(1 - \bar\alpha')`,
along any path from a draw of the proposal's law to y. A random point of a random path gives an
unbiased estimate W of it, and a Poisson number J of mean 2B of such estimates the exact
probability :math:`E \prod_j (B + W_j)/2B = e^{E W - B}`, as long as no abs(W) exceeds B: larger
ones are clipped, which is the only bias and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import exp, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from probflow.grids import as_grid
from probflow.models import Model
from probflow.plan import COORDINATES, Point
from probflow.problems import as_model
from probflow.processes import Process
from probflow.words import check_real, check_whole

__all__ = ["RejectionResult", "rejection_sample"]


@dataclass(frozen=True)
class RejectionResult:
    """What :func:`rejection_sample` returns.

    Attributes
    ----------
    samples
        Final states, (batch, ...).
    nfe
        Model evaluations per sample, (batch,): one of them is one call for one state.
    acceptance
        Accepted over all proposals.
    clipped
        Fraction of the estimates that were cut at B: the kernel is exact where it is 0.
    """

    samples: Tensor
    nfe: Tensor
    acceptance: float
    clipped: float


def rejection_sample(
    model: Any,
    x: Tensor,
    steps: int | None = None,
    *,
    process: Process | None = None,
    grid: Any = None,
    bound: float = 1.0,
    seed: int = 0,
    max_proposals: int = 10_000,
) -> RejectionResult:
    """Sample with the exact reverse kernel of each step, by rejection.

    The number of evaluations is random, about ``2 B e^B + 1`` a step and sample, and steps have to
    be so short that abs(W) stays below B: ``clipped`` says whether they are.

    Parameters
    ----------
    model
        A :class:`probflow.Model`, or a target (then ``process`` is needed).
    x
        States (batch, ...) of the law at the grid's first time.
    steps, process, grid
        As in :func:`probflow.sample`.
    bound
        B > 0.
    seed
        Of all draws.
    max_proposals
        Proposals for one sample and step after which to give up.

    Returns
    -------
    RejectionResult
        Samples, and what they cost.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before any model call.
    RuntimeError
        If a sample is not accepted within ``max_proposals`` proposals.
    """
    model = as_model(model, process)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1 or not len(x):
        raise TypeError("x: need a floating-point tensor (batch, ...) with at least one sample")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: must be finite, got NaN or infinite values")
    check_real("bound", bound, "(0, inf)")
    check_whole("max_proposals", max_proposals, 1)
    kind = model.process.default_grid if grid is None else grid
    times = as_grid(kind).times(model.process, steps)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    points = Point.many(model.process, times)
    chain = _Chain(model, x, bound, max_proposals, generator)
    with torch.no_grad():
        state = x / _norm(points[0])
        for t, s in pairwise(points):
            state = chain.step(state, t, s)
    return RejectionResult(
        state * _norm(points[-1]),
        chain.nfe,
        len(x) * (len(points) - 1) / chain.proposals,
        chain.clipped / max(chain.estimates, 1),
    )


#: What a state is divided by to be variance-preserving.
_norm = COORDINATES["vp"]


class _Chain:
    """The chain of accepted states, and its counts."""

    def __init__(
        self, model: Model, x: Tensor, bound: float, most: int, generator: torch.Generator
    ) -> None:
        self.model, self.bound, self.most, self.generator = model, bound, most, generator
        self.nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.proposals = self.estimates = self.clipped = 0

    def denoised(self, y: Tensor, t: Point) -> Tensor:
        """E[x0 | y] of a variance-preserving state."""
        return self.model.predict(y * _norm(t), t.t, "x0")

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )

    def uniform(self, count: int, like: Tensor) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=like.dtype, device=like.device)

    def step(self, x: Tensor, t: Point, s: Point) -> Tensor:
        """One draw of the reverse kernel for each state."""
        alpha = exp(s.neg_log_ab - t.neg_log_ab)
        b, noise = 1 - alpha, 1 - s.ab
        eta = 1 / (alpha / b + 1 / noise)
        start = self.denoised(x, t)
        self.nfe += 1
        # The posterior mean given x0 = D_t(x), which is (x + b score)/sqrt(alpha).
        centre = sqrt(alpha) * noise / (1 - t.ab) * x + sqrt(s.ab) * b / (1 - t.ab) * start
        result, waiting = torch.empty_like(x), torch.arange(len(x), device=x.device)
        for _ in range(self.most):
            y = centre[waiting] + sqrt(eta) * self.normal(centre[waiting])
            accepted = self._accepts(y, centre[waiting], start[waiting], eta, s, waiting)
            self.proposals += len(waiting)
            result[waiting[accepted]] = y[accepted]
            waiting = waiting[~accepted]
            if not len(waiting):
                return result
        raise RuntimeError(
            f"max_proposals: {len(waiting)} samples were not accepted within {self.most} proposals "
            f"on the step from t = {t.t:g} to {s.t:g}; take shorter steps or a smaller bound"
        )

    def _accepts(
        self, y: Tensor, centre: Tensor, start: Tensor, eta: float, s: Point, who: Tensor
    ) -> Tensor:
        """Whether each proposal is accepted."""
        counts = torch.poisson(
            torch.full((len(y),), 2 * self.bound, dtype=y.dtype, device=y.device),
            generator=self.generator,
        ).long()
        owner = torch.repeat_interleave(torch.arange(len(y), device=y.device), counts)
        logs = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        if len(owner):
            w = self._estimates(y[owner], centre[owner], start[owner], eta, s)
            self.estimates += len(w)
            self.clipped += int((w.abs() > self.bound).sum())
            w = w.clamp(-self.bound, self.bound)
            logs.index_add_(0, owner, ((self.bound + w) / (2 * self.bound)).log())
            self.nfe.index_add_(0, who, counts)
        return self.uniform(len(y), y).log() < logs

    def _estimates(self, y: Tensor, centre: Tensor, start: Tensor, eta: float, s: Point) -> Tensor:
        """W at a random place r of a random path g from a draw at r = 0 to y at r = 1.

        g_r = a y + (1 - a) xh + c z with u = (2 pi/3)(1 - r), a = (1 + 2 cos u)/3 and
        c = (2/sqrt(3)) sin u: then g_r has the law of the proposal for every r, if y has it.
        """
        shape = (-1, *(1,) * (y.ndim - 1))
        u = (2 * pi / 3) * (1 - self.uniform(len(y), y)).reshape(shape)
        other = centre + sqrt(eta / 2) * self.normal(y)
        z = sqrt(eta / 2) * self.normal(y)
        a, c = (1 + 2 * u.cos()) / 3, 2 / sqrt(3) * u.sin()
        da, dc = 4 * pi / 9 * u.sin(), -4 * pi / (3 * sqrt(3)) * u.cos()
        g = a * y + (1 - a) * other + c * z
        slope = da * (y - other) + dc * z
        scale = sqrt(s.ab) / (1 - s.ab)
        return scale * (slope * (self.denoised(g, s) - start)).flatten(1).sum(1)
