"""The names of methods, noise types and the like, looked up as in torchsde's ``settings``."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

__all__ = ["LEVY_AREA_APPROXIMATIONS", "METHODS", "METHOD_OPTIONS", "NOISE_TYPES", "SDE_TYPES"]


class Names(SimpleNamespace):
    """A few fixed words, as attributes: ``"ito" in names``, ``names.ito``, ``names.all()``.

    >>> SDE_TYPES.all(), SDE_TYPES.ito, "ito" in SDE_TYPES
    (['ito', 'stratonovich'], 'ito', True)
    """

    def all(self) -> list[str]:
        """All words, sorted."""
        return sorted(vars(self).values())

    def __contains__(self, word: object) -> bool:
        return word in vars(self).values()

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    def __str__(self) -> str:
        return str(self.all())


METHODS = Names(
    euler="euler",
    milstein="milstein",
    srk="srk",
    midpoint="midpoint",
    reversible_heun="reversible_heun",
    adjoint_reversible_heun="adjoint_reversible_heun",
    heun="heun",
    log_ode_midpoint="log_ode",
    euler_heun="euler_heun",
)
NOISE_TYPES = Names(general="general", diagonal="diagonal", scalar="scalar", additive="additive")
SDE_TYPES = Names(ito="ito", stratonovich="stratonovich")
# none: increments only; space-time: their time integrals, too; davie, foster: an approximate
# Levy area as well.
LEVY_AREA_APPROXIMATIONS = Names(
    none="none", space_time="space-time", davie="davie", foster="foster"
)
METHOD_OPTIONS = Names(grad_free="grad_free")
