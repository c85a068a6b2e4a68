"""A Brownian motion's steps one after the other, the queries of a solver with fixed steps.

The tree of :class:`~probflow.integrate.interval.BrownianInterval` is walked once from left to
right: one normal for each step, and no node is looked up or kept for later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probflow.integrate.levy import State, split
from probflow.integrate.noise import Normals

if TYPE_CHECKING:
    from probflow.integrate.interval import BrownianInterval

__all__ = ["Sweep"]

_SUBTREE = 2**17  # elements of the states of a subtree that is made at once


class Sweep:
    """A motion's steps one after the other; any other query is passed on to the motion.

    Attributes are the motion's.
    """

    def __init__(self, motion: BrownianInterval) -> None:
        self._motion, self._states = motion, _states(motion)
        self._count = motion._leaves >> motion._inner
        # As far from a step's border a time still counts as the border.
        self._slack = motion._step * 0.5**motion._inner / 16
        self._await(0)

    def __getattr__(self, name: str) -> Any:
        if name == "_motion":  # not there yet, in a copy
            raise AttributeError(name)
        return getattr(self._motion, name)

    def _await(self, number: int) -> None:
        """The next step is the one of this number."""
        motion, self._number = self._motion, number
        self._start = motion._t0 + number * motion._step
        self._stop = motion._t0 + (number + 1) * motion._step
        if number + 1 == self._count:
            self._stop = motion._t1
        elif number == self._count:
            self._start = math.nan  # no query is near it

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """As the motion's."""
        motion = self._motion
        if tb is not None:
            if not (isinstance(ta, float) and isinstance(tb, float)):
                ta, tb = motion.check_time(ta), motion.check_time(tb)
            if abs(ta - self._start) <= self._slack and abs(tb - self._stop) <= self._slack:
                self._await(self._number + 1)
                return motion._answer(next(self._states), ta, tb, 1, return_U, return_A)
        return motion(ta, tb, return_U, return_A)


def _states(motion: BrownianInterval) -> Iterator[State]:
    """States of the steps of length ``dt``, from t0 on.

    The tree is walked depth first; where a subtree is small, all of it is made at once.
    """
    size = max(1, math.prod(motion.shape) * motion._parts)
    source, step = motion._source(), 1 << motion._inner
    root = tuple(part.clone() for part in motion._root)
    stack: list[tuple[int, int, State]] = [(0, motion._leaves, root)]
    while stack:
        first, last, _ = stack[-1]
        if last - first == step:
            yield stack.pop()[2]  # nothing here holds what is handed out
            continue
        first, last, state = stack.pop()
        if ((last - first) >> motion._inner) * size <= _SUBTREE:
            yield from _subtree(motion, source, first, last, state)
            continue
        middle, h = motion._middle(first, last), motion._length(first, last)
        z = tuple(part[0] for part in motion._drawn([middle], source))
        left, right = split(state, h, motion._length(first, middle) / h, z, own=True)
        stack += [(middle, last, right), (first, middle, left)]
        del state, z, left, right


def _subtree(
    motion: BrownianInterval, source: Normals, first: int, last: int, state: State
) -> Iterator[State]:
    """States of all steps of a node, level by level."""
    nodes = [(first, last)]
    level = tuple(part[None] for part in state)
    step = 1 << motion._inner
    while any(last - first > step for first, last in nodes):
        wide = [k for k, (first, last) in enumerate(nodes) if last - first > step]
        whole = [nodes[k] for k in wide]
        middles = [motion._middle(first, last) for first, last in whole]
        left_nodes = [(first, middle) for (first, _), middle in zip(whole, middles, strict=True)]
        right_nodes = [(middle, last) for (_, last), middle in zip(whole, middles, strict=True)]
        h = [motion._length(*node) for node in whole]
        shares = [motion._length(*node) / of for node, of in zip(left_nodes, h, strict=True)]
        chosen = tuple(part[wide] for part in level) if len(wide) < len(nodes) else level
        columns = _column(motion, h), _column(motion, shares)
        left, right = split(chosen, *columns, motion._drawn(middles, source), own=True)
        # In order: both halves of what was cut, and what was a step already.
        every = nodes + left_nodes + right_nodes
        order = sorted(set(range(len(every))).difference(wide), key=every.__getitem__)
        nodes = [every[k] for k in order]
        level = tuple(torch.cat(parts)[order] for parts in zip(level, left, right, strict=True))
    yield from zip(*(part.unbind(0) for part in level), strict=True)


def _column(motion: BrownianInterval, values: Sequence[float]) -> Tensor:
    """Numbers for many nodes, to broadcast against their states."""
    column = torch.tensor(values, dtype=torch.float64).to(motion._wide).to(motion.device)
    return column.view(-1, *(1,) * len(motion.shape))
