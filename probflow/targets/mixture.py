"""Normal laws and mixtures of them."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.targets.base import Level, Target, column, widened

__all__ = ["Gaussian", "GaussianMixture"]


class GaussianMixture(Target):
    """Mixture of K normal laws in d dimensions.

    Parameters
    ----------
    weights
        (K,) positive. Only their ratios count: [1, 2] is [1/3, 2/3].
    means
        (K,) for d = 1, or (K, d).
    covariances
        (K,) one variance a component, (K, d) diagonals, or (K, d, d) full matrices. Give either
        this or ``stds``.
    stds
        (K,) or (K, d) standard deviations, >= 0.

    Raises
    ------
    ValueError
        For shapes that do not fit, weights that are not positive, or covariances that are not
        symmetric positive semi-definite.
    """

    def __init__(
        self, weights: Any, means: Any, covariances: Any = None, *, stds: Any = None
    ) -> None:
        w = np.atleast_1d(np.asarray(weights, dtype=np.float64))
        mu = np.asarray(means, dtype=np.float64)
        mu = mu[:, None] if mu.ndim == 1 else mu
        if w.ndim != 1 or not (w > 0).all() or not np.isfinite(w).all():
            raise ValueError(f"weights: need positive numbers of shape (K,), got {weights!r}")
        if not np.isfinite(mu).all():
            raise ValueError("means: must be finite, got NaN or infinite values")
        if mu.ndim != 2 or len(mu) != len(w):
            raise ValueError(f"means: need shape (K,) or (K, d) with K = {len(w)}, got {mu.shape}")
        if (covariances is None) == (stds is None):
            raise ValueError("covariances, stds: give exactly one of them")
        if stds is not None:
            deviations = np.asarray(stds, dtype=np.float64)
            if not (deviations >= 0).all():
                raise ValueError(f"stds: need numbers >= 0, got {stds!r}")
            covariances = deviations**2
        cov = np.asarray(covariances, dtype=np.float64)
        K, d = mu.shape
        name = "covariances" if stds is None else "stds"
        shapes = [(K,), (K, d)] + ([(K, d, d)] if stds is None else [])
        if cov.shape not in shapes:
            allowed = " or ".join(str(shape) for shape in shapes)
            raise ValueError(f"{name}: need shape {allowed}, got {cov.shape}")
        if cov.ndim == 3:
            if not np.allclose(cov, cov.transpose(0, 2, 1), atol=1e-12 * np.abs(cov).max()):
                raise ValueError("covariances: full matrices must be symmetric")
            variances, basis = np.linalg.eigh(cov)
        else:
            variances, basis = np.broadcast_to(cov.reshape(K, -1), (K, d)), None
        if not (variances >= -1e-12 * np.abs(variances).max()).all():
            raise ValueError("covariances: must be positive semi-definite")
        self.dim, self.name = d, f"gaussian-mixture-{d}d"
        self._parameters64 = {
            "log_w": torch.tensor(np.log(w / w.sum())),
            "mu": torch.tensor(mu),
            "var": torch.tensor(np.maximum(variances, 0.0)),
        }
        if basis is not None:
            self._parameters64["basis"] = torch.tensor(basis)
        self._cache: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    def _on(self, x: Tensor) -> dict[str, Tensor]:
        key = (x.dtype, x.device)
        if key not in self._cache:
            self._cache[key] = {k: v.to(x) for k, v in self._parameters64.items()}
        return self._cache[key]

    def _components(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint (K, b), residuals (K, b, d) and variances, in each component's eigenbasis.

        Variances are (K, 1, d) where all samples are of one noise level.
        """
        x = widened(self._flat(x))
        p = self._on(x)
        a, s = column(alpha, 2), column(sigma, 2)
        residual = x - a * p["mu"][:, None]
        if "basis" in p:
            residual = residual @ p["basis"]
        variance = a * a * p["var"][:, None] + s * s
        quad = (residual**2 / variance).sum(2) + torch.log(2 * math.pi * variance).sum(2)
        return p["log_w"][:, None] - 0.5 * quad, residual, variance

    def _component_scores(self, residual: Tensor, variance: Tensor) -> Tensor:
        scores, p = -residual / variance, self._on(residual)
        return scores @ p["basis"].transpose(1, 2) if "basis" in p else scores

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        log_joint, residual, variance = self._components(x, alpha, sigma)
        scores = self._component_scores(residual, variance)
        return _total(_posterior(log_joint) * scores).to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.log_prob`."""
        return torch.logsumexp(self._components(x, alpha, sigma)[0], dim=0)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`."""
        log_joint, residual, variance = self._components(x, alpha, sigma)
        posterior = _posterior(log_joint)
        scores = self._component_scores(residual, variance)
        mean = _total(posterior * scores)
        centred, inverse = scores - mean, posterior / variance
        basis = self._on(mean).get("basis")
        if self.dim == 1:
            jacobian = _total(posterior * centred**2 - inverse)[:, :, None]
        else:
            jacobian = torch.einsum("kbd,kbe->bde", posterior * centred, centred)
            if basis is None:
                jacobian = jacobian - torch.diag_embed(_total(inverse))
            else:
                jacobian = jacobian - torch.einsum("kde,kbe,kfe->bdf", basis, inverse, basis)
        return mean.to(x.dtype).reshape(x.shape), jacobian

    def _line_components(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        p = self._parameters64
        variance = alpha * alpha * p["var"][:, 0] + sigma * sigma
        return p["log_w"], alpha * p["mu"][:, 0], variance.sqrt()

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Target.sample`."""
        device = generator.device
        p = {k: v.to(device) for k, v in self._parameters64.items()}
        which = torch.multinomial(p["log_w"].exp(), n, replacement=True, generator=generator)
        normal = torch.randn(n, self.dim, dtype=torch.float64, device=device, generator=generator)
        offset = (alpha * alpha * p["var"] + sigma * sigma).sqrt()[which] * normal
        if "basis" in p:
            offset = torch.einsum("nde,ne->nd", p["basis"][which], offset)
        return alpha * p["mu"][which] + offset

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Target.moments`."""
        w, mu, cov = self.weights, self.means, self.covariances
        mean = w @ mu
        centred = mu - mean
        full = np.einsum("k,kde->de", w, cov) + np.einsum("k,kd,ke->de", w, centred, centred)
        return alpha * mean, alpha**2 * full + sigma**2 * np.eye(self.dim)

    @property
    def weights(self) -> np.ndarray:
        """Component weights, (K,)."""
        return self._parameters64["log_w"].exp().numpy()

    @property
    def means(self) -> np.ndarray:
        """Component means, (K, d)."""
        return self._parameters64["mu"].numpy()

    @property
    def covariances(self) -> np.ndarray:
        """Component covariances as full matrices, (K, d, d)."""
        variances = self._parameters64["var"].numpy()
        basis = self._parameters64.get("basis")
        if basis is None:
            return variances[:, :, None] * np.eye(self.dim)
        q = basis.numpy()
        return np.einsum("kde,ke,kfe->kdf", q, variances, q)


# What belongs to components comes first, (K, b, ...): neighbours in memory are then summed apart,
# which is much faster than sums over a short last dimension.


def _posterior(log_joint: Tensor) -> Tensor:
    """Probabilities of the components, (K, b, 1), from log joints (K, b)."""
    joint = (log_joint - log_joint.amax(0)).exp()
    return (joint / _total(joint))[:, :, None]


def _total(terms: Tensor) -> Tensor:
    """Sum over components, one after the other: the same for a sample in any batch.

    ``Tensor.sum`` and ``softmax`` add in another order where few samples are left over.
    """
    return reduce(torch.add, terms.unbind(0))


class Gaussian(GaussianMixture):
    """Normal law in d dimensions.

    Parameters
    ----------
    mean
        (d,), or a number for d = 1.
    covariance
        A variance, (d,) variances or a (d, d) matrix.

    Raises
    ------
    ValueError
        As :class:`GaussianMixture`.
    """

    def __init__(self, mean: Any, covariance: Any) -> None:
        mu = np.atleast_1d(np.asarray(mean, dtype=np.float64))
        cov = np.asarray(covariance, dtype=np.float64)
        super().__init__([1.0], mu[None], cov[None])
        self.name = f"gaussian-{self.dim}d"

    def flow(self, x: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
        """As :meth:`Target.flow`, in closed form and in any dimension."""
        wide = widened(self._flat(x))
        p = self._on(wide)
        (a, s), (a2, s2) = source, target
        centred = wide - a * p["mu"]
        factor = ((a2 * a2 * p["var"] + s2 * s2) / (a * a * p["var"] + s * s)).sqrt()[0]
        if "basis" in p:
            moved = (centred @ p["basis"][0] * factor) @ p["basis"][0].T
        else:
            moved = centred * factor
        return (moved + a2 * p["mu"]).to(x.dtype).reshape(x.shape)
