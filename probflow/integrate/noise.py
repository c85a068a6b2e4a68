r"""Noise that is a pure function of (seed, sample index, draw or time).

Normals come from a counter-based generator: the SplitMix64 output function (Steele, Lea, Flood
2014) hashes (seed, sample, draw, element) to 64 bits, and Box-Muller turns them into two normals.
Sample i of seed s is therefore the same tensor whatever the batch size, the chunking or the
device (up to the last digits of ``log`` and ``cos`` there), and nothing depends on the order of
calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["BrownianPath", "GeneratorNoise", "NoiseSource", "SeededNoise", "normals"]

_BLOCK = 2**16  # normals drawn at a time, so that small states do not pay per call


class NoiseSource(Protocol):
    """What a stochastic plan draws from: a unit normal for a sub-interval of a step."""

    def __call__(self, start: float, stop: float) -> Tensor:
        """Unit normals, shape of the state, for process times ``start`` to ``stop``."""

    def restart(self) -> None:
        """Go back to the beginning, so that the same calls give the same tensors."""


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, on int64 with wrap-around; ``>>`` of torch keeps the sign."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX2
    return z ^ ((z >> 31) & (2**33 - 1))


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
    device = samples.device
    key = _mix(torch.tensor(seed, dtype=torch.int64, device=device) + _GOLDEN)
    key = _mix(key + samples * _GOLDEN)
    key = _mix(key[None, :] ^ _mix(draws * _GOLDEN + _MIX1)[:, None])
    half = (count + 1) // 2
    counter = torch.arange(1, half + 1, device=device) * _GOLDEN
    bits = _mix(key[..., None] + counter)
    high, low = (bits >> 32) & 0xFFFFFFFF, bits & 0xFFFFFFFF
    # In float64, because float32 has no number between 1 - 6e-8 and 1: small radii would be off.
    wide = dtype if device.type == "mps" else torch.float64
    radius = ((high.to(wide) + 0.5) * 2.0**-32).log_().mul_(-2.0).sqrt_().to(dtype)
    angle = low.to(dtype) * (2.0 * math.pi * 2.0**-32)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)[..., :count]


def check_seed(seed: object) -> int:
    """Return ``seed`` if it is a whole number in [0, 2**63); raise otherwise."""
    return _whole(seed, "seed")


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: need a whole number in [0, 2**63), got {value!r}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}: need a whole number in [0, 2**63), got {value}")
    return int(value)


def _sample_indices(first: int, count: int, device: torch.device | str) -> Tensor:
    first = _whole(first, "first_sample")
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
        self._samples = _sample_indices(first_sample, self._shape[0], device)
        self._count = math.prod(self._shape[1:])
        self._ahead = max(1, min(64, _BLOCK // max(1, self._shape[0] * self._count)))
        self._draw = 0
        self._block: Iterator[Tensor] = iter(())

    def __call__(self, start: float = 0.0, stop: float = 1.0) -> Tensor:
        """The next draw; the interval does not matter here."""
        tensor = next(self._block, None)
        if tensor is None:
            draws = torch.arange(self._draw, self._draw + self._ahead, device=self._samples.device)
            block = normals(self._seed, self._samples, draws, self._count, self._dtype)
            self._draw += self._ahead
            self._block = iter(block.reshape(self._ahead, *self._shape).unbind(0))
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


class BrownianPath:
    r"""A Brownian path W on [t0, t1] that every step count can share.

    The value at the middle of an interval is the mean of its ends plus a normal keyed by (seed,
    sample, node), down to cells of ``2**-depth`` of the interval (Li et al. 2020, arXiv
    2001.01328, virtual Brownian tree), inside which W is linear. So W(t) is a pure function of
    (seed, sample index, t), whatever is asked before, and independent of :class:`SeededNoise` of
    the same seed.

    Calling it with two times gives the increment ``W(tb) - W(ta)``, as torchsde's ``bm``. Its
    variance is too small by up to half a cell, so an increment of less than 16 cells is refused.

    Parameters
    ----------
    seed
        Whole number in [0, 2**63).
    shape
        Shape of the state, (batch, ...).
    t0, t1
        Ends of the interval, in either order.
    dtype, device, first_sample
        As :class:`SeededNoise`.
    depth
        Number of halvings, 1 .. 40.
    """

    levy_area_approximation = "none"  # what torchsde asks of a ``bm``

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        t0: float,
        t1: float,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        *,
        first_sample: int = 0,
        depth: int = 30,
    ) -> None:
        if not (math.isfinite(t0) and math.isfinite(t1)) or t0 == t1:
            raise ValueError(f"t0, t1: need two different finite times, got {t0}, {t1}")
        if not 1 <= depth <= 40:
            raise ValueError(f"depth: need 1 <= depth <= 40, got {depth}")
        self._seed, self.shape, self._dtype = check_seed(seed), tuple(shape), dtype
        self._t0, self._t1, self._depth = min(t0, t1), max(t0, t1), depth
        self._samples = _sample_indices(first_sample, self.shape[0], device)
        self._count = math.prod(self.shape[1:])
        self._recent: dict[float, Tensor] = {}

    def value(self, t: float) -> Tensor:
        """W(t), with W(t0) = 0 at the smaller end; shape of the state."""
        t = float(t)
        if t not in self._recent:
            if len(self._recent) >= 4:  # a step asks for its ends and its middle
                self._recent.pop(next(iter(self._recent)))
            self._recent[t] = self._descend(t)
        return self._recent[t]

    def check_time(self, t: float) -> float:
        """Position of ``t`` in the interval, from 0 to 1; ``ValueError`` if it lies outside."""
        position = (t - self._t0) / (self._t1 - self._t0)
        if not -1e-9 <= position <= 1 + 1e-9:
            raise ValueError(f"t: {t:g} lies outside the path's [{self._t0:g}, {self._t1:g}]")
        return min(max(position, 0.0), 1.0)

    def _descend(self, t: float) -> Tensor:
        # Levy's construction: one normal per level, times a hat function of the position u.
        u = self.check_time(t)
        std = math.sqrt(self._t1 - self._t0)
        nodes, weights = [0], [u * std]
        std, node = 0.5 * std, 1
        for _ in range(self._depth):
            if u in (0.0, 1.0):
                break
            nodes.append(node)
            weights.append(2.0 * min(u, 1.0 - u) * std)
            right = u >= 0.5
            u, node, std = 2.0 * u - right, 2 * node + right, std * math.sqrt(0.5)
        # Negative draws: those of SeededNoise, from 0 up, stay independent of the path.
        draws = torch.tensor([-1 - node for node in nodes], device=self._samples.device)
        total = torch.zeros(self.shape, dtype=self._dtype, device=self._samples.device)
        at_a_time = max(1, _BLOCK // max(1, total.numel()))
        normal = (
            row
            for some in draws.split(at_a_time)
            for row in normals(self._seed, self._samples, some, self._count, self._dtype)
        )
        for weight, row in zip(weights, normal, strict=True):
            total.add_(row.reshape(self.shape), alpha=weight)
        return total

    def __call__(self, ta: float, tb: float) -> Tensor:
        """Increment ``W(tb) - W(ta)``."""
        cell = (self._t1 - self._t0) * 0.5**self._depth
        if 0 < abs(tb - ta) < 16 * cell:
            raise ValueError(
                f"ta, tb: {abs(tb - ta):g} apart, less than 16 cells of the path ({cell:g} each), "
                f"where it is no longer Brownian; make it with depth > {self._depth}"
            )
        return self.value(tb) - self.value(ta)


class PathNoise:
    """Unit normals that are the normalised increments of a path, so step counts share it.

    Parameters
    ----------
    path
        Callable ``path(ta, tb)`` giving the increment, e.g. :class:`BrownianPath`.
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
        return (self._path(a, b) / math.sqrt(abs(b - a))).to(self._dtype)

    def restart(self) -> None:
        """Nothing to do: a path is a function."""
