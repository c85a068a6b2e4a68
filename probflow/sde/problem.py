"""A call of ``sdeint`` made ready to run: arguments checked, functions and noise in place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.brownian import BrownianInterval
from probflow.integrate.grid import check_positive, check_steps
from probflow.integrate.motion import check_covers, seed_of
from probflow.integrate.transforms import hidden
from probflow.integrate.watch import Watch
from probflow.problems import ReverseSDE
from probflow.sde.adaptive import Tolerances, run_adaptive
from probflow.sde.base import check_word
from probflow.sde.loop import Trajectory, check_finite, node_times, run_fixed, step_grid
from probflow.sde.methods import Memory, Method, choose
from probflow.sde.noise import (
    Query,
    check_area_of,
    checked_query,
    mirrored_query,
    padded_query,
    query_of,
)
from probflow.sde.parts import (
    Parts,
    checked,
    flat,
    mirrored,
    parts_of,
    rounded,
    watched,
    with_log_ratio,
)
from probflow.sde.plans import check_state, first_sample_of, process_times, sde_times
from probflow.sde.settings import METHODS, NOISE_TYPES, SDE_TYPES
from probflow.sde.system import System
from probflow.words import UnfitError, check_choice, check_flags, dictionary, no_option

__all__ = ["Problem", "check_options", "embedded_of", "prepare", "tolerances_of"]

_OPTIONS = ("seed", "first_sample", "step_size", "check_finite", "error_estimate", "strict")
_ESTIMATES = ("halves", "embedded")  # of the error of an adaptive step
_AREA = {"": "none", "U": "space-time", "A": "foster"}


@dataclass(frozen=True)
class Problem:
    """What the loops need of a call. Times increase; ``sign`` is -1 where they are s = -t."""

    first: System
    method: Method
    times: list[float]
    grid: list[float]
    tolerances: Tolerances | None
    y0: Tensor
    noise_shape: tuple[int, ...]
    noise: Callable[[str], Query]
    query: Query
    sign: float
    finite: bool
    shape: torch.Size
    dtype: torch.dtype
    logqp: bool

    @property
    def system(self) -> System:
        """The SDE as it is once its functions have been looked at in the first step."""
        return self.first.later()

    def memory(self, given: Any) -> Memory:
        """The method's memory at the first time, or what was given for it."""
        start, name = self.method.start, self.method.name
        if given is not None and not isinstance(given, (tuple, list)):
            raise TypeError(f"extra_solver_state: need a tuple of tensors, got {given!r}")
        if given is None or (len(given) == 0 and start is None):
            if start is None:
                return ()
            ((t,),) = node_times(self.times[:1], self.times[:1], (0.0,), self.y0)
            return start(self.first, t, self.y0)
        if start is None:
            raise ValueError(f"extra_solver_state: {name} has no extra state; leave it out")
        y = self.y0
        if len(given) != 3 or not all(isinstance(x, Tensor) for x in given):
            raise ValueError(f"extra_solver_state: {name} needs three tensors: f, g, z")
        state = tuple(y.shape)
        diffusion = state if self.first.diagonal else (*state, self.noise_shape[-1])
        for part, x, shape in zip("fgz", given, (state, diffusion, state), strict=True):
            if (tuple(x.shape), x.dtype, x.device) != (shape, y.dtype, y.device):
                raise ValueError(
                    f"extra_solver_state: {part} of {name} must have shape {shape}, {y.dtype} on "
                    f"{y.device}; got {tuple(x.shape)}, {x.dtype} on {x.device}"
                )
        return tuple(given)

    def integrate(self, y0: Tensor, memory: Memory) -> Trajectory:
        """Run from ``y0``, which has the form of ``self.y0``."""
        if len(self.times) == 1:
            return Trajectory([y0], memory, list(self.times))
        method, query = self.method, self.query
        if self.tolerances is not None:
            if hidden(y0):
                raise ValueError(
                    "y0: under torch.func.vmap steps cannot depend on the error; take fixed steps, "
                    "adaptive=False"
                )
            run = run_adaptive(
                self.first, method, self.tolerances, self.times, y0, memory, query, self.sign
            )
        else:
            run = run_fixed(self.first, method, self.grid, self.times, y0, memory, query)
            if self.finite:
                check_finite(run.states, self.system, method, self.grid, memory, query, self.sign)
        # Copies: the memory outlives the run, and may lie where the functions write next.
        return replace(run, memory=tuple(x.clone() for x in run.memory))

    def result(self, ys: Tensor, memory: Memory, extra: bool) -> Any:
        """What ``sdeint`` returns: states, log-ratio increments if asked, memory if asked."""
        parts: tuple[Any, ...]
        if self.logqp:
            states = ys[..., :-1].reshape(len(ys), *self.shape)
            parts = (states.to(self.dtype), ys[..., -1].diff(dim=0).to(self.dtype))
        else:
            parts = (ys.to(self.dtype),)
        if extra:
            parts = (*parts, memory)
        return parts if len(parts) > 1 else parts[0]


def prepare(
    sde: Any,
    y0: Any,
    ts: Any,
    bm: Any,
    method: str,
    dt: Any,
    adaptive: bool,
    rtol: Any,
    atol: Any,
    dt_min: Any,
    options: Mapping[str, Any] | None,
    names: Mapping[str, str] | None,
    logqp: bool,
) -> Problem:
    """Check the arguments of ``sdeint`` and put the pieces together.

    The model is called at most once, and only where nothing else tells how many noises there are.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, naming it.
    """
    for word, allowed in (("noise_type", NOISE_TYPES), ("sde_type", SDE_TYPES)):
        if not hasattr(sde, word):
            raise UnfitError(
                f"sde: {type(sde).__name__} has no attribute {word}; need one of "
                f"{', '.join(allowed)}"
            )
        check_word(f"sde.{word}", getattr(sde, word), allowed)
    sde_type, noise_type = sde.sde_type, sde.noise_type
    settings = dictionary(options)
    check_flags(settings, ("check_finite", "grad_free", "strict"))
    chosen = choose(method, sde_type, noise_type, settings)
    check_options(settings, chosen.name, (*_OPTIONS, *chosen.options))
    embedded = embedded_of(settings, chosen, noise_type, adaptive)
    seed = settings.get("seed")
    if seed is not None:
        seed = seed_of(seed, "seed")
    first_sample = first_sample_of(settings.get("first_sample"), bm)
    finite = settings.get("check_finite") in (None, True)
    if adaptive and not finite:
        raise ValueError(
            "options: check_finite=False does nothing with adaptive=True, where the step lengths "
            "come from the error of each step, so that NaN or infinity stops it; leave it out"
        )
    check_state(y0)
    times, backward = _times(sde, ts)
    step, said = settings.get("step_size", dt), "step_size" if "step_size" in settings else "dt"
    if step is not None:
        step = check_positive(step, said)
        check_steps(times, step, said)
    parts = parts_of(sde, names)
    wide = torch.promote_types(y0.dtype, torch.float32)
    y, diagonal = y0.to(wide), noise_type == NOISE_TYPES.diagonal
    if wide != y0.dtype:
        parts = rounded(parts, y0.dtype, wide)
    clock = -1.0 if backward else 1.0
    if len(times) > 1:
        ends = clock * times[0], clock * times[-1]
        of_path = "ts needs s = -t" if isinstance(sde, ReverseSDE) else "ts needs it"
        check_covers(bm, *ends, of_path)
    noise_shape = _noise_shape(parts, noise_type, y, clock * times[0], bm)

    shape = y.shape
    watch = Watch(math.inf)  # to the end of the first step, which has all that are held at once

    def build(parts: Parts, later: Callable[[], System] | None = None) -> System:
        if backward:
            parts = mirrored(parts)
        if logqp:
            parts = with_log_ratio(parts, diagonal, shape)
        return System(parts, sde_type, noise_type, later)

    dtypes = {wide}  # of what the functions return

    @cache
    def later() -> System:
        watch.settle()
        same = parts if len(dtypes) == 1 else rounded(parts, wide, wide)
        return build(watched(same, watch) if watch.shared else same)

    first = build(watched(checked(parts, y, noise_shape, diagonal, dtypes), watch), later)
    if logqp:
        y = torch.nn.functional.pad(flat(y), (0, 1))
    padded = logqp and diagonal and tuple(getattr(bm, "shape", noise_shape)) != tuple(y.shape)
    if logqp and diagonal and not padded:
        noise_shape = tuple(y.shape)
    if bm is None:
        # Adaptive steps end anywhere: a tree no deeper than the shortest of them needs.
        leaf = check_positive(dt_min, "dt_min", zero=True) / 4.0 if adaptive else 0.0
        bm = _brownian(
            seed_of(seed, "seed"),
            times,
            clock,
            noise_shape,
            y,
            chosen.needs,
            step,
            leaf,
            first_sample,
        )
        own = True
    else:
        own = False
        if seed is not None:
            raise ValueError("bm, seed: give one of them, not both")
        if chosen.name == METHODS.log_ode_midpoint:  # as in torchsde, one rule for every noise
            check_area_of(bm, "A", method)

    def noise(needs: str) -> Query:
        query = query_of(bm, needs, noise_shape, y, method)
        if not own:
            query = checked_query(query, needs, noise_shape, y)
        if backward:
            query = mirrored_query(query, needs)
        return padded_query(query) if padded else query

    tolerances = None
    grid = times if step is None else step_grid(times, step)
    if adaptive:
        first_step = step or (times[-1] - times[0]) / 100.0
        tolerances = tolerances_of(rtol, atol, dt_min, first_step, embedded=embedded)
    return Problem(
        first=first,
        method=chosen,
        times=times,
        grid=grid,
        tolerances=tolerances,
        y0=y,
        noise_shape=noise_shape,
        noise=noise,
        query=noise(chosen.needs),
        sign=-1.0 if backward or isinstance(sde, ReverseSDE) else 1.0,
        finite=finite,
        shape=y0.shape,
        dtype=y0.dtype,
        logqp=logqp,
    )


def check_options(
    options: Mapping[str, Any], method: str, allowed: Sequence[str], argument: str = "options"
) -> None:
    """Raise ``ValueError`` for an unknown option, with the near ones; warn if not ``strict``."""
    for name in options:
        if name not in allowed:
            text = no_option(method, name, allowed, argument)
            if options.get("strict") in (None, True):
                raise ValueError(text)
            warnings.warn(text, stacklevel=4)


def embedded_of(
    options: Mapping[str, Any], method: Method, noise_type: str, adaptive: bool, prefix: str = ""
) -> bool:
    """Whether adaptive steps take the embedded error estimate; ``prefix`` of the arguments.

    Raises
    ------
    ValueError
        For another word, a method without one, and a choice without adaptive steps.
    """
    chosen = options.get("error_estimate")
    if chosen is None:
        return False
    check_choice("error_estimate", chosen, _ESTIMATES)
    if not adaptive:
        raise ValueError(
            f"{prefix}options: error_estimate={chosen!r} does nothing with {prefix}adaptive=False; "
            "leave it out"
        )
    if chosen == "embedded" and method.lower is None:
        raise ValueError(
            f"error_estimate: {method.name} with {noise_type} noise has no method of lower order "
            "in it; take 'halves'"
        )
    return bool(chosen == "embedded")


def tolerances_of(
    rtol: Any,
    atol: Any,
    dt_min: Any,
    first_step: float,
    prefix: str = "",
    used: bool = True,
    embedded: bool = False,
) -> Tolerances:
    """Tolerances from arguments, checked; ``prefix`` is that of their names.

    Raises
    ------
    TypeError, ValueError
        For numbers that are negative or not finite, or, where they are ``used``, both zero.
    """
    smallest = check_positive(dt_min, "dt_min", zero=True)
    relative = check_positive(rtol, f"{prefix}rtol", zero=True)
    absolute = check_positive(atol, f"{prefix}atol", zero=True)
    if used and relative == absolute == 0.0:
        raise ValueError(f"{prefix}rtol, {prefix}atol: one of them must be positive")
    return Tolerances(relative, absolute, max(first_step, smallest), smallest, embedded)


def _times(sde: Any, ts: Any) -> tuple[list[float], bool]:
    """Increasing times, and whether they are the negatives of decreasing ones."""
    if isinstance(sde, ReverseSDE):
        return [0.0 - t for t in process_times(ts)], False
    times = sde_times(ts)
    if len(times) > 1 and times[1] < times[0]:
        return [0.0 - t for t in times], True
    return times, False


def _noise_shape(parts: Parts, noise_type: str, y: Tensor, time: float, bm: Any) -> tuple[int, ...]:
    """Shape of the Brownian motion: the state's, (batch, 1) or (batch, m)."""
    if noise_type == NOISE_TYPES.diagonal:
        return tuple(y.shape)
    if noise_type == NOISE_TYPES.scalar:
        return (len(y), 1)
    shape = getattr(bm, "shape", None)
    if shape is not None:
        if len(shape) != 2 or shape[0] != len(y):
            raise ValueError(
                f"bm: has shape {tuple(shape)}; for {noise_type} noise need ({len(y)}, m), with "
                "the batch size of y0"
            )
        return tuple(shape)
    if not parts.keys() & {"g", "f_and_g"}:
        raise ValueError(
            "bm: with g_prod or f_and_g_prod alone the number of noises is unknown; give bm, or "
            "an SDE with g or f_and_g"
        )
    probe = System(checked(parts, y, None, False), SDE_TYPES.ito, noise_type)
    with torch.no_grad():
        ((t,),) = node_times([time], [time], (0.0,), y)
        return (len(y), probe.g(t, y).shape[-1])


def _brownian(
    seed: int,
    times: Sequence[float],
    clock: float,
    shape: tuple[int, ...],
    y: Tensor,
    needs: str,
    dt: float | None,
    leaf: float,
    first_sample: int,
) -> BrownianInterval:
    """Brownian motion over the times of a call."""
    ends = sorted((clock * times[0], clock * times[-1]))
    if len(times) == 1:  # nothing will be drawn
        ends[1] += 1.0
    return BrownianInterval(
        t0=ends[0],
        t1=ends[1],
        size=shape,
        dtype=y.dtype,
        device=y.device,
        entropy=seed,
        dt=dt,
        tol=leaf,
        levy_area_approximation=_AREA[needs],
        first_sample=first_sample,
    )
