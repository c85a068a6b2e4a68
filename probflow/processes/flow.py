"""The process of flow matching and rectified flow."""

from __future__ import annotations

from probflow.processes.base import Process
from probflow.schedules import Array, namespace, quiet, softplus

__all__ = ["FlowMatching"]


class FlowMatching(Process):
    """Flow matching and rectified flow: ``x_t = (1 - t) x_0 + t eps``, t in [0, 1].

    Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003), with noise at
    t = 1. The velocity is ``eps - x_0``. Sampling runs from 0.999 to 0.001 by default, because
    alpha = 0 at 1 and sigma = 0 at 0; solvers in t with a velocity model may use both ends.
    """

    t_min, t_max, start, end = 0.0, 1.0, 0.999, 0.001
    name = "flow-matching"

    def alpha(self, t: Array) -> Array:
        """As :meth:`Process.alpha`: ``1 - t``."""
        return 1.0 - namespace(t)[1]

    def sigma(self, t: Array) -> Array:
        """As :meth:`Process.sigma`: ``t``."""
        return namespace(t)[1]

    def dalpha(self, t: Array) -> Array:
        """As :meth:`Process.dalpha`: always -1."""
        return 0.0 * namespace(t)[1] - 1.0

    def dsigma(self, t: Array) -> Array:
        """As :meth:`Process.dsigma`: always 1."""
        return 0.0 * namespace(t)[1] + 1.0

    def diffusion(self, t: Array) -> Array:
        """As :meth:`Process.diffusion`: ``sqrt(2 t/(1 - t))``, infinite at t = 1."""
        t = namespace(t)[1]
        with quiet(divide="ignore"):
            return (2.0 * t / (1.0 - t)) ** 0.5

    def lambda_(self, t: Array) -> Array:
        """As :meth:`Process.lambda_`: ``ln((1 - t)/t)``."""
        xp, t = namespace(t)
        with quiet(divide="ignore"):
            return xp.log1p(-t) - xp.log(t)

    def t(self, lambda_: Array) -> Array:
        """As :meth:`Process.t`: ``1/(1 + e^lambda)``."""
        xp, lambda_ = namespace(lambda_)
        return xp.exp(-softplus(lambda_))
