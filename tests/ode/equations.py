"""Equations with known solutions, for the tests of this folder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DOUBLE = torch.float64


def rotation(t: Tensor, y: Tensor) -> Tensor:
    """y' = (1 + t) A y, a rotation by t + t^2/2; y has shape (..., 2)."""
    rate = (1 + t).reshape(-1, *(1,) * (y.ndim - 1)) if t.ndim else 1 + t
    return rate * torch.stack((-y[..., 1], y[..., 0]), -1)


def rotated(y0: Tensor, t: float, t0: float = 0.0) -> Tensor:
    """Exact solution of :func:`rotation`."""
    angle = t + t * t / 2 - (t0 + t0 * t0 / 2)
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack((c * y0[..., 0] - s * y0[..., 1], s * y0[..., 0] + c * y0[..., 1]), -1)


def logistic(t: Tensor, y: Tensor) -> Tensor:
    """y' = cos(t) y (1 - y)."""
    rate = torch.cos(t).reshape(-1, *(1,) * (y.ndim - 1)) if t.ndim else torch.cos(t)
    return rate * y * (1 - y)


def logistic_solution(y0: Tensor, t: float, t0: float = 0.0) -> Tensor:
    """Exact solution of :func:`logistic`."""
    growth = math.exp(math.sin(t) - math.sin(t0))
    return y0 * growth / (1 - y0 + y0 * growth)
