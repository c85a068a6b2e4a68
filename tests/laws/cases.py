"""Targets, grids and short cuts that the tests of the laws share."""

from __future__ import annotations

import math

import torch
from refused import REFUSED
from torch import Tensor

import probflow as pf
from probflow.plan import Plan

VP = pf.VP.linear()
MIXTURE = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.3, 0.45])
NARROW = pf.GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=[0.05, 0.05])
NORMAL = pf.Gaussian([0.4], 0.25)
PLANE = pf.GaussianMixture(
    [0.2, 0.3, 0.1, 0.4],
    [[-1.0, -0.8], [1.1, -0.5], [-0.7, 1.2], [0.9, 1.0]],
    stds=[[0.4, 0.5], [0.5, 0.35], [0.45, 0.4], [0.6, 0.5]],
)
LOG_SNR = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
EXPONENTIAL = pf.grids.exponential(3.0, -math.log(0.99), "neg_log_ab")
DETERMINISTIC = [s for s in pf.all_solvers() if not s.stochastic]
ALL = [s for s in pf.all_solvers() if s.name not in REFUSED]
STOCHASTIC = [s for s in ALL if s.stochastic]
#: Those whose steps are products of kernels with a density, and so have a path divergence.
PATHS = [s for s in STOCHASTIC if "path-kl" in s.orders]


def plan(solver: str | pf.Solver, steps: int, prediction: str = "eps", grid=LOG_SNR) -> Plan:
    return pf.get_solver(solver).plan(VP, grid.times(VP, steps), prediction)


def name(solver: pf.Solver) -> str:
    return solver.name


class Draws:
    """A noise source of fresh unit normals of one shape, or of one tensor again and again."""

    def __init__(self, given: Tensor | None = None, shape: tuple[int, ...] = (), seed: int = 0):
        self._given, self._shape, self._seed = given, shape, seed
        self.restart()

    def restart(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed)

    def __call__(self, start: float, stop: float) -> Tensor:
        if self._given is not None:
            return self._given
        return torch.randn(self._shape, dtype=torch.float64, generator=self._generator)
