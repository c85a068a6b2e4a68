from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from equations import DOUBLE, logistic, logistic_solution

from probflow.ode.steps import on_grid, run_steps
from probflow.tableaus import DOPRI5, RK4_CLASSIC, TABLEAUS, Tableau

NAMES = list(TABLEAUS)


# Order conditions over rooted trees (Hairer, Norsett, Wanner, section II.2) -----------------------


def trees(order: int) -> list[tuple]:
    """Rooted trees with this many nodes, as sorted tuples of their subtrees."""
    if order == 1:
        return [()]
    found = set()
    for partition in partitions(order - 1):
        for choice in itertools.product(*(trees(part) for part in partition)):
            found.add(tuple(sorted(choice, key=repr)))
    return sorted(found, key=repr)


def partitions(n: int, most: int | None = None) -> list[tuple[int, ...]]:
    if n == 0:
        return [()]
    most = n if most is None else most
    return [
        (first, *rest)
        for first in range(min(n, most), 0, -1)
        for rest in partitions(n - first, first)
    ]


def nodes(tree: tuple) -> int:
    return 1 + sum(map(nodes, tree))


def density(tree: tuple) -> int:
    return nodes(tree) * math.prod(map(density, tree))


def matrix(tableau: Tableau) -> np.ndarray:
    a = np.zeros((len(tableau.a), len(tableau.a)))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    return a


def elementary(tree: tuple, a: np.ndarray) -> np.ndarray:
    """Weights phi of the stages: sum_i b_i phi_i = 1 / density for each tree."""
    phi = np.ones(len(a))
    for subtree in tree:
        phi = phi * (a @ elementary(subtree, a))
    return phi


def defect(weights: np.ndarray, a: np.ndarray, order: int, theta: float = 1.0) -> float:
    """Largest failure of the order conditions with this many nodes."""
    weights = np.pad(weights, (0, len(a) - len(weights)))
    return max(
        abs(weights @ elementary(tree, a) - theta ** nodes(tree) / density(tree))
        for tree in trees(order)
    )


def test_number_of_trees() -> None:
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("tableau", [*TABLEAUS.values(), RK4_CLASSIC], ids=lambda t: t.name)
def test_order_conditions_hold_up_to_the_declared_order_and_no_further(tableau: Tableau) -> None:
    a = matrix(tableau)
    for order in range(1, tableau.order + 1):
        assert defect(np.array(tableau.b), a, order) < 1e-13, order
    assert defect(np.array(tableau.b), a, tableau.order + 1) > 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if len(TABLEAUS[n].error) == 1])
def test_the_embedded_method_has_the_order_of_the_estimate(name: str) -> None:
    tableau, a = TABLEAUS[name], matrix(TABLEAUS[name])
    embedded = np.array(tableau.b) - np.array(tableau.error[0])
    for order in range(1, tableau.error_order + 1):
        assert defect(embedded, a, order) < 1e-13
    assert defect(embedded, a, tableau.error_order + 1) > 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("theta", [0.1, 0.5, 0.77])
def test_dense_output_fulfils_the_conditions_of_its_order(name: str, theta: float) -> None:
    tableau, a = TABLEAUS[name], matrix(TABLEAUS[name])
    weights = np.array(tableau.dense_weights(theta))
    for order in range(1, min(tableau.dense_order, tableau.order) + 1):
        assert defect(weights, a, order, theta) < 2e-12, order
    if tableau.dense_order <= tableau.order:
        assert defect(weights, a, tableau.dense_order + 1, theta) > 1e-9
    step = 1e-5
    ahead, behind = (tableau.dense_weights(theta + sign * step) for sign in (1, -1))
    slopes = (np.array(ahead) - np.array(behind)) / (2 * step)
    np.testing.assert_allclose(slopes, tableau.dense_slopes(theta), atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_first_same_as_last_is_derived(name: str) -> None:
    tableau = TABLEAUS[name]
    assert tableau.fsal == (name in {"bosh3", "dopri5", "tsit5"})
    assert tableau.a[tableau.closing] == tuple(tableau.b[: tableau.closing])
    assert tableau.c[tableau.closing] == 1.0


def test_dopri5_has_the_published_numbers() -> None:
    assert DOPRI5.a[5][1] == float(Fraction(-355, 33))
    assert DOPRI5.b[4] == float(Fraction(-2187, 6784))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": ((), (0.5,), (0.0,))}, "row i of a"),
        ({"c": (0.0, 0.4)}, "must sum to c"),
        ({"b": (0.5, 0.6)}, "must sum to 1"),
        ({"error": ((0.5, 0.5),)}, "error weights"),
        ({"error": ((1.0, -0.5, -0.5),)}, "error weights"),
        ({"dense": ((1.0,), (0.0,), (0.0,))}, "must end where the step ends"),
    ],
)
def test_wrong_tableaus_are_refused(change: dict, message: str) -> None:
    heun = {"name": "h", "order": 2, "a": ((), (1.0,)), "b": (0.5, 0.5), "reference": "test"}
    Tableau(**heun)
    with pytest.raises(ValueError, match=message):
        Tableau(**{**heun, **change})


# Orders, measured ---------------------------------------------------------------------------------


def slope(sizes: list[int], errors: list[float]) -> float:
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def errors(name: str, sizes: list[int], inside: float | None = None) -> list[float]:
    """Largest error at the end of a uniform grid, or at a fraction of its steps."""
    tableau, found = TABLEAUS[name], []
    y0 = torch.tensor([0.1, 0.4, 0.8], dtype=DOUBLE)
    for n in sizes:
        grid = [2.5 * i / n for i in range(n + 1)]
        wanted = [[]] * (n - 1) + [[1.0]] if inside is None else [[inside]] * n
        run = on_grid(tableau, grid, wanted, y0, DOUBLE)
        _, _, states = run_steps(logistic, tableau, y0, run)
        times = [2.5] if inside is None else [2.5 * (i + inside) / n for i in range(n)]
        found.append(
            max(
                float((state - logistic_solution(y0, t)).abs().max())
                for state, t in zip(states, times, strict=True)
            )
        )
    return found


# Steps so short that the next order no longer shows, and errors still lie well above 1e-15.
SIZES = {"dopri8": [4, 6, 9, 13], "dopri5": [27, 40, 60, 90], "tsit5": [27, 40, 60, 90]}


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_method(name: str) -> None:
    sizes = SIZES.get(name, [20, 40, 80, 160])
    assert slope(sizes, errors(name, sizes)) == pytest.approx(TABLEAUS[name].order, abs=0.35)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inside", [0.3, 0.8])
def test_order_inside_the_steps_matches_the_method(name: str, inside: float) -> None:
    sizes = SIZES.get(name, [20, 40, 80, 160])
    tableau = TABLEAUS[name]
    expected = min(tableau.order, tableau.dense_order + 1)
    assert slope(sizes, errors(name, sizes, inside)) > expected - 0.35
