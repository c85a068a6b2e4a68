r"""Noise that is a pure function of (seed, sample index, draw).

Normals come from a counter-based generator: the SplitMix64 output function (Steele, Lea, Flood
2014) hashes (seed, sample, draw, element) to 64 bits, and Box-Muller turns them into two normals.
Sample i of seed s is therefore the same tensor whatever the batch size, the chunking or the
device (up to the last digits of ``log`` and ``cos`` there), and nothing depends on the order of
calls.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from probflow.integrate.transforms import transformed

__all__ = ["GeneratorNoise", "NoiseSource", "Normals", "PathNoise", "SeededNoise", "normals"]

_BLOCK = 2**16  # normals drawn at a time, so that small states do not pay per call
_CACHE = 2**16  # pairs made at a time on a CPU, 16 bytes each: few calls, and still in its cache
# Memory that the next normals use again, by dtype: one or, while it is in use, none. New memory of
# this size costs a small motion more than its values do.
_IDLE: dict[torch.dtype, _Scratch] = {}


class NoiseSource(Protocol):
    """What a stochastic plan draws from: a unit normal for a sub-interval of a step."""

    def __call__(self, start: float, stop: float) -> Tensor:
        """Unit normals, shape of the state, for process times ``start`` to ``stop``."""

    def restart(self) -> None:
        """Go back to the beginning, so that the same calls give the same tensors."""


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


_LOW = 0 if sys.byteorder == "little" else 1  # place of a 64-bit number's low word
_GOLDEN = _signed(0x9E3779B97F4A7C15)
# SplitMix64's first shift, the mask that makes ``>>`` logical (torch's keeps the sign), and its
# factors. Tensors, because torch would wrap a Python number anew in every call.
_SHIFT, _MASK, _FIRST, _SECOND = (
    torch.tensor(x, device="cpu")
    for x in (30, 2**34 - 1, _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
)


def _halves(z: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high words of 64-bit numbers, (..., n) each, in their memory."""
    words = z.view(torch.int32)
    return words[..., _LOW::2], words[..., 1 - _LOW :: 2]


def _mix(
    z: Tensor, scratch: Tensor | None = None, halves: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Mix the bits of ``z`` in place: ``z ^= z >> 30; z *= a; z ^= z >> 32; z *= b``, modulo 2^64.

    Each of the four maps is a bijection of the 64-bit numbers, hence the whole. It is SplitMix64's
    finaliser without its last ``z ^= z >> 31``, which serves the lowest bits alone, where a float
    sees nothing, and with a second shift of 32, so that both halves of the result depend on every
    bit: the high one through the products' carries, the low one because its factor ends on the
    exclusive or of both halves of the first product.
    """
    scratch = torch.empty_like(z) if scratch is None else scratch
    low, high = halves or _halves(z)
    torch.bitwise_right_shift(z, _SHIFT, out=scratch)
    z.bitwise_xor_(scratch.bitwise_and_(_MASK)).mul_(_FIRST)
    low.bitwise_xor_(high)
    return z.mul_(_SECOND)


def normals(
    seed: int, samples: Tensor, draws: Tensor, count: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals for every (draw, sample) pair; for one tensor of draws.

    Parameters
    ----------
    seed, samples, count, dtype
        As of :class:`Normals`.
    draws
        As of :meth:`Normals.__call__`.

    Returns
    -------
    Tensor
        Shape (D, B, count).
    """
    return Normals(seed, samples, count, dtype)(draws)


class Normals:
    """Standard normals for (draw, sample) pairs, asked draw by draw.

    What does not depend on the draw (keys of samples and counters) is made once.

    Parameters
    ----------
    seed
        Whole number, 0 <= seed < 2**63.
    samples
        int64 tensor (B,): indices of the samples.
    count
        Number of normals for each pair.
    dtype
        float32 or float64; the values agree to float32's precision.

    Raises
    ------
    TypeError
        For another ``dtype``.
    """

    def __init__(
        self, seed: int, samples: Tensor, count: int, dtype: torch.dtype = torch.float32
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: normals are float32 or float64, got {dtype}")
        key = _mix(torch.full((1,), seed, dtype=torch.int64, device=samples.device).add_(_GOLDEN))
        self._keys = _mix(key + samples * _GOLDEN)
        self._count = count
        # A row is made of pairs (radius, angle), whose cosines are its first half; the number of
        # pairs is even, because one hash gives two 32-bit words, for two radii or for two angles.
        self._pairs = 2 * ((count + 3) // 4)
        self._width = max(1, self._pairs)
        if samples.device.type == "cpu":
            self._width = min(self._width, _CACHE)
        hashes = torch.arange(self._width // 2, device=samples.device)
        self._counter = (
            torch.stack((hashes, hashes + self._pairs // 2))[:, None].add_(1).mul_(_GOLDEN)
        )
        self._dtype = dtype

    def __call__(
        self, draws: Tensor, variance: Tensor | float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Normals (D, B, count) of ``draws``, an int64 tensor (D,) on the samples' device.

        Their variances are ``variance``, (D,) or one number. They are written to ``out``, if given.
        """
        if out is None:
            shape = len(draws), len(self._keys), self._count
            out = torch.empty(shape, dtype=self._dtype, device=draws.device)
        for _ in self._blocks(draws, variance, out):
            pass
        return out

    def by_samples(self, draw: Tensor, variance: float, out: Tensor) -> Iterator[slice]:
        """Write the normals of one draw, for some samples at a time.

        Which these are is told after each time: then they still are in the processor's cache.

        Parameters
        ----------
        draw
            int64 tensor (1,).
        variance
            Of the normals, > 0.
        out
            (B, count), of the dtype given at the start; it is written to.

        Yields
        ------
        slice
            The rows that were written.
        """
        return self._blocks(draw, variance, out[None])

    def _blocks(self, draws: Tensor, variance: Tensor | float, out: Tensor) -> Iterator[slice]:
        """Write the normals, so many at a time as the scratch is for; it yields which rows.

        For one draw a row is a sample. On an accelerator all are written at once.
        """
        batch, scratch = len(self._keys), self._taken()
        rows_at_once, draws_at_once = max(1, _CACHE // self._width), max(1, _CACHE // max(1, batch))
        if self._keys.device.type != "cpu":
            draws_at_once = max(1, len(draws))
            rows_at_once = max(1, batch * draws_at_once)
        for some in _slices(len(draws), draws_at_once):  # their keys are few enough for the cache
            keys = self._of(draws[some]).view(-1)
            normal = out[some].view(len(keys), self._count)
            scales = variance
            if isinstance(variance, Tensor):
                scales = variance[some].repeat_interleave(batch)[:, None]
            for rows in _slices(len(keys), rows_at_once):
                scale = scales[rows] if isinstance(scales, Tensor) else scales
                self._fill(keys[rows], -scale, normal[rows], scratch)
                yield rows
        self._put_back(scratch)

    def _of(self, draws: Tensor) -> Tensor:
        """Keys (D, B)."""
        return _mix(self._keys ^ _mix(draws * _GOLDEN)[:, None])

    def _fill(self, keys: Tensor, scale: Any, target: Tensor, scratch: _Scratch) -> None:
        """Fill ``target`` (n, count) from keys (n,); ``scale`` is minus the variance."""
        pairs, width = self._pairs, self._width
        scratch.reserve(len(keys) * width)
        for first in range(0, min(pairs, self._count), width):
            last = min(first + width, pairs)
            counter = self._counter[..., : (last - first) // 2]
            if first:
                counter = counter + _signed(first // 2 * _GOLDEN)
            cosines, sines = target[:, first:last], target[:, pairs + first : pairs + last]
            block = scratch.block(len(keys), counter.shape[2], cosines.shape[1], sines.shape[1])
            block(keys.view(-1, 1), counter, scale, cosines, sines)

    def _taken(self) -> _Scratch:
        """The scratch, which no other thread has until it is put back."""
        kept = _IDLE.pop(self._dtype, None) if self._keeps() else None
        return kept or _Scratch(self._dtype, self._keys.device)

    def _put_back(self, scratch: _Scratch) -> None:
        if self._keeps():
            _IDLE[self._dtype] = scratch

    def _keeps(self) -> bool:
        """Not on an accelerator: scratch is as large as the result there, its allocator quick."""
        return self._keys.device.type == "cpu" and not transformed()


def _slices(count: int, most: int) -> Iterator[slice]:
    """Slices of a range, no longer than ``most``."""
    return (slice(k, min(k + most, count)) for k in range(0, count, most))


class _Scratch:
    """Memory (4, size), and the blocks of views of it."""

    @torch.inference_mode(False)  # it may be written on outside that mode, too
    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._memory = torch.empty(4, 0, dtype=dtype, device=device)
        # u^2 of the word 0, as if u were 2^-32.
        self._tiny = torch.full((), 2.0**-64, dtype=dtype, device=device)
        self._blocks: dict[tuple[int, ...], _Block] = {}

    @torch.inference_mode(False)
    def _grow(self, size: int) -> None:
        self._memory = self._memory.new_empty(4, size)
        self._blocks.clear()

    def reserve(self, size: int) -> None:
        """See that there is memory for so many pairs."""
        if self._memory.shape[1] < size:
            self._grow(size)

    def block(self, n: int, hashes: int, columns: int, sines: int) -> _Block:
        """The block of these sizes."""
        sizes = n, hashes, columns, sines
        if sizes not in self._blocks:
            if len(self._blocks) >= 16:
                self._blocks.clear()
            self._blocks[sizes] = _Block(*sizes, self._memory, self._tiny)
        return self._blocks[sizes]


class _Block:
    """Box-Muller for n rows at a time, in scratch (4, >= n*width) that is reused.

    The bits of the scratch are first the hashes, then the floats made of them. All views are made
    once: for small blocks they would cost more than the arithmetic.
    """

    @torch.inference_mode(False)
    def __init__(
        self, n: int, hashes: int, columns: int, sines: int, scratch: Tensor, tiny: Tensor
    ) -> None:
        shape = (2, n, hashes)  # columns of one hash are long runs, too
        halves = scratch.view(2, -1).view(torch.int64)[:, : math.prod(shape)]
        self.bits, self.spare = halves.view(2, *shape).unbind(0)
        self.halves = _halves(self.bits)
        self.words = self.bits.view(torch.int32)[..., :columns].unbind(0)
        rows = scratch[:, : n * columns].view(4, n, columns)
        self.product, _, self.radius, self.angle = rows.unbind(0)
        self.sine, self.sine_radius = self.angle[:, :sines], self.radius[:, :sines]
        self.tiny = tiny

    def __call__(
        self, key: Tensor, counter: Tensor, scale: Any, cosines: Tensor, sines: Tensor
    ) -> None:
        """Fill ``cosines`` (n, columns) and ``sines``, from key (n, 1), counter (2, 1, hashes)."""
        _mix(torch.bitwise_xor(key, counter, out=self.bits), self.spare, self.halves)
        radius, angle = self.radius.copy_(self.words[0]), self.angle.copy_(self.words[1])
        # -ln u^2 for u = |word|/2^31. Small u, the far tails, keep their relative precision in
        # float32; near u = 1 it rounds the radii below 1e-3 or so.
        torch.addcmul(self.tiny, radius, radius, value=2.0**-62, out=radius).log_()
        radius.mul_(scale).sqrt_()
        torch.cos(angle.mul_(math.pi * 2.0**-31), out=self.product)
        torch.mul(self.product, radius, out=cosines)
        if sines.shape[1]:
            torch.mul(self.sine.sin_(), self.sine_radius, out=sines)


def check_seed(value: object, name: str = "seed") -> int:
    """``value``, also a 0-d tensor, if it is a whole number in [0, 2**63); raise otherwise."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: need a whole number in [0, 2**63), got {value!r}")
    if not 0 <= number < 2**63:
        raise ValueError(f"{name}: need a whole number in [0, 2**63), got {number}")
    return number


def sample_indices(first: int, count: int, device: torch.device | str) -> Tensor:
    """The ``count`` sample indices from ``first`` on, which must be a whole number >= 0."""
    first = check_seed(first, "first_sample")
    return torch.arange(first, first + count, device=device)


class SeededNoise:
    """Normals keyed by (seed, sample index, number of the draw).

    Parameters
    ----------
    seed
        Whole number in [0, 2**63).
    shape
        Shape of the state, (batch, ...).
    dtype, device
        Of the tensors returned (float32 or float64).
    first_sample
        Index of the batch's first sample: a chunk that starts at sample 64 passes 64.

    Raises
    ------
    TypeError, ValueError
        For a seed or ``first_sample`` that is no whole number in [0, 2**63), or another dtype.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        first_sample: int = 0,
    ) -> None:
        self._shape, count = tuple(shape), math.prod(shape[1:])
        samples = sample_indices(first_sample, self._shape[0], device)
        self._device, self._normals = (
            samples.device,
            Normals(check_seed(seed), samples, count, dtype),
        )
        self._most = max(1, _BLOCK // max(1, self._shape[0] * count))
        self._draw = 0
        self._block: Iterator[Tensor] = iter(())

    def __call__(self, start: float = 0.0, stop: float = 1.0) -> Tensor:
        """The next draw; the interval does not matter here."""
        tensor = next(self._block, None)
        if tensor is None:
            ahead = min(self._most, max(8, self._draw))  # blocks that double
            draws = torch.arange(self._draw, self._draw + ahead, device=self._device)
            block = self._normals(draws)
            self._draw += ahead
            self._block = iter(block.reshape(ahead, *self._shape).unbind(0))
            tensor = next(self._block)
        return tensor

    def restart(self) -> None:
        """Start again at draw 0."""
        self._draw, self._block = 0, iter(())


class GeneratorNoise:
    """Normals from a ``torch.Generator``, in the order of the calls.

    Parameters
    ----------
    generator
        Its state is kept: :meth:`restart` draws the same again.
    shape
        Shape of the state, (batch, ...).
    dtype, device
        Of the tensors returned; the draws are made on the generator's device.
    """

    def __init__(
        self, generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, device: object
    ) -> None:
        self._generator, self._shape = generator, tuple(shape)
        self._dtype, self._device = dtype, torch.device(str(device))
        self._state = generator.get_state()

    def __call__(self, start: float = 0.0, stop: float = 1.0) -> Tensor:
        """The generator's next normals."""
        tensor = torch.randn(
            self._shape,
            generator=self._generator,
            dtype=self._dtype,
            device=self._generator.device,
        )
        return tensor.to(self._device)

    def restart(self) -> None:
        """Put the generator back to the state in which it was handed over."""
        self._generator.set_state(self._state)


class PathNoise:
    """Unit normals that are the normalised increments of a path, so step counts share it.

    Parameters
    ----------
    path
        Callable ``path(ta, tb)`` giving the increment, e.g. a
        :class:`~probflow.integrate.interval.BrownianInterval`.
    clock
        Maps process time to the path's time (torchsde's time is minus process time).
    dtype
        Dtype of the normals; by default the path's own.
    """

    def __init__(
        self,
        path: Callable[[float, float], Tensor],
        clock: Callable[[float], float] = lambda t: t,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._path, self._clock, self._dtype = path, clock, dtype

    def __call__(self, start: float, stop: float) -> Tensor:
        """``(W(stop) - W(start))/sqrt(|stop - start|)``."""
        a, b = self._clock(start), self._clock(stop)
        w = self._path(a, b)
        if not isinstance(w, Tensor):
            raise TypeError(f"bm: must return a tensor, returned {type(w).__name__}")
        return (w / math.sqrt(abs(b - a))).to(self._dtype)

    def restart(self) -> None:
        """Nothing to do: a path is a function."""
