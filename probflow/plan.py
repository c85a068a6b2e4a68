r"""A sampler as data: the scalars of every step, known before the first model call.

A :class:`Plan` is a tuple of :class:`Step`; a step is a few :class:`Stage` (model evaluations,
each at a linear combination of registers) and an update (another combination). Registers are

======  ===========================================================================
``x``   the state at the start of the step
``u``   the input of stage i, where it is not ``x`` itself
``f``   the raw model output of stage i
``j``   the derivative of that output along the stage's tangent, if it has one
``z``   noise j: a unit normal that belongs to a sub-interval of the step
======  ===========================================================================

and the same of earlier steps (``age`` 1 is the previous step), which is how multistep methods
remember. Plans hold floats only: no tensors, no torch. They are made by tracing a solver, a
function written like its equation, with :class:`StepBuilder`; what interprets them is in
``integrate`` (tensors), ``laws`` (exact laws) and ``describe`` (tableaus).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Linear", "Plan", "Point", "Register", "Stage", "Step", "StepBuilder", "trace"]


class Register(NamedTuple):
    """Name of a tensor that a combination refers to; see the module's table."""

    kind: str  # "x", "u", "f", "j" or "z"
    index: int = 0  # type: ignore[assignment]
    age: int = 0  # how many steps ago

    def __str__(self) -> str:
        number = "" if self.kind == "x" else str(self.index)
        return f"{self.kind}{number}" + (f"[-{self.age}]" if self.age else "")


X = Register("x")
_Key = tuple[str, int, int]  # a register, or the plain tuple that is equal to it
Combination = tuple[tuple[Register, float], ...]


@dataclass(frozen=True)
class Stage:
    """One model evaluation: the model is called at ``input`` and process time ``time``.

    With a ``tangent``, the Jacobian-vector product along it is taken in the same call.
    """

    input: Combination
    time: float
    tangent: Combination = ()

    @property
    def alias(self) -> Register | None:
        """The register that the input *is* (weight 1, nothing else), or ``None``."""
        if len(self.input) == 1 and self.input[0][1] == 1.0:
            return self.input[0][0]
        return None


@dataclass(frozen=True)
class Step:
    """One step from process time ``start`` to ``stop``.

    ``noises[j]`` is the sub-interval (two process times) whose unit normal register z_j is.
    """

    start: float
    stop: float
    stages: tuple[Stage, ...]
    noises: tuple[tuple[float, float], ...]
    update: Combination

    @property
    def nfe(self) -> int:
        """Number of model evaluations; see :attr:`Plan.nfe`."""
        return sum(2 if stage.tangent else 1 for stage in self.stages)

    def combinations(self) -> tuple[Combination, ...]:
        """All combinations: stage inputs in order, each before its tangent, then the update."""
        return tuple(combination for _, combination in self._numbered())

    def _numbered(self) -> list[tuple[int, Combination]]:
        """Combinations, each with the number of stages before it."""
        found = []
        for number, stage in enumerate(self.stages):
            found.append((number, stage.input))
            if stage.tangent:
                found.append((number, stage.tangent))
        return [*found, (len(self.stages), self.update)]


@dataclass(frozen=True)
class Plan:
    """The steps of a solver on a grid, for a model of the given prediction type.

    Raises
    ------
    ValueError
        If a combination refers to a register that does not exist at that point, a weight is not
        finite, noises overlap, or the steps do not join.
    """

    solver: str
    prediction: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("plan: need at least 1 step")
        for number, step in enumerate(self.steps):
            wrong = self._mistake(number, step)
            if wrong:
                raise ValueError(
                    f"plan of {self.solver}, step {number} (t = {step.start:g} -> "
                    f"{step.stop:g}): {wrong}"
                )

    def _mistake(self, number: int, step: Step) -> str:
        """What is wrong with a step; empty if nothing is."""
        if number and step.start != self.steps[number - 1].stop:
            return "does not start where the step before it stops"
        if step.noises:
            intervals = sorted(tuple(sorted(interval)) for interval in step.noises)
            for first, second in pairwise(intervals):
                if second[0] < first[1]:
                    return f"noises {first} and {second} overlap"
            low, high = sorted((step.start, step.stop))
            for begin, end in intervals:
                if not low <= begin < end <= high:
                    return f"the noise of ({begin:g}, {end:g}) is not of the step"
        for stage_number, combination in step._numbered():
            if not combination:
                return "an empty combination"
            for register, weight in combination:
                if not math.isfinite(weight):
                    return (
                        f"the weight of {register} is {weight}; the process has no finite "
                        "log-SNR there (alpha = 0 or sigma = 0): start or end the grid elsewhere"
                    )
                if register != X and not self._exists(register, number, stage_number):
                    return f"register {register} does not exist there"
        return ""

    def _exists(self, register: Register, number: int, stage_number: int) -> bool:
        kind, index, age = register
        if not 0 <= age <= number:
            return False
        step = self.steps[number - age]
        if kind == "x":
            return index == 0
        if kind == "z":
            return 0 <= index < len(step.noises)
        available = stage_number if age == 0 else len(step.stages)
        if not 0 <= index < available:
            return False
        return kind in ("u", "f") or (kind == "j" and bool(step.stages[index].tangent))

    @property
    def times(self) -> tuple[float, ...]:
        """The grid: n + 1 process times."""
        return (self.steps[0].start, *(step.stop for step in self.steps))

    @property
    def nfe(self) -> int:
        """Number of model evaluations of the whole plan.

        A Jacobian-vector product by forward-mode differentiation carries a second number along
        with each one, so an evaluation with a tangent counts as two.
        """
        return sum(step.nfe for step in self.steps)

    @property
    def rounds(self) -> int:
        """Length of the longest chain of evaluations that wait for one another.

        Equal to ``nfe`` unless a step has evaluations that could run at the same time.
        """
        depths: dict[tuple[str, int, int], int] = {("x", 0, 0): 0}
        for number, step in enumerate(self.steps):

            def depth(combination: Combination, now: int = number) -> int:
                names = [(r.kind, r.index, now - r.age) for r, _ in combination if r.kind != "z"]
                return max((depths[name] for name in names), default=0)

            for index, stage in enumerate(step.stages):
                before = depth(stage.input)
                depths["u", index, number], depths["f", index, number] = before, before + 1
                if stage.tangent:
                    depths["j", index, number] = max(before, depth(stage.tangent)) + 1
            depths["x", 0, number + 1] = depth(step.update)
        return max(depths.values())

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.noises for step in self.steps)

    @property
    def memory(self) -> int:
        """How many earlier steps a step may refer to (0 for one-step methods)."""
        ages = [r.age for step in self.steps for c in step.combinations() for r, _ in c]
        return max(ages, default=0)


class Linear:
    """A linear combination of registers, as a solver's equation writes it.

    Supports ``+``, ``-``, multiplication and division by floats. Model outputs also carry
    ``input``: the register at which the model was evaluated.
    """

    __slots__ = ("_factor", "_input", "_terms")

    def __init__(
        self, terms: dict[_Key, float], input: Linear | None = None, factor: float = 1.0
    ) -> None:
        # The factor is multiplied out when needed: most products are summands of a sum.
        self._terms, self._factor, self._input = terms, factor, input

    @property
    def input(self) -> Linear:
        """Where a model output was evaluated; the combination itself if it is none."""
        return self if self._input is None else self._input

    @property
    def terms(self) -> dict[_Key, float]:
        """Weight of each register."""
        if self._factor != 1.0:
            factor = self._factor
            self._terms = {register: factor * w for register, w in self._terms.items()}
            self._factor = 1.0
        return self._terms

    def __add__(self, other: Linear) -> Linear:
        if not isinstance(other, Linear):
            return NotImplemented
        terms, factor = self.terms.copy(), other._factor
        for register, weight in other._terms.items():
            terms[register] = terms.get(register, 0.0) + factor * weight
        return Linear(terms)

    def __mul__(self, factor: float) -> Linear:
        if isinstance(factor, Linear):
            raise TypeError("a solver step is linear: the product of two registers is not allowed")
        return Linear(self._terms, None, self._factor * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        return Linear(self._terms, None, self._factor / float(divisor))

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __neg__(self) -> Linear:
        return self * -1.0

    @staticmethod
    def sum(weights: Sequence[float], combinations: Sequence[Linear]) -> Linear:
        """The sum of weight times combination, faster than term by term."""
        terms: dict[_Key, float] = {}
        for weight, combination in zip(weights, combinations, strict=True):
            weight *= combination._factor
            for register, w in combination._terms.items():
                terms[register] = terms.get(register, 0.0) + weight * w
        return Linear(terms)

    def combination(self, number: int = 0) -> Combination:
        """The terms as a tuple; zero weights are left out, a weight within 1e-15 of 1 is 1.

        While a solver is traced, ages count from step 0; ``number`` is that of the step which the
        combination belongs to, and from which its registers are seen.
        """
        return tuple(
            [
                (
                    _register(kind, index, age + number),
                    1.0 if -1e-15 < weight - 1.0 < 1e-15 else weight,
                )
                for (kind, index, age), weight in self.terms.items()
                if weight != 0.0
            ]
        )


_register = lru_cache(maxsize=4096)(Register)


class _Batch:
    """Functions of a process at many times, each evaluated for all of them when first needed."""

    def __init__(self, process: Any, times: np.ndarray) -> None:
        self.times, self._process = times, process
        self._columns: dict[str, list[float]] = {}
        self._conversions: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._columns:
            values = getattr(self._process, name)(self.times)
            self._columns[name] = np.broadcast_to(values, self.times.shape).tolist()
        return self._columns[name]

    def conversion(self, source: str, wanted: str) -> list[tuple[float, float]]:
        """:func:`conversion` at all times; not finite where there is none."""
        key = (source, wanted)
        if key not in self._conversions:
            alpha, sigma = np.array(self["alpha"]), np.array(self["sigma"])
            point = SimpleNamespace(t=self.times, alpha=alpha, sigma=sigma)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                weights = conversion(self._process, source, wanted, point)
            columns = [np.broadcast_to(w, self.times.shape).tolist() for w in weights]
            self._conversions[key] = list(zip(*columns, strict=True))
        return self._conversions[key]


class Point:
    r"""A time of a process, with everything a formula asks for, in float64.

    Attributes
    ----------
    t, alpha, sigma, lambda_ : float
        Time, signal factor, noise standard deviation, log-SNR ``ln(alpha/sigma)``.
    neg_log_ab, ab : float
        :math:`-\ln\bar\alpha` and :math:`\bar\alpha = \alpha^2/(\alpha^2+\sigma^2)`.
    theta : float
        Angle ``atan2(sigma, alpha)``, from 0 (data) to pi/2 (noise).
    rho : float
        Noise-to-signal ratio ``sigma/alpha`` (the sigma of EDM and k-diffusion).
    """

    __slots__ = ("_batch", "_index", "alpha", "lambda_", "neg_log_ab", "sigma", "t")

    def __init__(
        self,
        t: float,
        alpha: float,
        sigma: float,
        lambda_: float,
        neg_log_ab: float,
        batch: _Batch | None = None,
        index: int = 0,
    ) -> None:
        self.t, self.alpha, self.sigma = t, alpha, sigma
        self.lambda_, self.neg_log_ab = lambda_, neg_log_ab
        self._batch, self._index = batch, index

    @staticmethod
    def many(process: Any, times: Sequence[float] | np.ndarray) -> list[Point]:
        """Points at all times at once; ``process`` may be ``None`` (a plain ODE: ``t`` only)."""
        if process is None:
            return [Point(float(t), *(math.nan,) * 4) for t in times]
        batch = _Batch(process, np.asarray(times, dtype=np.float64))
        names = ("alpha", "sigma", "lambda_", "neg_log_ab")
        rows = zip(batch.times.tolist(), *(batch[name] for name in names), strict=True)
        return [
            Point(t, alpha, sigma, lambda_, neg_log_ab, batch, index)
            for index, (t, alpha, sigma, lambda_, neg_log_ab) in enumerate(rows)
        ]

    def _rate(self, name: str) -> float:
        if self._batch is None:
            raise TypeError(f"{name}: a plain ODE has no noise levels; give a process")
        return self._batch[name][self._index]

    def conversion(self, source: str, wanted: str) -> tuple[float, float]:
        """Weights (c, d) with ``wanted = c x + d source`` here, for any two prediction types."""
        if self._batch is None:
            raise TypeError("a plain ODE has one prediction type")
        return self._batch.conversion(source, wanted)[self._index]

    @property
    def ab(self) -> float:
        """``alphas_cumprod``."""
        return math.exp(-self.neg_log_ab)

    @property
    def theta(self) -> float:
        """Angle ``atan2(sigma, alpha)``."""
        return math.atan2(self.sigma, self.alpha)

    @property
    def rho(self) -> float:
        """Noise-to-signal ratio ``sigma/alpha``."""
        return self.sigma / self.alpha

    @property
    def drift(self) -> float:
        """Linear drift ``f(t)`` of the forward SDE."""
        return self._rate("drift")

    @property
    def diffusion(self) -> float:
        """Diffusion ``g(t)`` of the forward SDE."""
        return self._rate("diffusion")

    @property
    def dalpha(self) -> float:
        """Time derivative of ``alpha``."""
        return self._rate("dalpha")

    @property
    def dsigma(self) -> float:
        """Time derivative of ``sigma``."""
        return self._rate("dsigma")


#: Factor n such that ``x / n`` is the state in the named coordinates.
COORDINATES: dict[str, Callable[[Point], float]] = {
    "process": lambda point: 1.0,
    "vp": lambda point: math.hypot(point.alpha, point.sigma),
    "ve": lambda point: point.alpha,
}


class StepBuilder:
    """What a solver function sees of one step, from time ``t`` to time ``s``.

    Attributes
    ----------
    t, s : Point
        Start and stop of the step (noise to data: ``s.t < t.t``).
    x : Linear
        The state, in the solver's coordinates.
    previous : list of StepBuilder
        The finished steps before this one, newest first; ``previous[0].t`` is the grid point
        before ``t`` and ``previous[0].outputs[0]`` the model output stored there.
    outputs, points : list of Linear, list of Point
        The model outputs of this step so far, and where they were evaluated.
    number, remaining, steps : int
        Number of steps before this one, from this one on (1 in the last step), and in all.
    following : Point, optional
        The grid point after ``s``; ``None`` in the last step.
    """

    def __init__(
        self,
        points: list[Point],
        number: int,
        *,
        predictions: tuple[str, str],
        coordinates: str,
        previous: list[StepBuilder],
        between: _Between,
    ) -> None:
        self._place(points, number, previous)
        self._between = between
        self._predictions, self._scale = predictions, COORDINATES[coordinates]
        self.x = Linear({("x", 0, -number): 1.0}, None, 1.0 / self._scale(self.t))
        self.outputs: list[Linear] = []
        self.points: list[Point] = []
        self._stages: list[Stage] = []
        self._noises: list[tuple[float, float]] = []

    def _place(self, points: list[Point], number: int, previous: list[StepBuilder]) -> None:
        """Where in the grid the step is."""
        self.t, self.s = points[number : number + 2]
        self.previous, self.number, self.steps = previous, number, len(points) - 1
        self.remaining = self.steps - number
        self.following = points[number + 2] if self.remaining > 1 else None

    def at(self, t: float) -> Point:
        """The point at process time ``t``."""
        return self._between.at(t)

    def at_lambda(self, lambda_: float) -> Point:
        """The point with log-SNR ``lambda_``."""
        return self._between.at_lambda(lambda_)

    def at_neg_log_ab(self, neg_log_ab: float) -> Point:
        """The point with this ``-ln(ab)``."""
        return self.at_lambda(-0.5 * math.log(math.expm1(neg_log_ab)))

    @property
    def lambda_min(self) -> float:
        """Log-SNR of the noisiest time of the process, may be -inf."""
        return self._between.lambda_min

    def model(self, state: Linear, at: Point) -> Linear:
        """Evaluate the model at ``state`` and time ``at``, in the solver's prediction type.

        The conversion from the model's own prediction type is linear in (input, output), so it
        becomes weights. ``result.input`` is the evaluated state as a register: referring to it,
        rather than to the sum that made it, tells the exact laws that the rest of the step
        depends on it alone.
        """
        scale, number, index = self._scale(at), self.number, len(self._stages)
        combination = (state if scale == 1.0 else state * scale).combination(number)
        stage = Stage(combination, at.t)
        self._stages.append(stage)
        alias = stage.alias
        if alias is None:
            register = ("u", index, -number)
        else:
            register = (alias.kind, alias.index, alias.age - number)
        of_input, of_output, factor = self._weights(at)
        terms: dict[_Key, float] = {("f", index, -number): of_output}
        if of_input != 0.0:
            terms[register] = of_input
        result = Linear(terms, Linear({register: 1.0}, None, 1.0 / scale), factor)
        self.outputs.append(result)
        self.points.append(at)
        return result

    def _weights(self, at: Point) -> tuple[float, float, float]:
        """Weights of input and output in the solver's prediction type, and a factor of both."""
        model, native = self._predictions
        of_input, of_output = (0.0, 1.0) if model == native else at.conversion(model, native)
        # A score is the only prediction that scales with the state.
        return of_input, of_output, self._scale(at) if native == "score" else 1.0

    def jvp(self, state: Linear, at: Point, tangent: Linear) -> tuple[Linear, Linear]:
        """:meth:`model`, and its derivative along ``tangent``: a Jacobian-vector product."""
        tangent = tangent * self._scale(at)
        output = self.model(state, at)
        index = len(self._stages) - 1
        along = tangent.combination(self.number)
        self._stages[index] = replace(self._stages[index], tangent=along)
        of_input, of_output, factor = self._weights(at)
        derivative = Linear({("j", index, -self.number): of_output * factor})
        return output, derivative + tangent * (of_input * factor)

    def noise(self, start: float = 0.0, stop: float = 1.0) -> Linear:
        """Unit normal of the sub-interval from fraction ``start`` to ``stop`` of the step."""
        length = self.s.t - self.t.t
        interval = (
            self.t.t if start == 0.0 else self.t.t + start * length,
            self.s.t if stop == 1.0 else self.t.t + stop * length,
        )
        if interval not in self._noises:
            self._noises.append(interval)
        return Linear({("z", self._noises.index(interval), -self.number): 1.0})

    def finish(self, update: Linear) -> Step:
        """The step as data."""
        return Step(
            self.t.t,
            self.s.t,
            tuple(self._stages),
            tuple(self._noises),
            (update * self._scale(self.s)).combination(self.number),
        )


class _Between:
    """Points between those of the grid, by time or log-SNR.

    One by one they cost a hundred times as much as together, so :func:`_scout` finds out beforehand
    which ones a solver will ask for; any other is evaluated when asked for.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self._by_time: dict[float, Point] = {}
        self._by_lambda: dict[float, Point] = {}

    @cached_property
    def lambda_min(self) -> float:
        with np.errstate(divide="ignore"):
            return float(self._process.lambda_(self._process.t_max))

    def prepare(self, times: list[float], lambdas: list[float]) -> None:
        """Evaluate points together."""
        of_lambdas = self._process.t(np.asarray(lambdas)).tolist() if lambdas else []
        points = Point.many(self._process, times + of_lambdas)
        self._by_time = dict(zip(times, points, strict=False))
        self._by_lambda = dict(zip(lambdas, points[len(times) :], strict=True))

    def at(self, t: float) -> Point:
        if t not in self._by_time:
            self._by_time[t] = Point.many(self._process, [t])[0]
        return self._by_time[t]

    def at_lambda(self, lambda_: float) -> Point:
        if lambda_ not in self._by_lambda:
            self._by_lambda[lambda_] = self.at(float(self._process.t(lambda_)))
        return self._by_lambda[lambda_]


class _Nothing(Linear):
    """What a solver gets instead of a combination while its intermediate times are noted."""

    __slots__ = ()

    def __add__(self, other: object) -> _Nothing:
        return self

    __radd__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __add__

    def __neg__(self) -> _Nothing:
        return self


class _Scout(StepBuilder):
    """A step that only notes the intermediate times and log-SNRs that a solver asks for.

    A point asked for is half way between those of the grid. Where a solver asks for further times
    that depend on it, the notes are wrong, which costs time only.
    """

    def __init__(self, points: list[Point], number: int, previous: list[StepBuilder]) -> None:
        self._place(points, number, previous)
        self.x = _Nothing({})
        self.outputs: list[Linear] = []
        self.points: list[Point] = []
        self.times: list[float] = []
        self.lambdas: list[float] = []

    def _half_way(self) -> Point:
        t, s = self.t, self.s
        return Point(
            0.5 * (t.t + s.t),
            0.5 * (t.alpha + s.alpha),
            0.5 * (t.sigma + s.sigma),
            0.5 * (t.lambda_ + s.lambda_),
            0.5 * (t.neg_log_ab + s.neg_log_ab),
        )

    def at(self, t: float) -> Point:
        self.times.append(t)
        return self._half_way()

    def at_lambda(self, lambda_: float) -> Point:
        self.lambdas.append(lambda_)
        return self._half_way()

    def model(self, state: Linear, at: Point) -> Linear:
        self.outputs.append(self.x)
        self.points.append(at)
        return self.x

    def jvp(self, state: Linear, at: Point, tangent: Linear) -> tuple[Linear, Linear]:
        return self.model(state, at), self.x

    def noise(self, start: float = 0.0, stop: float = 1.0) -> Linear:
        return self.x


def _scout(
    step_function: Callable[[StepBuilder], Linear], points: list[Point], memory: int
) -> tuple[list[float], list[float]]:
    """The intermediate times and log-SNRs that a solver asks for, as far as that can be foretold.

    Ends at the first step with a full memory that asks for none.
    """
    times: list[float] = []
    lambdas: list[float] = []
    previous: list[StepBuilder] = []
    for number in range(len(points) - 1):
        step = _Scout(points, number, previous)
        # An error here is due to the stand-ins, or will come again when the steps are traced.
        with suppress(Exception):
            step_function(step)
        if number >= memory and not step.times and not step.lambdas:
            break
        times += step.times
        lambdas += step.lambdas
        previous = [step, *previous][:memory]
    return times, lambdas


def trace(
    name: str,
    step_function: Callable[[StepBuilder], Linear],
    process: Any,
    times: Sequence[float] | np.ndarray,
    *,
    native: str,
    prediction: str,
    coordinates: str = "process",
    memory: int = 0,
) -> Plan:
    """Run a solver function over a grid and collect its scalars.

    Parameters
    ----------
    name
        Solver name, for messages.
    step_function
        The solver: maps a :class:`StepBuilder` to the new state.
    process
        Noising process, or ``None`` for a plain ODE.
    times
        n + 1 strictly monotone process times.
    native, prediction
        Prediction type in which the solver is written, and that of the model.
    coordinates
        ``"process"``, ``"vp"`` (state over sqrt(alpha^2 + sigma^2)) or ``"ve"`` (over alpha).
    memory
        How many earlier steps the solver looks at.
    """
    points = Point.many(process, times)
    between = _Between(process)
    previous: list[StepBuilder] = []
    steps = []
    with _uncollected():
        if process is not None:
            between.prepare(*_scout(step_function, points, memory))
        for number, (t, s) in enumerate(pairwise(points)):
            try:
                builder = StepBuilder(
                    points,
                    number,
                    predictions=(prediction, native),
                    coordinates=coordinates,
                    previous=previous,
                    between=between,
                )
                steps.append(builder.finish(step_function(builder)))
            except (OverflowError, ZeroDivisionError):
                raise ValueError(
                    f"{name}: a weight is not finite on the step from t = {t.t:g} to {s.t:g}, "
                    "where the process has no finite log-SNR (alpha = 0 or sigma = 0): start or "
                    "end the grid elsewhere"
                ) from None
            if memory:
                previous = [builder, *previous][:memory]
        return Plan(name, prediction, tuple(steps))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a plan is so many tuples that it would set off a full one.

    That looks at every object of the process, which takes longer than the plan, and finds nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


PREDICTIONS = ("eps", "x0", "v", "score", "velocity")


def prediction_weights(process: Any, prediction: str, point: Any) -> tuple[Any, Any]:
    r"""Weights (p, q) with prediction :math:`= p\,x_0 + q\,\epsilon` at a point.

    =========  =========================================================================
    eps        0, 1
    x0         1, 0
    v          -sin, cos of the angle atan2(sigma, alpha) (Salimans and Ho 2022)
    score      0, -1/sigma
    velocity   alpha', sigma': the drift dx/dt of the probability-flow ODE
    =========  =========================================================================

    ``point`` is anything with ``t``, ``alpha`` and ``sigma`` (floats or tensors).
    """
    if prediction == "eps":
        return 0.0, 1.0
    if prediction == "x0":
        return 1.0, 0.0
    if prediction == "score":
        return 0.0, -1.0 / point.sigma
    if prediction == "v":
        norm = (point.alpha**2 + point.sigma**2) ** 0.5
        return -point.sigma / norm, point.alpha / norm
    if prediction == "velocity":
        if isinstance(point, Point):
            return point.dalpha, point.dsigma
        return process.dalpha(point.t), process.dsigma(point.t)
    raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join(PREDICTIONS)}")


def conversion(process: Any, source: str, wanted: str, point: Any) -> tuple[Any, Any]:
    """Weights (c, d) with ``wanted = c x + d source`` at a point, for any two prediction types.

    Both are combinations of x0 and eps, and x = alpha x0 + sigma eps: a 2 x 2 linear system.
    """
    if source == wanted:
        return 0.0, 1.0
    p, q = prediction_weights(process, source, point)
    p_wanted, q_wanted = prediction_weights(process, wanted, point)
    determinant = point.alpha * q - point.sigma * p
    of_input = (p_wanted * q - q_wanted * p) / determinant
    of_output = (point.alpha * q_wanted - point.sigma * p_wanted) / determinant
    return of_input, of_output
