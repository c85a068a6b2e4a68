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
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["GeneratorNoise", "NoiseSource", "PathNoise", "SeededNoise", "normals"]

_BLOCK = 2**16  # normals drawn at a time, so that small states do not pay per call
_CACHE = 2**17  # pairs made at a time on a CPU, 16 bytes each: few calls, and still in its cache


class NoiseSource(Protocol):
    """What a stochastic plan draws from: a unit normal for a sub-interval of a step."""

    def __call__(self, start: float, stop: float) -> Tensor:
        """Unit normals, shape of the state, for process times ``start`` to ``stop``."""

    def restart(self) -> None:
        """Go back to the beginning, so that the same calls give the same tensors."""


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
# SplitMix64's two rounds: shift, mask that makes ``>>`` logical (torch's keeps the sign), factor.
# Tensors, because torch would wrap a Python number anew in every call.
_ROUNDS = tuple(
    tuple(torch.tensor(x, device="cpu") for x in (shift, 2 ** (64 - shift) - 1, _signed(factor)))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (32, 0x94D049BB133111EB))
)


def _mix(z: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Mix the bits of ``z`` in place: ``z ^= z >> shift; z *= factor``, twice, modulo 2^64.

    Each of the four maps is a bijection of the 64-bit numbers, hence the whole. It is SplitMix64's
    finaliser without its last ``z ^= z >> 31``, which serves the lowest bits alone, where a float
    sees nothing, and with a second shift of 32, so that both halves of the result depend on every
    bit: the high one through the products' carries, the low one because its factor ends on the
    exclusive or of both halves of the first product.
    """
    scratch = torch.empty_like(z) if scratch is None else scratch
    for shift, mask, factor in _ROUNDS:
        torch.bitwise_right_shift(z, shift, out=scratch)
        z.bitwise_xor_(scratch.bitwise_and_(mask)).mul_(factor)
    return z


def normals(
    seed: int, samples: Tensor, draws: Tensor, count: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals for every (draw, sample) pair.

    Parameters
    ----------
    seed
        Whole number, 0 <= seed < 2**63.
    samples, draws
        int64 tensors (B,) and (D,) on one device: indices that name the tensor wanted.
    count
        Number of normals for each pair.
    dtype
        float32 or float64; the values agree to float32's precision.

    Returns
    -------
    Tensor
        Shape (D, B, count).
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: normals are float32 or float64, got {dtype}")
    key = _mix(torch.full((1,), seed, dtype=torch.int64, device=samples.device).add_(_GOLDEN))
    key = _mix(key + samples * _GOLDEN)
    key = _mix(key ^ _mix(draws * _GOLDEN)[:, None]).view(-1, 1, 1)
    normal = torch.empty(len(key), count, dtype=dtype, device=key.device)
    # A row is made of pairs (radius, angle), whose cosines are its first half; the number of
    # pairs is even, because one hash gives two 32-bit words, for two radii or for two angles.
    pairs = 2 * ((count + 3) // 4)
    block = _CACHE if key.device.type == "cpu" else max(1, pairs * len(key))
    width = max(1, min(pairs, block))
    rows = max(1, block // width)
    scratch = torch.empty(4, min(rows, len(key)) * width, dtype=dtype, device=key.device)
    for first in range(0, min(pairs, count), width):
        last = min(first + width, pairs)
        hashes = torch.arange(first // 2, last // 2, device=key.device)
        counter = torch.stack((hashes, hashes + pairs // 2)).add_(1).mul_(_GOLDEN)
        targets = normal[:, first:last], normal[:, pairs + first : pairs + last]
        columns = [target.shape[1] for target in targets]
        block_of = cache(_Block)  # two sizes: full, and the last
        for some in zip(*(t.split(rows) for t in (key, *targets)), strict=True):
            block_of(len(some[0]), counter, *columns, scratch)(*some)
    return normal.view(len(draws), len(samples), count)


class _Block:
    """Box-Muller for n rows at a time, in scratch (4, >= n*width) that is reused.

    The bits of the scratch are first the hashes, then the floats made of them. All views are made
    once: for small blocks they would cost more than the arithmetic.
    """

    def __init__(self, n: int, counter: Tensor, columns: int, sines: int, scratch: Tensor) -> None:
        shape = (n, *counter.shape)
        self.counter = counter
        self.bits, self.spare = (
            half.view(-1).view(torch.int64)[: math.prod(shape)].view(shape)
            for half in (scratch[:2], scratch[2:])
        )
        self.words = self.bits.view(torch.int32)[..., :columns].unbind(1)
        self.product, _, self.radius, self.angle = (
            row[: n * columns].view(n, columns) for row in scratch
        )
        self.sine, self.sine_radius = self.angle[:, :sines], self.radius[:, :sines]
        # u^2 of the word 0, as if u were 2^-32.
        self.tiny = torch.full((), 2.0**-64, dtype=scratch.dtype, device=scratch.device)

    def __call__(self, key: Tensor, cosines: Tensor, sines: Tensor) -> None:
        """Fill ``cosines`` (n, columns) and ``sines``, from key (n, 1, 1)."""
        _mix(torch.bitwise_xor(key, self.counter, out=self.bits), self.spare)
        radius, angle = self.radius.copy_(self.words[0]), self.angle.copy_(self.words[1])
        # -ln u^2 for u = |word|/2^31. Small u, the far tails, keep their relative precision in
        # float32; near u = 1 it rounds the radii below 1e-3 or so.
        torch.addcmul(self.tiny, radius, radius, value=2.0**-62, out=radius).log_().neg_().sqrt_()
        torch.cos(angle.mul_(math.pi * 2.0**-31), out=self.product)
        torch.mul(self.product, radius, out=cosines)
        angle.sin_()
        torch.mul(self.sine, self.sine_radius, out=sines)


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
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        first_sample: int = 0,
    ) -> None:
        self._seed, self._shape, self._dtype = check_seed(seed), tuple(shape), dtype
        self._samples = sample_indices(first_sample, self._shape[0], device)
        self._count = math.prod(self._shape[1:])
        self._most = max(1, _BLOCK // max(1, self._shape[0] * self._count))
        self._draw = 0
        self._block: Iterator[Tensor] = iter(())

    def __call__(self, start: float = 0.0, stop: float = 1.0) -> Tensor:
        """The next draw; the interval does not matter here."""
        tensor = next(self._block, None)
        if tensor is None:
            ahead = min(self._most, max(8, self._draw))  # blocks that double
            draws = torch.arange(self._draw, self._draw + ahead, device=self._samples.device)
            block = normals(self._seed, self._samples, draws, self._count, self._dtype)
            self._draw += ahead
            self._block = iter(block.reshape(ahead, *self._shape).unbind(0))
            tensor = next(self._block)
        return tensor

    def restart(self) -> None:
        """Start again at draw 0."""
        self._draw, self._block = 0, iter(())


class GeneratorNoise:
    """Normals from a ``torch.Generator``, in the order of the calls."""

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
