r"""Schedules of variance-preserving processes: :math:`B(t) = -\ln\bar\alpha(t)` and its inverse.

Everything works on floats, numpy arrays and torch tensors, in float64.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

__all__ = ["Array", "Cosine", "Discrete", "LinearRate", "namespace", "quiet", "softplus"]

Array = Any  # float, numpy array or torch tensor; what comes in is what goes out


def namespace(t: Array) -> tuple[Any, Array]:
    """Return (numpy or torch, ``t`` in float64)."""
    if isinstance(t, torch.Tensor):
        return torch, t.to(torch.float64) if t.device.type != "mps" else t
    return np, np.asarray(t, dtype=np.float64)[()]


def quiet(**kinds: Any) -> AbstractContextManager[None]:
    """``numpy.errstate``; nothing in a compiled graph, which knows no warnings of numpy's."""
    return nullcontext() if torch.compiler.is_compiling() else np.errstate(**kinds)


def softplus(x: Array) -> Array:
    """``ln(1 + e^x)`` without overflow, for floats, numpy arrays and tensors."""
    xp, x = namespace(x)
    with quiet(invalid="ignore"):  # NaN stays NaN
        return xp.logaddexp(x, xp.zeros_like(x))


class LinearRate:
    """``B = beta_min t + (beta_max - beta_min) t^2/2``, t in [0, 1]."""

    t_min, t_max = 0.0, 1.0

    def __init__(self, beta_min: float, beta_max: float) -> None:
        self._first, self._slope = beta_min, beta_max - beta_min

    def B(self, t: Array) -> Array:  # noqa: N802
        """Minus the logarithm of alphas_cumprod at time t."""
        return t * (self._first + 0.5 * self._slope * t)

    def dB(self, t: Array) -> Array:  # noqa: N802
        """The rate beta, slope of B."""
        return self._first + self._slope * t

    def t_of_B(self, value: Array) -> Array:  # noqa: N802
        """Time at which B is ``value``."""
        # The root of the quadratic in the form without cancellation.
        return 2.0 * value / (self._first + (self._first**2 + 2.0 * self._slope * value) ** 0.5)


class Cosine:
    """B = -2 ln(cos(angle)/cos(angle_0)), angle = angle_0 + rate t, angle(1) = pi/2."""

    t_min, t_max = 0.0, 1.0

    def __init__(self, s: float) -> None:
        self._s, self._rate = s, 0.5 * math.pi / (1.0 + s)
        self._sin, self._cos = math.sin(self._rate * s), math.cos(self._rate * s)

    def B(self, t: Array) -> Array:  # noqa: N802
        """Minus the logarithm of alphas_cumprod at time t."""
        xp, t = namespace(t)
        turn = self._rate * t
        # cos(angle)/cos(angle_0) - 1, exact for small turns; near t = 1 the plain logarithm of
        # cos(angle) = sin(rate (1 - t)) is the exact one.
        ratio_minus_1 = -2.0 * xp.sin(0.5 * turn) ** 2 - self._sin / self._cos * xp.sin(turn)
        early = xp.log1p(xp.where(t < 0.5, ratio_minus_1, 0.0 * t))
        cosine = xp.sin(self._rate * (1.0 - t))
        with quiet(divide="ignore"):
            late = xp.log(xp.where(t < 0.5, 0.0 * t + 1.0, cosine)) - math.log(self._cos)
        return -2.0 * xp.where(t < 0.5, early, late)

    def dB(self, t: Array) -> Array:  # noqa: N802
        """The rate beta, slope of B."""
        xp, t = namespace(t)
        # tan(angle), near t = 1 as the cotangent of the complement.
        early = xp.tan(self._rate * (self._s + xp.where(t < 0.5, t, 0.0 * t)))
        with quiet(divide="ignore"):
            late = 1.0 / xp.tan(self._rate * xp.where(t < 0.5, 0.0 * t + 0.5, 1.0 - t))
        return 2.0 * self._rate * xp.where(t < 0.5, early, late)

    def t_of_B(self, value: Array) -> Array:  # noqa: N802
        """Time at which B is ``value``."""
        xp, value = namespace(value)
        cosine = self._cos * xp.exp(-0.5 * value)
        gap = -(self._cos**2) * xp.expm1(-value)  # sin(angle)^2 - sin(angle_0)^2
        sine = (self._sin**2 + gap) ** 0.5
        # gap = sin(angle + angle_0) sin(angle - angle_0): the small turn without cancellation.
        sin_turn = gap / (sine * self._cos + cosine * self._sin)
        cos_turn = cosine * self._cos + sine * self._sin
        return xp.arctan2(sin_turn, cos_turn) / self._rate


class Discrete:
    """B at whole times first, first + 1, ...; the log-SNR between them by a monotone cubic."""

    def __init__(self, values: np.ndarray, first: int) -> None:
        self.t_min, self.t_max = float(first), float(first + len(values) - 1)
        self._lambda = -0.5 * (values + np.log(-np.expm1(-values)))
        knots = np.arange(len(values)) + self.t_min
        self._coefficients = PchipInterpolator(knots, self._lambda).c  # (4, N - 1), high first
        self._tables: dict[torch.device, torch.Tensor] = {}

    def _cubic(self, t: Array) -> tuple[Array, Array]:
        """Log-SNR and its slope at time(s) t."""
        xp, t = namespace(t)
        shifted = t - self.t_min
        last = self._coefficients.shape[1] - 1
        if xp is torch:
            if t.device not in self._tables:
                self._tables[t.device] = torch.as_tensor(self._coefficients, device=t.device)
            index = shifted.floor().clamp(0, last).long()
            table = self._tables[t.device]
        else:
            index = np.clip(np.floor(shifted), 0, last).astype(np.int64)
            table = self._coefficients
        c3, c2, c1, c0 = (row[index] for row in table)
        u = shifted - index
        return c0 + u * (c1 + u * (c2 + u * c3)), c1 + u * (2.0 * c2 + u * 3.0 * c3)

    def B(self, t: Array) -> Array:  # noqa: N802
        """Minus the logarithm of alphas_cumprod at time t."""
        return softplus(-2.0 * self._cubic(t)[0])

    def dB(self, t: Array) -> Array:  # noqa: N802
        """The rate beta, slope of B."""
        lambda_, slope = self._cubic(t)
        return -2.0 * slope * namespace(lambda_)[0].exp(-softplus(2.0 * lambda_))

    def t_of_B(self, value: Array) -> Array:  # noqa: N802
        """Time at which B is ``value``."""
        if isinstance(value, torch.Tensor):
            host = value.detach().cpu().numpy()
            return torch.as_tensor(self.t_of_B(host), device=value.device)
        with np.errstate(divide="ignore"):
            target = -0.5 * (value + np.log(-np.expm1(-value)))
        # Bracket between two training times, then bisect: exact at the ends, 60 halvings.
        index = np.clip(
            np.searchsorted(-self._lambda, -target, side="right") - 1, 0, len(self._lambda) - 2
        )
        low, high = index + self.t_min, index + 1 + self.t_min
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self._cubic(middle)[0] > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        knots = np.arange(len(self._lambda)) + self.t_min
        result = 0.5 * (low + high)
        nearest = np.clip(np.rint(result - self.t_min), 0, len(knots) - 1).astype(np.int64)
        with np.errstate(invalid="ignore"):
            gap = np.abs(self._lambda[nearest] - target)
            slack = np.minimum(np.maximum(1.0, np.abs(target)), 100.0)
            result = np.where(gap <= 1e-14 * slack, knots[nearest], result)
            # Beyond the first and the last training time there is no time to name.
            inside = (target <= self._lambda[0] + 1e-12 * slack) & (
                target >= self._lambda[-1] - 1e-12 * slack
            )
        return np.where(inside, result, math.nan)[()]
