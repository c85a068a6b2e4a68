"""The version of the distribution ``probflow-solvers``."""

__version__ = "0.1.0"
