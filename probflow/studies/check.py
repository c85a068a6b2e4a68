"""Does a solver have the orders that it declares? For tests, of the library's solvers and yours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from probflow.grids import log_snr
from probflow.processes import Process
from probflow.solvers import Solver, get_solver
from probflow.studies.builtin import mixture
from probflow.studies.measure import Settings
from probflow.studies.rows import OrderEstimate
from probflow.studies.runner import study
from probflow.targets import Target

__all__ = ["OrderError", "assert_order", "check_order"]

#: Step counts of a check: a span of 32, four times what an estimate needs.
STEPS = (8, 16, 32, 64, 128, 256)


class OrderError(AssertionError):
    """A solver's measured order is not shown to be the declared one; the message is the reason."""


def check_order(
    solver: str | Solver,
    measure: str | Sequence[str] | None = None,
    *,
    target: Target | None = None,
    process: Process | None = None,
    grid: Any = None,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    samples: int = 128,
    reference_steps: int = 1024,
    seeds: int = Settings.seeds,
) -> list[OrderEstimate]:
    """Measure a solver's error at several step counts, and judge its declared orders.

    Parameters
    ----------
    solver
        A name, or a :class:`probflow.Solver`; registered ones need nothing else.
    measure
        One or several keys of :data:`probflow.studies.MEASURES`; by default every measure in
        which the solver declares an order.
    target
        By default a mixture of two normal laws on the line. A Gaussian target is a trap: some
        methods are of higher order there.
    process, grid
        By default ``VP.linear()`` and log-SNR evenly spaced from ``-ln ab`` = 3 to ``-ln 0.99``.
        An order belongs to a solver and a family of grids: name the grid you mean.
    steps, seed, samples, reference_steps, seeds
        As in :func:`probflow.studies.study`. The reference is finer than a study's: fourth-order
        solvers are checked as well.

    Returns
    -------
    list of OrderEstimate
        One per measure. ``verdict`` is ``"consistent"`` where the declared order is confirmed; see
        :func:`probflow.studies.order.fit_order` for the others.

    Raises
    ------
    TypeError, ValueError
        For unknown names, or a solver without declared orders where ``measure`` is left out.

    Examples
    --------
    >>> [estimate] = check_order("ddim", "strong")
    >>> estimate.claim, estimate.verdict
    (1.0, 'consistent')
    """
    found = get_solver(solver)
    measures = list(found.orders) if measure is None else measure
    if not measures:
        raise ValueError(f"measure: {found.name} declares no orders; name the measures to check")
    result = study(
        mixture() if target is None else target,
        [found],
        steps,
        measures,
        grid=log_snr(3.0, -math.log(0.99), "neg_log_ab") if grid is None else grid,
        process=process,
        seed=seed,
        samples=samples,
        reference_steps=reference_steps,
        seeds=seeds,
    )
    return list(result.orders())


def assert_order(
    solver: str | Solver, measure: str | Sequence[str] | None = None, **options: Any
) -> list[OrderEstimate]:
    """:func:`check_order`, and raise unless every verdict is ``"consistent"``.

    Parameters
    ----------
    solver, measure, options
        Arguments of :func:`check_order`.

    Returns
    -------
    list of OrderEstimate
        One per measure.

    Raises
    ------
    OrderError
        With solver, measure, verdict and reason of each order that is not confirmed.

    Examples
    --------
    >>> from dataclasses import replace
    >>> wrong = replace(get_solver("ddim"), orders={"strong": 2})
    >>> assert_order(wrong)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    probflow.studies.check.OrderError: ddim, strong, order 2: slower: the interval ...
    """
    estimates = check_order(solver, measure, **options)
    wrong = [
        f"{e.solver}, {e.measure}, order {e.claim:g}: {e.verdict}: {e.reason}"
        for e in estimates
        if e.verdict != "consistent"
    ]
    if wrong:
        raise OrderError("\n".join(wrong))
    return estimates
