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

import numpy as np

from probflow.schedules import Array, namespace, quiet, softplus

__all__ = ["Process"]


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
        """Signal factor at times ``t``, in [0, 1]: the kind and shape of ``t``, float64."""
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        """Noise standard deviation at times ``t``, >= 0: the kind and shape of ``t``, float64."""
        raise NotImplementedError

    def dalpha(self, t: Array) -> Array:
        """Time derivative of :meth:`alpha` at ``t``: the kind and shape of ``t``, float64."""
        raise NotImplementedError

    def dsigma(self, t: Array) -> Array:
        """Time derivative of :meth:`sigma` at ``t``: the kind and shape of ``t``, float64."""
        raise NotImplementedError

    def lambda_(self, t: Array) -> Array:
        """Log-SNR ``ln(alpha/sigma)``, infinite where ``sigma = 0``: as ``t``, float64."""
        raise NotImplementedError

    def t(self, lambda_: Array) -> Array:
        """Time at which the log-SNR is ``lambda_``: its kind and shape, float64, in [t_min, t_max].

        The inverse of :meth:`lambda_`; for a log-SNR that the process does not have, a time outside
        the interval, or NaN.
        """
        raise NotImplementedError

    def drift(self, t: Array) -> Array:
        r"""Drift ``f`` of the forward SDE :math:`dx = f(t) x\,dt + g(t)\,dW`: as ``t``, float64."""
        with quiet(divide="ignore"):
            return self.dalpha(t) / self.alpha(t)

    def diffusion(self, t: Array) -> Array:
        r"""Diffusion ``g`` >= 0: the kind and shape of ``t``, float64.

        :math:`g^2 = 2\sigma(\sigma' - f\sigma)` (Kingma et al. 2021, arXiv 2107.00630, eq. 4).
        """
        sigma = self.sigma(t)
        return (2.0 * sigma * (self.dsigma(t) - self.drift(t) * sigma)) ** 0.5

    def neg_log_ab(self, t: Array) -> Array:
        r""":math:`-\ln\bar\alpha = \ln(1 + e^{-2\lambda})` >= 0: as ``t``, float64."""
        return softplus(-2.0 * self.lambda_(t))

    def ab(self, t: Array) -> Array:
        r"""``alphas_cumprod`` :math:`\alpha^2/(\alpha^2+\sigma^2)` in [0, 1]: as ``t``, float64."""
        value = self.neg_log_ab(t)
        return namespace(value)[0].exp(-value)

    def t_of_neg_log_ab(self, value: Array) -> Array:
        r"""Time at which :math:`-\ln\bar\alpha` is ``value`` >= 0: its kind and shape, float64."""
        xp, value = namespace(value)
        with quiet(divide="ignore"):
            return self.t(-0.5 * xp.log(xp.expm1(value)))

    def prior_std(self, t: float | None = None) -> float:
        """Standard deviation of the normal law that sampling starts from at time ``t``.

        It is ``sigma(t)``, for data small against the noise; variance-preserving processes
        return 1.

        Parameters
        ----------
        t
            A time; by default ``start``.

        Returns
        -------
        float
            The standard deviation of each element.
        """
        return float(self.sigma(self.start if t is None else t))

    def check_times(self, times: Array, name: str = "times") -> None:
        """Refuse times at which the process is not defined.

        Parameters
        ----------
        times
            A float, an array or a tensor of any shape.
        name
            The argument, for the message.

        Raises
        ------
        ValueError
            If a time is not finite or lies outside ``[t_min, t_max]``.
        """
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
