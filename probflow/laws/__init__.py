"""Exact laws: the distribution of a plan's output under a target, without simulation."""

from probflow.laws.density import density_samples
from probflow.laws.gaussian import GaussianLaw, gaussian_law
from probflow.laws.line import distances_1d, line_law
from probflow.laws.path import path_kl, path_kl_samples
from probflow.laws.quadrature import LineLaw
from probflow.laws.registers import Refusal

__all__ = [
    "GaussianLaw",
    "LineLaw",
    "Refusal",
    "density_samples",
    "distances_1d",
    "gaussian_law",
    "line_law",
    "path_kl",
    "path_kl_samples",
]
