"""What a start, or an end, of low order leaves of a method's order.

A first step of local error h^(q + 1) moves all that follows by as much, and so the order is the
least of the method's own and q + 1. On common step counts the method's own error may cover that:
``lms-4`` seems to fall from 4 to 2, ``unipc-3`` and ``pndm`` seem nearly of order 4. Runs that
differ in their start alone show it without cover. So do runs that differ in their last steps alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from limits import limit_of_orders

import probflow as pf
from probflow.integrate import run_plan
from probflow.studies.builtin import mixture

VP = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
STATES = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
STEPS = (32, 64, 128, 256)

#: An Euler step errs by h^2, and so does UniPC's, but the corrector makes it h^3; so does Heun's.
CASES = [
    (solver.name, start, 3 if start == "heun" or solver.name.startswith("unipc") else 2)
    for solver in pf.all_solvers()
    if not solver.stochastic and "start" in solver.options
    for start in ("heun", "euler")
    # Of order 3, the Runge-Kutta start is one step of order 2 as well.
    if start == "euler" or solver.orders["strong"] > 3
]
#: One of each family in every run.
QUICK = {"exponential-ab3", "lms-4", "pndm", "unipc-3"}


def test_all_methods_with_a_start_are_here() -> None:
    assert len(CASES) == 33


@pytest.mark.parametrize(
    ("name", "start", "order"),
    [
        pytest.param(
            *case, id="-".join(case[:2]), marks=() if case[0] in QUICK else pytest.mark.slow
        )
        for case in CASES
    ],
)
def test_what_a_start_changes(name: str, start: str, order: int) -> None:
    check_change(name, {"start": start}, order)


#: The last step is a DDIM step, of error h^2.
ENDS = sorted(s.name for s in pf.all_solvers() if not s.stochastic and "final" in s.options)


def test_all_methods_with_an_end_are_here() -> None:
    assert len(ENDS) == 34


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ENDS],
)
def test_what_an_end_changes(name: str) -> None:
    check_change(name, {"final": "lower"}, 2)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        *((name, {"start": start}, left) for name, start, left in CASES),
        *((name, {"final": "lower"}, 2) for name in ENDS),
        ("pndm", {"weights": "constant"}, 2),
        ("dpm-solver++-3m", {"factor": 1.0}, 2),
        ("dpm-solver++-singlestep-stock", {"order": 1}, 1),
        ("sa-solver", {"predictor": 2, "corrector": 1}, 1),
        ("sa-solver", {"predictor": 1, "corrector": 2}, 2),
    ],
)
def test_the_declared_order_is_what_options_leave(name: str, options: dict, order: float) -> None:
    plain, changed = pf.get_solver(name), pf.get_solver(name, **options)
    assert changed.order("tv") == min(plain.orders["tv"], order)
    assert changed.order("kl") == 2 * changed.order("tv")
    assert changed.with_options(**plain.options).order("tv") == plain.orders["tv"]


def check_change(name: str, options: dict[str, str], order: float) -> None:
    """The order of what options change in the result."""

    def end(steps: int, **options: str) -> torch.Tensor:
        plan = pf.get_solver(name, **options).plan(VP, GRID.times(VP, steps), "eps")
        return run_plan(plan, model, STATES)

    model = mixture().model(VP)
    with torch.no_grad():
        changes = [end(steps) - end(steps, **options) for steps in STEPS]
    sizes = [float(change.square().mean().sqrt()) for change in changes]
    limit, error = limit_of_orders(sizes)
    assert limit == pytest.approx(order, abs=error), sizes
