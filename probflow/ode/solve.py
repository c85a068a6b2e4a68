"""One solve: options checked, the right loop chosen, the result put together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.loop import NonFiniteError
from probflow.integrate.transforms import hidden, transformed
from probflow.ode.adams import adams_order, integrate_adams
from probflow.ode.adaptive import AcceptedStep, AdaptiveStepper
from probflow.ode.control import Control, control, tolerances
from probflow.ode.dense import DenseOutput
from probflow.ode.events import check_state, find_event
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
from probflow.ode.problem import Problem, host_outputs, traced
from probflow.ode.result import ODEResult, SolveError, Status
from probflow.ode.steppers import fixed_stepper
from probflow.tableaus import TABLEAUS, Tableau

__all__ = ["solve"]


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

    def _result(self, states: Tensor, **what: Any) -> ODEResult:
        defaults: dict[str, Any] = {
            "accepted": 0,
            "rejected": 0,
            "status": Status.SUCCESS,
            "message": Status.SUCCESS.message,
        }
        return ODEResult(
            t=self.t, y=self.problem.result(states), nfe=self.problem.nfe, **{**defaults, **what}
        )

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
            problem.y0 = start - slope * (t[0] - t[0].detach()).to(slope)
        return start

    def _moved_outputs(self, states: Tensor) -> Tensor:
        """States whose derivative with respect to their time is the slope there."""
        if not traced(self.t):
            return states
        problem, moved = self.problem, []
        for time, state in zip(self.t.unbind(0), states.unbind(0), strict=True):
            slope = problem(time.detach().to(state.device, problem.time_dtype), state)
            moved.append(state + slope * (time - time.detach()).to(slope))
        return torch.stack(moved)

    # Fixed steps ----------------------------------------------------------------------------------

    def _on_step(self, grid: Grid) -> Callable[..., None] | None:
        callback = self.problem.callback("callback_step")
        if not self.progress:
            return callback
        bar = tqdm(total=len(grid) - 1, desc=self.method, unit="step")

        def on_step(t: float, y: Tensor, h: float) -> None:
            bar.update(1)
            if bar.n == bar.total:
                bar.close()
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
            states = integrate_reversible(
                problem, self.tableau, grid, wanted, on_step=self._on_step(grid),
                check_finite=self.check,
            )  # fmt: skip
        else:
            if gradients == "checkpoint" and problem.callback("callback_step") is not None:
                raise ValueError("callback_step: not available with gradients='checkpoint'")
            states = integrate_on(
                problem, self.tableau, grid, wanted, interpolation=interp, perturb=perturb,
                gradients=gradients, check_finite=self.check, on_step=self._on_step(grid),
            )  # fmt: skip
        return self._on_grid(states, grid)

    def _on_grid(self, states: Tensor, grid: Grid, **what: Any) -> ODEResult:
        """The result of a run over fixed steps."""
        steps = () if isinstance(grid, Tensor) else tuple(grid)
        return self._result(states, accepted=len(grid) - 1, steps=steps, **what)

    def _fixed_dense(self, grid: list[float]) -> ODEResult:
        stepper = FixedStepper(self.problem, self.tableau, math.inf, grid[0], grid[-1])
        steps = [stepper.step(time) for time in grid[1:]]
        if self.check:
            again = FixedStepper(self.problem, self.tableau, math.inf, grid[0], grid[-1])
            check_last(self.problem, self.tableau, stepper.y, map(again.advance, grid[1:]))
        function = DenseOutput(self.problem, steps, grid[0])
        states = torch.stack([self.problem.y0, *(step.after for step in steps)])
        outputs = [grid.index(time) for time in self._times()]
        return self._on_grid(states[outputs], grid, dense=function)

    def adams(self) -> ODEResult:
        """Adams-Bashforth steps on a grid."""
        if self.settings.get("gradients", "direct") != "direct":
            raise ValueError(f"gradients: {ADAMS} has 'direct' only")
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, self.settings)
        states = integrate_adams(
            self.problem, adams_order(self.settings), grid, wanted, interpolation=interp,
            perturb=bool(self.settings.get("perturb", False)), on_step=self._on_step(grid),
            check_finite=self.check,
        )  # fmt: skip
        return self._on_grid(states, grid)

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
            return self._result(torch.stack([self.problem.y0]), steps=tuple(outputs))
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
            accepted=stepper.accepted,
            rejected=stepper.rejected,
            status=_status_of(error),
            message=Status.SUCCESS.message if error is None else str(error),
            dense=DenseOutput(self.problem, steps, outputs[0]) if dense else None,
            steps=tuple(grid),
        )

    def _refuse_vmap(self) -> None:
        if hidden(self.problem.y0):
            raise ValueError(
                f"y0: under torch.func.vmap the steps of {self.method} cannot depend on the error; "
                "give the batch as it is, with per_sample for steps of their own, or use fixed "
                "steps"
            )

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
                    report(done)
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
        first = self._moved_start()
        end = math.copysign(math.inf, outputs[1] - outputs[0])
        stepper: AdaptiveStepper | FixedStepper
        if settings is not None:
            stepper = AdaptiveStepper(self.problem, self.tableau, settings, outputs[0], end)
        else:
            stepper = fixed_stepper(self.problem, self.method, self.settings, outputs[0], end)
        most = int(self.settings.get("max_num_steps", 100_000))
        with _progress(self.progress, self.method) as report:
            t, state = find_event(stepper, event_fn, most, report)
        if settings is None and self.check:
            check_state(self.problem, t, state)
        states = torch.stack([first, state])
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        if isinstance(self.t, Tensor):
            like = self.t
        return self._result(
            states,
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
        loop = PerSample(self.problem, self.tableau, settings, times, taken)
        loop.run(gradients == "checkpoint" and torch.is_grad_enabled())
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
) -> Iterator[Callable[[Any], Any]]:
    """A bar over the span of time, to be told of every step."""
    if not wanted:
        yield lambda done: None
        return
    with tqdm(total=span, desc=method, unit="t") as bar:
        yield lambda done: bar.update(abs(done.stop - done.start))
