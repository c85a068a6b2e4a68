r"""Distributions whose noised law is known exactly: score, log-density, samples, moments.

A target is the law of :math:`x_0`; each method takes ``alpha`` and ``sigma`` and speaks about
:math:`x = \alpha x_0 + \sigma \epsilon`. Both may be floats or tensors of shape (batch,). States
have shape (batch, d) or (batch, ...) with d elements a sample, and keep dtype and device; the
arithmetic is float64 whatever the dtype, because at small noise levels the score is the small
difference of large numbers.

All three targets are mixtures, and everything about them follows from the posterior mean
:math:`m = E[x_0 | x]` and covariance C: the score is :math:`(\alpha m - x)/\sigma^2` and its
Jacobian :math:`(\alpha^2 C/\sigma^2 - I)/\sigma^2` (Tweedie's formula, Robbins 1956, Efron 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.models import Model
from probflow.processes import Process

__all__ = ["Level", "Target"]

#: A noise level: a float, or a tensor of shape (batch,).
Level = Any


class Target:
    """Base of the targets: the law of :math:`x_0` in d dimensions, noised at any level.

    Attributes
    ----------
    dim : int
        d, the number of coordinates of a sample.
    name : str
        For tables.
    """

    dim: int
    name: str

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        r"""Score :math:`\nabla_x \ln p(x)` of the noised law.

        Parameters
        ----------
        x
            (batch, d), or (batch, ...) with d elements a sample.
        alpha, sigma
            The noise level: floats, or tensors of shape (batch,).

        Returns
        -------
        Tensor
            Shape and dtype of ``x``.

        Raises
        ------
        ValueError
            For another number of elements a sample.
        """
        raise NotImplementedError

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Log-density of the noised law, (batch,) in float64; arguments as :meth:`score`."""
        raise NotImplementedError

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """The score, as :meth:`score`, and its Jacobian, the Hessian of the log-density.

        Returns
        -------
        tuple
            Shape and dtype of ``x``, and (batch, d, d) in float64.
        """
        raise NotImplementedError

    def score_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The Jacobian alone, as :meth:`score_and_jacobian` has it."""
        return self.score_and_jacobian(x, alpha, sigma)[1]

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """Draws of the noised law.

        Parameters
        ----------
        n
            Their number.
        alpha, sigma
            The noise level; by default that of the data.
        generator
            Of the draws.

        Returns
        -------
        Tensor
            (n, d), float64, on the generator's device.
        """
        raise NotImplementedError

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of the law noised by floats alpha and sigma, float64."""
        raise NotImplementedError

    def model(self, process: Process, prediction: str = "eps") -> Model:
        """The exact model of this target for a process, in any prediction type.

        Parameters
        ----------
        process
            The noising process.
        prediction
            ``"eps"``, ``"x0"``, ``"v"``, ``"score"`` or ``"velocity"``.

        Returns
        -------
        Model
            Works in float64 whatever the dtype of its states.
        """
        return Model(_ExactEps(self, process), process, "eps").as_prediction(prediction)

    def flow(self, x: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
        """Exact probability-flow map of ``x`` from one level (alpha, sigma) to another.

        In one dimension the flow keeps the order of points, so it is the quantile coupling
        ``F_target^-1(F_source(x))``, solved here by bisection to the last bit, from the nearer
        tail. Normal laws have a closed form in any dimension.

        Parameters
        ----------
        x
            States of the noised law at ``source``.
        source, target
            Levels (alpha, sigma), floats.

        Returns
        -------
        Tensor
            Shape and dtype of ``x``.

        Raises
        ------
        ValueError
            For a target of several dimensions that is not Gaussian.
        """
        if self.dim != 1:
            raise ValueError(
                f"flow: {self.name} has {self.dim} dimensions; the exact flow is known in one "
                "dimension and for Gaussian targets"
            )
        flat = widened(self._flat(x))
        log_cdf, log_sf = self._log_tails(flat, *source)
        left = log_cdf < log_sf
        # The image is no more standard deviations away from every component than the point is.
        _, centres, stds = self._line_components(*source)
        furthest = 1.001 * ((flat - centres.to(flat)).abs() / stds.to(flat)).max()
        _, centres, stds = self._line_components(*target)
        low = torch.full_like(flat, float(centres.min() - furthest.cpu() * stds.max()))
        high = torch.full_like(flat, float(centres.max() + furthest.cpu() * stds.max()))
        for _ in range(80):
            middle = 0.5 * (low + high)
            cdf, sf = self._log_tails(middle, *target)
            below = torch.where(left, cdf < log_cdf, sf > log_sf)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high)).to(x.dtype).reshape(x.shape)

    def _log_tails(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Logs of P(X <= x) and P(X > x) in one dimension, shape of ``x`` (batch, 1)."""
        log_w, centres, stds = self._line_components(alpha, sigma)
        z = (x - centres.to(x.device)) / stds.to(x.device)
        weights = log_w.to(x.device)
        log_cdf = torch.logsumexp(weights + torch.special.log_ndtr(z), 1, keepdim=True)
        log_sf = torch.logsumexp(weights + torch.special.log_ndtr(-z), 1, keepdim=True)
        return log_cdf, log_sf

    def _line_components(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, centres and standard deviations of a 1-D mixture, (K,) float64."""
        raise NotImplementedError

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
        if flat.shape[1] != self.dim:
            raise ValueError(
                f"x: {self.name} has {self.dim} coordinates a sample, got shape {tuple(x.shape)}"
            )
        return flat


class _ExactEps(torch.nn.Module):
    """eps prediction of a target: ``-sigma score``."""

    def __init__(self, target: Target, process: Process) -> None:
        super().__init__()
        self.target, self.process = target, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        score = self.target.score(widened(x), alpha, sigma)
        return (-column(sigma, score.ndim) * score).to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """``x`` in float64 (in float32 where the device has no float64)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def column(level: Level, ndim: int) -> Level:
    """A tensor level in float64, (batch,) with trailing axes; floats as they are."""
    if not isinstance(level, Tensor):
        return level
    wide = widened(level)
    return wide.reshape(-1, *(1,) * (ndim - 1)) if level.ndim == 1 else wide
