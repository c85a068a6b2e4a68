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

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.models import Model
from probflow.processes import Process

__all__ = ["Empirical", "Gaussian", "GaussianMixture", "Target"]

Level = Any  # float, or tensor of shape (batch,)


class Target:
    """Base of the targets; ``dim`` is the number d of coordinates of a sample.

    States are (batch, d) or (batch, ...) with d elements a sample; another number of elements is a
    ``ValueError``. Noise levels are floats, or tensors of shape (batch,) where a state is given.
    """

    dim: int
    name: str

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        r"""Score :math:`\nabla_x \ln p(x)` of the noised law; same shape as ``x``."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Log-density of the noised law, shape (batch,), float64."""
        raise NotImplementedError

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """Score, and its Jacobian (the Hessian of the log-density): (batch, d, d), float64."""
        raise NotImplementedError

    def score_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Jacobian of the score alone, shape (batch, d, d)."""
        return self.score_and_jacobian(x, alpha, sigma)[1]

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """Draws of the noised law: (n, d), float64, on the generator's device."""
        raise NotImplementedError

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of the noised law, float64."""
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
        flat = _widened(self._flat(x))
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
        score = self.target.score(_widened(x), alpha, sigma)
        return (-_column(sigma, score.ndim) * score).to(x.dtype)


def _widened(x: Tensor) -> Tensor:
    """``x`` in float64 (in float32 where the device has no float64)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _column(level: Level, ndim: int) -> Level:
    """A tensor level in float64, (batch,) with trailing axes; floats as they are."""
    if not isinstance(level, Tensor):
        return level
    wide = _widened(level)
    return wide.reshape(-1, *(1,) * (ndim - 1)) if level.ndim == 1 else wide


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
        """Log joint (b, K), residuals and variances (b, K, d) in each component's eigenbasis."""
        x = _widened(self._flat(x))
        p = self._on(x)
        a, s = _column(alpha, 3), _column(sigma, 3)
        residual = x[:, None, :] - a * p["mu"]
        if "basis" in p:
            residual = torch.einsum("bkd,kde->bke", residual, p["basis"])
        variance = (a * a * p["var"] + s * s).expand_as(residual)
        quad = (residual**2 / variance + torch.log(2 * math.pi * variance)).sum(-1)
        return p["log_w"] - 0.5 * quad, residual, variance

    def _component_scores(self, residual: Tensor, variance: Tensor) -> Tensor:
        scores, p = -residual / variance, self._on(residual)
        return torch.einsum("bke,kde->bkd", scores, p["basis"]) if "basis" in p else scores

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.score`."""
        log_joint, residual, variance = self._components(x, alpha, sigma)
        posterior = torch.softmax(log_joint, dim=1)
        scores = self._component_scores(residual, variance)
        return torch.einsum("bk,bkd->bd", posterior, scores).to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """See :meth:`Target.log_prob`."""
        return torch.logsumexp(self._components(x, alpha, sigma)[0], dim=1)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """See :meth:`Target.score_and_jacobian`."""
        log_joint, residual, variance = self._components(x, alpha, sigma)
        posterior = torch.softmax(log_joint, dim=1)
        scores = self._component_scores(residual, variance)
        mean = torch.einsum("bk,bkd->bd", posterior, scores)
        centred = scores - mean[:, None, :]
        spread = torch.einsum("bkd,bke->bde", posterior[..., None] * centred, centred)
        basis = self._on(mean).get("basis")
        if basis is None:
            curvature = torch.diag_embed(torch.einsum("bk,bkd->bd", posterior, 1 / variance))
        else:
            inverse = posterior[..., None] / variance
            curvature = torch.einsum("kde,bke,kfe->bdf", basis, inverse, basis)
        return mean.to(x.dtype).reshape(x.shape), spread - curvature

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


class Gaussian(GaussianMixture):
    """Normal law with mean (d,) and covariance: a variance, (d,) variances or a (d, d) matrix.

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
        """Exact probability-flow map of ``x`` (batch, d) between levels (alpha, sigma)."""
        wide = _widened(self._flat(x))
        p = self._on(wide)
        (a, s), (a2, s2) = source, target
        centred = wide - a * p["mu"]
        factor = ((a2 * a2 * p["var"] + s2 * s2) / (a * a * p["var"] + s * s)).sqrt()[0]
        if "basis" in p:
            moved = (centred @ p["basis"][0] * factor) @ p["basis"][0].T
        else:
            moved = centred * factor
        return (moved + a2 * p["mu"]).to(x.dtype).reshape(x.shape)


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
        a, s = _column(alpha, 2), _column(sigma, 2)
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
        a, s = _column(alpha, 2), _column(sigma, 2)
        return ((a * mean - _widened(self._flat(x))) / (s * s)).to(x.dtype).reshape(x.shape)

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
        a, s = _column(alpha, 3), _column(sigma, 3)
        identity = torch.eye(self.dim, dtype=torch.float64, device=x.device)
        jacobian = (a * a * second / (s * s) - identity) / (s * s)
        a, s = _column(alpha, 2), _column(sigma, 2)
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
