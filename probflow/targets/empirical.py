"""The law of a data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.targets.base import Level, Target, column, widened

__all__ = ["Empirical"]


class Empirical(Target):
    """The empirical law of a data set: noised, one normal component per data point.

    The exact score needs no training. Data are visited in chunks, so 60 000 points of 3 072
    float32 numbers with a batch of 64 take well under 2 GiB; squared distances are taken in
    float64, which keeps small noise levels (down to sigma of about 1e-5) right.

    Parameters
    ----------
    data
        (N, d) or (N, ...) tensor or array, floating point (integers are converted to float32).

    Raises
    ------
    ValueError
        If there are no data, or they are not finite or not real.
    """

    chunk_elements = 2**23  # float64 numbers held at a time, about 64 MiB

    def __init__(self, data: Any, name: str = "empirical") -> None:
        tensor = data.detach() if isinstance(data, Tensor) else torch.as_tensor(np.asarray(data))
        if tensor.is_complex():
            raise ValueError(f"data: need real numbers, got {tensor.dtype}")
        tensor = tensor if tensor.is_floating_point() else tensor.to(torch.float32)
        if tensor.ndim < 1 or tensor.numel() == 0:
            raise ValueError(f"data: need at least one sample, got shape {tuple(tensor.shape)}")
        self.data = tensor.reshape(len(tensor), -1)
        if not all(bool(torch.isfinite(c).all()) for c in self.data.split(4096)):
            raise ValueError("data: must be finite, got NaN or infinite values")
        self.shape = tuple(tensor.shape[1:])
        self.dim, self.name = self.data.shape[1], name
        self._norms = torch.cat([c.double().square().sum(1) for c in self.data.split(4096)])

    def _to(self, x: Tensor) -> None:
        if self.data.device != x.device:
            self.data, self._norms = self.data.to(x.device), self._norms.to(x.device)

    def _chunks(self, x: Tensor, alpha: Level, sigma: Level) -> Any:
        """Yield data (n, d) and log joint up to a constant in x (batch, n), both float64."""
        self._to(x)
        flat = self._flat(x).double()
        a, s = column(alpha, 2), column(sigma, 2)
        own = flat.square().sum(1, keepdim=True)
        size = max(1, self.chunk_elements // (len(flat) + self.dim))
        for start in range(0, len(self.data), size):
            chunk = self.data[start : start + size].double()
            cross = flat @ chunk.T
            square = own - 2 * a * cross + a * a * self._norms[start : start + size]
            yield chunk, square / (-2 * s * s)

    def _posterior(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """Log-sum of the joint (batch,) and posterior mean of x_0 (batch, d), both float64."""
        top = torch.full((len(self._flat(x)), 1), -math.inf, dtype=torch.float64, device=x.device)
        total, mean = torch.zeros_like(top), 0.0
        for chunk, logits in self._chunks(x, alpha, sigma):
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights, shrink = (logits - new_top).exp(), (top - new_top).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            mean = mean * shrink + weights @ chunk
            top = new_top
        return (top + total.log())[:, 0], mean / total

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        mean = self._posterior(x, alpha, sigma)[1]
        a, s = column(alpha, 2), column(sigma, 2)
        return ((a * mean - widened(self._flat(x))) / (s * s)).to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.log_prob`; float64."""
        log_sum = self._posterior(x, alpha, sigma)[0]
        log_sigma = sigma.double().log() if isinstance(sigma, Tensor) else math.log(sigma)
        constant = math.log(len(self.data)) + 0.5 * self.dim * math.log(2 * math.pi)
        return log_sum - constant - self.dim * log_sigma

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`; the Jacobian is float64."""
        log_sum, mean = self._posterior(x, alpha, sigma)
        second = torch.zeros(len(mean), self.dim, self.dim, dtype=torch.float64, device=x.device)
        for chunk, logits in self._chunks(x, alpha, sigma):
            weights = (logits - log_sum[:, None]).exp()
            for b, row in enumerate(weights):
                near = row > 1e-18  # few points matter at small noise
                centred = chunk[near] - mean[b]
                second[b] += (centred * row[near, None]).T @ centred
        a, s = column(alpha, 3), column(sigma, 3)
        identity = torch.eye(self.dim, dtype=torch.float64, device=x.device)
        jacobian = (a * a * second / (s * s) - identity) / (s * s)
        a, s = column(alpha, 2), column(sigma, 2)
        score = (a * mean - self._flat(x).double()) / (s * s)
        return score.to(x.dtype).reshape(x.shape), jacobian

    def _line_components(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        centres = alpha * self.data[:, 0].cpu().double()
        log_w = torch.full_like(centres, -math.log(len(centres)))
        return log_w, centres, torch.full_like(centres, sigma)

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Target.sample`."""
        device = generator.device
        which = torch.randint(len(self.data), (n,), generator=generator, device=device)
        normal = torch.randn(n, self.dim, dtype=torch.float64, device=device, generator=generator)
        return alpha * self.data.to(device)[which].double() + sigma * normal

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Target.moments`."""
        chunks = self.data.split(4096)
        mean = sum(c.double().sum(0) for c in chunks) / len(self.data)
        second = sum((c.double() - mean).T @ (c.double() - mean) for c in chunks)
        cov = (second / len(self.data)).cpu().numpy()
        return alpha * mean.cpu().numpy(), alpha**2 * cov + sigma**2 * np.eye(self.dim)
