"""How often the order estimate is right: error curves of known order, with and without noise.

Each :class:`Family` is an error curve whose order is known from its formula. A replicate multiplies
it by independent log-normal noise, and :func:`probflow.studies.order.estimate_order` judges three
claims: the true order, half an order more, and half an order less. Two outcomes are mistakes:

- *false consistent*: ``consistent`` for a claim above the true order;
- *false slower*: ``slower`` for a claim at or below the true order, which the curve satisfies.

``faster`` at the true order is wrong too, but contradicts nobody's claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from probflow.studies.order import estimate_order

STEPS = (8, 16, 32, 64, 128, 256, 512)
NOISES = (0.0, 0.005, 0.02)
OFFSETS = (0.0, 0.5, -0.5)


@dataclass(frozen=True)
class Family:
    """An error curve of known order.

    Parameters
    ----------
    name
        Formula or description.
    order
        Its order as ``T`` goes to infinity.
    error
        Maps steps, shape ``(n,)``, to errors, shape ``(n,)``.
    log_power
        Largest power of ``ln T`` that the claim allows.
    tempting
        A wrong order that the coarse points show; 0 for none. It is judged as a fourth claim.
    hidden
        Whether the term that decides the order is too small to be seen at the finest point, so
        that no estimate from these points can be right.
    """

    name: str
    order: float
    error: Callable[[np.ndarray], np.ndarray]
    log_power: float = 0.0
    tempting: float = 0.0
    hidden: bool = False


@dataclass(frozen=True)
class CoverageRow:
    """Shares of the four verdicts for one family, noise and claim; they add up to 1."""

    family: str
    order: float
    noise: float
    claim: float
    consistent: float
    slower: float
    faster: float
    inconclusive: float
    hidden: bool = False

    @property
    def false_consistent(self) -> float:
        """Share of ``consistent`` where the claim is above the order, else 0."""
        return self.consistent if self.claim > self.order else 0.0

    @property
    def false_slower(self) -> float:
        """Share of ``slower`` where the claim is true, else 0."""
        return self.slower if self.claim <= self.order else 0.0


def _solver_error(steps: np.ndarray, stages: int) -> np.ndarray:
    """End-point error of Euler, Heun or RK4 on ``x' = -6 x - x^3``, ``x(0) = 2``, to time 1."""

    def f(x: float) -> float:
        return -6.0 * x - x**3

    exact = np.sqrt(6.0 / (2.5 * np.exp(12.0) - 1.0))  # Bernoulli equation
    errors = []
    for n in steps:
        h, x = 1.0 / float(n), 2.0
        for _ in range(int(n)):
            k1 = f(x)
            if stages == 1:
                x += h * k1
            elif stages == 2:
                x += h / 2.0 * (k1 + f(x + h * k1))
            else:
                k2 = f(x + h / 2.0 * k1)
                k3 = f(x + h / 2.0 * k2)
                x += h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + f(x + h * k3))
        errors.append(abs(x - exact))
    return np.array(errors)


def _implicit_euler(T: np.ndarray) -> np.ndarray:
    return np.abs((1.0 + 5.0 / T) ** -T - np.exp(-5.0))


def _trapezoid(T: np.ndarray) -> np.ndarray:
    return np.abs(((1.0 - 2.0 / T) / (1.0 + 2.0 / T)) ** T - np.exp(-4.0))


def _euler_rotation(T: np.ndarray) -> np.ndarray:
    return np.abs((1.0 + 4.0j / T) ** T - np.exp(4.0j))


#: Curves of several kinds: pure powers, expansions in h and h^(1/2), saturation at coarse steps,
#: transients that die out, sums in quadrature, low-order terms that show late, solver runs, logs.
FAMILIES: tuple[Family, ...] = (
    Family("T^-1/2", 0.5, lambda T: T**-0.5),
    Family("T^-1", 1.0, lambda T: T**-1.0),
    Family("T^-2", 2.0, lambda T: T**-2.0),
    Family("T^-1/2 (1 + 8/T)", 0.5, lambda T: T**-0.5 * (1.0 + 8.0 / T)),
    Family("T^-1 (1 + 8/T)", 1.0, lambda T: T**-1.0 * (1.0 + 8.0 / T)),
    Family("T^-2 (1 + 8/T)", 2.0, lambda T: T**-2.0 * (1.0 + 8.0 / T)),
    Family("T^-1 (1 - 6/T)", 1.0, lambda T: T**-1.0 * (1.0 - 6.0 / T)),
    Family("T^-1 (1 + 20/T - 100/T^2)", 1.0, lambda T: (1.0 + 20.0 / T - 100.0 / T**2) / T),
    Family("T^-1 (1 - (5/T)^1/2)", 1.0, lambda T: (1.0 - np.sqrt(5.0 / T)) / T),
    Family("T^-2 (1 + (8/T)^1/2)", 2.0, lambda T: T**-2.0 * (1.0 + np.sqrt(8.0 / T))),
    Family("T^-1 (1 + (4/T)^3/2)", 1.0, lambda T: (1.0 + (4.0 / T) ** 1.5) / T),
    Family("T^-1 (1 + 1/ln T)", 1.0, lambda T: (1.0 + 1.0 / np.log(T)) / T),
    Family("T^-1 (1 + sin(30/T)/3)", 1.0, lambda T: (1.0 + np.sin(30.0 / T) / 3.0) / T),
    Family("T^-2 (1 + 5 exp(-T/16))", 2.0, lambda T: T**-2.0 * (1.0 + 5.0 * np.exp(-T / 16.0))),
    Family("(1 + T/32)^-1", 1.0, lambda T: 1.0 / (1.0 + T / 32.0)),
    Family("(1 + (T/32)^2)^-1", 2.0, lambda T: 1.0 / (1.0 + (T / 32.0) ** 2)),
    Family("tanh(20/T)", 1.0, lambda T: np.tanh(20.0 / T)),
    Family("1 - exp(-(24/T)^2)", 2.0, lambda T: -np.expm1(-((24.0 / T) ** 2))),
    Family("arctan((12/T)^1/2)", 0.5, lambda T: np.arctan(np.sqrt(12.0 / T))),
    Family("(T^-2 + (24/T^2)^2)^1/2", 1.0, lambda T: np.sqrt(T**-2.0 + (24.0 / T**2) ** 2)),
    Family("Euler, x' = -6x - x^3", 1.0, lambda T: _solver_error(T, 1)),
    Family("Heun, x' = -6x - x^3", 2.0, lambda T: _solver_error(T, 2)),
    Family("RK4, x' = -6x - x^3", 4.0, lambda T: _solver_error(T, 4)),
    Family("implicit Euler, x' = -5x", 1.0, _implicit_euler),
    Family("trapezoid, x' = -4x", 2.0, _trapezoid),
    Family("Euler, x' = 4ix", 1.0, _euler_rotation),
    Family("T^-2 + T^-1/50", 1.0, lambda T: T**-2.0 + T**-1.0 / 50.0, tempting=2.0),
    Family("T^-2 + T^-1/300", 1.0, lambda T: T**-2.0 + T**-1.0 / 300.0, tempting=2.0),
    Family("T^-2 + T^-1/500", 1.0, lambda T: T**-2.0 + T**-1.0 / 500.0, tempting=2.0),
    Family("T^-1 + T^-1/2/10", 0.5, lambda T: T**-1.0 + T**-0.5 / 10.0, tempting=1.0),
    Family("T^-1 + T^-1/2/25", 0.5, lambda T: T**-1.0 + T**-0.5 / 25.0, tempting=1.0),
    Family("T^-2 + T^-1/50000", 1.0, lambda T: T**-2.0 + T**-1.0 / 5e4, tempting=2.0, hidden=True),
    Family("T^-1 ln T, log claim", 1.0, lambda T: np.log(T) / T, log_power=2.0),
    Family(
        "T^-2 (ln T)^2 (1 + 3 ln T/T), log claim",
        2.0,
        lambda T: (np.log(T) / T) ** 2 * (1.0 + 3.0 * np.log(T) / T),
        log_power=2.0,
    ),
    Family(
        "(1 + T/(8 ln T))^-1, log claim",
        1.0,
        lambda T: 1.0 / (1.0 + T / (8.0 * np.log(T))),
        log_power=2.0,
    ),
)


def simulate(
    families: Iterable[Family] = FAMILIES,
    *,
    steps: Sequence[int] = STEPS,
    noises: Sequence[float] = NOISES,
    replicates: int = 200,
    seed: int = 0,
) -> list[CoverageRow]:
    """Judge claims about curves of known order.

    Parameters
    ----------
    families
        Curves; the noise of each has its own stream, keyed by its name.
    steps
        Numbers of steps of every study.
    noises
        Relative standard errors; 0 is judged once, since all replicates agree.
    replicates
        Studies per family and noise.
    seed
        Seed of all streams.

    Returns
    -------
    list of CoverageRow
        One per family, noise and claim: the order, 1/2 more, 1/2 less (where positive), and the
        tempting order where there is one.
    """
    if replicates < 1:
        raise ValueError(f"replicates: got {replicates}, allowed is 1 or more")
    T = np.asarray(steps, dtype=np.float64)
    rows = []
    for family in families:
        exact = family.error(T)
        claims = [family.order + d for d in OFFSETS if family.order + d > 0.0]
        if family.tempting and family.tempting not in claims:
            claims.append(family.tempting)
        for noise in noises:
            key = [seed, round(1e6 * noise), *family.name.encode()]
            rng = np.random.default_rng(key)
            n = replicates if noise else 1
            studies = exact * np.exp(noise * rng.standard_normal((n, len(T))))
            for claim in claims:
                counts: Counter[str] = Counter(
                    estimate_order(
                        list(steps),
                        errors,
                        claim=claim,
                        covariance=noise**2 * np.eye(len(T)),
                        max_log_power=family.log_power,
                    ).verdict
                    for errors in studies
                )
                rows.append(
                    CoverageRow(
                        family=family.name,
                        order=family.order,
                        noise=noise,
                        claim=claim,
                        consistent=counts["consistent"] / n,
                        slower=counts["slower"] / n,
                        faster=counts["faster"] / n,
                        inconclusive=counts["inconclusive"] / n,
                        hidden=family.hidden,
                    )
                )
    return rows


def markdown_table(rows: Iterable[CoverageRow]) -> str:
    """Verdicts in per cent, one line per family and claim, one column per noise.

    A cell gives the shares of ``consistent / slower / faster / inconclusive``.
    """
    rows = list(rows)
    noises = sorted({row.noise for row in rows})
    cells: dict[tuple[str, float], dict[float, str]] = {}
    first: dict[tuple[str, float], CoverageRow] = {}
    for row in rows:
        key = (row.family, row.claim)
        shares = (row.consistent, row.slower, row.faster, row.inconclusive)
        text = " / ".join(f"{100.0 * share:.0f}" for share in shares)
        cells.setdefault(key, {})[row.noise] = text
        first.setdefault(key, row)
    header = "".join(f" noise {100.0 * noise:g} % |" for noise in noises)
    lines = [f"| curve | order | claim |{header}", "|---|---|---|" + "---|" * len(noises)]
    for key, row in first.items():
        name = f"`{row.family}`" + (" (hidden)" if row.hidden else "")
        claim = f"**{row.claim:g}**" if row.claim == row.order else f"{row.claim:g}"
        values = "".join(f" {cells[key].get(noise, '')} |" for noise in noises)
        lines.append(f"| {name} | {row.order:g} | {claim} |{values}")
    return "\n".join(lines) + "\n"


def summary(rows: Iterable[CoverageRow]) -> str:
    """Mean power and worst mistakes over the families that are not hidden, one line per noise."""
    rows = [row for row in rows if not row.hidden]
    lines = [
        "| noise | order called consistent | order + 1/2 called slower | order - 1/2 called faster "
        "| worst false consistent | worst false slower |",
        "|---|---|---|---|---|---|",
    ]
    for noise in sorted({row.noise for row in rows}):
        here = [row for row in rows if row.noise == noise]
        means = [
            float(np.mean([getattr(r, verdict) for r in here if r.claim == r.order + offset]))
            for verdict, offset in (("consistent", 0.0), ("slower", 0.5), ("faster", -0.5))
        ]
        worst = [max(r.false_consistent for r in here), max(r.false_slower for r in here)]
        cells = " | ".join(f"{100.0 * value:.1f} %" for value in means + worst)
        lines.append(f"| {100.0 * noise:g} % | {cells} |")
    return "\n".join(lines) + "\n"
