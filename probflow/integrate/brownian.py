"""Brownian motions with torchsde's names, and k-diffusion's noise sampler, over one tree.

Each is a pure function of its arguments, the sample's index and the times, because
:class:`~probflow.integrate.interval.BrownianInterval` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.interval import BrownianInterval
from probflow.integrate.motion import BaseBrownian, as_tensor, as_time, seed_of
from probflow.integrate.tree import SLACK
from probflow.words import UnfitError, check_hook, check_real, check_whole

__all__ = [
    "BaseBrownian",
    "BrownianInterval",
    "BrownianNoiseSampler",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "brownian_interval_like",
]


class ReverseBrownian(BaseBrownian):
    """A motion with time running backwards: ``bm(ta, tb)`` is ``base_brownian(-tb, -ta)``.

    As in torchsde, where drift and diffusion of the adjoint SDE carry the signs.

    Parameters
    ----------
    base_brownian
        The motion.
    """

    def __init__(self, base_brownian: BaseBrownian) -> None:
        # torchsde's have these, too
        wanted = ("shape", "dtype", "device", "levy_area_approximation", "__call__")
        if not all(hasattr(base_brownian, name) for name in wanted):
            raise UnfitError(f"base_brownian: need a Brownian motion, got {base_brownian!r}")
        self.base_brownian = base_brownian
        self._adopt(base_brownian)

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """``base_brownian(-tb, -ta)``; both times are needed."""
        if tb is None:
            raise ValueError("tb: a reversed motion has increments only; give ta and tb")
        return self.base_brownian(-tb, -ta, return_U=return_U, return_A=return_A)

    def __repr__(self) -> str:
        return f"ReverseBrownian({self.base_brownian!r})"

    def check_time(self, t: Any) -> float:
        """As :meth:`BaseBrownian.check_time` of the motion, at ``-t``."""
        base = self.base_brownian
        return -base.check_time(-t) if isinstance(base, BaseBrownian) else as_time(t, "t")


class BrownianPath(BaseBrownian):
    """Brownian motion through ``w0`` at ``t0``, for all times.

    ``bm(t)`` is the value at t, ``bm(ta, tb)`` the increment. torchsde's class ends at t0 + 1 and
    stands still outside [t0, t0 + 1]. Here that interval is followed by [t0 + 1, t0 + 2],
    [t0 + 2, t0 + 4], ... and preceded by their mirror images, each a :class:`BrownianInterval` of
    its own.

    Parameters
    ----------
    t0
        Time at which the value is known.
    w0
        Value there, (batch, ...).
    window_size
        Of torchsde, where it has no use, either.
    entropy, first_sample
        As of :class:`BrownianInterval`.
    """

    def __init__(
        self,
        t0: Any,
        w0: Tensor,
        window_size: int = 8,
        *,
        entropy: int | None = None,
        first_sample: int = 0,
    ) -> None:
        check_whole("window_size", window_size, 0)
        self._t0, self._w0 = as_time(t0, "t0"), as_tensor(w0, "w0").clone()
        self._first_sample = first_sample
        self.entropy = seed_of(entropy)
        self._later: list[BrownianInterval] = []
        self._earlier: list[BrownianInterval] = []
        self._reach(self._t0)
        self._adopt(self._later[0])

    def _reach(self, t: float) -> None:
        later = t >= self._t0
        parts = self._later if later else self._earlier
        while not parts or (t > parts[-1]._t1 if later else t < parts[-1]._t0):
            k = len(parts)
            near, far = 2.0 ** (k - 1) if k else 0.0, 2.0**k
            ends = (near, far) if later else (-far, -near)
            number = k if later else -1 - k
            parts.append(
                BrownianInterval(
                    self._t0 + ends[0],
                    self._t0 + ends[1],
                    self._w0.shape,
                    self._w0.dtype,
                    self._w0.device,
                    (self.entropy + number * 0x9E3779B97F4A7C15) % 2**63,
                    first_sample=self._first_sample,
                )
            )

    def __call__(
        self, t: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """Value at ``t``, or increment from ``t`` to ``tb``; U and A are None, as in torchsde."""
        start = self._t0 if tb is None else self.check_time(t)
        stop = self.check_time(t if tb is None else tb)
        lo, hi = min(start, stop), max(start, stop)
        self._reach(lo)
        self._reach(hi)
        w = torch.zeros_like(self._w0)
        for part in (*self._earlier, *self._later):
            if lo < part._t1 and part._t0 < hi:
                w += part(max(lo, part._t0), min(hi, part._t1))
        if start > stop:
            w = -w
        extra = (None,) * (return_U + return_A)
        return (w, *extra) if extra else w + self._w0 if tb is None else w

    def __repr__(self) -> str:
        return f"BrownianPath(t0={self._t0:g}, shape={self.shape}, entropy={self.entropy})"

    def check_time(self, t: Any) -> float:
        """As :meth:`BaseBrownian.check_time`; a time that lies before t0 by rounding only is t0."""
        time = as_time(t, "t")
        return self._t0 if 0.0 <= self._t0 - time <= SLACK * abs(self._t0) else time


class BrownianTree(BaseBrownian):
    """Brownian motion on [t0, t1] from ``w0``, if given to ``w1``.

    ``bm(t)`` is the value at t, ``bm(ta, tb)`` the increment. A :class:`BrownianInterval` with
    torchsde's other signature.

    Parameters
    ----------
    t0, t1
        Ends; t1 is t0 + 1 by default.
    w0, w1
        Values there, (batch, ...).
    entropy, tol, first_sample
        As of :class:`BrownianInterval`.
    pool_size, cache_depth, safety
        Of torchsde; without use here.
    """

    def __init__(
        self,
        t0: Any,
        w0: Tensor,
        t1: Any = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
        *,
        first_sample: int = 0,
    ) -> None:
        self._w0 = as_tensor(w0, "w0").clone()
        check_whole("cache_depth", cache_depth, 0)
        if safety is not None:
            check_real("safety", safety)
        if w1 is not None:
            as_tensor(w1, "w1")
            want, got = ((tuple(w.shape), w.dtype, w.device) for w in (w0, w1))
            if want != got:
                raise ValueError(f"w1: need shape, dtype and device of w0, {want}, got {got}")
        self._interval = BrownianInterval(
            t0,
            as_time(t0, "t0") + 1.0 if t1 is None else t1,
            w0.shape,
            w0.dtype,
            w0.device,
            entropy,
            tol=tol,
            pool_size=pool_size,
            W=None if w1 is None else w1 - w0,
            first_sample=first_sample,
        )
        self._adopt(self._interval)

    def __call__(
        self, t: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        """Value at ``t``, or increment from ``t`` to ``tb``; U and A are None, as in torchsde."""
        out = self._interval(t, tb, return_U, return_A)
        return out + self._w0 if tb is None and isinstance(out, Tensor) else out

    def __repr__(self) -> str:
        return f"BrownianTree({self._interval!r})"

    def check_time(self, t: Any) -> float:
        """As :meth:`BrownianInterval.check_time`."""
        return self._interval.check_time(t)


def brownian_interval_like(
    y: Tensor,
    t0: Any = 0.0,
    t1: Any = 1.0,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> BrownianInterval:
    """:class:`BrownianInterval` with shape, dtype and device of ``y``, where not given.

    Parameters
    ----------
    y
        Tensor, (batch, ...).
    t0, t1, size, dtype, device, kwargs
        As of :class:`BrownianInterval`.

    Returns
    -------
    BrownianInterval
        The motion.

    Raises
    ------
    TypeError, ValueError
        As :class:`BrownianInterval`.
    """
    as_tensor(y, "y")
    return BrownianInterval(
        t0,
        t1,
        y.shape if size is None else size,
        y.dtype if dtype is None else dtype,
        y.device if device is None else device,
        **kwargs,
    )


def _same(sigma: Any) -> Any:  # a function with a name, so that samplers can be saved
    return sigma


class BrownianNoiseSampler:
    """Unit-variance noises for k-diffusion's samplers, from one motion for all step counts.

    Signature and use are those of k-diffusion's ``BrownianTreeNoiseSampler``:
    ``noise_sampler(sigma, sigma_next)``.

    Parameters
    ----------
    x
        The state, (batch, ...).
    sigma_min, sigma_max
        Ends of the motion's interval, before the transform.
    seed
        Whole number, or a sequence, array or tensor of one for each sample; by default from torch's
        global generator.
    transform
        Maps sigma to the motion's time.
    cpu
        Make the noise on the CPU. It is the same on every device, up to rounding.

    Raises
    ------
    TypeError
        If ``x`` is no tensor, a level no number, or a seed no whole number.
    ValueError
        If the two levels are equal, or the seeds are not as many as the samples.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: Any = None,
        transform: Callable[[Any], Any] = _same,
        cpu: bool = False,
    ) -> None:
        self._like, self._transform = as_tensor(x, "x"), transform
        check_hook("transform", transform)
        ends = self._time(sigma_min, "sigma_min"), self._time(sigma_max, "sigma_max")
        t0, t1 = sorted(ends)
        if t0 == t1:
            raise ValueError(
                "sigma_min, sigma_max: need two levels of different times, got "
                f"{sigma_min} and {sigma_max}"
            )
        several = isinstance(seed, Sequence) or getattr(seed, "ndim", 0) > 0
        seeds = list(seed) if several else [seed]
        if several and len(seeds) != len(x):
            raise ValueError(
                f"seed: need a whole number, or one for each of {len(x)} samples, got {seed!r}"
            )
        self._motions = [
            brownian_interval_like(
                part, t0, t1, device="cpu" if cpu else None, entropy=seed_of(one, "seed")
            )
            for part, one in zip(x.split(1) if several else [x], seeds, strict=True)
        ]

    def _time(self, sigma: Any, name: str) -> float:
        as_time(sigma, name)
        return as_time(self._transform(torch.as_tensor(sigma)), f"{name}, transformed")

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        """Noise of the step from ``sigma`` to ``sigma_next``, shape of the state."""
        a, b = self._time(sigma, "sigma"), self._time(sigma_next, "sigma_next")
        if a == b:
            raise ValueError(f"sigma, sigma_next: need two different noise levels, got {sigma}")
        w = torch.cat([motion(a, b) for motion in self._motions]).to(self._like.device)
        return w / math.sqrt(abs(b - a))
