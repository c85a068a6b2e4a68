"""One solve: options checked, the right loop chosen, the result put together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.grid import check_positive, host_times
from probflow.integrate.loop import NonFiniteError
from probflow.ode.adams import DEFAULT_ORDER, MAX_ORDER, integrate_adams
from probflow.ode.adaptive import AcceptedStep, AdaptiveStepper
from probflow.ode.control import Control, control
from probflow.ode.dense import DenseOutput, find_event
from probflow.ode.fixed import FixedStepper, fixed_grid, integrate_on
from probflow.ode.options import ADAMS, GRADIENTS, allowed_options, checked_options
from probflow.ode.per_sample import PerSample, per_sample_times
from probflow.ode.problem import Problem
from probflow.ode.result import ODEResult, SolveError, Status
from probflow.tableaus import TABLEAUS, Tableau

__all__ = ["solve", "traced"]


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
) -> ODEResult:
    """Solve with one of the native methods; arguments as :func:`probflow.solve_ode`."""
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
    if method == ADAMS or not TABLEAUS[method].adaptive:
        for name in ("callback_accept_step", "callback_reject_step"):
            if problem.callback(name) is not None:
                warnings.warn(f"{name}: {method} has fixed steps and never calls it", stacklevel=3)
    solver = _Solve(problem, func, y0, t, method, settings, throw)
    if per_sample:
        if gradients != "direct":
            raise ValueError("gradients: per_sample has 'direct' only")
        if event_fn is not None or dense:
            raise ValueError(
                "per_sample: events and dense output are for one step size for the batch; leave "
                "per_sample out"
            )
        return solver.per_sample(control(settings, rtol, atol, problem))
    if event_fn is not None:
        return solver.event(event_fn, control(settings, rtol, atol, problem))
    if method == ADAMS:
        return solver.adams()
    if TABLEAUS[method].adaptive:
        return solver.adaptive(control(settings, rtol, atol, problem), dense, gradients)
    return solver.fixed(dense, gradients)


def held_by(method: str) -> int:
    """How many outputs of the function a native method holds at once."""
    return MAX_ORDER + TABLEAUS["dopri8"].stages if method == ADAMS else len(TABLEAUS[method].dense)


def traced(t: Any) -> bool:
    """Whether times cannot be read to the host without losing what the caller wants of them."""
    if not isinstance(t, Tensor):
        return False
    if torch.compiler.is_compiling():
        return True
    if t.requires_grad and torch.is_grad_enabled():
        return True
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(t))


def transformed() -> bool:
    """Whether values cannot be looked at: inside torch.func.vmap, or while a graph is traced."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


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
        return host_times(self.t.detach() if isinstance(self.t, Tensor) else self.t, "t")

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

    def _moved_start(self) -> None:
        """Let the initial state know how a later start would change the solution."""
        if traced(self.t):
            problem, t = self.problem, self.t
            time = t[0].detach().to(problem.y0.device, problem.time_dtype)
            slope = problem(time, problem.y0)
            problem.y0 = problem.y0 - slope * (t[0] - t[0].detach()).to(slope)

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

    def _on_step(self, grid: Sequence[float]) -> Callable[..., None] | None:
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
        if gradients == "reversible" and (perturb or dense or traced(self.t)):
            raise ValueError(
                "gradients: 'reversible' goes without perturb, dense output and gradients with "
                "respect to t (pass t.detach())"
            )
        if traced(self.t):
            # Lengths of steps that are tensors.
            refined = any(name in settings for name in ("step_size", "grid_constructor"))
            points, interp = self.t, "dense"
            wanted: list[Sequence[float]] = [[1.0]] * (len(points) - 1)
            if refined:
                points, wanted, interp = self._traced_grid()
            states = integrate_on(
                problem, self.tableau, points, wanted, interpolation=interp, perturb=perturb,
                gradients=gradients, check_finite=self.check,
            )  # fmt: skip
            return self._result(states, accepted=len(points) - 1)
        outputs = self._times()
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, outputs, settings)
        if dense:
            return self._fixed_dense(grid)
        if gradients == "reversible":
            from probflow.ode.reversible import integrate_reversible

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
        return self._result(states, accepted=len(grid) - 1, steps=tuple(grid))

    def _traced_grid(self) -> tuple[Tensor, list[Sequence[float]], str]:
        """A refined grid whose points move with the output times between which they lie."""
        if torch.compiler.is_compiling():
            raise ValueError(
                "step_size, grid_constructor: a compiled graph cannot decide how many steps to "
                "take; give the times of the steps as t"
            )
        outputs = self._times()
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, outputs, self.settings)
        points, position = [], 0
        for time in grid:
            while position < len(outputs) - 2 and not _between(
                time, outputs[position], outputs[position + 1]
            ):
                position += 1
            a, b = outputs[position], outputs[position + 1]
            share = (time - a) / (b - a)
            points.append(torch.lerp(self.t[position], self.t[position + 1], share))
        return torch.stack(points), wanted, interp

    def _fixed_dense(self, grid: Sequence[float]) -> ODEResult:
        stepper = FixedStepper(self.problem, self.tableau, math.inf, grid[0], grid[-1])
        steps = [stepper.step(time) for time in grid[1:]]
        function = DenseOutput(self.problem, steps, grid[0])
        states = torch.stack([self.problem.y0, *(step.after for step in steps)])
        outputs = [grid.index(time) for time in self._times()]
        return self._result(states[outputs], accepted=len(steps), dense=function, steps=tuple(grid))

    def adams(self) -> ODEResult:
        """Adams-Bashforth steps on a grid."""
        order = self.settings.get("max_order", DEFAULT_ORDER)
        if isinstance(order, bool) or not isinstance(order, int):
            raise TypeError(f"max_order: need a whole number, got {order!r}")
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"max_order: need 1 <= max_order <= {MAX_ORDER}, got {order}")
        if self.settings.get("gradients", "direct") != "direct":
            raise ValueError(f"gradients: {ADAMS} has 'direct' only")
        outputs = self._times()
        grid, wanted, interp = fixed_grid(self.func, self.y0, self.t, outputs, self.settings)
        self._moved_start()
        states = integrate_adams(
            self.problem,
            order,
            grid,
            wanted,
            interpolation=interp,
            perturb=bool(self.settings.get("perturb", False)),
            on_step=self._on_step(grid),
            check_finite=self.check,
        )
        states = self._moved_outputs(states)
        return self._result(states, accepted=len(grid) - 1, steps=tuple(grid))

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
        if transformed() and _batched(self.problem.y0):
            raise ValueError(
                f"y0: under torch.func.vmap the steps of {self.method} cannot depend on the error; "
                "give the batch as it is, with per_sample for steps of their own, or use fixed "
                "steps"
            )
        outputs = self._times()
        self._moved_start()
        if len(outputs) == 1:
            return self._result(self.problem.y0[None], steps=tuple(outputs))
        replayed = gradients == "checkpoint" and torch.is_grad_enabled() and not dense
        stepper = AdaptiveStepper(self.problem, self.tableau, settings, outputs[0], outputs[-1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not replayed):
            states, ends, steps, wanted, error = self._advance(stepper, outputs, dense)
        grid = (outputs[0], *ends)
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
            steps=grid,
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
        with _progress(self.progress, self.method, outputs) as report:
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

    def event(self, event_fn: Callable[[Tensor, Any], Tensor], settings: Control) -> ODEResult:
        """Steps until the event function changes its sign."""
        outputs = self._times()
        if len(outputs) != 2:
            raise ValueError(
                f"t: with event_fn two times are needed, the start and one after it that gives the "
                f"direction; got {len(outputs)}"
            )
        if self.method == ADAMS:
            raise ValueError(f"event_fn: {ADAMS} does not look for events; use dopri5 or rk4")
        self._moved_start()
        end = math.copysign(math.inf, outputs[1] - outputs[0])
        stepper: Any
        if self.tableau.adaptive:
            stepper = AdaptiveStepper(self.problem, self.tableau, settings, outputs[0], end)
            most = settings.max_num_steps
        else:
            step = self.settings.get("step_size")
            if step is None:
                raise ValueError(
                    f"step_size: {self.method} needs it in options to look for an event"
                )
            most = int(self.settings.get("max_num_steps", 100_000))
            step = check_positive(step, "step_size")
            stepper = FixedStepper(self.problem, self.tableau, step, outputs[0], end)
        t, state = find_event(stepper, event_fn, most)
        states = torch.stack([self.problem.y0, state])
        like = self.t if isinstance(self.t, Tensor) else torch.zeros((), dtype=torch.float64)
        return self._result(
            states,
            accepted=stepper.accepted,
            rejected=stepper.rejected,
            message="the event was found",
            event_t=torch.tensor(t, dtype=like.dtype, device=like.device),
        )

    def per_sample(self, settings: Control) -> ODEResult:
        """Steps of each sample's own length."""
        for name in ("step_t", "jump_t"):
            if name in self.settings:
                raise ValueError(f"{name}: not available with per_sample")
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            if self.problem.callback(name) is not None:
                raise ValueError(f"{name}: not available with per_sample; leave it off func")
        if traced(self.t):
            raise ValueError("t: gradients with respect to times are not formed with per_sample")
        if isinstance(self.t, np.ndarray) and self.t.ndim == 2:
            self.t = torch.as_tensor(self.t, dtype=torch.float64)
        rows = isinstance(self.t, Tensor) and self.t.ndim == 2
        times = per_sample_times(self.t, None if rows else self._times(), self.problem.y0)
        loop = PerSample(self.problem, self.tableau, settings, times)
        loop.run()
        failures = loop.failures()
        message = Status.SUCCESS.message
        if failures:
            sample, status, t, steps = failures[0]
            message = (
                f"{len(failures)} of {len(times[0])} samples failed, first sample {sample} at "
                f"t = {t:g} after {steps} steps: {status.message}"
            )
            if self.throw:
                raise status.error(message)
        return self._result(
            torch.stack(loop.outputs),
            accepted=loop.accepted,
            rejected=loop.rejected,
            status=loop.status,
            message=message,
        )


def _batched(y: Tensor) -> bool:
    """Whether torch.func.vmap hides the values of a tensor."""
    try:
        y.detach().reshape(-1)[:1].tolist()
    except RuntimeError:
        return True
    return False


def _between(time: float, a: float, b: float) -> bool:
    return min(a, b) <= time <= max(a, b)


def _status_of(error: Exception | None) -> Status:
    if error is None:
        return Status.SUCCESS
    return next(status for status in Status if status > 0 and isinstance(error, status.error))


@contextmanager
def _progress(
    wanted: bool, method: str, outputs: Sequence[float]
) -> Iterator[Callable[[AcceptedStep], None]]:
    """A bar over the interval of time."""
    if not wanted:
        yield lambda done: None
        return
    with tqdm(total=abs(outputs[-1] - outputs[0]), desc=method, unit="t") as bar:

        def report(done: AcceptedStep) -> None:
            bar.update(abs(done.stop - done.start))

        yield report
