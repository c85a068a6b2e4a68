r"""Targets that differ from the truth in one known way, and products of targets on the line.

The laws of a plan ask a target for two things: its score (and Jacobian), which the sampler uses,
and its laws at the two ends of the grid, which the sampler starts from and is compared with. A
target that answers the one wrongly and the others rightly isolates that error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.targets import Gaussian, Level, Target
from probflow.words import check_real

__all__ = ["Around", "OtherLaws", "Product", "Scaled", "ScoreError", "correlated", "truth_of"]


class Product(Target):
    """Independent coordinates, each with a target on the line as its law.

    Score, noise and all plans act on each coordinate alone, so path KL, KL and the squares of W2
    and of the strong error are sums over the coordinates. They do not change under a rotation (the
    noise is isotropic): a rotated product with unequal factors is a correlated target.

    Parameters
    ----------
    factors
        d targets of dimension 1; the same object several times costs no more than once.

    Raises
    ------
    ValueError
        For no factor, or one that is not on the line.
    """

    def __init__(self, factors: Sequence[Target]) -> None:
        self.factors = tuple(factors)
        if not self.factors or any(factor.dim != 1 for factor in self.factors):
            raise ValueError("factors: need targets on the line, one or more")
        self.dim, self.name = len(self.factors), f"product-{len(self.factors)}d"

    def _columns(self, x: Tensor) -> list[tuple[Target, Tensor]]:
        return list(zip(self.factors, self._flat(x).split(1, dim=1), strict=True))

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        columns = [factor.score(c, alpha, sigma) for factor, c in self._columns(x)]
        return torch.cat(columns, dim=1).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.log_prob`."""
        logs = [factor.log_prob(c, alpha, sigma) for factor, c in self._columns(x)]
        return torch.stack(logs).sum(dim=0)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`."""
        both = [factor.score_and_jacobian(c, alpha, sigma) for factor, c in self._columns(x)]
        score = torch.cat([s for s, _ in both], dim=1).reshape(x.shape)
        return score, torch.diag_embed(torch.cat([j[:, 0] for _, j in both], dim=1))

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Target.sample`."""
        columns = [f.sample(n, alpha, sigma, generator=generator) for f in self.factors]
        return torch.cat(columns, dim=1)

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Target.moments`."""
        both = [factor.moments(alpha, sigma) for factor in self.factors]
        return np.concatenate([m for m, _ in both]), np.diag([float(c[0, 0]) for _, c in both])


class Around(Target):
    """The target ``base`` in everything; what is wrong is overridden.

    Parameters
    ----------
    base
        The target.
    """

    def __init__(self, base: Target) -> None:
        self.base, self.dim, self.name = base, base.dim, base.name

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        return self.base.score(x, alpha, sigma)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`."""
        return self.base.score_and_jacobian(x, alpha, sigma)

    @property
    def truth(self) -> Target:
        """What results are compared with."""
        return self.base

    def _law(self, alpha: Any, sigma: Any) -> tuple[Target, Any, Any]:
        """Target and level whose law is meant at a level."""
        return self.base, alpha, sigma

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.log_prob`."""
        law, alpha, sigma = self._law(alpha, sigma)
        return law.log_prob(x, alpha, sigma)

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Target.sample`."""
        law, alpha, sigma = self._law(alpha, sigma)
        return law.sample(n, alpha, sigma, generator=generator)

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Target.moments`."""
        law, alpha, sigma = self._law(alpha, sigma)
        return law.moments(alpha, sigma)

    def _line_components(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        law, alpha, sigma = self._law(alpha, sigma)
        return law._line_components(alpha, sigma)


class Scaled(Around):
    """The law of ``scale`` times a sample of ``base``.

    Parameters
    ----------
    base
        The target.
    scale
        A number > 0.

    Raises
    ------
    TypeError, ValueError
        For another scale.
    """

    def __init__(self, base: Target, scale: float) -> None:
        super().__init__(base)
        self.scale = check_real("scale", scale, "(0, inf)")

    @property
    def truth(self) -> Target:
        """Itself: a scaled law is another truth."""
        return self

    def _law(self, alpha: Any, sigma: Any) -> tuple[Target, Any, Any]:
        return self.base, self.scale * alpha, sigma

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        return self.base.score(x, self.scale * alpha, sigma)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`."""
        return self.base.score_and_jacobian(x, self.scale * alpha, sigma)


def correlated(line: Target, d: int, correlation: float = 0.0, *, decay: bool = False) -> Product:
    """A target of d dimensions with the law ``line``, scaled, along the axes of a correlation.

    Along its principal axes, which is how every sampler and measure of a :class:`Product` sees it:
    each coordinate is ``line`` times the root of an eigenvalue of the correlation matrix.

    Parameters
    ----------
    line
        A target on the line.
    d
        Dimension, >= 1.
    correlation
        c in [0, 1): between all coordinates, or with ``decay`` :math:`c^{|i - j|}` between i and j.

    Returns
    -------
    Product
        Of d factors.

    Raises
    ------
    TypeError, ValueError
        For a correlation or d out of range.
    """
    check_real("correlation", correlation, "[0, 1)")
    if d != int(d) or d < 1:
        raise ValueError(f"d: need a whole number >= 1, got {d}")
    d = int(d)
    if correlation == 0.0 or d == 1:
        return Product([line] * d)
    if not decay:  # the eigenvalue 1 - c is there d - 1 times
        small = Scaled(line, math.sqrt(1 - correlation))
        first = Scaled(line, math.sqrt(1 + correlation * (d - 1)))
        product = Product([first, *[small] * (d - 1)])
    else:
        index = np.arange(d)
        values = np.linalg.eigvalsh(correlation ** np.abs(index[:, None] - index))
        product = Product([Scaled(line, math.sqrt(value)) for value in values])
    product.name += f" (correlation {correlation:g}{', decaying' if decay else ''})"
    return product


def truth_of(target: Target) -> Target:
    """The :class:`Target` that one with something wrong is compared with; itself for others."""
    return target.truth if isinstance(target, Around) else target


class ScoreError(Around):
    r"""A target whose score is wrong by :math:`e(x) = u\,g(u^T x)`, with u = (1, ..., 1)/sqrt(d).

    The error is in the score of the scaled state :math:`x_t` and has the same size at every time:
    ``g = l2`` (a shift) without a Jacobian, and :math:`g(y) = \sqrt2\,l_2\sin(\omega y)` with
    :math:`\omega` = ``jacobian / l2`` otherwise. Where the law spreads over several waves,
    :math:`E|e|^2 = l_2^2` and :math:`E|\nabla e|^2` = ``jacobian`` squared; nowhere are they more
    than twice that.

    Parameters
    ----------
    base
        The truth.
    l2
        Size of the error, > 0.
    jacobian
        Size of its Jacobian, >= 0.

    Raises
    ------
    TypeError, ValueError
        For sizes out of range.
    """

    def __init__(self, base: Target, l2: float, jacobian: float = 0.0) -> None:
        super().__init__(base)
        self.l2 = check_real("l2", l2, "(0, inf)")
        self.jacobian = check_real("jacobian", jacobian, "[0, inf)")

    def error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Error of the score, (batch, d), and of its Jacobian, (batch, d, d), at states.

        Parameters
        ----------
        x
            As for :meth:`Target.score`.

        Returns
        -------
        tuple of Tensor
            Both float64.
        """
        flat = self._flat(x).double()
        u = torch.full((self.dim,), 1.0 / math.sqrt(self.dim), dtype=flat.dtype, device=flat.device)
        y = (flat @ u)[:, None]
        if self.jacobian == 0.0:
            size, slope = torch.full_like(y, self.l2), torch.zeros_like(y)
        else:
            wave = self.jacobian / self.l2
            size = math.sqrt(2.0) * self.l2 * torch.sin(wave * y)
            slope = math.sqrt(2.0) * self.jacobian * torch.cos(wave * y)
        return size * u, slope[..., None] * torch.outer(u, u)

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """As :meth:`Target.score`, and wrong."""
        right = self.base.score(x, alpha, sigma)
        return right + self.error(x)[0].to(x.dtype).reshape(x.shape)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """As :meth:`Target.score_and_jacobian`, of the wrong score."""
        score, jacobian = self.base.score_and_jacobian(x, alpha, sigma)
        wrong, slope = self.error(x)
        return score + wrong.to(x.dtype).reshape(x.shape), jacobian + slope


class OtherLaws(Around):
    """A target whose law at one or two noise levels is another; the score is right everywhere.

    Parameters
    ----------
    base
        The truth.
    normal_at
        Level (alpha, sigma) at which the law is N(0, I): a sampler that starts from pure noise.
    data_at
        Level at which the law is that of the data: a sampler that stops early and is compared with
        the data all the same.
    """

    def __init__(
        self,
        base: Target,
        normal_at: tuple[float, float] | None = None,
        data_at: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(base)
        self.normal_at, self.data_at = normal_at, data_at
        self._normal = Gaussian(np.zeros(base.dim), 1.0)

    def _law(self, alpha: Any, sigma: Any) -> tuple[Target, Any, Any]:
        if (alpha, sigma) == self.normal_at:
            return self._normal, 1.0, 0.0
        if (alpha, sigma) == self.data_at:
            return self.base, 1.0, 0.0
        return self.base, alpha, sigma
