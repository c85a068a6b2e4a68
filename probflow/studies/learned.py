"""A learned model as the target of a study: its orders against its own flow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from probflow.laws.registers import Refusal
from probflow.models import Model, load_network
from probflow.plan import PREDICTIONS
from probflow.processes import Process
from probflow.targets import Level, Target

__all__ = ["Learned"]


class Learned(Target):
    """A checkpoint in the place of the exact score; the states come from the data's noised law.

    Of the measures only the strong error exists: the distance to a fine run on the *same* model.
    It is the solver's error alone; that of the network is not in it. A learned score has no
    density, so the others are refused. The network runs in float64: in float32 its round-off would
    end every curve near 1e-6.

    Parameters
    ----------
    path
        A ``torch.export`` (``.pt2``) or TorchScript file of f(x, t), x of shape (batch, d).
    data
        What the network was trained on; ``sample`` draws from its noised law. d >= 2.
    prediction
        What the network predicts: see :class:`probflow.Model`.
    time_scale
        The network's time over process time.

    Raises
    ------
    ValueError
        If ``path`` is no such file, or another argument is not as described.
    """

    def __init__(
        self, path: str | Path, data: Target, prediction: str = "eps", time_scale: float = 1.0
    ) -> None:
        if data.dim < 2:
            raise ValueError(f"data: need at least 2 coordinates, got {data.dim}")
        if not math.isfinite(time_scale) or time_scale == 0:
            raise ValueError(f"time_scale: need a finite number other than 0, got {time_scale}")
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction: got {prediction!r}, allowed are {', '.join(PREDICTIONS)}"
            )
        self._arguments = Path(path), data, prediction, time_scale
        self._network = load_network(Path(path), "model").double()
        self.dim, self.name = data.dim, f"{Path(path).stem}-learned"

    def __reduce__(self) -> Any:
        """Loaded networks cannot be pickled; workers read the file again."""
        return Learned, self._arguments

    def model(self, process: Process, prediction: str = "eps") -> Model:
        """The network, taken to have been trained on ``process``, in any prediction type."""
        _, _, own, scale = self._arguments
        return Model(self._wide, process, own, time=lambda t: scale * t).as_prediction(prediction)

    def _wide(self, x: Tensor, t: Tensor) -> Tensor:
        return self._network(x.double(), t.double()).to(x.dtype)

    def sample(
        self, n: int, alpha: float = 1.0, sigma: float = 0.0, *, generator: torch.Generator
    ) -> Tensor:
        """Samples of the data's noised law: see :meth:`probflow.targets.Target.sample`."""
        return self._arguments[1].sample(n, alpha, sigma, generator=generator)

    def moments(self, alpha: float = 1.0, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Those of the data's noised law: see :meth:`probflow.targets.Target.moments`."""
        return self._arguments[1].moments(alpha, sigma)

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> NoReturn:
        """Refused: the network knows no law, only its own flow."""
        raise Refusal(f"{self.name}: a learned model has no law to compare with; measure strong")

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> NoReturn:
        """Refused, as :meth:`score`."""
        self.score(x, alpha, sigma)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> NoReturn:
        """Refused, as :meth:`score`."""
        self.score(x, alpha, sigma)
