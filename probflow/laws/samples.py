r"""Distances between sets of samples: for sanity, with the floor that finitely many samples have.

Two sets of n samples of one law are not at distance 0. What these distances say of a sampler ends
where they would say the same of exact samples, so each is reported beside that floor. Laws, where
they can be had, have none (:mod:`probflow.laws`).

All are biased upwards by the floor, none is negative, and for laws that differ by a small amount
each is of first order in it, as the total variation is. Each comes with its standard error: a
jackknife that leaves out a tenth of both sets at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SAMPLE_DISTANCES", "bandwidth", "directions", "energy", "frechet", "mmd", "sliced_w2"]

Distance = tuple[float, float]

#: Directions of the sliced distance, and of the test functions of the weak error.
DIRECTIONS = 64
_ROWS = 1024  # of a matrix of distances, at a time


def directions(dim: int, count: int = DIRECTIONS) -> Tensor:
    """Fixed unit vectors, (count, dim) float64; on the line there is one.

    Parameters
    ----------
    dim
        Dimension, >= 1.
    count
        How many, in two dimensions or more.

    Returns
    -------
    Tensor
        The same for every call.
    """
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    return normal / normal.norm(dim=1, keepdim=True)


def sliced_w2(x: Tensor, y: Tensor) -> Distance:
    r"""Sliced Wasserstein distance: root mean of W2 squared over projections on 64 directions.

    Rabin, Peyre, Delon, Bernot 2011. On the line it is W2 itself, and sorting is the coupling.

    Parameters
    ----------
    x, y
        (n, d) float64, as many of both, n >= 2.

    Returns
    -------
    tuple
        The distance and its standard error.
    """
    lines = directions(x.shape[1])

    def distance(a: Tensor, b: Tensor) -> float:
        gaps = a.sort(dim=0).values - b.sort(dim=0).values
        return float(gaps.square().mean().sqrt())

    return _left_out(distance, x @ lines.T, y @ lines.T)


def energy(x: Tensor, y: Tensor) -> Distance:
    r"""Root of the energy distance :math:`2E|X - Y| - E|X - X'| - E|Y - Y'|` (Szekely, Rizzo 2013).

    Means over all pairs, equal ones included, so that it is not negative.

    Parameters
    ----------
    x, y
        As for :func:`sliced_w2`.

    Returns
    -------
    tuple
        The distance and its standard error.
    """
    return _discrepancy(x, y, lambda distance: -distance)


def mmd(x: Tensor, y: Tensor, width: float) -> Distance:
    r"""Maximum mean discrepancy with the kernel :math:`e^{-|x - y|^2/(2 w^2)}`.

    Gretton, Borgwardt, Rasch, Schoelkopf, Smola 2012 (JMLR 13, 723-773), equation 5 (V-statistic).

    Parameters
    ----------
    x, y
        As for :func:`sliced_w2`.
    width
        w > 0; see :func:`bandwidth`.

    Returns
    -------
    tuple
        The distance and its standard error.
    """
    return _discrepancy(x, y, lambda distance: torch.exp(-0.5 * (distance / width) ** 2))


def bandwidth(x: Tensor) -> float:
    """Median distance between (the first 1 000) samples, the usual width of the kernel.

    Parameters
    ----------
    x
        (n, d), n >= 2.

    Returns
    -------
    float
        The median.
    """
    return float(torch.pdist(x[:1000]).median())


def frechet(x: Tensor, y: Tensor) -> Distance:
    r"""W2 of the normal laws with the samples' means and covariances (Dowson, Landau 1982).

    The distance of Heusel et al. 2017 (arXiv 1706.08500, FID), its root, in the coordinates of the
    states; an image's features are for the caller to take.

    Parameters
    ----------
    x, y
        As for :func:`sliced_w2`.

    Returns
    -------
    tuple
        The distance and its standard error.
    """
    return _left_out(_frechet, x, y)


def _frechet(x: Tensor, y: Tensor) -> float:
    (mean_x, root_x), (mean_y, _) = _moments(x), _moments(y)
    covariance = torch.cov(y.T).reshape(y.shape[1], -1)
    # tr (A^{1/2} B A^{1/2})^{1/2} is the sum of the singular values of B^{1/2} A^{1/2}.
    cross = torch.linalg.eigvalsh(root_x @ covariance @ root_x).clamp(min=0).sqrt().sum()
    spread = x.var(dim=0).sum() + y.var(dim=0).sum() - 2 * cross
    return math.sqrt(float((mean_x - mean_y).square().sum() + spread.clamp(min=0)))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and root of the covariance."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], -1))
    return x.mean(dim=0), (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _discrepancy(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> Distance:
    """Root of ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`` over all pairs, with its error.

    Sums over pairs of groups give the means without each group, too.
    """
    member = _groups(len(x)).to(x.dtype)

    def sums(a: Tensor, b: Tensor) -> Tensor:
        parts = zip(a.split(_ROWS), member.split(_ROWS), strict=True)
        return sum(m.T @ kernel(torch.cdist(part, b)) @ member for part, m in parts)

    total = sums(x, x) + sums(y, y) - sums(x, y) - sums(x, y).T
    sizes = member.sum(dim=0)
    # Pairs of which none is in group g: all, less row and column, plus what was taken off twice.
    left = total.sum() - total.sum(dim=0) - total.sum(dim=1) + total.diagonal()
    roots = (left / (len(x) - sizes) ** 2).clamp(min=0).sqrt()
    return math.sqrt(max(float(total.sum()), 0.0)) / len(x), _jackknife(roots)


def _left_out(distance: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> Distance:
    """A distance and its error, from the distances without each group."""
    rests = [group == 0 for group in _groups(len(x)).T]
    roots = x.new_tensor([distance(x[rest], y[rest]) for rest in rests])
    return distance(x, y), _jackknife(roots)


def _groups(n: int) -> Tensor:
    """Which of (up to) ten groups each sample is in, (n, groups) of 0 and 1."""
    return torch.nn.functional.one_hot(torch.arange(n) % min(10, n))


def _jackknife(left: Tensor) -> float:
    """Standard error of an estimate from its values without each group."""
    return float(((len(left) - 1) * left.var(correction=0)).sqrt())


#: Measures of a study: distances of samples from exact ones; ``mmd`` needs a width.
SAMPLE_DISTANCES: dict[str, Callable[..., Distance]] = {
    "sliced-w2": sliced_w2,
    "energy": energy,
    "mmd": mmd,
    "frechet": frechet,
}
