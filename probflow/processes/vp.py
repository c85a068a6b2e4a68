"""Variance-preserving processes: a schedule of the rate, or of a trained model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from probflow.processes.base import Process
from probflow.schedules import Array, Cosine, Discrete, LinearRate, namespace, quiet, softplus
from probflow.words import check_real, check_whole

__all__ = ["VP"]


class VP(Process):
    r"""Variance-preserving process: :math:`\alpha^2 + \sigma^2 = 1`.

    Made by :meth:`linear`, :meth:`cosine`, :meth:`from_betas`, :meth:`from_alphas_cumprod` or
    :meth:`paper`. All is expressed through ``B(t)`` :math:`= -\ln\bar\alpha(t)`, the integral of
    the rate beta, so :math:`\alpha = e^{-B/2}`, :math:`\sigma^2 = 1 - e^{-B}`.

    Parameters
    ----------
    schedule
        One of :mod:`probflow.schedules`: B, its slope, its inverse, ``t_min`` and ``t_max``.
    start, end
        Where sampling starts and ends by default.
    name
        For tables.
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

        Returns
        -------
        VP
            The process.

        Raises
        ------
        TypeError, ValueError
            Unless ``0 < beta_min <= beta_max`` are finite numbers.
        """
        check_real("beta_min", beta_min, "(0, inf)")
        if check_real("beta_max", beta_max) < beta_min:
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

        Returns
        -------
        VP
            The process.

        Raises
        ------
        TypeError, ValueError
            Unless ``s`` is a finite number > 0.
        """
        check_real("s", s, "(0, inf)")
        return VP(Cosine(s), 0.9946, 1e-3, "vp-cosine")

    @staticmethod
    def from_betas(betas: Any) -> VP:
        """Discrete training schedule given by its one-step noise variances.

        As :meth:`from_alphas_cumprod`, but exact where ``alphas_cumprod`` rounds near 1.

        Parameters
        ----------
        betas
            Sequence of N >= 2 floats in (0, 1).

        Returns
        -------
        VP
            The process, for t in [0, N - 1].

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

        Returns
        -------
        VP
            The process, for t in [0, N - 1].

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

        Returns
        -------
        VP
            The process, for t in [1, T].

        Raises
        ------
        TypeError, ValueError
            For constants out of these ranges.
        """
        check_whole("T", T, 2)
        check_real("c0", c0, "(0, inf)")
        if not check_real("c1", c1) > c0:
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
        r"""As :meth:`Process.neg_log_ab`: :math:`B(t)`, the integral of beta."""
        return self._schedule.B(namespace(t)[1])

    def beta(self, t: Array) -> Array:
        """Rate ``beta(t) = dB/dt = g(t)^2`` >= 0: the kind and shape of ``t``, float64."""
        return self._schedule.dB(namespace(t)[1])

    def alpha(self, t: Array) -> Array:
        """As :meth:`Process.alpha`: ``exp(-B/2)``."""
        value = self.neg_log_ab(t)
        return namespace(value)[0].exp(-0.5 * value)

    def sigma(self, t: Array) -> Array:
        """As :meth:`Process.sigma`: ``sqrt(-expm1(-B))``."""
        value = self.neg_log_ab(t)
        return (-namespace(value)[0].expm1(-value)) ** 0.5

    def dalpha(self, t: Array) -> Array:
        """As :meth:`Process.dalpha`: ``-beta alpha/2``."""
        return -0.5 * self.beta(t) * self.alpha(t)

    def dsigma(self, t: Array) -> Array:
        """As :meth:`Process.dsigma`: ``beta ab/(2 sigma)``, infinite at ``sigma = 0``."""
        with quiet(divide="ignore"):
            return 0.5 * self.beta(t) * self.ab(t) / self.sigma(t)

    def drift(self, t: Array) -> Array:
        """As :meth:`Process.drift`: ``-beta/2``."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Array) -> Array:
        """As :meth:`Process.diffusion`: ``sqrt(beta)``."""
        return self.beta(t) ** 0.5

    def lambda_(self, t: Array) -> Array:
        """As :meth:`Process.lambda_`: ``-ln(expm1(B))/2``, so that a large B does not overflow."""
        value = self.neg_log_ab(t)
        xp = namespace(value)[0]
        with quiet(divide="ignore"):
            return -0.5 * (value + xp.log(-xp.expm1(-value)))

    def t(self, lambda_: Array) -> Array:
        """As :meth:`Process.t`; NaN where a discrete schedule has no such log-SNR."""
        return self._schedule.t_of_B(softplus(-2.0 * namespace(lambda_)[1]))

    def t_of_neg_log_ab(self, value: Array) -> Array:
        """As :meth:`Process.t_of_neg_log_ab`; NaN where a discrete schedule has no such B."""
        return self._schedule.t_of_B(namespace(value)[1])

    def prior_std(self, t: float | None = None) -> float:
        """As :meth:`Process.prior_std`: always 1, the noisy end is N(0, I)."""
        return 1.0

    def __repr__(self) -> str:
        return f"VP[{self.name}](t in [{self.t_min:g}, {self.t_max:g}])"


def _sequence(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name}: need a sequence of at least 2 numbers, got shape {array.shape}")
    return array
