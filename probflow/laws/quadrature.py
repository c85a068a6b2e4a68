"""What the quadratures on the line share: grids, the true law, a density on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probflow.laws.registers import Refusal
from probflow.plan import Point
from probflow.targets import Target

REACH = 8.5  # standard deviations kept around every component: 1e-17 of mass is left out
MASS_DEFECT = 1e-10  # largest loss of mass that is accepted
RESOLVE_KERNEL = 2.2  # grid points per standard deviation of a kernel
RESOLVE_DENSITY = 0.3  # spacing in standard deviations of the narrowest component


@dataclass(frozen=True)
class LineLaw:
    """A density on a uniform grid.

    Attributes
    ----------
    x, density
        (n,) grid points and values; the density is 0 outside.
    error
        Total variation of what the density may be wrong by, where that is known to matter.
    """

    x: np.ndarray
    density: np.ndarray
    error: float = 0.0

    @property
    def dx(self) -> float:
        """Spacing of the grid."""
        return float(self.x[1] - self.x[0])


def require_line(target: Target) -> None:
    """Raise :class:`Refusal` for a target of several dimensions."""
    if target.dim != 1:
        raise Refusal(f"a 1-D law was asked for, but {target.name} has {target.dim} dimensions")


def column(values: np.ndarray) -> torch.Tensor:
    """A float64 tensor (n, 1) of values."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).reshape(-1, 1)


def true_log_density(process: Any, target: Target, time: float, x: np.ndarray) -> np.ndarray:
    """Log-density of the noised target at a process time, at points ``x`` of any shape."""
    point = Point.at(process, time)
    return target.log_prob(column(x.ravel()), point.alpha, point.sigma).numpy().reshape(x.shape)


def components(process: Any, target: Target, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres and standard deviations of the noised target's components at a process time."""
    point = Point.at(process, time)
    _, centres, stds = target._line_components(point.alpha, point.sigma)
    return centres.numpy(), stds.numpy()


def support(
    process: Any, target: Target, time: float, reach: float = REACH
) -> tuple[float, float, float]:
    """Ends of the support of the noised target, and its narrowest standard deviation."""
    centres, stds = components(process, target, time)
    return (
        float((centres - reach * stds).min()),
        float((centres + reach * stds).max()),
        float(stds.min()),
    )
