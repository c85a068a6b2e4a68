r"""Adams-Bashforth methods on any grid.

.. math:: y' = y + \int_t^s p(u)\,du,

with p the polynomial through the latest ``order`` slopes. The weights are those of the grid as it
is, so that the order holds on every grid (Hairer, Norsett, Wanner, Solving ODEs I, section III.5).
With s within the step this is the dense output, of the same order and without further evaluations.
The first steps are Runge-Kutta steps of at least the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import all_finite
from probflow.ode.adaptive import AcceptedStep
from probflow.ode.fixed import FixedStepper, Grid, Outputs, locate
from probflow.ode.options import ADAMS, MAX_ORDER
from probflow.ode.problem import Problem
from probflow.ode.steps import at_end, combine, rk_step
from probflow.tableaus import DOPRI5, DOPRI8, RK4, Tableau
from probflow.words import check_whole

__all__ = ["AdamsStepper", "adams_order", "adams_weights", "integrate_adams"]

DEFAULT_ORDER = 4  # the higher the order, the shorter the steps must be for stability


def adams_weights(nodes: Sequence[Any], stop: Any) -> list[Any]:
    """Weights of the slopes at ``nodes`` (latest first) for a step from ``nodes[0]`` to ``stop``.

    The state changes by ``(stop - nodes[0]) * sum_j weights[j] * slopes[j]``. They solve the
    Vandermonde system ``sum_j weights[j] u_j**i = 1 / (i + 1)``, in the way of Bjorck and Pereyra
    1970 (Math. Comp. 24, 893): for times that are floats, or tensors with gradients.

    Parameters
    ----------
    nodes
        Times of 1 to 7 slopes, all different.
    stop
        End of the step.

    Returns
    -------
    list
        As many weights, of the kind of the times.
    """
    h = stop - nodes[0]
    u = [(node - nodes[0]) / h for node in nodes]
    count = len(u)
    weights: list[Any] = [1.0 / (i + 1) for i in range(count)]
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            weights[i] = weights[i] - u[k] * weights[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            weights[i] = weights[i] / (u[i] - u[i - k - 1])
        for i in range(k, count - 1):
            weights[i] = weights[i] - weights[i + 1]
    return weights


def adams_order(options: Mapping[str, Any]) -> int:
    """The option ``max_order``, checked.

    Parameters
    ----------
    options
        Those of the call.

    Returns
    -------
    int
        From 1 to 7, by default 4.

    Raises
    ------
    TypeError, ValueError
        Unless it is a whole number in this range.
    """
    return check_whole("max_order", options.get("max_order", DEFAULT_ORDER), 1, MAX_ORDER)


def starter(order: int) -> Tableau:
    """Runge-Kutta method of the first steps."""
    return RK4 if order <= 4 else DOPRI5 if order == 5 else DOPRI8


@dataclass
class AdamsStep:
    """A step that was taken: slopes and their times, latest first; as ``AcceptedStep`` in use."""

    start: Any
    stop: Any
    before: Tensor
    after: Tensor
    slopes: list[Tensor]
    nodes: list[Any]

    def state(self, t: Any) -> Tensor:
        """State at ``t`` within the step."""
        h = t - self.start
        if not isinstance(h, Tensor) and h == 0.0:
            return self.before
        return combine(self.before, self.slopes, adams_weights(self.nodes, t), h)

    cut = state


class AdamsStepper(FixedStepper):
    """One solution, advanced by Adams-Bashforth steps; parameters as the fixed stepper's.

    Parameters
    ----------
    order
        Number of slopes, 1 to 7.
    """

    def __init__(
        self,
        problem: Problem,
        order: int,
        step_size: float,
        t0: Any,
        end: Any,
        perturb: bool = False,
    ) -> None:
        super().__init__(problem, starter(order), step_size, t0, end, perturb)
        self.order = order
        self._slopes: list[Tensor] = []
        self._nodes: list[Any] = []

    def advance(self, stop: Any) -> Any:
        """As :meth:`FixedStepper.advance`; the first ``order`` - 1 steps are Runge-Kutta steps."""
        y, start, tableau, most = self.y, self.t, self.tableau, self.order - 1
        times = self._times(tableau, start, stop)
        slope = self.problem(times[0], y)
        slopes, nodes = [slope, *self._slopes[:most]], [start, *self._nodes[:most]]
        h = self._length(start, stop)
        done: AcceptedStep | AdamsStep
        if len(slopes) == self.order:
            after = combine(y, slopes, adams_weights(nodes, stop), h)
            done = AdamsStep(start, stop, y, after, slopes, nodes)
        else:
            after, stages = rk_step(self.problem, tableau, y, times, h, slope)
            done = AcceptedStep(self.problem, tableau, start, stop, y, after, stages, times)
        self._slopes, self._nodes = slopes, nodes
        self._go_on(stop, after)
        return done

    @property
    def method(self) -> str:
        """Name of the method."""
        return ADAMS

    def _state(self) -> dict[str, Any]:
        history = {"slopes": list(self._slopes), "nodes": list(self._nodes)}
        return {**super()._state(), **history}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._slopes, self._nodes = list(state["slopes"]), list(state["nodes"])


def integrate_adams(
    problem: Problem,
    order: int,
    grid: Grid,
    outputs: Outputs,
    *,
    interpolation: str = "dense",
    perturb: bool = False,
    on_step: Callable[[float, Tensor, float], None] | None = None,
    check_finite: bool = True,
) -> Tensor:
    r"""States at the first time and the outputs, (1 + outputs, ...).

    With ``perturb`` the function is evaluated inside the steps, not at their ends.

    Parameters
    ----------
    problem
        What to integrate.
    order
        Number of slopes, 1 to 7.
    grid
        Times of the steps.
    outputs
        For each step the fractions of it at which a state is wanted.
    interpolation
        Within a step: ``"dense"``, by the method's own polynomial, or ``"linear"``.
    perturb
        See above.
    on_step
        Called with (t, y, h) before each step.
    check_finite
        Look for NaN and infinity in the last state.

    Returns
    -------
    Tensor
        (1 + outputs, \\*shape), dtype of the problem's ``y0``.

    Raises
    ------
    NonFiniteError
        If the last state is not finite.
    """
    stepper = AdamsStepper(problem, order, 1.0, grid[0], grid[-1], perturb)
    states = [problem.y0]
    for (start, stop), fractions in zip(pairwise(grid), outputs, strict=True):
        if on_step is not None:
            on_step(float(start), stepper.y, float(stop - start))
        done = stepper.advance(stop)
        for theta in fractions:
            if at_end(theta):
                states.append(done.after)
            elif interpolation == "linear":
                states.append(torch.lerp(done.before, done.after, theta))
            else:
                states.append(done.state(start + theta * (stop - start)))
    if check_finite and not all_finite(stepper.y.detach()):
        again = AdamsStepper(problem, order, 1.0, grid[0], grid[-1], perturb)
        locate(
            problem, "explicit_adams", (again.advance(stop) for stop in grid[1:]),
            "the state grew beyond all bounds: the steps are too long for the small region of "
            f"stability of order {order}",
        )  # fmt: skip
    return torch.stack(states)
