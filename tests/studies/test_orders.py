"""Every registered solver has the orders that it declares, in every measure that it declares.

``check_order`` measures on a mixture of two normal laws on the line, log-SNR evenly spaced between
``-ln ab`` = 3 and -ln 0.99, on ``VP.linear``, 8 to 256 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from limits import limit_of_orders
from refused import REFUSED

import probflow as pf
from probflow.laws import distances_1d
from probflow.plan import Linear, StepBuilder
from probflow.processes import Process
from probflow.solvers import Solver, unregister
from probflow.studies import OrderError, assert_order, check_order, study
from probflow.studies.builtin import mixture
from probflow.studies.check import STEPS

VP = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
#: Stochastic solvers without their strong orders, which take long (test_strong_orders).
ALL = [
    replace(s, orders={m: p for m, p in s.orders.items() if not (s.stochastic and m == "strong")})
    for s in pf.all_solvers()
    if s.name not in REFUSED
]
PLANE = pf.GaussianMixture(
    [0.2, 0.3, 0.1, 0.4],
    [[-1.0, -0.8], [1.1, -0.5], [-0.7, 1.2], [0.9, 1.0]],
    stds=[[0.4, 0.5], [0.5, 0.35], [0.45, 0.4], [0.6, 0.5]],
)


def name(solver: Solver) -> str:
    return solver.name


#: At 8 and 16 steps their errors are far above the asymptote, and the window begins at 32.
LATE = {
    *("exponential-ab4", "exponential-ab4-x0", "unipc-3", "unipc-4", "edm-churn"),
    *("unipc-3-eps", "unipc-4-eps"),
    *("two-interval-2", "seeds-2", "sde-exponential-rk2", "sde-heun", "dpm-solver++-sde-stock"),
    "sde-dpm-solver++-singlestep-stock",
}
#: Quadrature in two variables, or a sum over a second noise: 10 s to a minute. Ordinary runs see
#: the orders of these on a normal law (``tests/solvers/test_stochastic.py``).
SLOW = {
    *("accelerated-sde-3", "dpm-solver++-sde", "dpm-solver++-sde-stock", "er-sde-2", "seeds-2"),
    *(
        "sde-dpm-solver++-singlestep-stock",
        "sde-exponential-rk2",
        "sde-heun",
        "two-interval",
        "two-interval-2",
    ),
    *("sde-dpm-solver-2m", "sde-exponential-ab2", "sde-exponential-ab2-eps"),
    *("sde-exponential-ab2-v", "sde-deis-tab1", "sde-lms-2"),
}
#: More than a minute for 256 steps.
LONG = {"accelerated-sde-3", "er-sde-2"}


def step_counts(solver: Solver) -> tuple[int, ...]:
    return (*STEPS, 512) if solver.name in LATE else STEPS


#: Dormand and Prince made the leading error term of their formula small. The next one covers it
#: until the error is near rounding, and no eightfold range of steps shows order 5 alone: it is
#: confirmed with more digits, in ``tests/solvers/test_extended_precision.py``.
COVERED = {"rk5", "edm-rk5"}
SHOWN = [s for s in ALL if s.name not in COVERED]
WIDE = pf.GaussianMixture([0.35, 0.65], [[-1.2], [0.8]], stds=[0.6, 0.9])


@pytest.mark.parametrize(
    "solver",
    [*map(pf.get_solver, sorted(COVERED)), pf.get_solver("edm-rk5", variable="log-snr")],
    ids=["edm-rk5", "rk5", "edm-rk5 in log-snr"],
)
def test_order_5_before_rounding(solver: Solver) -> None:
    """The finest local order is nearest to 5, and nothing denies it."""
    for estimate in check_order(solver, target=WIDE, steps=(8, 12, 16, 24, 32, 48, 64, 80)):
        assert estimate.verdict in ("consistent", "inconclusive")
        assert round(estimate.eoc[-1]) == 5


@pytest.mark.parametrize(
    "solver",
    [pytest.param(s, id=s.name, marks=pytest.mark.slow if s.name in SLOW else []) for s in SHOWN],
)
def test_declared_orders(solver: Solver) -> None:
    steps = STEPS[:-1] if solver.name in LONG else step_counts(solver)
    estimates = assert_order(solver, steps=steps)
    assert {e.measure for e in estimates} == set(solver.orders)
    for estimate in estimates:
        assert estimate.claim == solver.orders[estimate.measure]
        assert estimate.window[1] == steps[-1]


@pytest.mark.slow  # 2 minutes
@pytest.mark.parametrize("solver", SHOWN, ids=name)
def test_declared_orders_to_512_steps(solver: Solver) -> None:
    assert_order(solver, steps=(*STEPS, 512))


# Three random variables at once or more ---------------------------------------------------------


@pytest.mark.slow  # 2 minutes
def test_order_of_a_law_of_three_variables() -> None:
    assert_order("sde-exponential-rk3", "tv", steps=(8, 12, 16, 24, 32, 48, 64))


#: Log-SNR from -1 to 1, where the posterior mean of WIDE is bent most: 8 steps are of length 1/4.
SHORT = pf.grids.log_snr(-1.0, 1.0, "lambda")


def check_limit(solver: Solver, order: float, steps: tuple[int, ...]) -> None:
    """The error of a law is a series in h, so that its local orders have a limit by Richardson.

    It serves where a term of the next order is large, so that local orders are on their way still.
    """
    errors = []
    for count in steps:
        made = solver.plan(VP, SHORT.times(VP, count), "x0")
        errors.append(distances_1d(made, VP, WIDE)["tv"])
    limit, error = limit_of_orders(errors)
    assert limit == pytest.approx(order, abs=error), errors
    assert error < 0.25, errors  # half of what parts two orders


def square(rho: float) -> float:
    return rho**2


def given(value: Solver | float) -> str:
    """Name and options, but for functions, whose addresses differ from process to process."""
    if not isinstance(value, Solver):
        return f"order {value}"
    options = [f"{k}={v}" for k, v in value.options.items() if not callable(v)]
    return " ".join([value.name, *options])


@pytest.mark.slow  # 10 minutes
@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (pf.get_solver("sde-exponential-rk4"), (8, 12, 16, 24, 32, 64)),
        (pf.get_solver("seeds-3"), (8, 12, 16, 24, 32, 48, 64, 96)),
        # sde-dpm-solver++-3m and sde-dpm-solver-3m in other words.
        (pf.get_solver("sde-exponential-ab3"), (16, 24, 32, 48, 64, 96, 128, 192)),
        (pf.get_solver("sde-exponential-ab3-eps"), (16, 24, 32, 48, 64, 96, 128, 192)),
        (pf.get_solver("er-sde-3", phi=square), (16, 24, 32, 48, 64, 96, 128, 192, 256)),
        (pf.get_solver("sa-solver"), (16, 24, 32, 64, 128)),
    ],
    ids=lambda value: value.name if isinstance(value, Solver) else "",
)
def test_order_of_laws_of_many_variables(solver: Solver, steps: tuple[int, ...]) -> None:
    """Smooth laws and short steps; a polynomial over three steps of h needs half of that h.

    Where the local orders fall from 2.5 and more, they have to be seen to stop: that takes half as
    many steps again. er-sde-3 with eta = 1: by default eta is 0.06, and the term that is of order 2
    as small. All of them on a normal law, to 4096 steps: ``test_order_on_a_normal_law``.
    """
    assert_order(solver, "tv", target=WIDE, grid=SHORT, steps=steps)


@pytest.mark.slow  # 2 minutes
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        *((pf.get_solver(n, eta=0.5), 1) for n in ("seeds-1", "sde-dpm-solver++-1")),
        *(
            (pf.get_solver(n, eta=0.5), 2)
            for n in ("sde-exponential-ab2", "sde-exponential-rk2", "sde-dpm-solver++-2m")
        ),
        *((pf.get_solver(n, eta=0.5), 2) for n in ("dpm-solver++-sde", "seeds-2")),
        *(
            (pf.get_solver("sa-solver", predictor=p, corrector=c, tau=0.7), order)
            for p, c, order in ((1, 0, 1), (1, 1, 1), (2, 0, 2), (1, 2, 2))
        ),
        (pf.get_solver("er-sde-1", phi=square), 1),
        (pf.get_solver("er-sde-2", phi=square), 2),
    ],
    ids=given,
)
def test_orders_of_laws_by_options(solver: Solver, order: float) -> None:
    """Less noise; with a corrector the order is the number of its outputs, 2 at most."""
    check_limit(solver, order, (8, 16, 32, 64))


@pytest.mark.slow  # 1 minute
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        *((pf.get_solver(n, eta=0.5), 1) for n in ("ddim-eta", "euler-ancestral")),
        *((pf.get_solver(n, eta=0.5), 2) for n in ("dpm2-ancestral", "dpm-solver++-2s-ancestral")),
        (pf.get_solver("dpm-solver-fast-ancestral", eta=0.5), 3),
        (pf.get_solver("dpm-solver-fast-ancestral", remainder=1), 2),
        (pf.get_solver("edm-churn", method="euler"), 1),
        (pf.get_solver("edm-churn", method="dpm2"), 2),
    ],
    ids=given,
)
def test_orders_of_noise_up_and_ode_down_by_options(solver: Solver, order: float) -> None:
    assert_order(replace(solver, orders={"tv": order}), "tv", steps=step_counts(solver))


@pytest.mark.slow  # 2 minutes
@pytest.mark.parametrize("solver", SHOWN, ids=name)
def test_w2_and_kl_follow_tv(solver: Solver) -> None:
    """The order of KL is twice that of TV, and so is what its local orders lack at a step count."""
    assert_order(solver, "w2", steps=(*STEPS, 512))
    # Its local orders of KL are 4.60, 4.26, 3.92, 3.86 from 16 to 256 steps: they turn before 4.
    late = (1024, 2048) if solver.name == "dpm-solver++-sde-stock" else ()
    assert_order(solver, "kl", steps=(*STEPS, 512, *late))


# Other dimensions and processes -----------------------------------------------------------------

DETERMINISTIC = [s for s in SHOWN if not s.stochastic]


def quickly(names: tuple[str, ...], solvers: list[Solver]) -> list:
    """Parameters: the named solvers in every run, the others in slow runs."""
    return [
        pytest.param(s, id=s.name, marks=[] if s.name in names else pytest.mark.slow)
        for s in solvers
    ]


@pytest.mark.parametrize("solver", quickly(("heun",), DETERMINISTIC))
def test_strong_order_in_the_plane(solver: Solver) -> None:
    assert_order(solver, "strong", target=PLANE, steps=step_counts(solver))


PROCESSES: list[Process] = [pf.VE(), pf.EDM(), pf.FlowMatching(), pf.VP.cosine()]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", quickly(("dpm-solver++-2m",), SHOWN))
def test_orders_on_other_processes(solver: Solver, process: Process) -> None:
    late = solver.name == "deis-tab3"  # on VE
    assert_order(solver, process=process, steps=(*STEPS, 512) if late else step_counts(solver))


# Solvers of users, and the helper itself --------------------------------------------------------


@pytest.fixture
def mine() -> Iterator[Solver]:
    @pf.register_solver("mine", reference="here", prediction="eps", orders={"tv": 2, "strong": 2})
    def mine(step: StepBuilder, end: float = 1.0) -> Linear:
        """y' = y + (rho' - rho) eps((y + y_euler)/2): the midpoint rule in rho, at the mean rho."""
        t, s = step.t, step.s
        middle = step.at_lambda(-math.log(0.5 * (t.rho + s.rho)))
        eps = step.model(step.x, t)
        inner = middle.alpha * (step.x / t.alpha + (middle.rho - t.rho) * eps)
        outer = step.x / t.alpha + end * (s.rho - t.rho) * step.model(inner, middle)
        return s.alpha * outer

    yield pf.get_solver("mine")
    unregister("mine")


def test_a_users_solver(mine: Solver) -> None:
    assert mine in pf.all_solvers()
    for estimate in assert_order("mine", steps=STEPS[:-1]):
        assert estimate.order == pytest.approx(2, abs=0.1)
    assert check_order(mine, "tv")[0].solver == "mine"


def test_a_users_wrong_solver(mine: Solver) -> None:
    with pytest.raises(OrderError, match=r"mine \(end=1.01\), strong, order 2: slower: the i"):
        assert_order(mine.with_options(end=1.01), "strong")


def test_claims_that_are_too_high_or_too_low() -> None:
    steps = STEPS[:-1]
    for order, verdict in ((0.5, "faster"), (1, "consistent"), (1.5, "slower")):
        [estimate] = check_order(replace(pf.get_solver("ddim"), orders={"tv": order}), steps=steps)
        assert estimate.verdict == verdict


def test_measures_without_a_claim() -> None:
    [estimate] = check_order("ddim", "w2")
    assert estimate.verdict == "consistent"  # W2 has the order of TV
    with pytest.raises(OrderError, match="ddim, path-kl, order nan: inconclusive: refused:"):
        assert_order("ddim", "path-kl", steps=(8, 16, 32))
    with pytest.raises(ValueError, match="measure: ddim declares no orders; name the measures"):
        check_order(replace(pf.get_solver("ddim"), orders={}))
    with pytest.raises(ValueError, match="solver: no solver is named 'ddmi'"):
        check_order("ddmi")


def test_too_few_points_are_no_confirmation() -> None:
    with pytest.raises(OrderError, match="inconclusive: only 3 usable points"):
        assert_order("ddim", "tv", steps=(8, 16, 32))


# Orders that depend on target and grid ----------------------------------------------------------


def test_a_gaussian_target_is_a_trap() -> None:
    """There the accelerated stochastic sampler is of order 2 in TV: its error is all of T3."""
    [estimate] = check_order("accelerated-sde", "tv", target=pf.Gaussian([0.4], 0.25))
    assert estimate.verdict == "faster"
    assert estimate.order == pytest.approx(2, abs=0.1)


def test_an_order_belongs_to_a_grid() -> None:
    """-ln ab evenly spaced to 1e-4: the last steps are long in log-SNR, where eps is not affine.

    The paper's sampler with two evaluations keeps order 2, the practical one falls to 1.
    """
    grid = pf.grids.exponential(3.0, 1e-4, "neg_log_ab")
    [theory] = check_order("accelerated-ode", "tv", grid=grid)
    [practical] = check_order("accelerated-ode-arcsin", "tv", grid=grid)
    assert theory.verdict == "consistent"
    assert practical.verdict != "consistent"
    assert practical.eoc[-1] == pytest.approx(1.1, abs=0.1)


@pytest.mark.slow  # 2 minutes
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_strong_orders_on_the_papers_schedule(solver: Solver) -> None:
    """Against h, a logarithm of T would make vanilla-ode and accelerated-ode-multistep slower."""
    steps = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
    [estimate] = study(mixture(), solver, steps, "strong", grid=pf.grids.paper()).orders()
    assert estimate.axis == "T"
    assert estimate.verdict not in ("slower", "faster")
    if solver.name in {"vanilla-ode", "accelerated-ode-multistep"}:
        assert estimate.verdict == "consistent"
