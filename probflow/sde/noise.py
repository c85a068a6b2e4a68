r"""The noise of a step, asked of any Brownian motion ``bm(ta, tb)``.

A *query* is a function of two times ta < tb that returns W, or the pair (W, U) or (W, A), as a
method needs. :math:`U = \int_{ta}^{tb} (W_s - W_{ta})\,ds`, A is the Levy area.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probflow.sde.parts import flat
from probflow.words import UnfitError

__all__ = [
    "Query",
    "check_area_of",
    "checked_query",
    "mirrored_query",
    "padded_query",
    "query_of",
]

Query = Callable[[float, float], Any]

_AREAS = {"U": ("space-time", "davie", "foster"), "A": ("davie", "foster")}
_WORDS = {"U": "the time integral U", "A": "the Levy area A"}


def query_of(bm: Any, needs: str, shape: tuple[int, ...], y0: Tensor, method: str) -> Query:
    """What a method asks of a Brownian motion.

    Parameters
    ----------
    bm
        Callable; where it has ``shape``, ``device`` or ``levy_area_approximation``, they are
        checked.
    needs
        ``""``, ``"U"`` or ``"A"`` beside the increment.
    shape
        Of the noise, (batch, m) or the state's.
    y0, method
        For the device and the messages.

    Raises
    ------
    TypeError, ValueError
        If ``bm`` is not callable, or does not fit.
    """
    if not callable(bm):
        raise TypeError(f"bm: need a Brownian motion bm(ta, tb), got {type(bm).__name__}")
    extra = {"return_" + needs: True} if needs else {}
    try:
        inspect.signature(bm).bind(0.0, 1.0, **extra)
    except TypeError as error:
        call = ", ".join(("ta, tb", *(f"{name}=True" for name in extra)))
        raise UnfitError(f"bm: {method} calls bm({call}), but {error}") from None
    except ValueError:  # a callable without a signature
        pass
    got = getattr(bm, "shape", None)
    if got is not None and tuple(got) != tuple(shape):
        raise ValueError(f"bm: has shape {tuple(got)}, the noise of this SDE {tuple(shape)}")
    device = getattr(bm, "device", None)
    if device is not None and torch.device(device).type != y0.device.type:
        raise ValueError(f"bm: is on {device}, the state on {y0.device}")
    if not needs:
        return bm
    check_area_of(bm, needs, method)
    return lambda ta, tb: bm(ta, tb, **extra)


def check_area_of(bm: Any, needs: str, method: str) -> None:
    """Raise ``ValueError`` if a Brownian motion says that it lacks what a method needs."""
    area = getattr(bm, "levy_area_approximation", None)
    if area is not None and area not in _AREAS[needs]:
        words = " or ".join(map(repr, _AREAS[needs]))
        raise ValueError(
            f"bm: {method} needs {_WORDS[needs]}; make the Brownian motion with "
            f"levy_area_approximation={words}, got {area!r}"
        )


def mirrored_query(query: Query, needs: str) -> Query:
    """The same path in the clock s = -t: increments, integrals and areas of W(-s)."""
    if not needs:
        return lambda sa, sb: -query(-sb, -sa)

    def call(sa: float, sb: float) -> tuple[Tensor, Tensor]:
        w, other = query(-sb, -sa)
        # U: the integral of W(-s) - W(-sa); A: the log-signature of a reversed path is negative.
        return -w, (other - (sb - sa) * w if needs == "U" else -other)

    return call


def checked_query(query: Query, needs: str, shape: tuple[int, ...], y0: Tensor) -> Query:
    """The user's noise, looked at in every step, in the dtype that the state is carried in.

    Raises
    ------
    TypeError, ValueError
        For anything but tensors of the noise's shape.
    """
    shapes = [tuple(shape)]
    if needs:
        shapes.append((*shape, shape[-1]) if needs == "A" else tuple(shape))

    def call(ta: float, tb: float) -> Any:
        noise = query(ta, tb)
        parts = (noise,) if len(shapes) == 1 else noise
        if not isinstance(parts, (tuple, list)) or len(parts) != len(shapes):
            raise TypeError(f"bm: must return W and {_WORDS[needs]}, returned {noise!r}")
        for part, wanted in zip(parts, shapes, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError(f"bm: must return tensors, returned {type(part).__name__}")
            if tuple(part.shape) != wanted or part.device != y0.device:
                raise ValueError(
                    f"bm: must return tensors of shape {wanted} on {y0.device}, returned shape "
                    f"{tuple(part.shape)} on {part.device}"
                )
        return parts[0].to(y0.dtype) if not needs else tuple(x.to(y0.dtype) for x in parts)

    return call


def padded_query(query: Query) -> Query:
    """Diagonal noise of a state, flattened, with a zero for the log-ratio's column."""

    def pad(w: Tensor) -> Tensor:
        return torch.nn.functional.pad(flat(w), (0, 1))

    def call(ta: float, tb: float) -> Any:
        noise = query(ta, tb)
        return pad(noise) if isinstance(noise, Tensor) else tuple(map(pad, noise))

    return call
