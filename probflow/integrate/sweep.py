"""Neighbouring nodes of a Brownian motion, one after the other: the queries of fixed steps.

The tree of :class:`~probflow.integrate.interval.BrownianInterval` is walked once, from left to
right or from right to left: one normal for each node, and none is looked up or kept for later.
Splits are those of single queries, so that the values are the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probflow.integrate.levy import State, split, spread
from probflow.integrate.transforms import outside
from probflow.integrate.tree import BORDER, Tree

if TYPE_CHECKING:
    from probflow.integrate.interval import BrownianInterval

__all__ = ["Sweep"]

Places = int | Tensor | slice  # counted in nodes from the end
# Places of the wholes and of the cuts, length of the wholes, and where they are cut.
Split = tuple[Places, Places, float, float]
_NEVER = math.nan, math.nan  # no time is near to it
_FEW = 3  # nodes that are cut one by one, as views, rather than together, in copies

# Elements of the states that are made at once: few calls, and not much memory. A sweep that is
# short makes no more than the smaller number in vain. And nodes: lists of them stay short.
_LEAST, _MOST, _NODES = 2**18, 2**20, 2**12


class Sweep:
    """The states of nodes of one length, from one node on.

    The motion is not kept, so that it and its tensors go when nobody holds it any more.

    Parameters
    ----------
    motion
        The motion.
    first, last
        The first node, no longer than a cell and in none that is shorter than the others.
    backward
        Whether the next node is the one before.
    """

    @outside()
    def __init__(self, motion: BrownianInterval, first: int, last: int, backward: bool) -> None:
        tree = motion._tree
        self._width, self._stride = last - first, -1 if backward else 1
        self._t0, self._h = tree.t0, tree.length(first, last)
        self._slack = BORDER * tree.cell * 0.5**tree.depth
        self._count = tree.even // self._width
        self._number = first // self._width
        self._shape = len(motion._samples), motion._count
        # Nodes yet to be cut, the next one last, and memory for more, all (batch, parts * count): a
        # state of several MB in new memory would cost more for the memory than for its values.
        # None is the whole, not made yet.
        self._stack: list[tuple[int, int, Tensor | None]] = [(0, tree.leaves, None)]
        self._spare: list[Tensor] = []
        self._ready: list[State] = []
        self._made = 0

    def take(self, motion: BrownianInterval, a: float, b: float) -> State | None:
        """As :meth:`step`, if the next node lies from ``a`` to ``b``."""
        start, stop = self._awaited
        slack = self._slack
        if -slack <= a - start <= slack and -slack <= b - stop <= slack:
            return self.step(motion)
        return None

    def step(self, motion: BrownianInterval) -> State:
        """The state of the next node; its memory is the caller's."""
        state = self._ready.pop() if self._ready else self._next(motion)
        self._number = number = self._number + self._stride
        if 0 <= number < self._count:
            self._awaited = self._t0 + number * self._h, self._t0 + (number + 1) * self._h
        else:
            self._awaited = _NEVER
        return state

    @outside()
    def _next(self, motion: BrownianInterval) -> State:
        tree, width, forward = motion._tree, self._width, self._stride > 0
        start, stop = self._number * width, (self._number + 1) * width
        size = max(1, math.prod(self._shape) * motion._parts)
        while True:
            first, last, memory = self._stack.pop()
            if (last <= start) if forward else (first >= stop):
                continue  # on the other side of where the sweep began
            count = (last - first) // width
            ahead = start <= first and last <= tree.even if forward else last <= stop
            most = min(_NODES, max(_LEAST, min(_MOST, self._made * size)) // size)
            if count == 1 or (ahead and count <= most):
                self._made += count
                self._ready = self._nodes(motion, first, last, memory)
                self._spare += () if memory is None else (memory,)
                return self._ready.pop()
            if memory is None:
                memory = torch.cat([x.reshape(self._shape) for x in motion._root], dim=1)
            middle = tree.middle(first, last)
            at_once = forward and first == start and middle == stop  # in new memory, for the caller
            made = self._spare.pop() if self._spare and not at_once else torch.empty_like(memory)
            self._cut(motion, first, middle, last, memory, made)
            parts = [(middle, last, memory), (first, middle, made)]
            self._stack += parts[:1] if at_once else parts if forward else parts[::-1]
            if at_once:
                self._made += 1
                return self._state(motion, made)

    def _cut(
        self,
        motion: BrownianInterval,
        first: int,
        middle: int,
        last: int,
        memory: Tensor,
        made: Tensor,
    ) -> None:
        """Cut a node in its memory: there the right part stays, the left one goes to ``made``.

        Some samples at a time, whose normals are used while they are in the processor's cache.
        """
        parts, h = motion._parts, motion._tree.length(first, last)
        r = motion._tree.length(first, middle) / h
        draw = motion._draws([middle])
        for rows in motion._source.by_samples(draw, spread(h, r, parts), made):
            split(memory[rows].chunk(parts, dim=1), r, made[rows].chunk(parts, dim=1), own=True)

    def _state(self, motion: BrownianInterval, memory: Tensor) -> State:
        parts = memory.chunk(motion._parts, dim=1)
        return tuple(x.contiguous().view(motion.shape) for x in parts)

    def _nodes(
        self, motion: BrownianInterval, first: int, last: int, memory: Tensor | None
    ) -> list[State]:
        """States of all nodes within a node, the next one last.

        The whole is made together with them, if it has not been.

        Place p is that of the node which ends p nodes before the end, at first of the larger one
        which does, or of the normal of the cut there. A split writes the left part where its normal
        was, and the right one where the whole was: in the end all are in their places.
        """
        width = self._width
        if last - first == width and memory is not None:
            return [self._state(motion, memory.clone())]
        splits, variance = _splits(motion._tree, first, last, width, motion._parts)
        size = len(variance)
        cuts = torch.arange(last, first, -width, device=motion.device)
        cuts[0] = 0  # the name of the whole
        made = slice(memory is not None, None)
        draws = -1 - cuts[made] * motion._tree.name(1)
        of_draws = variance[made].to(motion._wide).to(motion.device)
        states = tuple(
            torch.empty(size, *self._shape, dtype=motion._wide, device=motion.device)
            for _ in range(motion._parts)
        )
        if len(states) == 1:
            motion._source(draws, of_draws, out=states[0][made])
        else:
            normal = motion._source(draws, of_draws).chunk(2, dim=2)
            for x, part in zip(states, normal, strict=True):
                x[made] = part
        if memory is None:
            whole = motion._fixed(tuple(x[0].view(motion.shape) for x in states))
        else:
            whole = memory.chunk(motion._parts, dim=1)
        for x, part in zip(states, whole, strict=True):
            x[0] = part.view(self._shape)
        for of_whole, cut, _, r in splits:
            state, z = tuple(x[of_whole] for x in states), tuple(x[cut] for x in states)
            left, right = split(state, r, z, own=True)
            if isinstance(cut, Tensor):  # then these are copies
                for x, one, other in zip(states, left, right, strict=True):
                    x[cut], x[of_whole] = one, other
        shaped = (x.view(size, *motion.shape) for x in states)
        ready = list(zip(*(x.unbind(0) for x in shaped), strict=True))
        return ready if self._stride > 0 else ready[::-1]


@lru_cache(maxsize=32)  # one run after the other goes over the same grid
def _splits(
    tree: Tree, first: int, last: int, width: int, parts: int
) -> tuple[list[Split], Tensor]:
    """The splits that cut a node down to a width, and the variances of their normals by place."""
    splits = list(_kinds(tree, first, last, width))
    size = (last - first) // width
    variance = torch.full((size,), tree.length(first, last), dtype=torch.float64, device="cpu")
    for _, cut, h, r in splits:
        variance[cut] = spread(h, r, parts)
    return splits, variance


def _kinds(tree: Tree, first: int, last: int, width: int) -> Iterator[Split]:
    """The splits that cut a node down to a width, those of one kind at a time."""
    nodes, cell = [(first, last)], 1 << tree.depth
    while nodes := [node for node in nodes if node[1] - node[0] > cell]:
        kinds: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for start, stop in nodes:
            middle = tree.middle(start, stop)
            kinds.setdefault((middle - start, stop - start), []).append((start, middle, stop))
        nodes = []
        for alike in kinds.values():
            start, middle, stop = alike[0]
            h = tree.length(start, stop)
            r = tree.length(start, middle) / h
            wholes, cuts = ([(last - node[k]) // width for node in alike] for k in (2, 1))
            if len(alike) <= _FEW:
                yield from zip(wholes, cuts, repeat(h), repeat(r))
            else:
                yield torch.tensor(wholes, device="cpu"), torch.tensor(cuts, device="cpu"), h, r
            for start, middle, stop in alike:
                nodes += [(start, middle), (middle, stop)]
    # Within cells it is halves of halves.
    size = min(last - first, cell) // width
    h = tree.length(first, first + size * width)
    while size > 1:
        yield slice(0, None, size), slice(size // 2, None, size), h, 0.5
        size, h = size // 2, 0.5 * h
