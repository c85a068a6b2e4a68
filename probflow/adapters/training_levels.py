"""Noise levels that models of diffusers were trained on: discrete schedules, and EDM's input.

No torch and no diffusers here: configurations are mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from probflow.processes import VP, Process
from probflow.schedules import Array, Discrete, namespace
from probflow.solvers.last_step import START_ALPHA

__all__ = ["alphas_cumprod_of", "discrete", "preconditioned"]


def alphas_cumprod_of(config: Mapping[str, Any]) -> np.ndarray:
    """``alphas_cumprod`` of a configuration in float64, shape (num_train_timesteps,).

    At zero terminal SNR (``rescale_betas_zero_snr``; Lin et al. 2024, arXiv 2305.08891) the last
    value is 2^-24 instead of 0, as in most of diffusers' schedulers, or where the one before is
    no greater a quarter of it: log-SNR has to fall.

    Raises
    ------
    ValueError
        For an unknown ``beta_schedule``, or betas that are none.
    """
    return np.exp(-_neg_log_ab(config))


def discrete(config: Mapping[str, Any]) -> VP:
    """The process of a discrete schedule; its time is the training index, and -1 where sigma is 0.

    Raises
    ------
    ValueError
        As in :func:`alphas_cumprod_of`.
    """
    schedule = _ToZero(_neg_log_ab(config))
    return VP(schedule, schedule.t_max, 0.0, "vp-discrete")


def preconditioned(sigma_data: float, sigma_min: float, sigma_max: float) -> Process:
    """The process of EDM's network inputs; its time is EDM's sigma."""
    return _Preconditioned(sigma_data, sigma_min, sigma_max)


def _neg_log_ab(config: Mapping[str, Any]) -> np.ndarray:
    betas = _betas(config)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(
            f"trained_betas, num_train_timesteps: need at least two, got shape {betas.shape}"
        )
    if not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
        raise ValueError(
            f"betas: must lie in (0, 1), the last in (0, 1], got {betas.min():g} to "
            f"{betas.max():g}; see trained_betas, beta_start, beta_end"
        )
    with np.errstate(divide="ignore"):
        value = np.cumsum(-np.log1p(-betas))
    shift = config["snr_shift_scale"]
    if shift != 1.0:  # CogVideoX: SNR divided by the shift
        value = np.log1p(shift * np.expm1(value))
    if config["rescale_betas_zero_snr"]:
        root = np.exp(-0.5 * value)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        with np.errstate(divide="ignore"):
            value = -2.0 * np.log(root)
    if not math.isfinite(value[-1]):
        value[-1] = -2.0 * math.log(START_ALPHA)
        if (value[-2:-1] >= value[-1]).any():
            value[-1] = value[-2] + math.log(4.0)
    return value


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    count = int(config["num_train_timesteps"])
    first, last = config["beta_start"], config["beta_end"]
    if (given := config["trained_betas"]) is not None:
        try:
            return np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"trained_betas: need a sequence of numbers, got {given!r}") from None
    kind = config["beta_schedule"]
    if kind == "linear":
        return np.linspace(first, last, count)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17)
        steps = np.arange(count + 1) / count
        ab = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - ab[1:] / ab[:-1], 0.999)
    if kind == "exp":
        return np.full(count, -math.expm1(-12.0 / count))
    if kind == "sigmoid":
        return expit(np.linspace(-6.0, 6.0, count)) * (last - first) + first
    raise ValueError(
        f"beta_schedule: got {kind!r}, allowed are linear, scaled_linear, squaredcos_cap_v2, exp, "
        "sigmoid; give others as trained_betas"
    )


class _ToZero:
    """A discrete schedule from training index 0 on, with B falling to 0 from there to -1.

    Nothing is trained between -1 and 0; only the end, where sigma = 0, is used.
    """

    t_min = -1.0

    def __init__(self, neg_log_ab: np.ndarray) -> None:
        self._trained = Discrete(neg_log_ab, first=0)
        self.t_max, self._first = self._trained.t_max, float(neg_log_ab[0])

    def B(self, t: Array) -> Array:  # noqa: N802
        xp, t = namespace(t)
        inside = xp.where(t > 0, t, 0.0 * t)
        return xp.where(t >= 0, self._trained.B(inside), self._first * (1.0 + t))

    def dB(self, t: Array) -> Array:  # noqa: N802
        xp, t = namespace(t)
        inside = xp.where(t > 0, t, 0.0 * t)
        return xp.where(t >= 0, self._trained.dB(inside), 0.0 * t + self._first)

    def t_of_B(self, value: Array) -> Array:  # noqa: N802
        xp, value = namespace(value)
        inside = xp.where(value > self._first, value, 0.0 * value + self._first)
        return xp.where(
            value >= self._first, self._trained.t_of_B(inside), value / self._first - 1.0
        )


class _Preconditioned(Process):
    """EDM's network input as a process: alpha = s/sqrt(s^2 + t^2), sigma = t/sqrt(s^2 + t^2).

    t is the sigma and s the ``sigma_data`` of Karras et al. 2022 (arXiv 2206.00364, table 1), x0 is
    data over s. The network's output is then +v or -v (Salimans and Ho 2022).
    """

    t_min, t_max = 0.0, math.inf
    default_grid = "karras"

    def __init__(self, sigma_data: float, sigma_min: float, sigma_max: float) -> None:
        self._scale, self.start, self.end = sigma_data, sigma_max, sigma_min

    def _norm(self, t: Array) -> Array:
        return (namespace(t)[1] ** 2 + self._scale**2) ** 0.5

    def alpha(self, t: Array) -> Array:
        return self._scale / self._norm(t)

    def sigma(self, t: Array) -> Array:
        return namespace(t)[1] / self._norm(t)

    def dalpha(self, t: Array) -> Array:
        return -self._scale * namespace(t)[1] / self._norm(t) ** 3

    def dsigma(self, t: Array) -> Array:
        return self._scale**2 / self._norm(t) ** 3

    def lambda_(self, t: Array) -> Array:
        xp, t = namespace(t)
        with np.errstate(divide="ignore"):
            return math.log(self._scale) - xp.log(t)

    def t(self, lambda_: Array) -> Array:
        xp, lambda_ = namespace(lambda_)
        return self._scale * xp.exp(-lambda_)

    def prior_std(self, t: float | None = None) -> float:
        return 1.0
