r"""Gaussian noising processes :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`.

Every method takes a float, a numpy array or a torch tensor of times (or of log-SNRs) and returns
the same kind, computed in float64. Formulas avoid ``1 - exp(-x)`` and differences of logarithms,
so that ``alpha``, ``sigma`` and the log-SNR keep a relative accuracy of about 1e-14 at both ends.

The log-SNR here is :math:`\lambda = \ln(\alpha/\sigma)`, the convention of DPM-Solver (Lu et al.
2022); it increases from noise to data. ``ab`` (alphas_cumprod) is
:math:`\bar\alpha = \alpha^2/(\alpha^2+\sigma^2)`, which makes sense for every process.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from probflow.schedules import Array, Cosine, Discrete, LinearRate, namespace, quiet, softplus
from probflow.words import check_whole

__all__ = ["EDM", "VE", "VP", "FlowMatching", "Process"]


class Process:
    """A noising process; subclasses give ``alpha``, ``sigma``, their slopes and the log-SNR.

    Functions of time take a float, an array or a tensor of any shape and return the same kind, in
    float64. They do not look whether times lie in ``[t_min, t_max]``: :meth:`check_times` does.

    Attributes
    ----------
    t_min, t_max : float
        The process is defined on this closed interval; ``t`` grows from data to noise.
    start, end : float
        Where sampling starts and ends unless a grid says otherwise (``start > end``).
    default_grid : str
        Kind of grid that sampling uses unless told otherwise.
    """

    t_min: float
    t_max: float
    start: float
    end: float
    default_grid = "log-snr"

    def alpha(self, t: Array) -> Array:
        """Signal factor at time ``t``, in [0, 1]."""
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        """Noise standard deviation at time ``t``, >= 0."""
        raise NotImplementedError

    def dalpha(self, t: Array) -> Array:
        """Time derivative of ``alpha``."""
        raise NotImplementedError

    def dsigma(self, t: Array) -> Array:
        """Time derivative of ``sigma``."""
        raise NotImplementedError

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``ln(alpha/sigma)``; infinite where ``sigma = 0``."""
        raise NotImplementedError

    def t(self, lambda_: Array) -> Array:
        """Time at which the log-SNR is ``lambda_``: the inverse of :meth:`lambda_`."""
        raise NotImplementedError

    def drift(self, t: Array) -> Array:
        r"""Linear drift ``f`` of the forward SDE :math:`dx = f(t) x\,dt + g(t)\,dW`."""
        with quiet(divide="ignore"):
            return self.dalpha(t) / self.alpha(t)

    def diffusion(self, t: Array) -> Array:
        r"""Diffusion: :math:`g^2 = 2\sigma(\sigma' - f\sigma)` (Kingma et al. 2021, eq. 4)."""
        sigma = self.sigma(t)
        return (2.0 * sigma * (self.dsigma(t) - self.drift(t) * sigma)) ** 0.5

    def neg_log_ab(self, t: Array) -> Array:
        r""":math:`-\ln\bar\alpha = \ln(1 + e^{-2\lambda})`, from 0 (data) upwards (noise)."""
        return softplus(-2.0 * self.lambda_(t))

    def ab(self, t: Array) -> Array:
        r"""``alphas_cumprod`` :math:`\bar\alpha = \alpha^2/(\alpha^2+\sigma^2)` at time ``t``."""
        value = self.neg_log_ab(t)
        return namespace(value)[0].exp(-value)

    def t_of_neg_log_ab(self, value: Array) -> Array:
        r"""Time at which :math:`-\ln\bar\alpha` is ``value``."""
        xp, value = namespace(value)
        with quiet(divide="ignore"):
            return self.t(-0.5 * xp.log(xp.expm1(value)))

    def prior_std(self, t: float | None = None) -> float:
        """Standard deviation of the normal law that sampling starts from at time ``t``.

        It is ``sigma(t)``, for data small against the noise; variance-preserving processes
        return 1. ``t`` defaults to ``start``.
        """
        return float(self.sigma(self.start if t is None else t))

    def check_times(self, times: Array, name: str = "times") -> None:
        """Raise ``ValueError`` if a time is not finite or lies outside ``[t_min, t_max]``."""
        values = np.asarray(times, dtype=np.float64)
        slack = 1e-12 * (max(1.0, abs(self.t_max)) if math.isfinite(self.t_max) else 1.0)
        bad = ~((values >= self.t_min - slack) & (values <= self.t_max + slack))
        bad |= ~np.isfinite(values)
        if bad.any():
            raise ValueError(
                f"{name}: {np.atleast_1d(values)[np.atleast_1d(bad)][0]:g} lies outside the "
                f"process, which is defined for t in [{self.t_min:g}, {self.t_max:g}]"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(t in [{self.t_min:g}, {self.t_max:g}])"


class VP(Process):
    r"""Variance-preserving process: :math:`\alpha^2 + \sigma^2 = 1`.

    Made by :meth:`linear`, :meth:`cosine`, :meth:`from_betas`, :meth:`from_alphas_cumprod` or
    :meth:`paper`. All is expressed through ``B(t)`` :math:`= -\ln\bar\alpha(t)`, the integral of
    the rate beta, so :math:`\alpha = e^{-B/2}`, :math:`\sigma^2 = 1 - e^{-B}`.
    """

    def __init__(self, schedule: Any, start: float, end: float, name: str) -> None:
        self._schedule = schedule
        self.t_min, self.t_max = schedule.t_min, schedule.t_max
        self.start, self.end, self.name = start, end, name

    @staticmethod
    def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> VP:
        r"""Linear rate :math:`\beta(t) = \beta_{min} + t(\beta_{max}-\beta_{min})`, t in [0, 1].

        Song et al. 2021 (arXiv 2011.13456, eq. 32); sampling runs from 1 to 1e-3 by default.

        Parameters
        ----------
        beta_min, beta_max
            Rates at t = 0 and t = 1.

        Raises
        ------
        ValueError
            Unless ``0 < beta_min <= beta_max``.
        """
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"beta_min, beta_max: need 0 < beta_min <= beta_max, got {beta_min}, {beta_max}"
            )
        name = "vp-linear"
        if (beta_min, beta_max) != (0.1, 20.0):
            name += f"({beta_min:g}, {beta_max:g})"
        return VP(LinearRate(beta_min, beta_max), 1.0, 1e-3, name)

    @staticmethod
    def cosine(s: float = 0.008) -> VP:
        r"""Cosine schedule: alpha is :math:`\cos(\frac{\pi}{2}\frac{t+s}{1+s})`, 1 at t = 0.

        Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17), t in [0, 1]. At t = 1 alpha is 0, so
        sampling starts at 0.9946, as DPM-Solver does.

        Parameters
        ----------
        s
            Offset of the angle, > 0.

        Raises
        ------
        ValueError
            Unless ``s > 0``.
        """
        if not 0 < s < math.inf:
            raise ValueError(f"s: need s > 0, got {s}")
        return VP(Cosine(s), 0.9946, 1e-3, "vp-cosine")

    @staticmethod
    def from_betas(betas: Any) -> VP:
        """Discrete training schedule given by its one-step noise variances.

        As :meth:`from_alphas_cumprod`, but exact where ``alphas_cumprod`` rounds near 1.

        Parameters
        ----------
        betas
            Sequence of N >= 2 floats in (0, 1).

        Raises
        ------
        ValueError
            For fewer than 2 values, or one outside (0, 1).
        """
        values = _sequence(betas, "betas")
        if not ((values > 0) & (values < 1)).all():
            raise ValueError(
                f"betas: every value must lie in (0, 1), got {values.min():g} .. {values.max():g}"
            )
        schedule = Discrete(np.cumsum(-np.log1p(-values)), first=0)
        return VP(schedule, schedule.t_max, schedule.t_min, "vp-discrete")

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Any) -> VP:
        """Discrete training schedule given by its cumulative products.

        Time ``t`` is the training index, 0 .. N-1, and may be fractional: the log-SNR is
        interpolated by a monotone cubic (PCHIP), which is exact at the training times and has a
        continuous slope, so that solvers in ``t`` keep order 2.

        Parameters
        ----------
        alphas_cumprod
            Sequence of N >= 2 strictly decreasing floats in (0, 1).

        Raises
        ------
        ValueError
            For fewer than 2 values, one outside (0, 1), or values that do not strictly decrease.
        """
        values = _sequence(alphas_cumprod, "alphas_cumprod")
        if not ((values > 0) & (values < 1)).all() or not (np.diff(values) < 0).all():
            raise ValueError(
                "alphas_cumprod: values must lie in (0, 1) and strictly decrease, got "
                f"{values[0]:g} .. {values[-1]:g} (min {values.min():g}, max {values.max():g})"
            )
        schedule = Discrete(-np.log(values), first=0)
        return VP(schedule, schedule.t_max, schedule.t_min, "vp-discrete")

    @staticmethod
    def paper(T: int, c0: float = 2.0, c1: float = 4.0) -> VP:
        r"""Step schedule of the founding paper, with time t = 1 .. T.

        :math:`\beta_1 = T^{-c_0}`, :math:`\beta_{t+1} = h\min\{\beta_1(1+h)^t, 1\}`,
        :math:`h = c_1\ln T/T` (Li and Yan, arXiv 2409.18959, eq. 7, same group).

        Parameters
        ----------
        T
            Number of noise levels, >= 2.
        c0, c1
            Constants with ``c1 > c0 > 0`` and ``h < 1``.

        Raises
        ------
        TypeError, ValueError
            For constants out of these ranges.
        """
        check_whole("T", T, 2)
        if not c1 > c0 > 0:
            raise ValueError(f"c0, c1: need c1 > c0 > 0, got c0 = {c0}, c1 = {c1}")
        h = c1 * math.log(T) / T
        if h >= 1:
            raise ValueError(
                f"T, c1: need h = c1 ln(T)/T < 1, got h = {h:.3g} for T = {T}, c1 = {c1}; "
                "take a larger T or a smaller c1"
            )
        first = float(T) ** -c0
        growth = np.minimum(np.log(first) + np.arange(1, T) * np.log1p(h), 0.0)
        betas = np.concatenate([[first], h * np.exp(growth)])
        schedule = Discrete(np.cumsum(-np.log1p(-betas)), first=1)
        return VP(
            schedule, schedule.t_max, schedule.t_min, f"vp-paper(T={T}, c0={c0:g}, c1={c1:g})"
        )

    def neg_log_ab(self, t: Array) -> Array:
        r""":math:`B(t) = -\ln\bar\alpha(t)`, the integral of beta."""
        return self._schedule.B(namespace(t)[1])

    def beta(self, t: Array) -> Array:
        """Rate ``beta(t) = dB/dt = g(t)^2``."""
        return self._schedule.dB(namespace(t)[1])

    def alpha(self, t: Array) -> Array:
        """Signal factor ``exp(-B/2)``."""
        value = self.neg_log_ab(t)
        return namespace(value)[0].exp(-0.5 * value)

    def sigma(self, t: Array) -> Array:
        """Noise standard deviation ``sqrt(-expm1(-B))``."""
        value = self.neg_log_ab(t)
        return (-namespace(value)[0].expm1(-value)) ** 0.5

    def dalpha(self, t: Array) -> Array:
        """Time derivative ``-beta alpha/2``."""
        return -0.5 * self.beta(t) * self.alpha(t)

    def dsigma(self, t: Array) -> Array:
        """Time derivative ``beta ab/(2 sigma)``; infinite at ``sigma = 0``."""
        with quiet(divide="ignore"):
            return 0.5 * self.beta(t) * self.ab(t) / self.sigma(t)

    def drift(self, t: Array) -> Array:
        """Linear drift ``-beta/2``."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Array) -> Array:
        """Diffusion ``sqrt(beta)``."""
        return self.beta(t) ** 0.5

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``-ln(expm1(B))/2``, written so that a large B does not overflow."""
        value = self.neg_log_ab(t)
        xp = namespace(value)[0]
        with quiet(divide="ignore"):
            return -0.5 * (value + xp.log(-xp.expm1(-value)))

    def t(self, lambda_: Array) -> Array:
        """Time at which the log-SNR is ``lambda_``; NaN where a discrete schedule has none."""
        return self._schedule.t_of_B(softplus(-2.0 * namespace(lambda_)[1]))

    def t_of_neg_log_ab(self, value: Array) -> Array:
        """Time at which ``B`` is ``value``; NaN where a discrete schedule has none."""
        return self._schedule.t_of_B(namespace(value)[1])

    def prior_std(self, t: float | None = None) -> float:
        """Always 1: the noisy end is N(0, I)."""
        return 1.0

    def __repr__(self) -> str:
        return f"VP[{self.name}](t in [{self.t_min:g}, {self.t_max:g}])"


class VE(Process):
    r"""Variance-exploding process: alpha = 1, sigma geometric in t.

    :math:`\sigma = \sigma_{min}(\sigma_{max}/\sigma_{min})^t` with t in [0, 1]; Song et al.
    2021 (arXiv 2011.13456, eq. 30).

    Raises
    ------
    ValueError
        Unless ``0 < sigma_min < sigma_max``.
    """

    t_min, t_max, start, end = 0.0, 1.0, 1.0, 0.0
    name = "ve"

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        _check_sigmas(sigma_min, sigma_max)
        self._log_min, self._span = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def alpha(self, t: Array) -> Array:
        """Always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def sigma(self, t: Array) -> Array:
        """Geometric from ``sigma_min`` to ``sigma_max``."""
        xp, t = namespace(t)
        return xp.exp(self._log_min + self._span * t)

    def dalpha(self, t: Array) -> Array:
        """Always 0."""
        return 0.0 * namespace(t)[1]

    def dsigma(self, t: Array) -> Array:
        """Time derivative ``sigma ln(sigma_max/sigma_min)``."""
        return self._span * self.sigma(t)

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``-ln(sigma)``, linear in t."""
        return -(self._log_min + self._span * namespace(t)[1])

    def t(self, lambda_: Array) -> Array:
        """Time at which the log-SNR is ``lambda_``."""
        return (-namespace(lambda_)[1] - self._log_min) / self._span


class EDM(Process):
    """Process of Karras et al. 2022 (arXiv 2206.00364): alpha = 1, sigma = t.

    Defined for every ``t >= 0``; sampling runs from ``sigma_max`` to ``sigma_min`` by default.

    Raises
    ------
    ValueError
        Unless ``0 < sigma_min < sigma_max``.
    """

    t_min, t_max = 0.0, math.inf
    default_grid = "karras"
    name = "edm"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        _check_sigmas(sigma_min, sigma_max)
        self.start, self.end = float(sigma_max), float(sigma_min)

    def alpha(self, t: Array) -> Array:
        """Always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def sigma(self, t: Array) -> Array:
        """Equal to t."""
        return namespace(t)[1]

    def dalpha(self, t: Array) -> Array:
        """Always 0."""
        return 0.0 * namespace(t)[1]

    def dsigma(self, t: Array) -> Array:
        """Always 1."""
        return self.alpha(t)

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``-ln(t)``."""
        xp, t = namespace(t)
        with quiet(divide="ignore"):
            return -xp.log(t)

    def t(self, lambda_: Array) -> Array:
        """Time at which the log-SNR is ``lambda_``."""
        xp, lambda_ = namespace(lambda_)
        return xp.exp(-lambda_)


class FlowMatching(Process):
    """Flow matching and rectified flow: ``x_t = (1 - t) x_0 + t eps``, t in [0, 1].

    Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003), with noise at
    t = 1. The velocity is ``eps - x_0``. Sampling runs from 0.999 to 0.001 by default, because
    alpha = 0 at 1 and sigma = 0 at 0; solvers in t with a velocity model may use both ends.
    """

    t_min, t_max, start, end = 0.0, 1.0, 0.999, 0.001
    name = "flow-matching"

    def alpha(self, t: Array) -> Array:
        """``1 - t``."""
        return 1.0 - namespace(t)[1]

    def sigma(self, t: Array) -> Array:
        """``t``."""
        return namespace(t)[1]

    def dalpha(self, t: Array) -> Array:
        """Always -1."""
        return 0.0 * namespace(t)[1] - 1.0

    def dsigma(self, t: Array) -> Array:
        """Always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def diffusion(self, t: Array) -> Array:
        """Diffusion ``sqrt(2 t/(1 - t))``; infinite at t = 1."""
        t = namespace(t)[1]
        with quiet(divide="ignore"):
            return (2.0 * t / (1.0 - t)) ** 0.5

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``ln((1 - t)/t)``."""
        xp, t = namespace(t)
        with quiet(divide="ignore"):
            return xp.log1p(-t) - xp.log(t)

    def t(self, lambda_: Array) -> Array:
        """Time ``1/(1 + e^lambda)``."""
        xp, lambda_ = namespace(lambda_)
        return xp.exp(-softplus(lambda_))


def _sequence(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name}: need a sequence of at least 2 numbers, got shape {array.shape}")
    return array


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}"
        )
