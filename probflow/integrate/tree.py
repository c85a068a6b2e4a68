"""The binary tree under a Brownian motion: which times are cuts, of what length, by what number.

Pure arithmetic, no tensors. A node is a range [first, last) of leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BORDER", "SLACK", "Address", "Tree", "grow"]

Address = tuple[int, float]  # number of a leaf and the position in it, 0 <= u < 1

SLACK = 2.0**-20  # of the times' size: float32 times at the ends are forgiven that much
BORDER = 1 / 16  # of a leaf: a time as near to a border counts as the border
_MARKS = round(1 / BORDER)
_MOST_STEPS = 2**40  # the names of leaves have 61 bits


@dataclass(frozen=True)
class Tree:
    """Cells of one length (the last may be shorter), each halved ``depth`` times down to leaves.

    Attributes
    ----------
    t0, t1
        Ends of the interval.
    cells, cell, last_cell
        Number of cells, their length, and that of the last.
    depth
        Levels below a cell; of them ``inner`` below a step of the expected length.
    names
        Cuts are named as if the tree were this deep, so that the name of a time does not depend on
        where the tree ends.
    """

    t0: float
    t1: float
    cells: int
    cell: float
    last_cell: float
    depth: int
    inner: int
    names: int

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return self.cells << self.depth

    @property
    def even(self) -> int:
        """Number of leaves in cells of full length: all, or all but the last cell's."""
        return (self.cells - (self.last_cell != self.cell)) << self.depth

    def address(self, t: float) -> Address:
        """Where a time in the interval lies."""
        if t >= self.t1:
            return self.leaves, 0.0
        cell = min(int((t - self.t0) / self.cell), self.cells - 1)
        length = self.last_cell if cell == self.cells - 1 else self.cell
        position = (t - self.t0 - cell * self.cell) / length * 2.0**self.depth
        leaf = round(position)
        if abs(position - leaf) > BORDER:
            leaf = math.floor(position)
        inside = position - leaf
        return (cell << self.depth) + leaf, inside if inside > BORDER else 0.0

    def mark(self, t: float) -> int:
        """Number of a time to 1/16 leaf; that of a border is the same in every depth."""
        leaf, inside = self.address(t)
        return (leaf * _MARKS + round(inside * _MARKS)) << (self.names - self.depth)

    def length(self, first: int, last: int) -> float:
        """Length of a node."""
        cell = first >> self.depth
        length = self.last_cell if cell == self.cells - 1 else self.cell
        if last - first <= 1 << self.depth:
            return length * (last - first) * 0.5**self.depth
        short = (self.cell - self.last_cell) if last == self.leaves else 0.0
        return self.cell * ((last - first) >> self.depth) - short

    def middle(self, first: int, last: int) -> int:
        """Where a node is cut: between cells, below a cell in its middle."""
        if last - first <= 1 << self.depth:
            return (first + last) // 2
        return ((first >> self.depth) + (last >> self.depth)) // 2 << self.depth

    def name(self, number: int) -> int:
        """Name of a cut, or of leaf ``number - leaves``: the one of the cut in its middle."""
        if number < self.leaves:
            return number << (self.names - self.depth)
        return (2 * (number - self.leaves) + 1) << (self.names - self.depth - 1)

    def cover(self, a: Address, b: Address) -> list[tuple[int, int, int]]:
        """Largest nodes that cover [a, b], and those that are cut on the way to them.

        As (first leaf, where it is cut, last leaf), from the root down and from left to right; a
        node that is not cut has 0 there.
        """
        nodes, waiting = [], [(0, self.leaves)]
        while waiting:
            first, last = waiting.pop()
            if last - first == 1 or (a <= (first, 0.0) and (last, 0.0) <= b):
                nodes.append((first, 0, last))
                continue
            middle = self.middle(first, last)
            nodes.append((first, middle, last))
            if (middle, 0.0) < b:
                waiting.append((middle, last))
            if a < (middle, 0.0):
                waiting.append((first, middle))
        return nodes


def grow(t0: float, t1: float, dt: float | None, tol: float) -> Tree:
    """The tree of an interval for steps of length ``dt`` and leaves no longer than ``tol``.

    Raises
    ------
    ValueError
        For ``dt <= 0``, ``tol < 0``, and a ``dt`` too short for the interval.
    """
    length = t1 - t0
    step = length if dt is None else dt
    if step <= 0.0 or tol < 0.0:
        raise ValueError(f"dt, tol: need dt > 0 and tol >= 0, got {step:g}, {tol:g}")
    if length > _MOST_STEPS * step:
        raise ValueError(
            f"dt: need at least {length / _MOST_STEPS:.3g}, 2^-40 of the interval, got {step:g}"
        )
    # A ratio of 50.000001, as from a dt in float32, is 50; the last cell may be shorter.
    cells = max(1, math.ceil(length / step * (1.0 - SLACK)))
    even = abs(length / step / cells - 1.0) <= SLACK
    step = length / cells if even else min(step, length)
    tol = tol or (2.0**-30 * length if dt is None else 2.0**-16 * step)
    halvings = max(0, math.ceil(math.log2(step / tol)))
    # n = m 2^k steps are halves of halves of m cells: one tree, so one path, for every k.
    doublings = (cells & -cells).bit_length() - 1 if even else 0
    cells >>= doublings
    cell = step * 2.0**doublings
    names = min(49, 61 - cells.bit_length())  # leaves are longer than the rounding of times
    depth = max(min(doublings + halvings, names - 1), doublings)
    return Tree(
        t0=t0,
        t1=t1,
        cells=cells,
        cell=cell,
        last_cell=cell if even else length - (cells - 1) * cell,
        depth=depth,
        inner=depth - doublings,
        names=names,
    )
