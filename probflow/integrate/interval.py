r"""Brownian motion as a pure function of its arguments, the sample's index and the times.

Levy's construction on a binary tree: the interval's increment is a normal, and splitting an
interval needs one normal more, keyed by (entropy, sample, splitting point). Whatever is asked in
whatever order, batch or chunk, the answer is the same; what is kept only saves work.
Every split, be it at a step's border, at a middle or inside a leaf, with or without the space-time
Levy area, is one formula: :func:`probflow.integrate.levy.split`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.levy import State, inside, join, levy_area, split, spread
from probflow.integrate.motion import BaseBrownian, as_time, check_area, layout, seed_of
from probflow.integrate.noise import Normals, normals, sample_indices
from probflow.integrate.sweep import Sweep
from probflow.integrate.transforms import outside
from probflow.integrate.tree import SLACK, Address, grow
from probflow.words import check_flags, check_whole

__all__ = ["BrownianInterval"]

_AT_ONCE = 2**19  # elements of normals that are made at once on a CPU
_KEPT = 2**18  # elements of nodes that are kept in any case


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
    As torchsde's, the motion stands still outside its interval, and warns.

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
        Expected step. Queries of steps of ``dt`` one after the other, in either direction, cost one
        normal per step; so do, from the third on, those of steps of dt/2^k. Any other time costs
        one normal for each level of the tree that is not in the cache: 16 below a step of ``dt``
        by default. Without ``dt`` the steps are 1000, with 21 levels below; of k/10, k/20, k/50,
        k/100 and k/500 of the interval none is below. With the whole interval it is cut into halves
        of halves, which suits numbers of steps that are powers of two.
    tol
        Longest leaf; by default 2^-16 of ``dt``, or without ``dt`` 2^-30 of the interval.
    cache_size
        Number of nodes kept, or more if they are small (1 MB or less together in float32); None
        keeps all. It changes the cost, never a result.
    levy_area_approximation
        "none", "space-time" (U), "davie" or "foster" (U and A: normal given W and H, with mean
        and, on average over H or for every H, variance of the Levy area). A is drawn anew for every
        pair (ta, tb), whose times are told apart to 1/16 leaf. The paths W of "none" differ from
        those of the other three.
    W, H
        Increment and space-time Levy area of the whole interval, if they are to be fixed. No
        gradients flow to them.
    pool_size, halfway_tree
        Of torchsde; here the generator has no pool, and the path depends on no query anyway. As
        there, ``pool_size`` is at least 4, and ``halfway_tree`` needs ``tol`` and excludes ``dt``.
    first_sample
        Index of the first row's sample: a chunk that starts at sample 64 passes 64.

    Raises
    ------
    TypeError, ValueError
        For ends, a shape, a seed, lengths or a kind of area that are not as described; torchsde
        raises ``ValueError`` for all, and so wrong types are both.
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
        check_area(levy_area_approximation)
        if cache_size is not None:
            check_whole("cache_size", cache_size, 0)
        self.levy_area_approximation = levy_area_approximation
        self._parts = 1 if levy_area_approximation == "none" else 2
        if H is not None and self._parts == 1:
            raise ValueError("H: without levy_area_approximation='space-time' it has no use")
        self.shape, self.dtype, self.device = layout(W, H, size, dtype, device)
        self.entropy = seed_of(entropy)
        self.dt, self.tol, self.cache_size = dt, tol, cache_size
        check_whole("pool_size", pool_size, 4)
        check_flags({"halfway_tree": halfway_tree}, ("halfway_tree",))
        self.pool_size, self.halfway_tree = pool_size, halfway_tree
        if halfway_tree and (dt is not None or not as_time(tol, "tol") > 0.0):
            raise ValueError(
                "halfway_tree: needs tol > 0 and no dt, as in torchsde, got "
                f"tol={tol!r}, dt={dt!r}; here the path depends on no query without it, too"
            )
        step = None if dt is None else as_time(dt, "dt")
        self._tree = grow(self._t0, self._t1, step, as_time(tol, "tol"))
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._count = math.prod(self.shape[1:])
        with outside():
            self._samples = sample_indices(
                first_sample, self.shape[0] if self.shape else 1, self.device
            )
            count = self._parts * self._count
            self._source = Normals(self.entropy, self._samples, count, self._wide)
        self._pairs: OrderedDict[int, tuple[State, State]] = OrderedDict()
        small = _KEPT // (self._parts * max(1, len(self._samples) * self._count))
        self._capacity = math.inf if cache_size is None else max(cache_size, small) // 2
        self._before = ((0, 0), (0, 0))  # the two nodes asked for last
        self._sweeps: list[Sweep] = []  # one, or none while it is in use
        self._given = tuple(
            None if part is None else part.to(self._wide, copy=True) for part in (W, H)
        )[: self._parts]

    def __repr__(self) -> str:
        return (
            f"BrownianInterval(t0={self._t0:g}, t1={self._t1:g}, size={self.shape}, "
            f"dtype={self.dtype}, device={str(self.device)!r}, entropy={self.entropy}, "
            f"levy_area_approximation={self.levy_area_approximation!r})"
        )

    def check_time(self, t: Any) -> float:
        """As :meth:`BaseBrownian.check_time`; a time outside by rounding only is the end."""
        time = as_time(t, "t")
        slack = SLACK * max(abs(self._t0), abs(self._t1))
        if not self._t0 - slack <= time <= self._t1 + slack:
            raise ValueError(f"t: {time:g} lies outside the motion's [{self._t0:g}, {self._t1:g}]")
        return min(max(time, self._t0), self._t1)

    def _clipped(self, t: Any) -> float:
        """``t`` as a number in [t0, t1]; outside it the nearer end, with a warning."""
        time = as_time(t, "t")
        try:
            return self.check_time(time)
        except ValueError as error:
            warnings.warn(f"{error}; taken as its end", stacklevel=3)
            return self._t0 if time < self._t0 else self._t1

    # Normals.

    @cached_property
    @outside()
    def _root(self) -> State:
        """The state of the whole interval."""
        (z,) = self._normals([0], [self._t1 - self._t0])
        return self._fixed(z)

    def _fixed(self, z: State) -> State:
        """The state of the whole, given and from normals with the variance of W."""
        scales = (1.0, 1.0 / math.sqrt(12.0))
        return tuple(
            part.mul_(scale) if fixed is None else fixed
            for part, scale, fixed in zip(z, scales, self._given, strict=False)
        )

    def _normals(self, names: Sequence[int], variances: Sequence[float]) -> list[State]:
        """Normals of the names, each of shape ``shape``, made in one go."""
        variance = _on_device(variances, self._wide, self.device)
        made = self._shaped(self._source(self._draws(names), variance))
        return list(zip(*(z.unbind(0) for z in made), strict=True))

    def _draws(self, names: Sequence[int]) -> Tensor:
        # Negative: those of ``SeededNoise``, from 0 up, stay independent of the motion.
        return _on_device([-1 - self._tree.name(x) for x in names], torch.int64, self.device)

    def _shaped(self, made: Tensor) -> State:
        """Normals (names, batch, parts * count) as parts (names, *shape)."""
        parts = made.view(len(made), len(self._samples), self._parts, self._count).unbind(2)
        return tuple(part.reshape(len(made), *self.shape) for part in parts)

    # Queries.

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """W, or (W, U), (W, A), (W, U, A) from ``ta`` to ``tb``.

        Parameters
        ----------
        ta, tb
            Times in the interval, numbers or tensors of one element, in either order. Without
            ``tb``, from t0 to ``ta``. A time outside warns and counts as the nearer end.
        return_U, return_A
            What else to return.
        """
        if type(ta) is not float or type(tb) is not float:
            ta, tb = (self._t0, ta) if tb is None else (ta, tb)
            ta, tb = self._clipped(ta), self._clipped(tb)
        a, b, sign = (ta, tb, 1) if ta <= tb else (tb, ta, -1)
        state = self._swept(a, b)
        if state is None:
            a, b = self._clipped(a), self._clipped(b)
            state = self._state(a, b)
        w = state[0] if sign > 0 else -state[0]
        if not (return_U or return_A):
            return w if self.dtype is self._wide else w.to(self.dtype)
        result: list[Tensor | None] = [w]
        a, b = max(a, self._t0), min(b, self._t1)
        h = b - a
        if return_U:
            # U = h (W/2 + H); backwards, W changes its sign and the integral its direction, too.
            area = (sign * h * state[1]).add_(state[0], alpha=0.5 * h) if len(state) == 2 else None
            result.append(area)
        if return_A:
            result.append(self._levy_area(state, a, b, sign))
        return tuple(None if x is None else x.to(self.dtype) for x in result)

    def _levy_area(self, state: State, a: float, b: float, sign: int) -> Tensor | None:
        if self.levy_area_approximation not in ("davie", "foster"):
            return None
        if len(self.shape) < 2:  # scalar motions
            return torch.zeros_like(state[0])
        # A is drawn anew for every pair of times, but not for their rounding.
        pair = f"{self._tree.mark(a)} {self._tree.mark(b)}".encode()
        name = hashlib.blake2b(pair, digest_size=8).digest()
        draws = _on_device([int.from_bytes(name, "little", signed=True)], torch.int64, self.device)
        m = self.shape[-1]
        z = normals(self.entropy, self._samples, draws, self._count * m, self._wide)
        every = self.levy_area_approximation == "foster"
        return sign * levy_area(state, b - a, z.view(*self.shape, m), every)

    def _swept(self, a: float, b: float) -> State | None:
        """The state of a node, if it is the one that a sweep waits for."""
        try:
            sweep = self._sweeps.pop()  # taken away while in use, so that no other thread has it
        except IndexError:
            return None
        state = sweep.take(self, a, b)
        self._sweeps.append(sweep)
        return state

    def _new_sweep(self, first: int, last: int) -> State | None:
        """The state of a node from which a sweep begins.

        It does at the first step of the expected length, from either end, and at a node that is the
        third in a row.
        """
        tree, width = self._tree, last - first
        before, self._before = self._before, (*self._before[1:], (first, last))
        fits = 0 < width <= 1 << tree.depth and not (width & (width - 1) or first % width)
        if not fits or last > tree.even or width == tree.leaves:
            return None
        along, against = (
            before == tuple((first - k * step, last - k * step) for k in (2, 1))
            for step in (width, -width)
        )
        if width == 1 << tree.inner:
            along, against = along or first == 0, against or last == tree.leaves
        if not (along or against):
            return None
        sweep = Sweep(self, first, last, backward=not along)
        state = sweep.step(self)
        self._sweeps = [sweep]
        return state

    @outside()
    def _state(self, a: float, b: float) -> State:
        start, stop = self._tree.address(a), self._tree.address(b)
        if start == stop:
            zero = torch.zeros(self.shape, dtype=self._wide, device=self.device)
            return (zero,) * self._parts
        if not (start[1] or stop[1]):
            state = self._new_sweep(start[0], stop[0])
            if state is not None:
                return state
        nodes = self._tree.cover(start, stop)
        kept = {cut: self._pairs[cut] for _, cut, _ in nodes if cut in self._pairs}
        self._make_room({cut for _, cut, _ in nodes if cut})
        z = self._lazily(nodes, start, stop, kept)
        total: State = ()
        length = 0.0
        waiting = [self._root]
        pairs: dict[int, tuple[State, State]] = {}
        for first, cut, last in nodes:
            state, h = waiting.pop(), self._tree.length(first, last)
            if cut:
                pair = kept.get(cut) or split(state, self._tree.length(first, cut) / h, next(z))
                if len(pairs) < self._capacity:  # more would be forgotten at once
                    pairs[cut] = pair
                if (cut, 0.0) < stop:
                    waiting.append(pair[1])
                if start < (cut, 0.0):
                    waiting.append(pair[0])
                continue
            lo, hi = _inside(first, start, stop)
            if hi - lo < 1.0:
                state = inside(state, h, lo, hi, next(z))
                h *= hi - lo
            # The caller may write on what it gets.
            total = join(total, state, length, h) if total else tuple(x.clone() for x in state)
            length += h
        self._keep(pairs)
        return total

    def _lazily(
        self, nodes: list, start: Address, stop: Address, kept: dict[int, Any]
    ) -> Iterator[State]:
        """The normals for the nodes, in their order: of cuts not kept and of leaves cut inside.

        Many at a time if the states are small, for few calls; else few, for little memory.
        """
        tree, names, variances = self._tree, [], []
        for first, cut, last in nodes:
            if cut and cut not in kept:
                h = tree.length(first, last)
                names.append(cut)
                variances.append(spread(h, tree.length(first, cut) / h, self._parts))
            elif not cut and _inside(first, start, stop) != (0.0, 1.0):
                names.append(tree.leaves + first)
                variances.append(1.0)
        size = len(self._samples) * self._parts * self._count
        most = max(1, (_AT_ONCE if self.device.type == "cpu" else 2**5 * _AT_ONCE) // max(1, size))
        for k in range(0, len(names), most):
            yield from self._normals(names[k : k + most], variances[k : k + most])

    def _make_room(self, cuts: set[int]) -> None:
        """Forget what there will be no room for beside the pairs of these cuts, oldest first."""
        others = [cut for cut in list(self._pairs) if cut not in cuts]
        beyond = len(others) + len(cuts) - self._capacity
        for cut in others[: int(max(0, beyond))]:
            self._pairs.pop(cut, None)

    def _keep(self, pairs: dict[int, tuple[State, State]]) -> None:
        for cut in reversed(pairs):  # the top of the tree is forgotten last
            self._pairs[cut] = pairs[cut]
            self._pairs.move_to_end(cut)
        while len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)


def _inside(leaf: int, start: Address, stop: Address) -> tuple[float, float]:
    """From where to where a leaf is asked for, or a node that begins with it: (0, 1) if all."""
    return start[1] if leaf == start[0] else 0.0, stop[1] if leaf == stop[0] else 1.0


def _on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor; on an accelerator without waiting for it."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.cat([torch.full((1,), v, dtype=dtype, device=device) for v in values])
