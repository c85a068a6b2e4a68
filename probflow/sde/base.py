"""Base classes for SDEs, with torchsde's names; using them is optional."""

from __future__ import annotations

import abc

import torch

from probflow.sde.settings import NOISE_TYPES, SDE_TYPES, Names

__all__ = ["BaseSDE", "SDEIto", "SDEStratonovich", "check_word"]


def check_word(name: str, value: object, allowed: Names) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: need one of {', '.join(allowed)}, got {value!r}")


class BaseSDE(abc.ABC, torch.nn.Module):
    """A module with a valid ``noise_type`` and ``sde_type``.

    Parameters
    ----------
    noise_type
        ``"diagonal"`` (component i of g is a function of component i of the state), ``"scalar"``
        (one Brownian motion for all components), ``"additive"`` (g does not depend on the state)
        or ``"general"``.
    sde_type
        ``"ito"`` or ``"stratonovich"``.
    """

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        check_word("noise_type", noise_type, NOISE_TYPES)
        check_word("sde_type", sde_type, SDE_TYPES)
        self.noise_type, self.sde_type = noise_type, sde_type


class SDEIto(BaseSDE):
    """A :class:`BaseSDE` in the sense of Ito.

    Parameters
    ----------
    noise_type
        As that of :class:`BaseSDE`.
    """

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type=noise_type, sde_type=SDE_TYPES.ito)


class SDEStratonovich(BaseSDE):
    """A :class:`BaseSDE` in the sense of Stratonovich.

    Parameters
    ----------
    noise_type
        As that of :class:`BaseSDE`.
    """

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type=noise_type, sde_type=SDE_TYPES.stratonovich)
