"""What all Brownian motions are, and the arguments they take."""

from __future__ import annotations

import hashlib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.noise import check_seed
from probflow.integrate.transforms import transformed
from probflow.words import UnfitError, near

__all__ = [
    "BaseBrownian",
    "as_tensor",
    "as_time",
    "check_area",
    "check_covers",
    "drawn_seed",
    "layout",
    "seed_of",
]

_AREAS = ("none", "space-time", "davie", "foster")


class BaseBrownian(ABC):
    """A Brownian motion: increments, and what the solvers ask about them."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    levy_area_approximation: str

    @abstractmethod
    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """Increment from ``ta`` to ``tb``; further its space-time integral U and Levy area A."""

    def check_time(self, t: Any) -> float:
        """The time as a number inside the motion's interval.

        Parameters
        ----------
        t
            Number or tensor of one element.

        Returns
        -------
        float
            The number.

        Raises
        ------
        TypeError, ValueError
            For anything else, and for a time that is not finite or lies outside.
        """
        return as_time(t, "t")

    def size(self) -> tuple[int, ...]:
        """The shape, a tuple of ints, as torchsde calls it."""
        return self.shape

    def _adopt(self, other: BaseBrownian) -> None:
        self.shape, self.dtype, self.device = other.shape, other.dtype, other.device
        self.levy_area_approximation = other.levy_area_approximation


def as_time(value: Any, name: str) -> float:
    """``value`` as a finite float; ``TypeError`` or ``ValueError`` naming ``name`` otherwise."""
    try:
        time = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UnfitError(
            f"{name}: need a number or a tensor of one element, got {value!r}"
        ) from None
    if not math.isfinite(time):
        raise ValueError(f"{name}: need a finite number, got {time}")
    return time


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` if it is a floating-point tensor; ``TypeError`` otherwise."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise UnfitError(f"{name}: need a floating-point tensor, got {got}")
    return value


def check_area(name: Any) -> None:
    """Raise ``ValueError`` unless this is the name of a Levy area approximation."""
    if name not in _AREAS:
        raise ValueError(
            f"levy_area_approximation: need one of {', '.join(_AREAS)}, got {name!r}"
            + near(name, _AREAS)
        )


def check_covers(bm: Any, start: float, stop: float, times: str, size: str = "...") -> None:
    """Raise ``ValueError`` unless a motion of probflow's is defined from ``start`` to ``stop``.

    Parameters
    ----------
    bm
        The motion; one of another library's is not looked at.
    start, stop
        In the motion's clock, in either order.
    times
        What is said of the two.
    size
        That of the motion that is proposed.
    """
    if not isinstance(bm, BaseBrownian):
        return
    start, stop = sorted((start + 0.0, stop + 0.0))  # no -0
    try:
        for t in (start, stop):
            bm.check_time(t)
    except ValueError as error:
        which, first, last = "it", start, stop
        if hasattr(bm, "base_brownian"):  # of which it is the reverse
            which, first, last = "its base", 0.0 - stop, 0.0 - start
        raise ValueError(
            f"bm: {error}; {times} from {start:g} to {stop:g}, so make {which} as "
            f"pf.BrownianInterval({first:g}, {last:g}, size={size})"
        ) from None


def layout(
    W: Tensor | None,
    H: Tensor | None,
    size: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """Shape, dtype and device, from the arguments or the tensors given, which must agree."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UnfitError(f"dtype: need a dtype, such as torch.float32, got {dtype!r}")
    if device is not None:
        try:
            device = torch.empty(0, device=device).device
        except (RuntimeError, TypeError, AssertionError) as error:  # that is built without it
            reason = str(error).splitlines()[0]
            raise UnfitError(f"device: need one of torch's, got {device!r}: {reason}") from None
    given = {name: as_tensor(x, name) for name, x in (("W", W), ("H", H)) if x is not None}
    if size is None and not given:
        raise ValueError("size: needed where neither W nor H is given")
    like = next(iter(given.values()), torch.empty(0, device="cpu"))
    shape = tuple(like.shape if size is None else _sizes(size))
    dtype, device = dtype or like.dtype, device or like.device
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: need a floating-point dtype, got {dtype}")
    for name, x in given.items():
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise ValueError(
                f"{name}: belongs to a transform of torch.func; make the motion outside of it"
            )
        if x.requires_grad:
            raise ValueError(f"{name}: must not require gradients; pass {name}.detach()")
        if (tuple(x.shape), x.dtype, x.device) != (shape, dtype, device):
            raise ValueError(
                f"{name}: need shape {shape}, {dtype} on {device}, got {tuple(x.shape)}, "
                f"{x.dtype} on {x.device}"
            )
    return shape, dtype, device


def _sizes(size: Any) -> tuple[int, ...]:
    """A shape; ``TypeError`` or ``ValueError`` unless it is a sequence of whole numbers >= 0."""
    try:
        sizes = tuple(operator.index(n) for n in size)
    except TypeError:
        raise TypeError(f"size: need a shape (batch, ...), got {size!r}") from None
    if any(n < 0 for n in sizes):
        raise ValueError(f"size: need a shape of numbers >= 0, got {sizes}")
    return sizes


def drawn_seed(name: str = "seed") -> int:
    """A seed from torch's global generator."""
    try:
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    except RuntimeError:
        if not transformed():
            raise
        raise ValueError(
            f"{name}: torch.func.vmap lets none be drawn at random; give a whole number (in a "
            "solve options={'seed': ...}, or a Brownian motion bm)"
        ) from None


def seed_of(entropy: Any, name: str = "entropy") -> int:
    """The seed of a motion: ``entropy``, hashed where it is too long, or drawn if it is None."""
    if entropy is None:
        return drawn_seed(name)
    if isinstance(entropy, Integral) and int(entropy) >= 2**63:
        short = hashlib.blake2b(str(entropy).encode(), digest_size=8).digest()
        return int.from_bytes(short, "little") >> 1
    return check_seed(entropy, name)
