"""One sampling run of a scheduler: the plan of its levels, and the place in it.

A pipeline may begin in the middle and copies schedulers while they run; a run may be copied and
pickled as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from probflow.adapters import solver_with_plan
from probflow.adapters.noise_levels import NoiseLevels
from probflow.adapters.stock_solvers import STOCK
from probflow.integrate.walk import PlanWalk
from probflow.plan import Plan, Point, Register, Step, conversion
from probflow.processes import EDM
from probflow.solvers import Solver
from probflow.solvers.last_step import plan_to_data
from probflow.words import check_whole

__all__ = [
    "SchedulerRun",
    "before_call",
    "calls_of",
    "check_arguments",
    "check_step",
    "check_tensors",
    "clipping",
    "distillation",
    "same_time",
    "solver_of",
    "tokens_at",
]

#: Arguments of other schedulers' ``step`` that change nothing at these values, and what to take.
_NEUTRAL: dict[str, tuple[Any, str]] = {
    "eta": (0.0, "choose a stochastic solver such as 'ddim-eta' instead"),
    "s_churn": (0.0, "choose solver='edm-churn' with S_churn in its solver_options instead"),
    "s_noise": (1.0, "choose a solver with an option s_noise or S_noise instead"),
    "variance_noise": (None, "give the scheduler a seed, or step a generator, instead"),
    "pred_original_sample": (None, "the step is computed from the model's output"),
}
# Without meaning here: bounds of churn; the grid and the clipping are the configuration's.
_IDLE = ("s_tmin", "s_tmax", "prev_timestep", "use_clipped_model_output")


class SchedulerRun:
    """The plan of a solver on process times, walked one model call at a time.

    Parameters
    ----------
    levels
        Noise levels of the model.
    solver
        The solver.
    times
        Process times from noise to data.

    Attributes
    ----------
    whole : Plan
        The plan of all times; :attr:`plan` may be that of a later step on.
    walk : PlanWalk
        The place in :attr:`plan`.
    times : list of float
        Process times of the whole plan.
    """

    def __init__(self, levels: NoiseLevels, solver: Solver, times: Sequence[float]) -> None:
        self._levels, self._solver = levels, solver
        self.whole = self._planned(times)
        self.times = [self.whole.times[0], *times[1:]]
        self.begin(0)

    def __copy__(self) -> SchedulerRun:
        """A run that goes on from here without changing this one."""
        other = object.__new__(SchedulerRun)
        other.__dict__.update(self.__dict__)
        other.walk = copy(self.walk)
        return other

    def _planned(self, times: Sequence[float]) -> Plan:
        levels = self._levels
        return plan_to_data(self._solver, levels.process, times, levels.prediction)

    def begin(self, call: int) -> None:
        """Walk anew from a model call of the whole plan on."""
        self.walk = PlanWalk(self.rest(call))
        process, prediction = self._levels.process, self._levels.prediction
        points = Point.many(process, calls_of(self.plan))
        self._to_x0 = [_weights(process, prediction, "x0", p) for p in points]
        self._from_x0 = [_weights(process, "x0", prediction, p) for p in points]

    def next_call(self, timestep: Any, told: Sequence[float], number: int | None) -> int:
        """Number of the model call made at a timestep: ``number``, ``None`` before the first.

        Raises
        ------
        ValueError
            If all calls are made, or the timestep is not that call's.
        """
        if self.walk.over:
            raise ValueError("step: all model calls of the plan are made; call set_timesteps again")
        if number is None:
            return self.begin_at(timestep, told)
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if on_host and not same_time(timestep, told[number]):
            raise ValueError(
                f"timestep: the next of the scheduler's timesteps is {told[number]:g}, number "
                f"{number}, got {float(timestep):g}; take them in order, or call set_timesteps or "
                "set_begin_index to begin anew"
            )
        return number

    def begin_at(self, timestep: Any, told: Sequence[float]) -> int:
        """Walk anew from the step that begins at a model time, of those ``told``; its first call.

        Raises
        ------
        ValueError
            If none begins there.
        """
        close = [i for i in self.firsts() if same_time(timestep, told[i])]
        if not close:
            raise ValueError(
                f"timestep: no step begins at {float(timestep):g}; the scheduler's timesteps begin "
                f"with {told[0]:g}"
            )
        if close[0]:
            self.begin(close[0])
        return close[0]

    @property
    def plan(self) -> Plan:
        """The plan that is walked."""
        return self.walk.plan

    @property
    def calls_of_step(self) -> int:
        """Model calls of a step; the last one may have fewer."""
        steps = self.whole.steps
        return len(steps[-2].stages) if len(steps) > 1 else self._solver.nfe

    def firsts(self) -> list[int]:
        """Numbers of the model calls with which steps begin."""
        return list(accumulate((len(step.stages) for step in self.whole.steps[:-1]), initial=0))

    def rest(self, call: int) -> Plan:
        """The plan of the steps from a model call on.

        Raises
        ------
        ValueError
            If no step begins with that call, or the rest would need other calls than the whole.
        """
        if call == 0:
            return self.whole
        firsts, total = self.firsts(), len(calls_of(self.whole))
        if call in firsts:
            number = firsts.index(call)
            steps = self.whole.steps[number:]
            ages = [
                register.age - place
                for place, step in enumerate(steps[: self.whole.memory])
                for combination in step.combinations()
                for register, _ in combination
            ]
            if max(ages, default=0) <= 0:  # nothing of the steps before
                return replace(self.whole, steps=steps)
            rest = self._planned(self.times[number:])
            if calls_of(rest) == calls_of(self.whole)[call:]:
                return rest
            if self._solver.whole_grid:
                raise ValueError(
                    f"begin_index: {self.whole.solver} plans all steps together, and cannot begin "
                    f"with model call {call}; take a solver that does not"
                )
        elif len({len(step.stages) for step in self.whole.steps[:-1]}) == 1:
            near = [f for f in firsts if abs(f - call) <= self.calls_of_step] or firsts[-1:]
            words = " or ".join(f"{f} (strength {1 - (f + 0.5) / total:.3f})" for f in near)
            raise ValueError(
                f"begin_index: no step of {self.whole.solver} begins with model call {call} of "
                f"{total}; take {words}, or a solver with one call in each step"
            )
        raise ValueError(
            f"begin_index: {self.whole.solver} with these options cannot begin with model call "
            f"{call}, because not all of its steps make {self.calls_of_step} calls; take "
            "start='euler' where the solver has it, 'ipndm-4' in the place of 'pndm', "
            "'accelerated-ode-multistep' in the place of 'accelerated-ode'"
        )

    def at_first_call(self) -> Step | None:
        """The step that is about to begin, if one is."""
        walk = self.walk
        return None if walk.over or walk.stage else walk.plan.steps[walk.step]

    def clipped(
        self, fed: Tensor, output: Tensor, clip: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The model's output after clipping of the data it predicts, and that data."""
        walk, scale = self.walk, self._levels.data_scale
        number = sum(len(step.stages) for step in walk.plan.steps[: walk.step]) + walk.stage
        of_input, of_output = self._to_x0[number]
        x0 = (of_input * scale) * fed + (of_output * scale) * output
        if clip is None:
            return output, x0
        x0 = clip(x0)
        of_input, of_output = self._from_x0[number]
        return of_input * fed + (of_output / scale) * x0, x0

    def advance(self, fed: Tensor, output: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        """From a model call to the next input, or to data; see :meth:`PlanWalk.advance`.

        Raises
        ------
        ValueError
            If all model calls are made.
        """
        result = self.walk.advance(fed, output, draw)
        return result * self._levels.data_scale if self.walk.over else result


def solver_of(solver: Any, options: Mapping[str, Any] | None) -> Solver:
    """The solver, by default with ``start="euler"``: as many model calls in each step.

    Raises
    ------
    ValueError, TypeError
        As :func:`~probflow.adapters.solver_with_plan`, for an option's value, and for a solver that
        cannot be served one call at a time.
    """
    if isinstance(solver, str) and solver == STOCK:
        raise ValueError("solver: 'stock' needs the configuration of a scheduler: from_config")
    found = solver_with_plan(solver, options, "solver_options")
    PlanWalk(found.plan(EDM(), [3.0, 2.0, 1.0]))
    if "start" in found.options and "start" not in (options or {}) and isinstance(solver, str):
        euler = found.with_options(start="euler")
        with suppress(ValueError):  # some have other starts only
            euler.plan(EDM(), [3.0, 2.0, 1.0])
            return euler
    return found


def clipping(config: Any) -> Callable[[Tensor], Tensor] | None:
    """The clipping of predicted data that a configuration asks for, or ``None``."""
    if config.thresholding:  # dynamic: Saharia et al. 2022 (arXiv 2205.11487), section 2.3

        def threshold(x0: Tensor) -> Tensor:
            flat = x0.flatten(1).abs()
            bound = torch.quantile(flat, config.dynamic_thresholding_ratio, dim=1)
            bound = bound.clamp(1.0, config.sample_max_value).view(-1, *(1,) * (x0.ndim - 1))
            return x0.clamp(-bound, bound) / bound

        return threshold
    if config.clip_sample:
        return lambda x0: x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    return None


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what other schedulers' ``step`` takes and a plan cannot do.

    Raises
    ------
    ValueError
        For a value that would change the step there.
    TypeError
        For an argument that no scheduler known here takes.
    """
    for name, value in given.items():
        if name in _NEUTRAL:
            neutral, instead = _NEUTRAL[name]
            if value is not None and (isinstance(value, Tensor) or value != neutral):
                got = f" {value}" if isinstance(value, (int, float)) else ""
                raise ValueError(
                    f"{name}: got{got or ' one'}; {instead}, and leave {name} at {neutral}"
                )
        elif name not in _IDLE:
            raise TypeError(
                f"step: {name!r} is an argument of another scheduler, which its pipeline depends "
                "on; probflow's has no such step"
            )


def check_tensors(**tensors: Any) -> None:
    """Raise ``TypeError`` for what is no tensor of floats, ``ValueError`` for one of 0-d."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: need a tensor of floats, got {got}")
        if not value.ndim:
            raise ValueError(f"{name}: need shape (batch, ...), got a 0-d tensor")


def check_step(model_output: Any, sample: Any, generator: Any) -> None:
    """Raise ``TypeError`` for what is no tensor of floats, or no generator or list of them.

    Raises
    ------
    ValueError
        For a list of generators that has neither one nor as many as there are samples.
    """
    check_tensors(model_output=model_output, sample=sample)
    given = generator if isinstance(generator, list) else [generator]
    if not all(g is None or isinstance(g, torch.Generator) for g in given):
        raise TypeError(
            f"generator: need a torch.Generator or a list of one for each sample, got {generator!r}"
        )
    if isinstance(generator, list) and len(generator) not in (1, len(sample)):
        raise ValueError(
            f"generator: need one for each of the {len(sample)} samples, got {len(generator)}"
        )


def distillation(config: Any, steps: int | None, strength: float) -> tuple[int, float]:
    """Timesteps of the distillation and the part of them to use, as consistency pipelines ask."""
    if config.timestep_layout != "lcm" or not 0 < strength <= 1:
        raise ValueError(
            "original_inference_steps, strength: for timesteps of a distillation "
            f"(timestep_layout='lcm') and strength in (0, 1], got {config.timestep_layout!r} and "
            f"strength {strength}"
        )
    count = steps or config.original_inference_steps
    return check_whole("original_inference_steps", count, 1), strength


def tokens_at(timesteps: Tensor, told: float, ndim: int) -> Tensor:
    """Which of the tokens, (batch, tokens), are at that time, for states of ``ndim`` dimensions."""
    here = (timesteps - told).abs() <= 1e-5 * max(1.0, abs(told))
    return here.view(*here.shape, *(1,) * (ndim - here.ndim))


def same_time(timestep: Any, told: float) -> bool:
    """Whether a timestep is what the model is told, to the rounding of its dtype.

    Raises
    ------
    ValueError
        If it is not one number.
    """
    try:
        value = float(timestep)
    except (TypeError, ValueError, RuntimeError):
        got = f"shape {tuple(timestep.shape)}" if isinstance(timestep, Tensor) else repr(timestep)
        raise ValueError(f"timestep: need one number, got {got}") from None
    floating = isinstance(timestep, Tensor) and timestep.is_floating_point()
    rounding = torch.finfo(timestep.dtype).eps if floating else 0.0
    return abs(value - told) <= max(1e-5, rounding) * max(1.0, abs(told))


def calls_of(plan: Plan) -> list[float]:
    """Process times of the model calls."""
    return [stage.time for step in plan.steps for stage in step.stages]


def before_call(step: Step) -> tuple[float, float]:
    """What a step does to its state before the first model call: factor, and noise added.

    The state that pipelines hold is the one after that, because they feed it to the model.
    """
    combination = step.stages[0].input
    factor = sum(weight for register, weight in combination if register == Register("x"))
    return factor, sum(w**2 for register, w in combination if register.kind == "z") ** 0.5


def _weights(process: Any, source: str, wanted: str, point: Point) -> tuple[float, float]:
    of_input, of_output = conversion(process, source, wanted, point)
    return float(of_input), float(of_output)
