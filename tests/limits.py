"""The limit of local orders, for errors that are a series in h."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def limit_of_orders(errors: Sequence[float]) -> tuple[float, float]:
    """Limit of the local orders of four errors, each of twice the steps, and how far off it may be.

    For e = h^p (a + b h + c h^2 + ...) the local orders are a series in h as well. Twice the finer
    less the coarser of two has its term of first order taken out, and what is left is a third of
    the last change; allowed is the whole change, and 0.01 for the terms beyond.
    """
    assert len(errors) == 4
    local = -np.diff(np.log2(errors))
    before, limit = 2 * local[1:] - local[:-1]
    return float(limit), float(abs(limit - before)) + 0.01
