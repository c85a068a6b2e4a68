"""The registry: named solvers with their metadata, and the decorator that adds one.

A solver is a function of a :class:`~probflow.plan.StepBuilder` that returns the new state, written
like its equation; keyword arguments after the first are its options. Registering it is all that is
needed for it to be sampled with, measured, tested and printed::

    @register("my-euler", reference="me", prediction="eps", coordinates="ve", orders={"tv": 1})
    def my_euler(step):
        "y' = y + (rho' - rho) eps"
        return step.x + (step.s.rho - step.t.rho) * step.model(step.x, step.t)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any, Literal

import numpy as np

from probflow.plan import COORDINATES, PREDICTIONS, Linear, Plan, Step, trace
from probflow.solvers.embedded import PAIRS, EmbeddedPair
from probflow.solvers.noising import noising
from probflow.words import check_choice, is_real, near, no_option

__all__ = [
    "Solver",
    "all_solvers",
    "find_pair",
    "get_solver",
    "no_sde",
    "order_left",
    "register",
    "solver_names",
    "unregister",
]


StepFunction = Callable[..., Linear]


@dataclass(frozen=True)
class Solver:
    """A named one-step or multistep method.

    Attributes
    ----------
    name, aliases
        Lower case with hyphens; underscores are accepted wherever a name is.
    function
        The step function; its docstring holds the equation.
    reference
        Paper and equation of the method.
    prediction
        Prediction type in which the equation is written.
    coordinates
        ``"process"``, ``"vp"`` or ``"ve"``: see :data:`probflow.plan.COORDINATES`.
    needs
        ``"process"`` (alpha, sigma of a noising process) or ``"ode"`` (any ``dy/dt = f(t, y)``).
    orders
        Declared order per measure: ``tv`` (also the order of W2; KL has twice it), ``strong``
        (error against the exact flow, deterministic solvers), ``path-kl`` (of its square root,
        stochastic solvers), ``certificate`` (of its square root, solvers that overshoot and noise
        back). A missing measure does not apply to the solver. Of a solver with random times (option
        ``seed``) the orders are those of the mean over seeds, as studies measure it.
    nfe
        Model evaluations per step (the first step of some methods takes fewer).
    stochastic
        Whether steps draw noise.
    memory
        Number of earlier steps whose registers a step uses.
    family
        ``"ode"`` (works on any ODE), ``"exponential"`` (exact in the linear part), ``"chain"``
        (a kernel of the discrete-time chain) or ``"sde"`` (a discretised reverse SDE).
    whole_grid
        Whether a step depends on its place in the grid: on its number or on what follows it.
    options
        Keyword options of the step function, with their values.
    sde
        For a stochastic solver, maps its options to the eta of the reverse SDE whose paths it
        follows (a number or a function of sigma/alpha; see
        :mod:`probflow.solvers.reverse_sde`), or to ``None`` where there is none. By default 1.
    leaves
        Maps the options to the order that they leave at most; by default :func:`order_left`.
    """

    name: str
    function: StepFunction
    reference: str
    prediction: str
    coordinates: str = "process"
    needs: Literal["process", "ode"] = "process"
    orders: Mapping[str, float] = field(default_factory=dict)
    nfe: int = 1
    stochastic: bool = False
    memory: int = 0
    whole_grid: bool = False
    family: str = "exponential"
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sde: Callable[[Mapping[str, Any]], Any] | None = None
    leaves: Callable[[Mapping[str, Any]], float] | None = None

    def plan(
        self,
        process: Any,
        times: Sequence[float] | np.ndarray,
        prediction: str | None = None,
        *,
        rises: bool = False,
    ) -> Plan:
        """The plan of this solver on a grid.

        Parameters
        ----------
        process
            Noising process; ``None`` for a plain ODE (solvers that need only an ODE).
        times
            n + 1 strictly monotone process times; decreasing is from noise to data.
        prediction
            The model's prediction type; by default the one in which the solver is written.
        rises
            Accept times that rise after the first step, as those of
            :func:`probflow.grids.restart`. A rise is a step of the forward process, exact and
            without a model call, which makes the plan stochastic; a solver with memory starts anew
            after it.

        Returns
        -------
        Plan
            Floats only: the weights of every step.

        Raises
        ------
        ValueError
            If times are fewer than 2, not finite, not strictly monotone or outside the process, or
            a weight is not finite.
        TypeError
            If the solver needs a process and gets none.
        """
        array = np.asarray(times, dtype=np.float64)
        if array.ndim != 1 or len(array) < 2:
            raise ValueError(f"times: need at least 2 (one step), got shape {array.shape}")
        gaps = np.diff(array)
        monotone = (gaps < 0).all() or (gaps > 0).all()
        rising = rises and gaps[0] < 0 and (gaps != 0).all()
        if not np.isfinite(array).all() or not (monotone or rising):
            raise ValueError("times: must be finite and strictly decreasing (or increasing)")
        if self.stochastic and gaps[0] > 0:
            raise ValueError(
                f"times: {self.name} draws noise and runs from noise to data only; "
                "give decreasing times"
            )
        if process is None:
            if self.needs == "process":
                raise TypeError(
                    f"{self.name} uses the noise levels of a diffusion and needs a process; give "
                    "pf.ProbabilityFlowODE(process, model) or pf.ReverseSDE(process, model), "
                    "not a plain function"
                )
            if prediction not in (None, self.prediction):
                raise ValueError(f"prediction: a plain ODE has {self.prediction!r} only")
        else:
            process.check_times(array)
            array = np.clip(array, process.t_min, process.t_max)
        function = partial(self.function, **self.options) if self.options else self.function

        def descent(times: np.ndarray) -> Plan:
            return trace(
                self.name,
                function,
                process,
                times.tolist(),
                native=self.prediction,
                prediction=prediction or self.prediction,
                coordinates=self.coordinates,
                memory=self.memory,
            )

        if monotone:
            return descent(array)
        if process is None:
            raise TypeError("rises: noise is added by a process; a plain ODE has none")
        steps: list[Step] = []
        for piece in np.split(array, np.flatnonzero(gaps > 0) + 1):
            if steps:
                steps.append(noising(process, steps[-1].stop, float(piece[0])))
            if len(piece) > 1:
                steps += descent(piece).steps
        return Plan(self.name, prediction or self.prediction, tuple(steps))

    def with_options(self, **options: Any) -> Solver:
        """The same solver with some of its options changed.

        Parameters
        ----------
        options
            Names and new values.

        Returns
        -------
        Solver
            A copy.

        Raises
        ------
        ValueError
            For an option that the solver does not have.
        TypeError
            For one that is declared a float and is given something other than a number. Counts and
            choices are checked by the step function, which knows what it allows.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(no_option(self.name, unknown[0], self.options))
        declared = getattr(self.function, "__annotations__", {})
        for name, value in options.items():
            if declared.get(name) in ("float", float) and not is_real(value):
                raise TypeError(f"{name}: {self.name} needs a number, got {value!r}")
        return replace(self, options={**self.options, **options})

    @property
    def eta(self) -> Any:
        """eta of the (reverse SDE or) ODE that it solves: 0 for the ODE, ``None`` for neither."""
        if not self.stochastic:
            return 0.0
        return 1.0 if self.sde is None else self.sde(self.options)

    @property
    def random_times(self) -> bool:
        """Whether its plan depends on random times, which are those of its option ``seed``."""
        return "seed" in self.options

    @property
    def equation(self) -> str:
        """The docstring of the step function."""
        return inspect.getdoc(self.function) or ""

    def order(self, measure: str) -> float | None:
        """Declared order in a measure with these options, or ``None``.

        Parameters
        ----------
        measure
            A key of :data:`probflow.studies.rows.MEASURES`.

        Returns
        -------
        float or None
            In the other measures of the final law, that of TV (of KL twice it).
        """
        declared = self.orders.get("tv" if measure in _OF_THE_END else measure)
        if declared is None:
            return self.orders.get(measure)
        order = min(declared, (self.leaves or order_left)(self.options))
        return order * (2 if measure == "kl" else 1)


def order_left(options: Mapping[str, Any]) -> float:
    """The order that the usual options leave at most: those of usual implementations' numbers.

    An Euler start or a lowered end is one step of error h^2, Heun's one of h^3; constant weights
    are right on even grids, and ``factor`` 2 is that of a second difference.
    """
    left = {
        "start": {"euler": 2.0, "heun": 3.0},
        "final": {"lower": 2.0},
        "weights": {"constant": 2.0},
        "variant": {"diffusers": 1.0},
    }
    orders = [left[key].get(options[key], inf) for key in left if key in options]
    if options.get("factor", 2.0) != 2.0:
        orders.append(2.0)
    return min(orders, default=inf)


#: Measures of the final law, whose orders follow from that of its total variation.
_OF_THE_END = ("kl", "w2", "chi2", "weak", "sliced-w2", "energy", "mmd", "frechet")

_SOLVERS: dict[str, Solver] = {}
_ALIASES: dict[str, str] = {}

#: Samplers that are not steps on a grid, and what they are here.
_NO_STEPS = {
    **{
        name: "chooses its steps itself and has no plan on a grid; it serves "
        "pf.sample(..., rtol=, atol=), pf.odeint and pf.solve_ode"
        for name in PAIRS
    },
    "fors": "samples by rejection and has no plan on a grid; it is pf.rejection_sample",
    "restart": "is a grid for any solver (edm-heun in its paper): pf.grids.restart",
}


def no_sde(options: Mapping[str, Any]) -> None:
    """``sde`` of a solver whose noise, per unit of log-SNR, depends on the grid: it has no paths.

    Parameters
    ----------
    options
        The solver's.
    """
    return None


def register(
    name: str,
    *,
    reference: str,
    prediction: str,
    orders: Mapping[str, float],
    coordinates: str = "process",
    needs: Literal["process", "ode"] = "process",
    nfe: int = 1,
    stochastic: bool = False,
    memory: int = 0,
    whole_grid: bool = False,
    family: str = "exponential",
    aliases: Sequence[str] = (),
    sde: Callable[[Mapping[str, Any]], Any] | None = None,
    leaves: Callable[[Mapping[str, Any]], float] | None = None,
) -> Callable[[StepFunction], StepFunction]:
    """Decorator that adds a step function to the registry; see :class:`Solver`.

    Keyword arguments of the function with defaults become the solver's options.

    Parameters
    ----------
    name, aliases
        Lower case with hyphens; none may be taken.
    reference, prediction, orders, coordinates, needs, nfe, stochastic
        As those of :class:`Solver`.
    memory, whole_grid, family, sde, leaves
        As those of :class:`Solver`.

    Returns
    -------
    Callable
        The decorator; it returns the function as it is.

    Raises
    ------
    ValueError
        If a name is taken, or ``prediction`` or ``coordinates`` is unknown, or the function has
        no docstring (it has to hold the equation).
    """
    for new in (name, *aliases):
        if any(_canonical(new) in taken for taken in (_SOLVERS, _ALIASES, PAIRS)):
            raise ValueError(f"name: a solver named {new!r} exists already")
    check_choice("prediction", prediction, PREDICTIONS)
    check_choice("coordinates", coordinates, COORDINATES)

    def decorate(function: StepFunction) -> StepFunction:
        if not function.__doc__:
            raise ValueError(f"{name}: the step function needs a docstring with its equation")
        parameters = list(inspect.signature(function).parameters.values())[1:]
        solver = Solver(
            name=_canonical(name),
            function=function,
            reference=reference,
            prediction=prediction,
            coordinates=coordinates,
            needs=needs,
            orders=dict(orders),
            nfe=nfe,
            stochastic=stochastic,
            memory=memory,
            whole_grid=whole_grid,
            family=family,
            aliases=tuple(_canonical(alias) for alias in aliases),
            options={p.name: p.default for p in parameters if p.default is not p.empty},
            sde=sde,
            leaves=leaves,
        )
        _SOLVERS[solver.name] = solver
        _ALIASES.update(dict.fromkeys(solver.aliases, solver.name))
        return function

    return decorate


def unregister(name: str) -> None:
    """Remove a solver added with :func:`register` (for tests and notebooks).

    Parameters
    ----------
    name
        Its name or an alias.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    solver = _SOLVERS.pop(get_solver(name).name)
    for alias in solver.aliases:
        del _ALIASES[alias]


def get_solver(solver: str | Solver | StepFunction, **options: Any) -> Solver:
    """The solver of a name.

    Parameters
    ----------
    solver
        A name, an alias, a registered step function, or a :class:`Solver`, which is returned as it
        is.
    options
        Options of the solver with other values than its own.

    Returns
    -------
    Solver
        The solver, with these options.

    Raises
    ------
    ValueError
        For an unknown name (the message lists near ones) or option.
    TypeError
        For anything that is not a solver, or an option's value that is no number where one is due.
    """
    if isinstance(solver, str):
        key = _canonical(solver)
        found = _SOLVERS.get(_ALIASES.get(key, key))
        if found is None and key in _NO_STEPS:
            raise ValueError(f"solver: {key} {_NO_STEPS[key]}")
        if found is None:
            raise ValueError(
                f"solver: no solver is named {solver!r}{near(solver, (*_SOLVERS, *_ALIASES))} "
                "(all: probflow.solver_names())"
            )
    elif isinstance(solver, Solver):
        found = solver
    else:
        matches = [s for s in _SOLVERS.values() if s.function is solver]
        if not matches:
            raise TypeError(
                f"solver: need a name, a Solver or a registered step function, got {solver!r}"
            )
        found = matches[0]
    return found.with_options(**options) if options else found


def find_pair(solver: Any) -> EmbeddedPair | None:
    """The embedded pair of a name, for adaptive steps in log-SNR.

    Parameters
    ----------
    solver
        A name, an :class:`~probflow.solvers.embedded.EmbeddedPair`, or anything else.

    Returns
    -------
    EmbeddedPair or None
        ``None`` if it is no pair.
    """
    if isinstance(solver, EmbeddedPair):
        return solver
    return PAIRS.get(_canonical(solver)) if isinstance(solver, str) else None


def solver_names(*, aliases: bool = False) -> tuple[str, ...]:
    """Names of all registered solvers, in order of registration.

    Parameters
    ----------
    aliases
        Also all aliases, after them.

    Returns
    -------
    tuple of str
        Lower case, with hyphens.
    """
    return (*_SOLVERS, *_ALIASES) if aliases else tuple(_SOLVERS)


def all_solvers() -> tuple[Solver, ...]:
    """All registered solvers, a tuple of :class:`Solver` in order of registration."""
    return tuple(_SOLVERS.values())


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")
