"""Stochastic samplers: identities, exact laws on normal targets, orders, restarts, options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from limits import limit_of_orders
from refused import RANDOM, REFUSED
from scipy.interpolate import make_interp_spline
from scipy.special import ndtr
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.integrate.noise import GeneratorNoise
from probflow.laws.gaussian import gaussian_law, true_law
from probflow.plan import Combination, Plan, Point, Register, X
from probflow.processes import Process
from probflow.studies import assert_order, check_order, study
from probflow.studies.builtin import mixture
from probflow.studies.order import fit_order

VP = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
SHORT = pf.grids.log_snr(-1.0, 1.0, "lambda")
STOCHASTIC = [s for s in pf.all_solvers() if s.stochastic]
NEW = [
    s
    for s in STOCHASTIC
    if s.family != "chain" and s.name not in RANDOM and s.name != "euler-maruyama"
]
PROCESSES: list[Process] = [VP, pf.VE(), pf.EDM(), pf.FlowMatching()]
TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
STATE = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def name(solver: pf.Solver) -> str:
    return solver.name


def run(
    solver: str | pf.Solver, process: Process, times: np.ndarray, *, rises: bool = False
) -> Tensor:
    """A run with noises of a fixed seed, the same for every solver that draws one a step."""
    plan = pf.get_solver(solver).plan(process, times, "eps", rises=rises)
    generator = torch.Generator().manual_seed(1)
    noise = GeneratorNoise(generator, STATE.shape, torch.float64, "cpu")
    x = STATE * process.prior_std(times[0])
    return run_plan(plan, TARGET.model(process), x, noise=noise)


# Identities --------------------------------------------------------------------------------------


def get(solver: str, **options: object) -> pf.Solver:
    return pf.get_solver(solver, **options)


IDENTITIES = [
    ("ddpm-posterior", get("ddim-eta")),
    ("ddpm-posterior", get("euler-ancestral")),
    ("ddpm-posterior", get("sde-dpm-solver++-1")),
    ("ddpm-posterior", get("er-sde-1", phi=lambda rho: rho**2)),
    (get("ddim-eta", eta=0.4), get("euler-ancestral", eta=0.4)),
    (get("sde-dpm-solver++-1", eta=0.4), get("er-sde-1", phi=lambda rho: rho**1.4)),
    (get("sde-dpm-solver++-2m", solver_type="heun"), "sde-exponential-ab2"),
    (get("sde-exponential-ab2", eta=0.49), get("sa-solver", predictor=2, corrector=0, tau=0.7)),
    ("sde-dpm-solver++-3m", "sde-exponential-ab3"),
    (get("sde-dpm-solver++-3m", eta=0.49), get("sa-solver", predictor=3, corrector=0, tau=0.7)),
    (get("sa-solver", tau=0.0), get("sa-solver", tau=lambda rho: 0.0)),
    # eta = 0: the ODE methods.
    ("ddim", get("ddim-eta", eta=0.0)),
    ("ddim", get("euler-ancestral", eta=0.0)),
    ("ddim", get("sde-dpm-solver++-1", eta=0.0)),
    ("ddim", get("seeds-1", eta=0.0)),
    ("ddim", get("er-sde-1", phi=lambda rho: rho)),
    ("edm-dpm2", get("dpm2-ancestral", eta=0.0)),
    ("dpm-solver++-2s", get("dpm-solver++-2s-ancestral", eta=0.0)),
    ("dpm-solver++-2s", get("dpm-solver++-sde", eta=0.0)),
    (get("dpm-solver++-2s", r1=0.7), get("dpm-solver++-sde", eta=0.0, r=0.7)),
    ("dpm-solver-2", get("seeds-2", eta=0.0)),
    ("dpm-solver-3", get("seeds-3", eta=0.0)),
    ("dpm-solver++-2m", get("sde-dpm-solver++-2m", eta=0.0)),
    ("dpm-solver++-3m", get("sde-dpm-solver++-3m", eta=0.0)),
    ("exponential-ab2-x0", get("sde-exponential-ab2", eta=0.0)),
    ("exponential-ab3-x0", get("sde-exponential-ab3", eta=0.0)),
    ("edm-heun", get("edm-churn", S_churn=0.0)),
    ("edm-heun", get("edm-churn", S_tmax=0.0)),
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("one", "other"),
    IDENTITIES,
    ids=lambda s: s if isinstance(s, str) else f"{s.name}",
)
def test_identities(one: str | pf.Solver, other: pf.Solver, process: Process) -> None:
    times = pf.grids.log_snr().times(process, 10)
    exact = run(one, process, times)
    allowed = 1e-9 * float(exact.abs().max())
    torch.testing.assert_close(run(other, process, times), exact, rtol=0, atol=allowed)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_sa_solver_is_unipc_of_order_3(variant: str) -> None:
    """The same weights in every step that no start has a part in, on any grid."""
    times = pf.grids.quadratic().times(VP, 10)
    ours = get("sa-solver", tau=0.0).plan(VP, times)
    theirs = get("unipc-3", variant=variant).plan(VP, times)
    for one, other in zip(ours.steps[4:], theirs.steps[4:], strict=True):
        assert one.stages == other.stages
        update = dict(other.update)
        assert dict(one.update) == pytest.approx(update, rel=1e-9, abs=1e-12)


def test_seeds_2_is_the_eps_form_of_dpm_solver_pp_sde() -> None:
    """Both are midpoint methods; of eps and of x0, so that they differ, with eta = 0 as well."""
    times = GRID.times(VP, 10)
    for eta in (0.0, 1.0):
        one, other = (run(get(s, eta=eta), VP, times) for s in ("seeds-2", "dpm-solver++-sde"))
        assert float((one - other).abs().max()) > 1e-3


# Exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [s for s in NEW if s.name not in ("sde-heun", "edm-churn")])
def test_one_point_target_has_the_exact_law(solver: pf.Solver) -> None:
    """x0 is constant, so that exponential methods on x0, and ancestral ones, have no error."""
    if solver.prediction != "x0" and "ancestral" not in solver.name and solver.name != "ddim-eta":
        pytest.skip("on eps, which is not constant along the paths of the reverse SDE")
    target = pf.Gaussian([0.7], 1e-12)
    for eta in (1.0, 0.3):
        changed = solver.with_options(eta=eta) if "eta" in solver.options else solver
        for steps in (2, 5):
            plan = changed.plan(VP, GRID.times(VP, steps), "eps")
            law, true = gaussian_law(plan, VP, target), true_law(VP, target, plan.times[-1])
            assert law.variance[0] == pytest.approx(true.variance[0], rel=1e-8)
            assert law.mean[0] == pytest.approx(true.mean[0], rel=1e-8)


@pytest.mark.parametrize("process", [VP, pf.EDM(), pf.FlowMatching()], ids=repr)
@pytest.mark.parametrize("solver", NEW, ids=name)
def test_last_step_to_no_noise(solver: pf.Solver, process: Process) -> None:
    """It draws none and ends at a finite state; from a plan of one step it is x0 itself."""
    times = [0.9, 0.5, 0.2, 0.1, 0.0]
    plan = solver.plan(process, times, "eps")
    churn = solver.name == "edm-churn"
    assert bool(plan.steps[-1].noises) == churn
    assert run(solver, process, np.array(times)).isfinite().all()
    if not churn:
        x = STATE * float(process.sigma(0.2))
        model = TARGET.model(process, "x0")
        single = run_plan(solver.plan(process, [0.2, 0.0], "x0"), model, x)
        torch.testing.assert_close(single, float(process.alpha(0.0)) * model(x, 0.2))


# Orders of laws ----------------------------------------------------------------------------------


#: The laws of Gaussian data are exact for any number of variables, and so for any number of steps.
NORMAL = pf.Gaussian([0.4], 0.25)
#: Their error is all of the next order: docs/theory.md.
HIGHER_ON_NORMAL = {"accelerated-sde": 2, "accelerated-sde-half-noise": 2}
#: A change of sign (seeds-2, sde-exponential-ab3-v), little noise (er-sde-3).
LATE_ON_NORMAL = {"seeds-2", "er-sde-3", "sde-exponential-ab3-v"}


@pytest.mark.parametrize("solver", [s for s in STOCHASTIC if s.name not in RANDOM], ids=name)
def test_order_on_a_normal_law(solver: pf.Solver) -> None:
    """Necessary only, since F'' = 0 there. Means are exact: what errs is the variance."""
    claimed = replace(solver, orders={"tv": HIGHER_ON_NORMAL.get(solver.name, solver.orders["tv"])})
    most = 4096 if solver.name in LATE_ON_NORMAL else 1024
    steps = [n for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if n <= most]
    [estimate] = assert_order(claimed, "tv", target=NORMAL, steps=steps)
    assert estimate.window[1] == most


def variance_errors(solver: pf.Solver, counts: tuple[int, ...]) -> list[float]:
    """Signed errors of the final variance on a normal target."""
    errors = []
    for steps in counts:
        plan = solver.plan(VP, GRID.times(VP, steps), "eps")
        law, true = gaussian_law(plan, VP, NORMAL), true_law(VP, NORMAL, plan.times[-1])
        errors.append(float(law.variance[0] - true.variance[0]))
    return errors


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (get("sde-dpm-solver++-singlestep-stock", order=1), 1),
        (get("sde-dpm-solver++-singlestep-stock", solver_type="heun"), 1),
        (get("sde-dpm-solver++-singlestep-stock", order=3), 1),
        (get("dpm-solver-fast-ancestral", eta=0.5), 3),
        pytest.param(
            get("sde-dpm-solver++-3m", factor=1.0, start="euler", variant="diffusers"),
            1,
            marks=pytest.mark.slow,  # late: 1024 to 8192 steps
        ),
    ],
    ids=lambda s: s.name if isinstance(s, pf.Solver) else str(s),
)
def test_variance_on_a_normal_target_by_options(solver: pf.Solver, order: float) -> None:
    first = 1024 if "variant" in solver.options else 128
    errors = np.abs(variance_errors(solver, tuple(first * 2**k for k in range(4))))
    limit, error = limit_of_orders(errors)
    assert limit == pytest.approx(order, abs=error)
    assert error < 0.1


def test_what_does_not_converge() -> None:
    """Single steps of diffusers, on the SDE, of order 3 and "heun": a wrong second derivative.

    It is one of noises, so that each step errs by what does not fall with h, times sqrt(h).
    """
    solver = get("sde-dpm-solver++-singlestep-stock", order=3, solver_type="heun")
    errors = variance_errors(solver, (96, 384))
    assert min(errors) > 5.0


@pytest.mark.slow  # 1 minute
@pytest.mark.parametrize("corrector", range(5))
@pytest.mark.parametrize("predictor", range(1, 5))
def test_law_of_sa_solver(predictor: int, corrector: int) -> None:
    """In law the number of the corrector's outputs, or without one the predictor's, at most 2.

    In short steps: with two outputs of the corrector the term of order 2 is small, and with longer
    ones that of order 3 covers it to 2048 steps.
    """
    solver = get("sa-solver", predictor=predictor, corrector=corrector, tau=1.0)
    solver = replace(solver, orders={"tv": min(corrector or predictor, 2)})
    steps = [16 * 2**k for k in range(9)]
    assert_order(solver, "tv", target=NORMAL, grid=SHORT, steps=steps)


@pytest.mark.slow  # 4 s
def test_an_order_behind_a_change_of_sign() -> None:
    """Up to 64 steps the error falls by h^3 and more, towards its zero; then h^2 has its sign."""
    solver = get("sa-solver", predictor=2, corrector=2, tau=0.7)
    errors = variance_errors(solver, (64, 512, 1024, 2048, 4096))
    assert errors[0] > 0 > max(errors[1:])
    limit, error = limit_of_orders(np.abs(errors[1:]))
    assert limit == pytest.approx(2, abs=error)


#: Smooth functions of the state whose means are compared.
FUNCTIONS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda y: ndtr((y - 0.3) / 0.3),
    lambda y: np.cos(2 * y + 1),
    lambda y: ndtr((y + 0.8) / 0.2),
]


def weak_errors(plan: Plan, nodes: int = 12, points: int = 201) -> np.ndarray:
    """Errors of the means of :data:`FUNCTIONS`, for one-step plans on the line, by quadrature.

    Backwards: u(x) = E u'(x') is smooth, so a quintic spline holds it, and Gauss-Hermite sums over
    all noises of a step give the mean.
    """
    assert plan.memory == 0
    target = mixture()
    model = target.model(VP, plan.prediction).function
    x = np.linspace(-9.0, 9.0, points)
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    functions = list(FUNCTIONS)
    for step in reversed(plan.steps):
        grids = list(itertools.product(range(nodes), repeat=len(step.noises)))
        weights = np.array([math.prod(w[i] for i in index) for index in grids])
        values = {X: np.repeat(x[:, None], len(grids), 1)}
        for j in range(len(step.noises)):
            row = np.array([z[index[j]] for index in grids])
            values[Register("z", j)] = np.repeat(row[None], points, 0)

        def combine(combination: Combination, values: dict = values) -> np.ndarray:
            return sum(weight * values[register] for register, weight in combination)

        for index, stage in enumerate(step.stages):
            u = combine(stage.input)
            flat = torch.from_numpy(u.reshape(-1, 1))
            times = torch.full((u.size,), stage.time, dtype=torch.float64)
            values[Register("u", index)] = u
            values[Register("f", index)] = model(flat, times).numpy().reshape(u.shape)
        y = np.clip(combine(step.update), x[0], x[-1])
        means = [function(y) @ weights / weights.sum() for function in functions]
        functions = [make_interp_spline(x, mean, k=5) for mean in means]

    def mean_of(values: list[np.ndarray], time: float, at: np.ndarray) -> np.ndarray:
        point = Point.many(VP, [time])[0]
        q = target.log_prob(torch.from_numpy(at)[:, None], point.alpha, point.sigma).exp().numpy()
        return np.array([np.sum(q * value) * (at[1] - at[0]) for value in values])

    fine = np.linspace(-6.0, 6.0, 4001)
    exact = mean_of([function(fine) for function in FUNCTIONS], plan.times[-1], fine)
    return mean_of([function(x) for function in functions], plan.times[0], x) - exact


ONE_STEP = [s for s in NEW if s.memory == 0 and s.name in REFUSED]
QUICK = {"sde-heun", "edm-churn", "dpm-solver++-sde"}


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(s, id=s.name, marks=[] if s.name in QUICK else pytest.mark.slow)
        for s in ONE_STEP
    ],
)
def test_weak_order(solver: pf.Solver) -> None:
    """On a mixture, where F'' matters; errors of several means, lest one should change its sign."""
    counts = (64, 128) if solver.nfe < 3 else (128, 256)  # more stages, larger terms beyond
    nodes = 12 if solver.nfe < 3 else 8
    errors = [
        float(np.abs(weak_errors(solver.plan(VP, GRID.times(VP, n), "x0"), nodes)).sum())
        for n in counts
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders[-1] == pytest.approx(solver.orders["tv"], abs=0.4)


def test_weak_errors_know_order_1() -> None:
    errors = [
        np.abs(weak_errors(get("seeds-1").plan(VP, GRID.times(VP, n), "x0"))).sum()
        for n in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


#: Of small errors, for which 400 000 samples are too few.
SMALL = {"sde-dpm-solver-3m", "sde-exponential-ab3-eps", "sde-deis-tab2"}
#: Their errors fall as without noise first, and order 2 shows beyond 64 steps: on a normal law the
#: local orders go down to 0.6 and 0.9 before they rise to 2.
LATER = {"sde-exponential-ab3-v", "sde-exponential-ab4-v"}


@pytest.mark.slow  # 10 minutes
@pytest.mark.parametrize(
    "solver", [s for s in NEW if s.name in REFUSED - LATER and s.memory], ids=name
)
def test_multistep_weak_order_by_coupled_samples(solver: pf.Solver) -> None:
    """E f(x_T) against E f(x_2T) on one path, which removes most of the sampling error."""
    target, n = mixture(), 3_200_000 if solver.name in SMALL else 400_000
    counts = (8, 16, 32, 64)
    times = GRID.times(VP, counts[-1])
    start = Point.many(VP, [times[0]])[0]
    x = target.sample(n, start.alpha, start.sigma, generator=torch.Generator().manual_seed(2))
    increments = torch.randn(
        counts[-1], n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    lengths = torch.from_numpy(-np.diff(times)).sqrt()[:, None, None]
    path = torch.cat([torch.zeros(1, n, 1, dtype=torch.float64), (increments * lengths).cumsum(0)])
    index = {float(t): i for i, t in enumerate(times)}

    class OnPath:
        def __call__(self, start: float, stop: float) -> Tensor:
            return (path[index[stop]] - path[index[start]]) / math.sqrt(start - stop)

        def restart(self) -> None:
            pass

    euler = solver.with_options(start="euler") if "start" in solver.options else solver
    finals = []
    for count in counts:
        plan = euler.plan(VP, times[:: counts[-1] // count], "eps")
        with torch.no_grad():
            finals.append(run_plan(plan, target.model(VP), x, noise=OnPath())[:, 0].numpy())
    gaps, bars = [], []
    for coarse, fine in itertools.pairwise(finals):
        moved = np.stack([function(coarse) - function(fine) for function in FUNCTIONS])
        gaps.append(np.abs(moved.mean(1)).sum())
        bars.append(moved.std(1).sum() / math.sqrt(n))
    assert bars[-1] < 0.25 * gaps[-1]
    assert math.log2(gaps[-2] / gaps[-1]) > 2 - 0.5


# Strong orders -----------------------------------------------------------------------------------

MILD = pf.GaussianMixture([0.35, 0.65], [-0.6, 0.5], stds=[0.5, 0.6])


@pytest.mark.parametrize("solver", ["euler-ancestral", "sde-heun"])
def test_strong_order_on_one_path(solver: str) -> None:
    curve = study(
        MILD, solver, (4, 8, 16, 32, 64), "strong", grid=GRID, samples=512, reference_steps=512
    )
    errors = [row.error for row in curve.rows]
    slope = -np.polyfit(np.log([row.steps for row in curve.rows]), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.12)
    assert curve.estimates[0].verdict in ("consistent", "inconclusive")


@pytest.mark.slow  # 5 minutes
@pytest.mark.parametrize("solver", [s for s in NEW if "strong" in s.orders], ids=name)
def test_strong_orders(solver: pf.Solver) -> None:
    """Local orders at 128 steps are 0.98 to 1.12, and where above 1, falling to it.

    That of seeds-2 is 1.06, of sde-dpm-solver++-3m 1.08, of sa-solver 1.12: with 128 steps no
    interval closes around 1 for those three.
    """
    [estimate] = check_order(
        solver, "strong", target=MILD, steps=(4, 8, 16, 32, 64, 128), samples=8192, grid=GRID
    )
    assert estimate.verdict in ("consistent", "inconclusive")
    assert estimate.eoc[-1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "solver", [get("edm-churn"), get("sde-heun", s_noise=1.1), get("sa-solver", s_noise=0.9)]
)
def test_without_a_reverse_sde_there_is_no_strong_error(solver: pf.Solver) -> None:
    assert solver.eta is None
    [row] = study(MILD, solver, (4,), "strong", grid=GRID).rows
    assert "its strong error needs the path of a reverse SDE" in row.status


def test_eta_of_solvers() -> None:
    assert get("ddim").eta == 0
    assert get("ddpm").eta == 1
    assert get("euler-ancestral", eta=0.5).eta == 0.25
    assert get("seeds-2", eta=0.5).eta == 0.5
    assert get("sa-solver", tau=0.5).eta == 0.25
    assert get("sa-solver", tau=lambda rho: 3.0).eta(0.1) == 9
    assert get("er-sde-2", phi=lambda rho: rho**2).eta(0.3) == pytest.approx(1)


# Restart -----------------------------------------------------------------------------------------


def test_restart_grid() -> None:
    grid = pf.grids.restart(pf.grids.karras(), (0.05, 0.3, 2, 3), unit="sigma")
    times = grid.times(pf.EDM(), 18)
    assert len(times) == 19 + 2 * 4
    rises = np.flatnonzero(np.diff(times) > 0)
    assert len(rises) == 2
    assert times[rises + 1] == pytest.approx([0.3, 0.3])
    base = pf.grids.karras().times(pf.EDM(), 18)
    assert set(base) <= set(times)
    assert times[rises[0]] == times[rises[1]] == base[np.abs(base - 0.05).argmin()]
    assert "restart 0.05 to 0.3 x2" in grid.label
    plan = get("edm-heun").plan(pf.EDM(), times, rises=True)
    assert plan.stochastic
    assert plan.nfe == 2 * (18 + 6)
    noising = plan.steps[rises[0]]
    assert noising.stages == ()
    assert noising.noises == ((times[rises[0]], times[rises[0] + 1]),)


def test_a_rise_is_the_forward_process() -> None:
    """A whole plan of one step down, and one rise: the law at the top is that of the process."""
    target = pf.Gaussian([0.4], 0.25)
    times = [*GRID.times(VP, 400), float(VP.t_of_neg_log_ab(1.0))]
    plan = get("ddim").plan(VP, times, "eps", rises=True)
    law, true = gaussian_law(plan, VP, target), true_law(VP, target, times[-1])
    before = gaussian_law(Plan("", "eps", plan.steps[:-1]), VP, target)
    exact = true_law(VP, target, times[-2])
    ratio = float(VP.alpha(times[-1]) / VP.alpha(times[-2]))
    gap = law.variance - true.variance
    assert gap == pytest.approx(ratio**2 * (before.variance - exact.variance), rel=1e-8)


@pytest.mark.parametrize("solver", ["heun", "dpm-solver++-2m", "sde-heun"])
def test_restart_keeps_the_order(solver: str) -> None:
    # Both ends of the interval are times of the base, so that its steps halve, too.
    low, high = (float(VP.lambda_(GRID.times(VP, 4)[k])) for k in (3, 1))
    grid = pf.grids.restart(GRID, (low, high, 2), unit="lambda")
    target, counts, errors = pf.Gaussian([0.4], 0.25), (16, 32, 64, 128, 256), []
    for count in counts:
        plan = get(solver).plan(VP, grid.times(VP, count), "eps", rises=True)
        law, true = gaussian_law(plan, VP, target), true_law(VP, target, plan.times[-1])
        errors.append(abs(float(law.variance[0] - true.variance[0])))
    claim = get(solver).orders["tv"]
    assert fit_order(counts, errors, claim=claim, floor=1e-14).estimate.verdict == "consistent"


def test_restart_samples() -> None:
    grid = pf.grids.restart(pf.grids.karras(), (0.1, 1.0, 2, 4), unit="sigma")
    model = TARGET.model(pf.EDM())
    one, two = (pf.sample(model, (6, 2), "edm-heun", 8, grid=grid, seed=s) for s in (0, 1))
    assert not torch.allclose(one, two)
    assert torch.equal(one, pf.sample(model, (6, 2), "edm-heun", 8, grid=grid, seed=0))
    plain = pf.sample(model, (6, 2), "edm-heun", 8, grid="karras", seed=0)
    assert not torch.allclose(one, plain)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pf.grids.restart("karras", (0.1, 1, 2)), TypeError, "base: need a Grid"),
        (
            lambda: pf.grids.restart(pf.grids.explicit([1, 0]), (0.1, 1, 2)),
            ValueError,
            "base: need a grid whose ends can be chosen",
        ),
        (lambda: pf.grids.restart(GRID), ValueError, "intervals: need at least one"),
        (lambda: pf.grids.restart(GRID, (0.1, 1)), ValueError, "intervals: each is"),
        (lambda: pf.grids.restart(GRID, (0.1, 1, 0)), ValueError, "intervals: repeats: need a"),
        (lambda: pf.grids.restart(GRID, (0.1, 1, 1, 2.5)), TypeError, "intervals: steps: need a"),
        (
            lambda: pf.grids.restart(GRID, (0.5, 0.1, 2)).times(VP, 8),
            ValueError,
            "needs a step down before it, and its upper end",
        ),
        (
            lambda: pf.grids.restart(GRID, (1.0, 2.0, 2)).times(VP, 8),
            ValueError,
            "intervals: 2 lies outside the process|intervals",
        ),
        (
            lambda: get("heun").plan(None, [1.0, 0.5, 0.8, 0.2], rises=True),
            TypeError,
            "rises: noise is added by a process",
        ),
        (
            lambda: get("heun").plan(VP, [1.0, 0.5, 0.8, 0.2]),
            ValueError,
            "times: must be finite and strictly",
        ),
        (
            lambda: get("heun").plan(VP, [0.5, 0.8, 0.2], rises=True),
            ValueError,
            "times: must be finite and strictly",
        ),
    ],
)
def test_wrong_restarts(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# Options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddim-eta", {"eta": 1.5}),
        ("euler-ancestral", {"eta": -0.1}),
        ("euler-ancestral", {"s_noise": -1.0}),
        ("dpm2-ancestral", {"s_noise": math.nan}),
        ("dpm-solver++-2s-ancestral", {"eta": math.nan}),
        ("sde-dpm-solver++-1", {"eta": -1.0}),
        ("sde-dpm-solver++-1", {"eta": "1"}),
        ("sde-heun", {"eta": lambda rho: -1.0}),
        ("sde-dpm-solver++-2m", {"s_noise": math.inf}),
        ("sde-dpm-solver++-2m", {"solver_type": "euler"}),
        ("sde-dpm-solver++-3m", {"start": "rk"}),
        ("dpm-solver++-sde", {"r": 0.0}),
        ("sde-exponential-rk2", {"c2": 2.0}),
        ("edm-churn", {"S_churn": -1.0}),
        ("edm-churn", {"S_noise": math.inf}),
        ("edm-churn", {"S_tmin": 2.0, "S_tmax": 1.0}),
        ("sa-solver", {"predictor": 0}),
        ("sa-solver", {"predictor": 5}),
        ("sa-solver", {"corrector": 2.0}),
        ("sa-solver", {"tau": -1.0}),
        ("sa-solver", {"s_noise": -1.0}),
        ("sa-solver", {"start": "rk"}),
        ("sa-solver-eps", {"corrector": 5}),
        ("sde-exponential-ab3-v", {"s_noise": -1.0}),
        ("sde-exponential-ab2-v", {"eta": -1.0}),
        ("euler-ancestral-rf", {"eta": 1.1}),
        ("euler-ancestral-rf", {"s_noise": math.nan}),
        ("er-sde-2", {"phi": 3.0}),
        ("er-sde-2", {"phi": lambda rho: -rho}),
        ("er-sde-2", {"phi": lambda rho: rho**0.5}),
        ("er-sde-3", {"s_noise": -1.0}),
    ],
)
def test_wrong_options(solver: str, options: dict[str, object]) -> None:
    named = next(iter(options))
    with pytest.raises((ValueError, TypeError), match=named):
        pf.get_solver(solver, **options).plan(VP, [0.9, 0.7, 0.5, 0.3])


def test_churn_reaches_the_top_of_the_process_at_most() -> None:
    """The stages lie at the raised level; at the noisiest time there is nothing to add."""
    plan = get("edm-churn", S_churn=1e9).plan(VP, [1.0, 0.99, 0.9, 0.5])
    assert not plan.steps[0].noises
    assert plan.steps[1].stages[0].time == pytest.approx(1.0, abs=1e-12)
    raised = Point.many(VP, [plan.steps[3 - 1].stages[0].time, 0.9])
    assert raised[0].rho == pytest.approx(math.sqrt(2) * raised[1].rho, rel=1e-9)
