r"""Brownian motion as a pure function of its arguments, the sample's index and the times.

Levy's construction on a binary tree: the interval's increment is a normal, and splitting an
interval needs one normal more, keyed by (entropy, sample, splitting point). Whatever is asked in
whatever order, batch or chunk, the answer is the same; a cache only saves work.
Every split, be it at a step's border, at a middle or inside a leaf, with or without the space-time
Levy area, is one formula: :func:`probflow.integrate.levy.split`.
"""

from __future__ import annotations

import hashlib
import math
import operator
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.levy import State, inside, join, levy_area, split
from probflow.integrate.noise import _BLOCK, Normals, check_seed, normals, sample_indices
from probflow.integrate.sweep import Sweep
from probflow.words import near

__all__ = ["BaseBrownian", "BrownianInterval", "Sweep"]

Address = tuple[int, float]  # number of a leaf and the position in it, 0 <= u < 1

_AREAS = ("none", "space-time", "davie", "foster")
_MOST_STEPS = 2**40  # the names of leaves have 61 bits
SLACK = 2.0**-20  # of the times' size: float32 times at the ends are forgiven that much


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
        """``t`` as a number inside the motion's interval; ``ValueError`` if it lies outside."""
        return as_time(t, "t")

    def size(self) -> tuple[int, ...]:
        """The shape, as torchsde calls it."""
        return self.shape

    def _adopt(self, other: BaseBrownian) -> None:
        self.shape, self.dtype, self.device = other.shape, other.dtype, other.device
        self.levy_area_approximation = other.levy_area_approximation


class BrownianInterval(BaseBrownian):
    r"""Brownian motion on [t0, t1]; the signature is torchsde's.

    ``bm(ta, tb)`` is the increment W(tb) - W(ta), ``bm(ta)`` is ``bm(t0, ta)``. With
    ``return_U=True`` also :math:`U = \int_{ta}^{tb} (W_s - W_{ta})\, ds`, with ``return_A=True``
    the Levy area A (..., m, m) of a motion of shape (..., m); they are None where
    ``levy_area_approximation`` does not provide them. Times may come in either order.

    The interval is cut into steps of length ``dt``, these are halved down to leaves. Values at
    the borders of leaves are jointly Brownian. One ``entropy`` is one path for dt, dt/2, dt/4, ...
    (exactly at the borders of steps, between them to the length of a leaf);
    for numbers of steps with another odd factor make one motion without ``dt``, or with the
    smallest, and use it for all. Inside a leaf a time gets the bridge's own law from
    the leaf's one normal, so that times in different leaves are jointly Brownian, too; only two
    times in one leaf are too dependent. A time within 1/16 leaf of a border counts as the border.

    Parameters
    ----------
    t0, t1
        Ends, ``t0 < t1``; numbers or tensors of one element.
    size
        Shape, (batch, ...); may be left out if ``W`` or ``H`` is given. Sample i is row i.
    dtype, device
        Of the results; by default those of ``W`` or ``H``, else torch's default dtype and the CPU.
    entropy
        The seed, a whole number >= 0. By default drawn from torch's global generator, so that
        ``torch.manual_seed`` makes it repeatable.
    dt
        Expected step. A sweep in steps of ``dt``, in either direction, costs one normal per step;
        in steps of dt/2^k, too. Other times cost one normal for each level of the tree.
    tol
        Longest leaf; by default 2^-16 of ``dt``, or without ``dt`` 2^-30 of the interval.
    cache_size
        Number of nodes kept; None keeps all. It changes the cost, never a result.
    levy_area_approximation
        "none", "space-time" (U), "davie" or "foster" (U and A: normal given W and H, with mean
        and, on average over H or for every H, variance of the Levy area). A is drawn anew for every
        pair (ta, tb). The paths W of "none" differ from those of the other three.
    W, H
        Increment and space-time Levy area of the whole interval, if they are to be fixed. No
        gradients flow to them.
    pool_size, halfway_tree
        Of torchsde; here the generator has no pool, and the path depends on no query anyway.
    first_sample
        Index of the first row's sample: a chunk that starts at sample 64 passes 64.
    """

    def __init__(
        self,
        t0: Any = 0.0,
        t1: Any = 1.0,
        size: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        entropy: int | None = None,
        dt: Any = None,
        tol: Any = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = "none",
        W: Tensor | None = None,
        H: Tensor | None = None,
        *,
        first_sample: int = 0,
    ) -> None:
        self._t0, self._t1 = as_time(t0, "t0"), as_time(t1, "t1")
        if not self._t0 < self._t1:
            raise ValueError(f"t0, t1: need t0 < t1, got {self._t0:g}, {self._t1:g}")
        _check_area(levy_area_approximation)
        if cache_size is not None and cache_size < 0:
            raise ValueError(f"cache_size: need a number >= 0 or None, got {cache_size}")
        self.levy_area_approximation = levy_area_approximation
        self._parts = 1 if levy_area_approximation == "none" else 2
        if H is not None and self._parts == 1:
            raise ValueError("H: without levy_area_approximation='space-time' it has no use")
        self.shape, self.dtype, self.device = _layout(W, H, size, dtype, device)
        self.entropy = seed_of(entropy)
        self.dt, self.tol, self.cache_size = dt, tol, cache_size
        self.pool_size, self.halfway_tree = pool_size, halfway_tree
        self._set_tree(dt, tol)
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._samples = sample_indices(
            first_sample, self.shape[0] if self.shape else 1, self.device
        )
        self._count = math.prod(self.shape[1:])
        per_draw = max(1, len(self._samples) * self._count * self._parts)
        self._ahead = max(1, min(64, _BLOCK // per_draw))
        self._blocks: OrderedDict[int, list[State]] = OrderedDict()
        self._pairs: OrderedDict[int, tuple[State, State]] = OrderedDict()
        self._capacity = math.inf if cache_size is None else cache_size // 2
        z = self._normals([0])[0]
        scale = math.sqrt(self._t1 - self._t0)
        given = (W, H)[: self._parts]
        self._root = tuple(
            unit * std if fixed is None else fixed.to(self._wide, copy=True)
            for unit, std, fixed in zip(z, (scale, scale / math.sqrt(12)), given, strict=False)
        )

    def __repr__(self) -> str:
        return (
            f"BrownianInterval(t0={self._t0:g}, t1={self._t1:g}, size={self.shape}, "
            f"dtype={self.dtype}, device={str(self.device)!r}, entropy={self.entropy}, "
            f"levy_area_approximation={self.levy_area_approximation!r})"
        )

    # Times and nodes: a node is a range [first, last) of leaves, named by where it is cut.

    def _set_tree(self, dt: Any, tol: Any) -> None:
        length = self._t1 - self._t0
        step = length if dt is None else as_time(dt, "dt")
        tol = as_time(tol, "tol")
        if step <= 0.0 or tol < 0.0:
            raise ValueError(f"dt, tol: need dt > 0 and tol >= 0, got {step:g}, {tol:g}")
        if length > _MOST_STEPS * step:
            raise ValueError(
                f"dt: need at least {length / _MOST_STEPS:.3g}, 2^-40 of the interval, got {step:g}"
            )
        # A ratio of 50.000001, as from a dt in float32, is 50; the last cell may be shorter.
        cells = max(1, math.ceil(length / step * (1.0 - SLACK)))
        even = abs(length / step / cells - 1.0) <= SLACK
        self._step = length / cells if even else min(step, length)
        tol = tol or (2.0**-30 * length if dt is None else 2.0**-16 * self._step)
        halvings = max(0, math.ceil(math.log2(self._step / tol)))
        # n = m 2^k steps are halves of halves of m cells: one tree, so one path, for every k.
        doublings = (cells & -cells).bit_length() - 1 if even else 0
        cells >>= doublings
        self._cell = self._step * 2.0**doublings
        self._last_cell = length - (cells - 1) * self._cell
        # Leaves are longer than the rounding errors of times. Cuts are named as if the tree were
        # ``_names`` deep, so that the name of a time does not depend on where the tree ends.
        self._names = min(49, 61 - cells.bit_length())
        self._depth = max(min(doublings + halvings, self._names - 1), doublings)
        self._leaves = cells << self._depth
        self._inner = self._depth - doublings  # levels below a step

    def check_time(self, t: Any) -> float:
        """``t`` as a number in [t0, t1]; ``ValueError`` if it lies outside by more than rounding.

        Parameters
        ----------
        t
            Number or tensor of one element.
        """
        time = as_time(t, "t")
        slack = SLACK * max(abs(self._t0), abs(self._t1))
        if not self._t0 - slack <= time <= self._t1 + slack:
            raise ValueError(f"t: {time:g} lies outside the motion's [{self._t0:g}, {self._t1:g}]")
        return min(max(time, self._t0), self._t1)

    def _address(self, t: float) -> Address:
        cells = self._leaves >> self._depth
        cell = min(int((t - self._t0) / self._cell), cells - 1)
        length = self._last_cell if cell == cells - 1 else self._cell
        position = (t - self._t0 - cell * self._cell) / length * 2.0**self._depth
        leaf = round(position)
        if abs(position - leaf) > 1 / 16:
            leaf = math.floor(position)
        inside = position - leaf
        return (cell << self._depth) + leaf, inside if inside > 1 / 16 else 0.0

    def _length(self, first: int, last: int) -> float:
        cell, cells = first >> self._depth, self._leaves >> self._depth
        length = self._last_cell if cell == cells - 1 else self._cell
        if last - first <= 1 << self._depth:
            return length * (last - first) * 0.5**self._depth
        short = (self._cell - self._last_cell) if last == self._leaves else 0.0
        return self._cell * ((last - first) >> self._depth) - short

    def _middle(self, first: int, last: int) -> int:
        if last - first <= 1 << self._depth:
            return (first + last) // 2
        return ((first >> self._depth) + (last >> self._depth)) // 2 << self._depth

    # Normals.

    def _normals(self, names: Sequence[int]) -> list[State]:
        """Unit normals of the names, each of shape ``shape``, made in one go.

        Negative draws: those of ``SeededNoise``, from 0 up, stay independent of the motion. For
        small states the names of cell borders come in blocks, as a sweep will want them all.
        """
        inner = (1 << self._inner) - 1
        single = [n for n in names if self._ahead == 1 or n & inner or n >= self._leaves]
        made = dict(zip(single, self._draw(single), strict=True)) if single else {}
        return [made[n] if n in made else self._from_block(n >> self._inner) for n in names]

    def _from_block(self, cell: int) -> State:
        block, number = divmod(cell, self._ahead)
        if block not in self._blocks:
            if len(self._blocks) >= 16:
                self._blocks.popitem(last=False)
            cells = range(block * self._ahead, (block + 1) * self._ahead)
            stop = self._leaves >> self._inner
            self._blocks[block] = self._draw([c << self._inner for c in cells if c < stop])
        self._blocks.move_to_end(block)
        return tuple(z.clone() for z in self._blocks[block][number])

    def _draw(self, names: Sequence[int]) -> list[State]:
        return list(zip(*(z.unbind(0) for z in self._drawn(names)), strict=True))

    def _drawn(self, names: Sequence[int], source: Normals | None = None) -> State:
        """Unit normals of the names as tensors (names, *shape)."""
        draws = _on_device([-1 - self._name(number) for number in names], self.device)
        made = (source or self._source())(draws)
        made = made.view(len(names), len(self._samples), self._parts, self._count)
        return tuple(z.reshape(len(names), *self.shape) for z in made.unbind(2))

    def _source(self) -> Normals:
        return Normals(self.entropy, self._samples, self._parts * self._count, self._wide)

    def _name(self, number: int) -> int:
        """Name of a cut, or of leaf ``number - leaves``: the one of the cut in its middle."""
        if number < self._leaves:
            return number << (self._names - self._depth)
        return (2 * (number - self._leaves) + 1) << (self._names - self._depth - 1)

    # Queries.

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """W, or (W, U), (W, A), (W, U, A) from ``ta`` to ``tb``.

        Parameters
        ----------
        ta, tb
            Times in the interval, numbers or tensors of one element, in either order. Without
            ``tb``, from t0 to ``ta``.
        return_U, return_A
            What else to return.
        """
        if tb is None:
            ta, tb = self._t0, ta
        start, stop = self.check_time(ta), self.check_time(tb)
        a, b = min(start, stop), max(start, stop)
        sign = 1 if start <= stop else -1
        return self._answer(self._state(a, b), a, b, sign, return_U, return_A)

    def _answer(
        self, state: State, a: float, b: float, sign: int, return_U: bool, return_A: bool
    ) -> Any:
        w, h = state[0], b - a
        if not (return_U or return_A):
            return (w if sign > 0 else -w).to(self.dtype)
        result: list[Tensor | None] = [w if sign > 0 else -w]
        if return_U:
            # U = h (W/2 + H); backwards, W changes its sign and the integral its direction, too.
            area = (sign * h * state[1]).add_(w, alpha=0.5 * h) if len(state) == 2 else None
            result.append(area)
        if return_A:
            result.append(self._levy_area(state, a, b, sign))
        return tuple(None if x is None else x.to(self.dtype) for x in result)

    def sweep(self) -> Sweep:
        """The same motion for queries one step of ``dt`` after the other, which cost least so."""
        return Sweep(self)

    def _levy_area(self, state: State, a: float, b: float, sign: int) -> Tensor | None:
        if self.levy_area_approximation not in ("davie", "foster"):
            return None
        if len(self.shape) < 2:  # scalar motions
            return torch.zeros_like(state[0])
        name = hashlib.blake2b(struct.pack("<2d", a, b), digest_size=8).digest()
        draws = _on_device([int.from_bytes(name, "little", signed=True)], self.device)
        m = self.shape[-1]
        z = normals(self.entropy, self._samples, draws, self._count * m, self._wide)
        every = self.levy_area_approximation == "foster"
        return sign * levy_area(state, b - a, z.view(*self.shape, m), every)

    def _state(self, a: float, b: float) -> State:
        start, stop = self._address(a), self._address(b)
        if start == stop:
            zero = torch.zeros(self.shape, dtype=self._wide, device=self.device)
            return (zero,) * self._parts
        pieces, cuts = self._cover(start, stop)
        cut_leaves = list(dict.fromkeys(leaf for leaf, inside in (start, stop) if inside))
        pairs, z = self._evaluate(pieces, cuts, cut_leaves)
        unit = dict(zip(cut_leaves, z, strict=True))
        total: State = ()
        length = 0.0
        for first, last, parent in pieces:
            h = self._length(first, last)
            state = pairs[parent][parent == first]
            if first in unit and last - first == 1:
                lo = start[1] if first == start[0] else 0.0
                hi = stop[1] if first == stop[0] else 1.0
                state = inside(state, h, lo, hi, unit[first])
                h *= hi - lo
            total = state if not total else join(total, state, length, h)
            length += h
        if len(pieces) == 1:  # the caller may write on what it gets
            total = (total[0].clone(), *total[1:])
        return total

    def _cover(self, a: Address, b: Address) -> tuple[list, dict[int, tuple[int, int, int]]]:
        """Largest nodes that cover [a, b], in order, and the cuts above them, from the root down.

        A piece is (first leaf, last leaf, where its parent is cut), a cut likewise; the root's
        parent is 0.
        """
        pieces, cuts = [], {}
        stack = [(0, self._leaves, 0)]
        while stack:
            first, last, _ = node = stack.pop()
            if last - first == 1 or (a <= (first, 0.0) and (last, 0.0) <= b):
                pieces.append(node)
                continue
            middle = self._middle(first, last)
            cuts[middle] = node
            if (middle, 0.0) < b:
                stack.append((middle, last, middle))
            if a < (middle, 0.0):
                stack.append((first, middle, middle))
        return pieces, cuts

    def _evaluate(self, pieces: list, cuts: dict, leaves: list[int]) -> tuple[dict, list[State]]:
        """States of both sides of the pieces' parents, and unit normals of the given leaves."""
        wanted = {parent for *_, parent in pieces}
        for middle in reversed(cuts):  # what is not kept is made from its parent
            if middle in wanted and middle not in self._pairs:
                wanted.add(cuts[middle][2])
        missing = [middle for middle in cuts if middle in wanted and middle not in self._pairs]
        names = [*missing, *(self._leaves + leaf for leaf in leaves)]
        z = self._normals(names) if names else []
        unit = dict(zip(missing, z, strict=False))
        pairs: dict[int, tuple] = {0: (None, self._root)}
        for middle, (first, last, parent) in cuts.items():
            if middle in unit:
                h = self._length(first, last)
                whole = pairs[parent][parent == first]
                pairs[middle] = split(whole, h, self._length(first, middle) / h, unit[middle])
            elif middle in wanted:
                pairs[middle] = self._pairs[middle]
        for middle in reversed(cuts):  # the top of the tree is forgotten last
            if middle in pairs:
                self._pairs[middle] = pairs[middle]
            if middle in self._pairs:
                self._pairs.move_to_end(middle)
        while len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)
        return pairs, z[len(missing) :]


# Arguments.


def as_time(value: Any, name: str) -> float:
    """``value`` as a finite float; ``TypeError`` or ``ValueError`` naming ``name`` otherwise."""
    try:
        time = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name}: need a number or a tensor of one element, got {value!r}"
        ) from None
    if not math.isfinite(time):
        raise ValueError(f"{name}: need a finite number, got {time}")
    return time


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` if it is a floating-point tensor; ``TypeError`` otherwise."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: need a floating-point tensor, got {got}")
    return value


def _check_area(name: Any) -> None:
    if name not in _AREAS:
        raise ValueError(
            f"levy_area_approximation: need one of {', '.join(_AREAS)}, got {name!r}"
            + near(name, _AREAS)
        )


def _layout(
    W: Tensor | None,
    H: Tensor | None,
    size: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """Shape, dtype and device, from the arguments or the tensors given, which must agree."""
    device = None if device is None else torch.empty(0, device=device).device
    given = {name: as_tensor(x, name) for name, x in (("W", W), ("H", H)) if x is not None}
    if size is None and not given:
        raise ValueError("size: needed where neither W nor H is given")
    like = next(iter(given.values()), torch.empty(0, device="cpu"))
    shape = tuple(like.shape if size is None else _sizes(size))
    dtype, device = dtype or like.dtype, device or like.device
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: need a floating-point dtype, got {dtype}")
    for name, x in given.items():
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


def drawn_seed() -> int:
    """A seed from torch's global generator."""
    return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))


def seed_of(entropy: Any, name: str = "entropy") -> int:
    """The seed of a motion: ``entropy``, hashed where it is too long, or drawn if it is None."""
    if entropy is None:
        return drawn_seed()
    if isinstance(entropy, Integral) and int(entropy) >= 2**63:
        short = hashlib.blake2b(str(entropy).encode(), digest_size=8).digest()
        return int.from_bytes(short, "little") >> 1
    return check_seed(entropy, name)


def _on_device(values: Sequence[int], device: torch.device) -> Tensor:
    """The whole numbers as a tensor; on an accelerator without waiting for it."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64, device=device)
    return torch.cat([torch.full((1,), v, dtype=torch.int64, device=device) for v in values])
