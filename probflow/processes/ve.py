"""Processes whose signal is not scaled: variance-exploding ones."""

from __future__ import annotations

import math

from probflow.processes.base import Process
from probflow.schedules import Array, namespace, quiet
from probflow.words import check_real

__all__ = ["EDM", "VE"]


class VE(Process):
    r"""Variance-exploding process: alpha = 1, sigma geometric in t.

    :math:`\sigma = \sigma_{min}(\sigma_{max}/\sigma_{min})^t` with t in [0, 1]; Song et al.
    2021 (arXiv 2011.13456, eq. 30).

    Parameters
    ----------
    sigma_min, sigma_max
        Noise at t = 0 and t = 1.

    Raises
    ------
    TypeError, ValueError
        Unless ``0 < sigma_min < sigma_max`` are finite numbers.
    """

    t_min, t_max, start, end = 0.0, 1.0, 1.0, 0.0
    name = "ve"

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        _check_sigmas(sigma_min, sigma_max)
        self._log_min, self._span = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def alpha(self, t: Array) -> Array:
        """As :meth:`Process.alpha`: always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def sigma(self, t: Array) -> Array:
        """As :meth:`Process.sigma`: geometric from ``sigma_min`` to ``sigma_max``."""
        xp, t = namespace(t)
        return xp.exp(self._log_min + self._span * t)

    def dalpha(self, t: Array) -> Array:
        """As :meth:`Process.dalpha`: always 0."""
        return 0.0 * namespace(t)[1]

    def dsigma(self, t: Array) -> Array:
        """As :meth:`Process.dsigma`: ``sigma ln(sigma_max/sigma_min)``."""
        return self._span * self.sigma(t)

    def lambda_(self, t: Array) -> Array:
        """As :meth:`Process.lambda_`: ``-ln(sigma)``, linear in t."""
        return -(self._log_min + self._span * namespace(t)[1])

    def t(self, lambda_: Array) -> Array:
        """As :meth:`Process.t`; outside [0, 1] for other log-SNRs."""
        return (-namespace(lambda_)[1] - self._log_min) / self._span


class EDM(Process):
    """Process of Karras et al. 2022 (arXiv 2206.00364): alpha = 1, sigma = t.

    Defined for every ``t >= 0``; sampling runs from ``sigma_max`` to ``sigma_min`` by default.

    Parameters
    ----------
    sigma_min, sigma_max
        Where sampling ends and starts by default.

    Raises
    ------
    TypeError, ValueError
        Unless ``0 < sigma_min < sigma_max`` are finite numbers.
    """

    t_min, t_max = 0.0, math.inf
    default_grid = "karras"
    name = "edm"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        _check_sigmas(sigma_min, sigma_max)
        self.start, self.end = float(sigma_max), float(sigma_min)

    def alpha(self, t: Array) -> Array:
        """As :meth:`Process.alpha`: always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def sigma(self, t: Array) -> Array:
        """As :meth:`Process.sigma`: ``t``."""
        return namespace(t)[1]

    def dalpha(self, t: Array) -> Array:
        """As :meth:`Process.dalpha`: always 0."""
        return 0.0 * namespace(t)[1]

    def dsigma(self, t: Array) -> Array:
        """As :meth:`Process.dsigma`: always 1."""
        return self.alpha(t)

    def lambda_(self, t: Array) -> Array:
        """As :meth:`Process.lambda_`: ``-ln(t)``."""
        xp, t = namespace(t)
        with quiet(divide="ignore"):
            return -xp.log(t)

    def t(self, lambda_: Array) -> Array:
        """As :meth:`Process.t`: ``exp(-lambda)``."""
        xp, lambda_ = namespace(lambda_)
        return xp.exp(-lambda_)


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    check_real("sigma_min", sigma_min, "(0, inf)")
    if not check_real("sigma_max", sigma_max) > sigma_min:
        raise ValueError(
            f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}"
        )
