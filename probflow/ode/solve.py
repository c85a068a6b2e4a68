"""One solve: options checked, the right loop chosen, the result put together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.integrate.transforms import hidden, transformed
from probflow.ode.adams import adams_order, integrate_adams
from probflow.ode.adaptive import AcceptedStep, AdaptiveStepper
from probflow.ode.control import Control, control, tolerances
from probflow.ode.dense import DenseOutput
from probflow.ode.events import check_state, find_event, flow
from probflow.ode.fixed import FixedStepper, Grid, check_last, fixed_grid, integrate_on
from probflow.ode.options import (
    ADAMS,
    GRADIENTS,
    allowed_options,
    checked_options,
    held_by,
    is_adaptive,
)
from probflow.ode.per_sample import PerSample, Taken, per_sample_times
from probflow.ode.problem import BAD_START, Problem, host_outputs, traced
from probflow.ode.result import ODEResult, SolveError, Status
from probflow.ode.steppers import fixed_stepper
from probflow.tableaus import TABLEAUS, Tableau

__all__ = ["refuse_transforms", "solve"]


def solve(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    dense: bool = False,
    throw: bool = True,
    taken: Taken | None = None,
) -> ODEResult:
    """Solve with one of the native methods; arguments as :func:`probflow.solve_ode`.

    ``taken`` is told of the steps that each sample takes, with ``per_sample``.
    """
    settings = checked_options(method, options, allowed_options(method))
    per_sample = bool(settings.get("per_sample", False))
    gradients = settings.get("gradients", "direct")
    if gradients not in GRADIENTS:
        raise ValueError(
            f"gradients: got {gradients!r}, allowed are {', '.join(GRADIENTS)} "
            "(the continuous adjoint is pf.odeint_adjoint)"
        )
    if gradients == "reversible" or (gradients == "checkpoint" and torch.is_grad_enabled()):
        refuse_transforms(
            f"gradients: {gradients!r} is", "leave it out: the steps themselves are differentiated"
        )
    call = settings.get("args", ()), settings.get("kwargs")
    held = held_by(method) * (1 if event_fn is None else 2)  # a step, and one within it
    problem = Problem(func, y0, *call, per_sample, held)
    if event_fn is not None and not callable(event_fn):
        raise TypeError(f"event_fn: need a function of (t, y), got {type(event_fn).__name__}")
    adaptive = is_adaptive(method)
    if not adaptive:
        if not torch.compiler.is_compiling():
            tolerances(rtol, atol, problem, used=False)
        for name in ("callback_accept_step", "callback_reject_step"):
            if problem.callback(name) is not None:
                warnings.warn(f"{name}: {method} has fixed steps and never calls it", stacklevel=3)
    solver = _Solve(problem, func, y0, t, method, settings, throw)
    if per_sample:
        if gradients == "reversible":
            raise ValueError("gradients: per_sample has 'direct' and 'checkpoint' only")
        if event_fn is not None or dense:
            raise ValueError(
                "per_sample: events and dense output are for one step size for the batch; leave "
                "per_sample out"
            )
        return solver.per_sample(control(settings, rtol, atol, problem), gradients, taken)
    if event_fn is not None:
        return solver.event(event_fn, control(settings, rtol, atol, problem) if adaptive else None)
    if method == ADAMS:
        return solver.adams()
    if adaptive:
        return solver.adaptive(control(settings, rtol, atol, problem), dense, gradients)
    return solver.fixed(dense, gradients)


def refuse_transforms(what: str, instead: str) -> None:
    """Raise ``ValueError`` within a transform of torch.func, saying what to do ``instead``."""
    if transformed() and not torch.compiler.is_compiling():
        raise ValueError(f"{what} not available within torch.func (grad, jvp, vmap); {instead}")


class _Solve:
    """The pieces of a call, and one method for each way to integrate."""

    def __init__(
        self,
        problem: Problem,
        func: Any,
        y0: Any,
        t: Any,
        method: str,
        settings: dict[str, Any],
        throw: bool,
    ) -> None:
        self.problem, self.func, self.y0, self.t = problem, func, y0, t
        self.method, self.settings, self.throw = method, settings, throw
        self.check = settings.get("check_finite", True) and not transformed()
        self.progress = bool(settings.get("progress", False))

    @property
    def tableau(self) -> Tableau:
        """The method's numbers."""
        return TABLEAUS[self.method]

    def _times(self) -> list[float]:
        """Output times on the host; their gradients are attached afterwards."""
        return host_outputs(self.t)

    def _result(self, states: Tensor, error: Exception | None = None, **what: Any) -> ODEResult:
        defaults: dict[str, Any] = {
            "accepted": 0,
            "rejected": 0,
            "status": _status_of(error),
            "message": Status.SUCCESS.message,
        }
        if error is not None:
            what["message"] = str(error)
        return ODEResult(
            t=self.t, y=self.problem.result(states), nfe=self.problem.nfe, **{**defaults, **what}
        )

    def _checked(
        self, states: Tensor, times: Sequence[float]
    ) -> tuple[Tensor, NonFiniteError | None]:
        """The states, NaN from the first on that is not finite, and what to say of it.

        Raises
        ------
        NonFiniteError
            With ``throw``.
        """
        if not self.check or all_finite(states[-1].detach()):
            return states, None
        good = [bool(self.problem.finite(state).all()) for state in states.detach()]
        first = good.index(False)
        where = self.problem.first_bad(states[first].detach())
        error = NonFiniteError(
            f"{self.method}: func returned NaN or infinity, or the state grew beyond "
            f"{states.dtype}, between t = {times[first - 1]:g} and {times[first]:g}{where}"
            if first
            else BAD_START + where
        )
        if self.throw:
            raise error
        return torch.cat([states[:first], torch.full_like(states[first:], torch.nan)]), error

    # Times that carry gradients -------------------------------------------------------------------

    def _moved_start(self) -> Tensor:
        """Let the initial state know how a later start would change the solution.

        Returns the state at the first time, which does not move with it.
        """
        problem, t = self.problem, self.t
        start = problem.y0
        if traced(t):
            time = t[0].detach().to(start.device, problem.time_dtype)
            slope = problem(time, start)
            later = t[0].to(start.device)
            problem.y0 = flow(problem, start, slope, later, later.detach() - later)
        return start

    def _moved_outputs(self, states: Tensor) -> Tensor:
        """States whose derivatives with respect to their times are those of the solution."""
        if not traced(self.t):
            return states
        problem, moved = self.problem, []
        for time, state in zip(self.t.unbind(0), states.unbind(0), strict=True):
            now = time.detach().to(state.device)
            slope = problem(now.to(problem.time_dtype), state)
            moved.append(flow(problem, state, slope, now, time.to(state.device) - now))
        return torch.stack(moved)

    # Fixed steps ----------------------------------------------------------------------------------

    def _bar(self, grid: Grid) -> Callable[[int], None] | None:
        """A bar of the steps, to be told of how many were taken."""
        if not self.progress:
            return None
        bar = tqdm(total=len(grid) - 1, desc=self.method, unit="step")

        def update(count: int) -> None:
            bar.update(count)
            if bar.n == bar.total:
                bar.close()

        return update

    def _on_step(self, grid: Grid) -> Callable[..., None] | None:
        callback, update = self.problem.callback("callback_step"), self._bar(grid)
        if update is None:
            return callback

        def on_step(t: float, y: Tensor, h: float) -> None:
            update(1)
            if callback is not None:
                callback(t, y, h)

        return on_step

    def fixed(self, dense: bool, gradients: str) -> ODEResult:
        """Runge-Kutta steps on a grid."""
        settings, problem = self.settings, self.problem
        perturb = bool(settings.get("perturb", False))
        if torch.compiler.is_compiling() and gradients != "direct":
            raise ValueError(
                f"gradients: {gradients!r} is not available in a compiled graph, whose backward "
                "pass recomputes what is cheap anyway; leave it out, or compile func alone"
            )
        if gradients == "reversible" and (perturb or dense or traced(self.t)):
            raise ValueError(
                "gradients: 'reversible' goes without perturb, dense output and gradients with "
                "respect to t (pass t.detach())"
            )
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, settings)
        if dense:
            if isinstance(grid, Tensor):
                raise ValueError("t: dense output of fixed steps goes without gradients; detach t")
            return self._fixed_dense(grid)
        if gradients == "reversible":
            from probflow.ode.reversible import integrate_reversible

            assert isinstance(grid, list)
            run = partial(integrate_reversible, problem, self.tableau, grid, wanted)
            return self._on_grid(run, grid)
        run = partial(
            integrate_on, problem, self.tableau, grid, wanted, interpolation=interp, perturb=perturb
        )
        if gradients == "checkpoint":
            if problem.callback("callback_step") is not None:
                raise ValueError("callback_step: not available with gradients='checkpoint'")
            if torch.is_grad_enabled():
                return self._on_grid(run, grid, gradients=gradients, report=self._bar(grid))
        return self._on_grid(run, grid)

    def _on_grid(self, run: Callable[..., Tensor], grid: Grid, **how: Any) -> ODEResult:
        """The result of a run over fixed steps, which says where it failed if it is to raise."""
        how = how or {"on_step": self._on_step(grid)}
        states, error = run(check_finite=self.check and self.throw, **how), None
        if not self.throw:
            states, error = self._checked(states, self._times() if self.check else ())
        steps = () if isinstance(grid, Tensor) else tuple(grid)
        return self._result(states, error, accepted=len(grid) - 1, steps=steps)

    def _fixed_dense(self, grid: list[float]) -> ODEResult:
        stepper = FixedStepper(self.problem, self.tableau, math.inf, grid[0], grid[-1])
        steps, on_step = [], self._on_step(grid)
        for start, stop in pairwise(grid):
            if on_step is not None:
                on_step(start, stepper.y, stop - start)
            steps.append(stepper.advance(stop))
        if self.check and self.throw:
            again = FixedStepper(self.problem, self.tableau, math.inf, grid[0], grid[-1])
            check_last(self.problem, self.tableau, stepper.y, map(again.advance, grid[1:]))
        function = DenseOutput(self.problem, steps, grid[0])
        states = torch.stack([self.problem.y0, *(step.after for step in steps)])
        states, error = self._checked(states, grid)
        outputs = [grid.index(time) for time in self._times()]
        return self._result(
            states[outputs], error, accepted=len(steps), steps=tuple(grid), dense=function
        )

    def adams(self) -> ODEResult:
        """Adams-Bashforth steps on a grid."""
        if self.settings.get("gradients", "direct") != "direct":
            raise ValueError(f"gradients: {ADAMS} has 'direct' only")
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, self.settings)
        run = partial(
            integrate_adams, self.problem, adams_order(self.settings), grid, wanted,
            interpolation=interp, perturb=bool(self.settings.get("perturb", False)),
        )  # fmt: skip
        return self._on_grid(run, grid)

    # Adaptive steps -------------------------------------------------------------------------------

    def adaptive(self, settings: Control, dense: bool, gradients: str) -> ODEResult:
        """Steps of one length for the whole batch, chosen by their errors."""
        if gradients == "reversible":
            raise ValueError(
                "gradients: 'reversible' needs fixed steps: "
                + ", ".join(name for name, tableau in TABLEAUS.items() if not tableau.adaptive)
            )
        if gradients == "checkpoint" and settings.jump_t:
            raise ValueError("gradients: 'checkpoint' goes without jump_t; use 'direct'")
        self._refuse_vmap()
        outputs = self._times()
        if len(outputs) == 1:
            start, failed = self._checked(torch.stack([self.problem.y0]), outputs)
            return self._result(start, failed, steps=tuple(outputs))
        self._moved_start()
        replayed = gradients == "checkpoint" and torch.is_grad_enabled() and not dense
        stepper = AdaptiveStepper(self.problem, self.tableau, settings, outputs[0], outputs[-1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not replayed):
            states, ends, steps, wanted, error = self._advance(stepper, outputs, dense)
        grid = [outputs[0], *ends]
        if replayed and error is None:
            # The steps are known now: take them again, in segments that are not stored.
            states = list(
                integrate_on(
                    self.problem, self.tableau, grid, wanted, gradients="checkpoint",
                    check_finite=False,
                )
            )  # fmt: skip
        if error is not None:
            if self.throw:
                raise error
            states += [torch.full_like(states[0], torch.nan)] * (len(outputs) - len(states))
        return self._result(
            self._moved_outputs(torch.stack(states)),
            error,
            accepted=stepper.accepted,
            rejected=stepper.rejected,
            dense=DenseOutput(self.problem, steps, outputs[0]) if dense else None,
            steps=tuple(grid),
        )

    def _refuse_vmap(
        self,
        why: str = "the steps of {} cannot depend on the error; give the batch as it is, with "
        "per_sample for steps of their own, or use fixed steps",
    ) -> None:
        """Raise ``ValueError`` if vmap hides the state, and see to it that slopes are looked at."""
        if torch.compiler.is_compiling() or not transformed():
            return

        def look(name: str, values: Tensor) -> None:
            if hidden(values):
                raise ValueError(f"{name}: under torch.func.vmap {why.format(self.method)}")

        def first_slope(t: Tensor, slope: Tensor) -> None:
            self.problem.observer = None
            look("func", slope)

        look("y0", self.problem.y0)
        self.problem.observer = first_slope

    def _advance(
        self, stepper: AdaptiveStepper, outputs: Sequence[float], keep: bool
    ) -> tuple[list[Tensor], list[float], list[AcceptedStep], list[list[float]], Exception | None]:
        """States at the outputs, ends of the steps, the steps if they are to be kept, and the
        fractions of each at which there is an output.
        """
        states, ends = [stepper.y], []
        steps: list[AcceptedStep] = []
        wanted: list[list[float]] = []
        sign = stepper.sign
        error: Exception | None = None
        span = abs(outputs[-1] - outputs[0])
        with _progress(self.progress, self.method, span) as report:
            try:
                while stepper.t != outputs[-1]:
                    done = stepper.step()
                    fractions = []
                    while (
                        len(states) < len(outputs)
                        and sign * outputs[len(states)] <= sign * done.stop
                    ):
                        time = outputs[len(states)]
                        fractions.append(1.0 if time == done.stop else done.fraction(time))
                        states.append(done.state(time))
                    wanted.append(fractions)
                    ends.append(done.stop)
                    if keep:
                        steps.append(done)
                    report(done.stop - done.start)
                    del done  # and with it the stages, before the next step makes its own
            except (SolveError, NonFiniteError) as stopped:
                error = stopped
        return states, ends, steps, wanted, error

    def event(
        self, event_fn: Callable[[Tensor, Any], Tensor], settings: Control | None
    ) -> ODEResult:
        """Steps until the event function changes its sign; ``settings`` of adaptive ones."""
        outputs = host_outputs(self.t, bounded=False)
        if len(outputs) != 2:
            raise ValueError(
                f"t: with event_fn two times are needed, the start and one after it that gives the "
                f"direction; got {len(outputs)}"
            )
        for name, useless in (("gradients", "direct"), ("grid_constructor", None)):
            if self.settings.get(name, useless) != useless:
                raise ValueError(f"{name}: not available with event_fn; leave it out")
        self._refuse_vmap("there is no search for an event; search for that of each sample alone")
        first = self._moved_start()
        end = math.copysign(math.inf, outputs[1] - outputs[0])
        stepper: AdaptiveStepper | FixedStepper
        if settings is not None:
            stepper = AdaptiveStepper(self.problem, self.tableau, settings, outputs[0], end)
        else:
            stepper = fixed_stepper(self.problem, self.method, self.settings, outputs[0], end)
        most = int(self.settings.get("max_num_steps", 100_000))
        error: Exception | None = None
        with _progress(self.progress, self.method) as report:
            try:
                t, state = find_event(
                    stepper, event_fn, most, lambda done: report(done.stop - done.start)
                )
                if settings is None and self.check:
                    check_state(self.problem, t, state)
            except (SolveError, NonFiniteError) as stopped:
                if self.throw:
                    raise
                error, t, state = stopped, math.nan, torch.full_like(first, torch.nan)
        states = torch.stack([first, state])
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        if isinstance(self.t, Tensor):
            like = self.t
        return self._result(
            states,
            error,
            accepted=stepper.accepted,
            rejected=stepper.rejected,
            message="the event was found",
            event_t=torch.tensor(t, dtype=like.dtype, device=like.device),
        )

    def per_sample(self, settings: Control, gradients: str, taken: Taken | None) -> ODEResult:
        """Steps of each sample's own length."""
        self._refuse_vmap()
        for name in ("step_t", "jump_t"):
            if name in self.settings:
                raise ValueError(f"{name}: not available with per_sample")
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            if self.problem.callback(name) is not None:
                raise ValueError(f"{name}: not available with per_sample; leave it off func")
        if traced(self.t):
            raise ValueError("t: gradients with respect to times are not formed with per_sample")
        times = per_sample_times(self.t, self.problem.y0)
        # A bar shows the mean of the samples, at a wait more in each try.
        span = float((times[-1] - times[0]).abs().mean()) if self.progress else None
        with _progress(self.progress, self.method, span) as report:

            def told(before: Tensor, stages: Any, columns: Any, length: Tensor) -> None:
                report(float(length.abs().mean()))
                if taken is not None:
                    taken(before, stages, columns, length)

            loop = PerSample(
                self.problem, self.tableau, settings, times, told if self.progress else taken
            )
            loop.run(gradients == "checkpoint" and torch.is_grad_enabled())
        if len(times) == 1 and self.check:
            loop.status.masked_fill_(~self.problem.finite(loop.y), int(Status.NON_FINITE))
        status, message = loop.failure()
        if status is not Status.SUCCESS and self.throw:
            raise status.error(message)
        return self._result(
            torch.stack(loop.outputs),
            accepted=loop.accepted,
            rejected=loop.rejected,
            status=loop.status,
            message=message,
        )


def _status_of(error: Exception | None) -> Status:
    if error is None:
        return Status.SUCCESS
    return next(status for status in Status if status > 0 and isinstance(error, status.error))


@contextmanager
def _progress(
    wanted: bool, method: str, span: float | None = None
) -> Iterator[Callable[[float], Any]]:
    """A bar over the span of time, to be told of the length of every step."""
    if not wanted:
        yield lambda length: None
        return
    with tqdm(total=span, desc=method, unit="t") as bar:
        yield lambda length: bar.update(abs(length))
