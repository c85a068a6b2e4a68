r"""States of a Brownian motion on an interval, and how they split, join and extend.

The state of [a, b], h = b - a, is the increment W, or the pair (W, H) with the space-time Levy area

.. math:: H = \frac1h \int_a^b \Bigl(W_s - W_a - \frac{s - a}{h} (W_b - W_a)\Bigr)\, ds,

independent of W, with variance h/12 (Foster, Oberhauser, Lyons 2020, arXiv 1910.09203).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["State", "inside", "join", "levy_area", "split", "spread", "without"]

State = tuple[Tensor, ...]  # (W,) or (W, H) of an interval


def spread(h: float, r: float, parts: int) -> float:
    """Variance of the normals that :func:`split` takes for states of so many parts.

    Parameters
    ----------
    h
        Length of the interval, > 0.
    r
        Where it is cut, in (0, 1).
    parts
        1 for W alone, 2 for W and H.

    Returns
    -------
    float
        The variance.
    """
    q = 1.0 - r
    return h * r * q / (1.0 - 3.0 * r * q) if parts == 2 else h * r * q


def split(state: State, r: float, z: State, own: bool = False) -> tuple[State, State]:
    """States of both parts of an interval of length h, cut at r*h, 0 < r < 1.

    Their law given the whole: W_i and H_i are independent with variances h_i and h_i/12, and the
    whole is their linear combination :func:`join`.

    Parameters
    ----------
    state
        Of the whole.
    r
        Where it is cut.
    z
        As many independent normals with the variance :func:`spread`.
    own
        Whether the left part is written in the memory of the normals, and the right one in that
        of the state; otherwise both are in new memory.

    Returns
    -------
    tuple of State
        Left and right part, of the state's shapes.
    """
    q = 1.0 - r
    if len(state) == 1:
        (w,), (z_left,) = state, z
        left = torch.add(z_left, w, alpha=r, out=z_left if own else None)
        return (left,), (torch.sub(w, left, out=w if own else None),)
    (w, area), (swing, twist) = state, z
    d = 1.0 - 3.0 * r * q  # = r^3 + q^3
    twist = torch.mul(twist, 1.0 / math.sqrt(12.0), out=twist if own else None)
    right_area = (q**2 * area).add_(swing, alpha=-0.5 * q**2).add_(twist, alpha=-r)
    twist.mul_(q).add_(area, alpha=r**2).add_(swing, alpha=-0.5 * r**2)
    swing = torch.mul(swing, d, out=swing if own else None).add_(area, alpha=6.0 * r * q)
    left = torch.add(swing, w, alpha=r)
    if not own:
        return (left, twist), (swing.neg_().add_(w, alpha=q), right_area)
    torch.add(swing.neg_(), w, alpha=q, out=w)
    swing.copy_(left)
    area.copy_(right_area)
    return z, state


def join(left: State, right: State, h_left: float, h_right: float) -> State:
    """State of two neighbouring intervals together.

    Parameters
    ----------
    left, right
        Their states, W or W and H.
    h_left, h_right
        Their lengths, > 0.

    Returns
    -------
    State
        Of as many parts, the same shapes.
    """
    w = left[0] + right[0]
    if len(left) == 1:
        return (w,)
    r, q = h_left / (h_left + h_right), h_right / (h_left + h_right)
    area = (r * left[1]).add_(right[1], alpha=q)
    return w, area.add_(left[0], alpha=0.5 * q).sub_(right[0], alpha=0.5 * r)


def without(whole: State, left: State, h: float, h_left: float) -> State:
    """State of the right part: the inverse of :func:`join`.

    Parameters
    ----------
    whole, left
        States of the whole and of its left part.
    h, h_left
        Their lengths, 0 < h_left < h.

    Returns
    -------
    State
        Of as many parts, the same shapes.
    """
    w = whole[0] - left[0]
    if len(whole) == 1:
        return (w,)
    r, q = h_left / h, (h - h_left) / h
    area = (whole[1] - r * left[1]).sub_(left[0], alpha=0.5 * q).add_(w, alpha=0.5 * r)
    return w, area / q


def inside(state: State, h: float, lo: float, hi: float, z: State) -> State:
    """State of the part from lo*h to hi*h of a leaf of length h with unit normals z.

    Parameters
    ----------
    state
        Of the leaf.
    h
        Its length.
    lo, hi
        Where the part begins and ends, 0 <= lo < hi <= 1, not the whole.
    z
        As many unit normals as the state has parts.

    Returns
    -------
    State
        Of as many parts, the same shapes.
    """

    def cut(r: float) -> tuple[State, State]:
        std = math.sqrt(spread(h, r, len(state)))
        return split(state, r, tuple(part * std for part in z))

    if hi == 1.0:
        return cut(lo)[1]
    upper = cut(hi)[0]
    return without(upper, cut(lo)[0], hi * h, lo * h) if lo else upper


def levy_area(state: State, h: float, z: Tensor, every: bool) -> Tensor:
    """Levy area A (..., m, m) given W and H (..., m), from unit normals z (..., m, m).

    Its mean is exact. So is the variance, h^2/20 + h (H_i^2 + H_j^2)/5, for ``every`` H (Foster);
    otherwise it is the average over H, h^2/12 (Davie).

    Parameters
    ----------
    state
        W and H, each (..., m).
    h
        Length of the interval.
    z
        Unit normals, (..., m, m).
    every
        Whether the variance is right for every H.

    Returns
    -------
    Tensor
        (..., m, m), antisymmetric.
    """
    w, area = state
    if every:
        square = area**2
        # Half the variance: z - z^T has variance 2.
        half = (square[..., None] + square[..., None, :] + h / 4).mul_(h / 10)
        std: Any = half.sqrt_()
    else:
        std = h / math.sqrt(24.0)
    outer = area[..., None] * w[..., None, :]
    return outer - outer.mT + std * (z - z.mT)
