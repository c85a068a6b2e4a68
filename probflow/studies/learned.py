"""A learned model as the target of a study: against its own flow, or against the exact law."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from probflow.laws.registers import Refusal
from probflow.models import Model, load_network
from probflow.plan import PREDICTIONS, Point
from probflow.processes import Process
from probflow.studies.perturbed import Around
from probflow.targets import Level, Target
from probflow.words import check_choice, check_real

__all__ = ["Learned", "LearnedScore"]


class _FromFile:
    """A target with a network from a file, which stays on disk when the target is sent elsewhere.

    The file's content is part of the target's: a study with other weights has other cells.
    """

    _arguments: tuple[Any, ...]

    def _load(self, path: Path) -> Any:
        network = load_network(path, "model").double()
        self._sum = hashlib.sha256(path.read_bytes()).hexdigest()
        return network

    def __reduce__(self) -> Any:
        """Loaded networks cannot be pickled; workers read the file again."""
        return type(self), self._arguments, {"sum": self._sum}

    def __setstate__(self, state: dict[str, str]) -> None:
        """Check that the file read here holds what it held there."""
        if state["sum"] != self._sum:
            raise ValueError(f"model: {self._arguments[0]} changed while the study ran")


class Learned(_FromFile, Target):
    """A checkpoint in the place of the exact score; the states come from the data's noised law.

    The strong error is the distance to a fine run on the *same* model, the weak one that to twice
    the steps: the solver's error alone, without that of the network. Distances of samples are taken
    from the data's law, and so hold both. A learned score has no density: what needs one is refused
    (:class:`LearnedScore` has the exact law beside it). The network runs in float64: in float32 its
    round-off would end every curve near 1e-6.

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
        _check(prediction, time_scale)
        self._arguments = Path(path), data, prediction, time_scale
        self._network = self._load(Path(path))
        self.dim, self.name = data.dim, f"{Path(path).stem}-learned"

    def model(self, process: Process, prediction: str = "eps") -> Model:
        """As :meth:`Target.model`: the network, taken to have been trained on ``process``."""
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
        """Refused, unlike :meth:`Target.score`: the network knows no law, only its own flow.

        Raises
        ------
        Refusal
            Always.
        """
        raise Refusal(f"{self.name}: a learned model has no law to compare with; measure strong")

    def log_prob(self, x: Tensor, alpha: Level, sigma: Level) -> NoReturn:
        """Refused as :meth:`score`."""
        self.score(x, alpha, sigma)

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> NoReturn:
        """Refused as :meth:`score`."""
        self.score(x, alpha, sigma)


class LearnedScore(_FromFile, Around):
    """The exact laws of ``base`` with the score of a network: what its error does to samplers.

    All measures exist, and compare with the truth: the network's error and the solver's are both in
    them.

    Parameters
    ----------
    path
        As for :class:`Learned`; in d = 1, too.
    base
        The truth, with a density.
    process
        What the network was trained on.
    prediction, time_scale
        As for :class:`Learned`.
    """

    def __init__(
        self,
        path: str | Path,
        base: Target,
        process: Process,
        prediction: str = "eps",
        time_scale: float = 1.0,
    ) -> None:
        super().__init__(base)
        _check(prediction, time_scale)
        self._arguments = Path(path), base, process, prediction, time_scale
        network = self._load(Path(path))
        self._model = Model(network, process, prediction, time=lambda t: time_scale * t)
        self.name = f"{base.name}, {Path(path).stem}"

    def score(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """As :meth:`Target.score`: the network's score."""
        flat = self._flat(x).double()
        return self._score(flat, alpha, sigma).to(x.dtype).reshape(x.shape)

    def _score(self, flat: Tensor, alpha: Level, sigma: Level) -> Tensor:
        process = self._model.process
        levels = (torch.as_tensor(level, dtype=flat.dtype) for level in (alpha, sigma))
        a, s = (level.reshape(-1) for level in levels)
        time = torch.as_tensor(process.t((a / s).log()), dtype=flat.dtype)
        return self._model.predict(flat, time.expand(len(flat)), "score")

    def score_and_jacobian(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """As :meth:`Target.score_and_jacobian`, of the network, a backward pass a coordinate."""
        flat = self._flat(x).detach().double().requires_grad_()
        with torch.enable_grad():
            score = self._score(flat, alpha, sigma)
            rows = [
                torch.autograd.grad(score[:, i].sum(), flat, retain_graph=True)[0]
                for i in range(self.dim)
            ]
        return score.detach().to(x.dtype).reshape(x.shape), torch.stack(rows, dim=1)

    def l2_error(self, times: Sequence[float], n: int, *, generator: torch.Generator) -> float:
        r"""Size of the score's error: the root of the mean of :math:`E|s - s^*|^2` over times.

        Parameters
        ----------
        times
            Process times, with a score at each.
        n
            Number of samples of the true law at each time.
        generator
            CPU generator.

        Returns
        -------
        float
            The size.
        """
        squares = []
        for point in Point.many(self._model.process, list(times)):
            x = self.base.sample(n, point.alpha, point.sigma, generator=generator)
            with torch.no_grad():
                error = self.score(x, point.alpha, point.sigma) - self.base.score(
                    x, point.alpha, point.sigma
                )
            squares.append(float(error.square().sum(dim=1).mean()))
        return math.sqrt(sum(squares) / len(squares))


def _check(prediction: str, time_scale: float) -> None:
    if check_real("time_scale", time_scale) == 0:
        raise ValueError(f"time_scale: need a finite number other than 0, got {time_scale}")
    check_choice("prediction", prediction, PREDICTIONS)
