r"""Butcher tableaus of explicit Runge-Kutta methods, with error estimate and dense output.

A step of length h from (t, y) has the stages

.. math:: k_i = f(t + c_i h,\; y + h \sum_{j<i} a_{ij} k_j),
    \qquad y' = y + h \sum_i b_i k_i .

The error estimate is :math:`h \sum_i e_i k_i`, and within the step
:math:`y(t + \theta h) = y + h \sum_i b_i(\theta) k_i` with polynomials :math:`b_i`. Both may use
the closing stage :math:`f(t + h, y')`, which is the first stage of the next step. Whether it is
already the last stage of this one ("first same as last") is derived from the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from probflow import dop853

__all__ = ["TABLEAUS", "Tableau"]

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method; the numbers are checked on construction.

    Attributes
    ----------
    name, order, reference
        Name of the method, its order of convergence and source.
    a
        Rows of the strictly lower triangle, first row empty; after the ``len(b)`` stages of the
        step may follow the closing stage (row equal to b) and further stages of the dense output.
    b
        Weights of the step.
    error
        Weights of the error estimate over the stages of the step; two rows for DOP853; empty for
        a method without one.
    error_order
        Order of the estimate: it falls as ``h**(error_order + 1)`` in a step.
    dense
        Coefficients of :math:`b_i(\\theta)` in :math:`\\theta, \\theta^2, ...`, one row for each
        stage, closing and further stages included. By default the cubic Hermite interpolant.
    dense_order
        The interpolant's error is O(h**(dense_order + 1)) in a step.
    c
        Stage times; by default the row sums of ``a``.

    Raises
    ------
    ValueError
        For numbers whose shapes or sums are those of no such method.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    reference: str
    error: tuple[Row, ...] = ()
    error_order: int = 0
    dense: tuple[Row, ...] = ()
    dense_order: int = 3
    c: Row = field(default=())

    def __post_init__(self) -> None:
        # Filled in here, so that all tableaus look the same to the loops.
        stages = len(self.b)
        sums = tuple(float(sum(row)) for row in self.a)
        object.__setattr__(self, "c", self.c or sums)
        if any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"{self.name}: row i of a must have i entries")
        if not np.allclose(self.c, sums, atol=1e-14):
            raise ValueError(f"{self.name}: the rows of a must sum to c")
        if abs(sum(self.b) - 1.0) > 1e-14:
            raise ValueError(f"{self.name}: the weights b must sum to 1")
        closing = stages - 1 if self.fsal else stages
        if not self.fsal and len(self.a) == stages:
            object.__setattr__(self, "a", (*self.a, self.b))
            object.__setattr__(self, "c", (*self.c, 1.0))
        if not self.dense:
            object.__setattr__(self, "dense", _hermite(self.b, closing))
        ends = np.array([sum(row) for row in self.dense])
        weights = np.zeros(len(self.dense))
        weights[:stages] = self.b
        if not np.allclose(ends, weights, atol=1e-12):
            raise ValueError(f"{self.name}: the dense output must end where the step ends")
        for row in self.error:
            if abs(sum(row)) > 1e-14 or len(row) != stages:
                raise ValueError(f"{self.name}: the error weights, one a stage, must sum to 0")
        _ = self.stages, self.closing  # cached here: a compiled graph cannot take its lock

    @cached_property
    def stages(self) -> int:
        """Number of stages of a step."""
        return len(self.b)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the closing stage f(t + h, y')."""
        last = self.a[len(self.b) - 1]
        return self.b[-1] == 0.0 and last == self.b[:-1] and len(self.b) > 1

    @cached_property
    def closing(self) -> int:
        """Index of the closing stage."""
        return self.stages - 1 if self.fsal else self.stages

    @cached_property
    def later(self) -> list[tuple[float, Row]]:
        """(c_i, row a_i) of the stages after the first, without one that only closes the step."""
        count = max(i for i, weight in enumerate(self.b) if weight != 0.0) + 1
        return list(zip(self.c[1:count], self.a[1:count], strict=True))

    @property
    def adaptive(self) -> bool:
        """Whether there is an error estimate."""
        return bool(self.error)

    @cached_property
    def source(self) -> str:
        """The loop over steps as a Python function, written out so that it costs no more than one
        written by hand. It returns what :func:`probflow.ode.steps.walk` returns.
        """

        def weighted(weights: Row, result: bool = False) -> str:
            terms = [
                (f"k{j}", "h" if w == 1.0 else f"h * {w!r}")
                for j, w in enumerate(weights)
                if w != 0.0
            ]
            (k, alpha), *rest = terms
            chain = "".join(f".add_({k}, alpha={alpha})" for k, alpha in rest)
            # The increment first: added to the state term by term it would be rounded each time.
            # For two terms that is not worth a third pass over the state.
            if result and len(terms) > 2:
                return f"mul({k}, {alpha}){chain}.add_(y)"
            return f"add(y, {k}, alpha={alpha})" + chain

        body = ["before = y", "k0 = func(t[0], y) if first is None else first"]
        for i in range(1, self.stages):
            point = weighted(self.a[i], self.fsal and i == self.closing)
            body += [f"after = {point}", f"k{i} = func(t[{i}], after)"]
        body.append("y = after" if self.fsal else f"y = {weighted(self.b, True)}")
        body.append(f"first = k{self.closing}" if self.fsal else "first = None")
        stages = ", ".join(f"k{i}" for i in range(self.stages))
        return "\n".join(
            [
                "def steps(func, y, lengths, times, first):",
                "    for h, t in zip(lengths, times):",
                *("        " + line for line in body),
                f"    return before, y, [{stages}]",
            ]
        )

    def dense_weights(self, theta: float) -> Row:
        """Weights b_i(theta) of all stages, floats, at ``t + theta h``, 0 <= theta <= 1."""
        weights = []
        for coefficients in self.dense:  # by Horner's rule, which a compiled graph can follow
            weight = 0.0
            for coefficient in reversed(coefficients):
                weight = (weight + coefficient) * theta
            weights.append(weight)
        return tuple(weights)

    def dense_slopes(self, theta: float) -> Row:
        """Derivatives b_i'(theta), floats: ``sum_i b_i'(theta) k_i`` is the output's slope."""
        powers = np.arange(1, len(self.dense[0]) + 1)
        return tuple(np.dot(self.dense, powers * theta ** (powers - 1)).tolist())


def _hermite(b: Sequence[float], closing: int) -> tuple[Row, ...]:
    """Cubic with the step's values and slopes at both ends, as polynomials of the stages."""
    rows = np.zeros((closing + 1, 3))
    rows[: len(b)] += np.outer(b, [0.0, 3.0, -2.0])
    rows[0] += [1.0, -2.0, 1.0]
    rows[closing] += [0.0, -1.0, 1.0]
    return tuple(map(tuple, rows.tolist()))


def _row(text: str) -> Row:
    return tuple(float(Fraction(number)) for number in text.split())


def _rows(text: str) -> tuple[Row, ...]:
    return ((), *(_row(line) for line in text.strip().splitlines()))


_BOOK = "Hairer, Norsett, Wanner, Solving ODEs I, "

EULER = Tableau(
    name="euler",
    order=1,
    a=((),),
    b=(1.0,),
    reference="Euler 1768",
)

MIDPOINT = Tableau(
    name="midpoint",
    order=2,
    a=_rows("1/2"),
    b=_row("0 1"),
    reference="Runge 1895; " + _BOOK + "section II.1",
)

HEUN2 = Tableau(
    name="heun2",
    order=2,
    a=_rows("1"),
    b=_row("1/2 1/2"),
    reference="Heun 1900; " + _BOOK + "section II.1",
)

HEUN3 = Tableau(
    name="heun3",
    order=3,
    a=_rows("1/3\n0 2/3"),
    b=_row("1/4 0 3/4"),
    reference="Heun 1900; " + _BOOK + "table II.1.1",
)

RK4 = Tableau(
    name="rk4",
    order=4,
    a=_rows("1/3\n-1/3 1\n1 -1 1"),
    b=_row("1/8 3/8 3/8 1/8"),
    reference="Kutta 1901, the 3/8 rule, which torchdiffeq calls rk4; " + _BOOK + "table II.1.2",
)

RK4_CLASSIC = Tableau(
    name="rk4_classic",
    order=4,
    a=_rows("1/2\n0 1/2\n0 0 1"),
    b=_row("1/6 1/3 1/3 1/6"),
    reference="Kutta 1901; " + _BOOK + "table II.1.2",
)

ADAPTIVE_HEUN = Tableau(
    name="adaptive_heun",
    order=2,
    a=_rows("1"),
    b=_row("1/2 1/2"),
    error=(_row("1/2 -1/2"),),
    error_order=1,
    reference="Heun's method with Euler's inside",
)

FEHLBERG2 = Tableau(
    name="fehlberg2",
    order=2,
    a=_rows("1/2\n1/256 255/256"),
    b=_row("1/512 255/256 1/512"),
    error=(_row("-1/512 0 1/512"),),
    error_order=1,
    reference="Fehlberg 1969 (NASA TR R-315), RK1(2), continued with the formula of order 2",
)

BOSH3 = Tableau(
    name="bosh3",
    order=3,
    a=_rows("1/2\n0 3/4\n2/9 1/3 4/9"),
    b=_row("2/9 1/3 4/9 0"),
    error=(_row("-5/72 1/12 1/9 -1/8"),),
    error_order=2,
    reference="Bogacki, Shampine 1989",
)

DOPRI5 = Tableau(
    name="dopri5",
    order=5,
    a=_rows(
        """1/5
        3/40 9/40
        44/45 -56/15 32/9
        19372/6561 -25360/2187 64448/6561 -212/729
        9017/3168 -355/33 46732/5247 49/176 -5103/18656
        35/384 0 500/1113 125/192 -2187/6784 11/84"""
    ),
    b=_row("35/384 0 500/1113 125/192 -2187/6784 11/84 0"),
    error=(_row("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40"),),
    error_order=4,
    # Shampine 1986; contd5 of Hairer's DOPRI5 is the same polynomial.
    dense=(
        _row("1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432"),
        _row("0 0 0 0"),
        _row("0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799"),
        _row("0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072"),
        _row("0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632"),
        _row("0 -282668133/205662961 2019193451/616988883 -1453857185/822651844"),
        _row("0 40617522/29380423 -110615467/29380423 69997945/29380423"),
    ),
    dense_order=4,
    c=_row("0 1/5 3/10 4/5 8/9 1 1"),
    reference="Dormand, Prince 1980; " + _BOOK + "table II.5.2",
)

TSIT5 = Tableau(
    name="tsit5",
    order=5,
    a=_rows(
        """0.161
        -0.008480655492356989 0.335480655492357
        2.8971530571054935 -6.359448489975075 4.3622954328695815
        5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525
        5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.02826905039406838
        0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774"""  # noqa: E501
    ),
    b=_row(
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 "
        "-3.290069515436081 2.324710524099774 0"
    ),
    error=(
        _row(
            "0.00178001105222577714 0.0008164344596567469 -0.007880878010261995 "
            "0.1447110071732629 -0.5823571654525552 0.45808210592918697 -1/66"
        ),
    ),
    error_order=4,
    dense=(
        _row("1 -2.763706197274826 2.9132554618219126 -1.0530884977290216"),
        _row("0 0.13169999999999998 -0.2234 0.1017"),
        _row("0 3.9302962368947516 -5.941033872131505 2.490627285651253"),
        _row("0 -12.411077166933676 30.33818863028232 -16.548102889244902"),
        _row("0 37.50931341651104 -88.1789048947664 47.37952196281928"),
        _row("0 -27.896526289197286 65.09189467479366 -34.87065786149661"),
        _row("0 1.5 -4 2.5"),
    ),
    dense_order=4,
    c=_row("0 0.161 0.327 0.9 0.9800255409045097 1 1"),
    reference="Tsitouras 2011, Runge-Kutta pairs of order 5(4)",
)


def _dop853() -> Tableau:
    stages, closing, every = len(dop853.B), len(dop853.B), len(dop853.C)
    a = np.zeros((every, every))
    for (i, j), value in dop853.A.items():
        a[i, j] = value
    a[closing, :stages] = dop853.B
    # Dense output: y + theta (F0 + (1 - theta)(F1 + theta (F2 + (1 - theta)(F3 + ...)))), with
    # F0 = y' - y, F1 = h f - F0, F2 = 2 F0 - h (f + f'), F3.. = h D k. Row: stage; column: power.
    step = np.zeros(every)
    step[:stages] = dop853.B
    start, end = np.eye(every)[0], np.eye(every)[closing]
    terms = [step, start - step, 2 * step - start - end, *np.zeros((4, every))]
    for (i, j), value in dop853.D.items():
        terms[3 + i][j] = value
    theta, rest = np.array([0.0, 1.0]), np.array([1.0, -1.0])
    dense, factor = np.zeros((every, len(terms) + 1)), np.array([1.0])
    for number, term in enumerate(terms):
        factor = np.convolve(factor, rest if number % 2 else theta)
        dense[:, : len(factor)] += np.outer(term, factor)
    return Tableau(
        name="dopri8",
        order=8,
        a=tuple(tuple(row[:i].tolist()) for i, row in enumerate(a)),
        b=dop853.B,
        error=(dop853.ERROR_5[:stages], dop853.ERROR_3[:stages]),
        error_order=7,
        dense=tuple(map(tuple, dense[:, 1:].tolist())),
        dense_order=7,
        c=dop853.C,
        reference="Dormand, Prince; DOP853 of " + _BOOK + "section II.10",
    )


DOPRI8 = _dop853()

#: Methods by the names that torchdiffeq gives them, and tsit5.
TABLEAUS: dict[str, Tableau] = {
    tableau.name: tableau
    for tableau in (
        EULER,
        MIDPOINT,
        HEUN2,
        HEUN3,
        RK4,
        ADAPTIVE_HEUN,
        FEHLBERG2,
        BOSH3,
        DOPRI5,
        TSIT5,
        DOPRI8,
    )
}
