"""Functions that write over what they returned before, found by where their outputs lie."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Watch"]


class Watch:
    """Makes the outputs of a function safe to hold while it is called again.

    A function may return one buffer, or a few in turn, filled anew in each call. Its first outputs
    are therefore copied and the originals kept, so that an output that lies where one of them does
    shares their memory; from then on every output is copied. If none does, the function makes
    new memory, and its outputs are used as they are. Nothing here waits for the device.

    Parameters
    ----------
    count
        How many outputs to look at, 2 at least: as many as are held at once, for a function with
        more buffers than that does no harm. Infinite: until :meth:`settle`.

    Attributes
    ----------
    shared
        Whether two outputs were found in the same place (also a constant, which is harmless).
    copying
        Whether an output has to be passed through this object.
    """

    def __init__(self, count: float) -> None:
        self.shared, self.copying = False, True
        self._left = max(2.0, count)
        self._kept: list[Tensor] = []
        self._places: set[int] = set()

    def __call__(self, output: Tensor) -> Tensor:
        """The output, or a copy of it."""
        if not self.copying:
            return output
        if not self.shared:
            self._look(output)
        return output.clone()

    def settle(self) -> None:
        """Look no longer."""
        self.copying = self.shared
        self._kept, self._places = [], set()

    def _look(self, output: Tensor) -> None:
        place = _place(output)
        self.shared = place in self._places or any(output is other for other in self._kept)
        self._kept.append(output)
        if place:
            self._places.add(place)
        self._left -= 1
        if self.shared or self._left <= 0:
            self.settle()


def _place(output: Tensor) -> int:
    """Where a tensor begins; 0 if that cannot be told."""
    if torch.compiler.is_compiling():
        return 0
    try:
        return output.data_ptr()
    except RuntimeError:  # a wrapper without memory of its own, as within torch.func
        return 0
