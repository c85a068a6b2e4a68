"""Distributions whose noised law is known exactly."""

from probflow.targets.base import Level, Target
from probflow.targets.empirical import Empirical
from probflow.targets.mixture import Gaussian, GaussianMixture

__all__ = ["Empirical", "Gaussian", "GaussianMixture", "Level", "Target"]
