"""probflow's deterministic solvers as methods of torchdiffeq, and calls passed on to it.

torchdiffeq keeps its solvers in a private dictionary and hands a solver the user's function inside
wrappers: time made increasing by a sign flip, tuples flattened, an argument added. The solvers
entered here take the wrappers off and call the same native integration as ``pf.odeint``, so the
results are equal, multistep history included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torchdiffeq
from torch import Tensor

from probflow.adapters import spellings
from probflow.integrate.grid import host_times
from probflow.integrate.loop import NonFiniteError, StepSizeError, all_finite
from probflow.integrate.transforms import transformed
from probflow.ode.options import checked_options
from probflow.ode.plans import adjoint_rule, check_function, integrate
from probflow.ode.problem import Layout, Problem, host_outputs
from probflow.problems import ProbabilityFlowODE
from probflow.solvers import Solver, all_solvers
from probflow.words import check_choice, dictionary

__all__ = ["adjoint_rule", "own_methods", "passed_on", "register", "unregister"]

SUPPORTED = "0.2.4 and 0.2.5"


def _moved(what: object) -> RuntimeError:
    return RuntimeError(
        f"torchdiffeq {torchdiffeq.__version__} has no {what} where probflow looks for it; "
        f"pf.register() supports torchdiffeq {SUPPORTED}, and pf.odeint needs no registering"
    )


try:
    from torchdiffeq._impl.adjoint import OdeintAdjointMethod
    from torchdiffeq._impl.misc import _PerturbFunc, _ReverseFunc, _TupleFunc
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver
except ImportError as error:
    raise _moved(error) from error

_SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")  # of scipy.integrate.solve_ivp
_AUGMENTED = "OdeintAdjointMethod.backward.<locals>.augmented_dynamics"


class ProbflowSolver:
    """A probflow solver behind torchdiffeq's solver interface; one subclass per solver."""

    solver: ClassVar[Solver]

    def __init__(self, func: Any, y0: Tensor, rtol: Any, atol: Any, **options: Any) -> None:
        options.pop("norm", None)  # torchdiffeq always adds it; it belongs to adaptive methods
        self.y0, self.options = y0, options
        self.func, self.sign = _unwrap(func)
        if _is_augmented(self.func):
            own = set(self.solver.options)
            self.options = {k: v for k, v in options.items() if k not in own}
            self.rule = adjoint_rule(self.solver)
        else:
            self.rule = self.solver
        constructor = options.get("grid_constructor")
        if constructor is not None and self.sign < 0:
            # torchdiffeq has made it speak of the flipped times; turn it back.
            self.options["grid_constructor"] = lambda f, y, t: -constructor(f, y, -t)
        check_function(self.func)

    def integrate(self, t: Tensor) -> Tensor:
        """States at the (increasing) times ``t``, shape (len(t), *y0.shape)."""
        host_times(t, "t")  # refuses gradients with respect to t before the sign hides them
        times = t.detach() * self.sign if self.sign < 0 else t.detach()
        return integrate(self.rule, self.func, self.y0, times, self.options)

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Tensor]) -> Any:
        """Not available; raises ``ValueError``."""
        raise ValueError(
            f"event_fn: {self.solver.name} does not look for events; use a method of torchdiffeq: "
            + ", ".join(own_methods())
        )

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Callbacks of torchdiffeq that are called: none."""
        return set()


def _unwrap(func: Any) -> tuple[Any, float]:
    """The user's function (flattened, if its state is a tuple) and the sign of its time."""
    sign = 1.0
    while isinstance(func, (_PerturbFunc, _ReverseFunc)):
        sign = -sign if isinstance(func, _ReverseFunc) else sign
        func = func.base_func
    return func, sign


def _is_augmented(func: Any) -> bool:
    """Whether this is the augmented system of ``odeint_adjoint``'s backward pass."""
    base = func.base_func if isinstance(func, _TupleFunc) else func
    return getattr(base, "__qualname__", None) == _AUGMENTED


def own_methods() -> tuple[str, ...]:
    """Names of torchdiffeq's own methods."""
    return tuple(name for name, entry in SOLVERS.items() if not _ours(entry))


def _ours(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, ProbflowSolver)


def passed_on(func: Any, y0: Any, t: Any, **arguments: Any) -> Any:
    """Call ``torchdiffeq.odeint``.

    A process is defined on an interval of times, but torchdiffeq's adaptive methods step over the
    last time, into NaN, and interpolate back. For a ``ProbabilityFlowODE`` they are therefore given
    the output times as their option ``step_t``, which makes them land there.
    """
    t = _checked(y0, t)
    options = arguments["options"] or {}
    solver = SOLVERS.get(arguments["method"])
    if arguments["event_fn"] is not None and not hasattr(solver, "integrate_until_event"):
        raise ValueError(
            f"event_fn: {arguments['method']} does not look for events; use dopri5, or rk4 with "
            "step_size"
        )
    adaptive = issubclass(SOLVERS.get(arguments["method"], object), RKAdaptiveStepsizeODESolver)
    adaptive = adaptive or arguments["method"] is None
    bounded = isinstance(func, ProbabilityFlowODE) and arguments["event_fn"] is None
    if bounded and adaptive and "step_t" not in options and len(t) > 1:
        arguments["options"] = {**options, "step_t": t[1:].detach()}
        arguments["method"] = arguments["method"] or "dopri5"
    return _call(torchdiffeq.odeint, func, y0, t, **arguments)


def adjoint_passed_on(func: Any, y0: Any, t: Any, **arguments: Any) -> Any:
    """Call ``torchdiffeq.odeint_adjoint``."""
    return _call(torchdiffeq.odeint_adjoint, func, y0, _checked(y0, t), **arguments)


def _checked(y0: Any, t: Any) -> Tensor:
    """Times as torchdiffeq takes them; they may be a sequence, as everywhere here.

    Raises
    ------
    TypeError, ValueError
        For a state and times that the native methods do not take, either.
    """
    y = Layout(y0).join(y0)
    times = host_outputs(t, bounded=False)
    if isinstance(t, Tensor):
        return t
    return torch.tensor(times, dtype=torch.float64, device=y.device)


def _call(solve: Callable[..., Any], func: Any, y0: Any, t: Tensor, **arguments: Any) -> Any:
    """Call torchdiffeq, and look at what it returns unless the option ``check_finite`` is false.

    Raises
    ------
    ValueError
        For options that the method does not have.
    NonFiniteError, StepSizeError
        If the result is not finite, or ends before ``t`` does.
    """
    method = arguments["method"]
    options, check = _split_options(method, arguments["options"])
    problem = Problem(func, y0)
    if method == "scipy_solver" and check:
        _check_first(problem, t)
    answer = solve(func, y0, t, **{**arguments, "options": options})
    states, times = answer, host_outputs(t, bounded=False)
    if arguments["event_fn"] is not None:
        event_t, states = answer
        times = [times[0], float(event_t)]
    _check_length(method, times, states)
    if check:
        _check_finite(method, problem, times, states)
    return answer


def _split_options(method: Any, options: Any) -> tuple[dict[str, Any] | None, bool]:
    """The options for torchdiffeq, and whether to look at what it returns."""
    if options is None:
        return None, True
    allowed = _options_of(method)
    every = (*(allowed or dictionary(options)), "check_finite", "strict")
    settings = checked_options(method, options, every)
    settings.pop("strict", None)  # torchdiffeq has no such option
    check = settings.pop("check_finite", True)
    if isinstance(settings.get("solver"), str):
        check_choice("solver", settings["solver"], _SCIPY)
    return settings, check


@torch.no_grad()
def _check_first(problem: Problem, t: Tensor) -> None:
    """Refuse a first slope that is not finite: SciPy would look for a step for ever."""
    problem.check_start()
    first = t.detach().reshape(-1)[0].to(problem.y0.device, problem.time_dtype)
    slope = problem(first, problem.y0)
    if not all_finite(slope):
        raise NonFiniteError(
            f"scipy_solver: func returned NaN or infinity at t = {float(first):g}"
            f"{problem.first_bad(slope)}"
        )


def _options_of(method: Any) -> tuple[str, ...]:
    """Names of a method's options; none where its class swallows others without naming them.

    They are the parameters of the constructors, the last of which takes ``**unused_kwargs``, of
    which torchdiffeq itself only warns.
    """
    names, unused = ["norm"], False
    for base in getattr(SOLVERS.get(method), "__mro__", ()):
        if "__init__" in vars(base) and base is not object:
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    unused = name == "unused_kwargs"
                elif name not in ("self", "func", "y0", "rtol", "atol"):
                    names.append(name)
    return tuple(dict.fromkeys(names)) if unused else ()


def _check_length(method: Any, times: list[float], states: Any) -> None:
    """Refuse fewer states than times: so ``scipy_solver`` ends where SciPy gives up."""
    found = len(states[0] if isinstance(states, tuple) else states)
    if found < len(times):
        raise StepSizeError(
            f"{method}: no state at t = {times[found]:g}, output {found} of {len(times) - 1}: the "
            "solver gave up before, as SciPy's do where func or the solution becomes NaN or "
            "infinite, or needs steps shorter than the times can represent"
        )


def _check_finite(method: Any, problem: Problem, times: list[float], states: Any) -> None:
    """Name the first output that holds NaN or infinity; waits for the device once if none does."""
    parts = states if isinstance(states, tuple) else (states,)
    if transformed() or all(all_finite(part.detach()) for part in parts):
        return
    problem.check_start()
    for number, time in enumerate(times):
        row = tuple(part[number] for part in parts)
        state = problem.layout.join(row if problem.layout.is_tuple else row[0])
        if not all_finite(state.detach()):
            raise NonFiniteError(
                f"{method}: NaN or infinity in the state at t = {time:g}, output {number} of "
                f"{len(times) - 1}{problem.first_bad(state)}: func returned it, or the steps are "
                "too long for the method"
            )


def register() -> None:
    """Enter the deterministic solvers of probflow's registry; see :func:`probflow.register`."""
    constants = OdeintAdjointMethod.backward.__code__.co_consts
    if not any(getattr(code, "co_name", None) == "augmented_dynamics" for code in constants):
        raise _moved("augmented_dynamics in OdeintAdjointMethod.backward")
    unregister()
    for solver in all_solvers():
        if solver.stochastic:
            continue
        entry = type("ProbflowSolver", (ProbflowSolver,), {"solver": solver})
        for name in spellings(solver):
            SOLVERS.setdefault(name, entry)


def unregister() -> None:
    """Remove what :func:`register` entered."""
    for name in [name for name, entry in SOLVERS.items() if _ours(entry)]:
        del SOLVERS[name]
