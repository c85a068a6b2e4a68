r"""Problems: what a solver integrates, callable the way torchdiffeq and torchsde call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probflow.models import Model, as_time
from probflow.processes import Process

__all__ = ["ProbabilityFlowODE", "ReverseSDE"]


class ProbabilityFlowODE(torch.nn.Module):
    r"""The probability-flow ODE :math:`dx/dt = f(t) x - \frac{1}{2} g(t)^2 \nabla \ln p_t(x)`.

    Song et al. 2021 (arXiv 2011.13456, eq. 13). Callable as ``func(t, y)``, with t in process
    time: sampling runs with decreasing t. Structured solvers find process and model in it.

    Parameters
    ----------
    process
        Noising process.
    model
        A :class:`~probflow.models.Model` or a target.

    Raises
    ------
    TypeError
        If one of the two is something else.
    """

    def __init__(self, process: Process, model: Any) -> None:
        super().__init__()
        self.process, self.model = process, as_model(model, process)

    def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
        """Velocity dy/dt, shape of ``y`` (batch, ...); ``t`` is a float or a 0-d tensor.

        Parameters
        ----------
        t
            Process time.
        y
            State.

        Returns
        -------
        Tensor
            Shape and dtype of ``y``.
        """
        return self.model.predict(y, t, "velocity")


class ReverseSDE(torch.nn.Module):
    r"""The reverse SDE :math:`dx = (f x - g^2 \nabla \ln p_t)\,dt + g\,d\bar W`, t decreasing.

    Anderson 1982; Song et al. 2021 (arXiv 2011.13456, eq. 6). torchsde integrates forward only, so
    its methods :meth:`f` and :meth:`g` take the *negative* process time ``s = -t``, which grows
    from noise to data. Ito, diagonal noise.

    Parameters
    ----------
    process
        Noising process.
    model
        A :class:`~probflow.models.Model` or a target.

    Raises
    ------
    TypeError
        If one of the two is something else.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, process: Process, model: Any) -> None:
        super().__init__()
        self.process, self.model = process, as_model(model, process)

    def f(self, s: Tensor | float, y: Tensor) -> Tensor:
        """Drift per unit of ``s = -t``; ``y`` has shape (batch, ...).

        Parameters
        ----------
        s
            Minus a process time, a float or a 0-d tensor.
        y
            State.

        Returns
        -------
        Tensor
            Shape and dtype of ``y``.
        """
        t = -as_time(s, y)
        g2 = (self.process.diffusion(t) ** 2).to(y.dtype)
        score = self.model.predict(y, t, "score")
        return g2 * score - self.process.drift(t).to(y.dtype) * y

    def g(self, s: Tensor | float, y: Tensor) -> Tensor:
        """Diagonal diffusion, shape and dtype of ``y``; arguments as those of :meth:`f`."""
        t = -as_time(s, y)
        return self.process.diffusion(t).to(y.dtype).expand(y.shape)


def as_model(model: Any, process: Process | None = None) -> Model:
    """A :class:`Model` as it is, or the exact model of a target for ``process``.

    Raises
    ------
    TypeError
        For anything else, or a target without a process.
    ValueError
        If the model belongs to another process than the one given.
    """
    if isinstance(model, Model):
        if process is not None and model.process is not process:
            raise ValueError(
                f"model: it belongs to the process {model.process!r}, and process= is another "
                f"object, {process!r}; leave process out, or give the model's own"
            )
        return model
    if hasattr(model, "score") and hasattr(model, "model"):
        if process is None:
            raise TypeError("process: a target needs one; give process=..., e.g. pf.VP.linear()")
        return model.model(process)
    raise TypeError(
        "model: need a probflow.Model or a target; wrap a plain function as "
        f"pf.Model(function, process, prediction='eps'), got {type(model).__name__}"
    )
