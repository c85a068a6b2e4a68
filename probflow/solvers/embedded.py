r"""Embedded pairs: a method and a lower one from the same evaluations, for adaptive steps.

A pair has no plan on a grid: :func:`probflow.integrate.adaptive.integrate_pair` asks it for one
step at a time, from the log-SNR reached by a length of its choice. The state is advanced by the
method of higher order; its distance to the lower one is the error. z, L and S and the two forms of
the equation are those of :mod:`probflow.solvers.forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from probflow.plan import Combination, Linear, Step, StepBuilder, trace
from probflow.solvers.forms import EPS, X0, Form, Tableau, kutta_3, midpoint_2, runge_kutta
from probflow.solvers.phi import phi

__all__ = ["PAIRS", "Attempt", "EmbeddedPair"]

_LU = "Lu et al. 2022 (arXiv 2206.00927), Algorithm 3 and appendix C"


class Attempt(NamedTuple):
    """A step as data, and the combination of its registers that is the error."""

    step: Step
    error: Combination


@dataclass(frozen=True)
class EmbeddedPair:
    """An exponential Runge-Kutta method with a lower one inside.

    Attributes
    ----------
    name, reference
        Name, and source of the method.
    form
        Whether it is written for eps or x0.
    order
        Order of the method that advances the state; the error is that of order - 1.
    nodes, tableau
        Stages and weights of that method: see :func:`probflow.solvers.forms.runge_kutta`.
    lower
        From z to the weights of the lower method, over the same outputs.
    """

    name: str
    reference: str
    form: Form
    order: int
    nodes: tuple[float, ...]
    tableau: Tableau
    lower: Callable[[float], Sequence[float]]

    @property
    def orders(self) -> dict[str, float]:
        """Declared orders by measure, of steps of one length that tends to 0."""
        return {"tv": self.order, "strong": self.order}

    @property
    def nfe(self) -> int:
        """Model evaluations of a step that is tried; a repeated one needs one less."""
        return len(self.nodes) + 1

    def attempt(self, process: Any, t: float, s: float, prediction: str) -> Attempt:
        """The step from time ``t`` to ``s``, for a model of the given prediction type.

        Parameters
        ----------
        process
            The noising process.
        t, s
            Process times of finite log-SNR.
        prediction
            That of the model.

        Returns
        -------
        Attempt
            The step of the higher order, and its difference from the lower one.

        Raises
        ------
        ValueError
            Where a log-SNR is not finite.
        """
        differences: list[tuple[StepBuilder, Linear]] = []

        def both(step: StepBuilder) -> Linear:
            higher = runge_kutta(step, self.form, self.nodes, self.tableau)
            weights = self.lower(self.form.z(step.t, step.s))
            lower = self.form.step(step.x, step.t, step.s, weights, step.outputs)
            differences.append((step, higher - lower))
            return higher

        native = "eps" if self.form is EPS else "x0"
        plan = trace(self.name, both, process, [t, s], native=native, prediction=prediction)
        step, difference = differences[-1]
        return Attempt(plan.steps[0], step.combinations(difference.scaled())[0])


def _first(z: float) -> list[float]:
    """DDIM."""
    return [phi(1, z), 0.0]


def _second(z: float) -> list[float]:
    """DPM-Solver-2 with r1 = 1/3."""
    return [*midpoint_2(1 / 3)(z)[1], 0.0]


def _pairs(prefix: str, form: Form, reference: str) -> list[EmbeddedPair]:
    return [
        EmbeddedPair(f"{prefix}-12", reference, form, 2, (0.5,), midpoint_2(0.5), _first),
        EmbeddedPair(
            f"{prefix}-23", reference, form, 3, (1 / 3, 2 / 3), kutta_3(1 / 3, 2 / 3), _second
        ),
    ]


#: DPM-Solver-2 with DDIM inside, and DPM-Solver-3 with DPM-Solver-2 inside, on eps and on x0.
PAIRS: dict[str, EmbeddedPair] = {
    pair.name: pair
    for pair in (
        *_pairs("dpm-solver", EPS, _LU),
        *_pairs("dpm-solver++", X0, f"{_LU}; on x0 as in the authors' code"),
    )
}
