r"""diffusers' DPMSolverSinglestepScheduler as it stands: stages on grid points, a call a step.

A step of DPM-Solver of order k is spread over k steps of the grid. The first of them is a DDIM
step, whose end is where the second stage is evaluated; the second one leads from the same state to
the third stage or, for k = 2, to the end; so that every state is fed to the model. The nodes are
where the grid has points, not at fixed fractions in log-SNR. Orders (1, 2), (1, 2, 3) follow one
another; where the number of steps does not divide, where the grid ends at sigma = 0, or with
``final="lower"``, the last ones are lower: see :func:`spread_orders`.

Options: ``order`` 1 to 3; ``solver_type`` "midpoint" or "heun" as there: phi_1/2 or phi_2 in the
steps of second order, and in those of third order the first stage without or with the middle one.
With "midpoint" order 3 needs the last stage at 2/3 of the step but for O(h), as on grids whose
steps change slowly; with "heun" it holds on any.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from probflow.plan import Linear, StepBuilder
from probflow.plan.columns import column
from probflow.solvers.forms import EPS, X0, Form, heun_2, midpoint_2
from probflow.solvers.phi import adams, moments
from probflow.solvers.registry import no_sde, order_left, register
from probflow.words import check_choice, check_whole

_STOCK = "diffusers' DPMSolverSinglestepScheduler"


@lru_cache
def spread_orders(steps: int, order: int, lower: bool, to_zero: bool) -> tuple[int, ...]:
    """Order of each step of the grid, counted within the step of DPM-Solver that it belongs to.

    Lowered: the last of them is of order 1 unless the number of steps leaves 2 (with ``order`` 3,
    2 modulo 3), the one before of the rest; ``to_zero`` the last is of order 1 in any case.
    """
    cycle = tuple(range(1, order + 1))
    if not (lower or to_zero or steps % order):
        return cycle * (steps // order)
    left = steps % order or order
    tail = cycle[:left] if left < order else (*cycle[: order - 1], 1)
    orders = cycle * ((steps - left) // order) + tail
    return (*orders[:-1], 1) if to_zero else orders


def _spread(step: StepBuilder, form: Form, order: int, solver_type: str, final: str) -> Linear:
    """A step to the next point, from the state where the step of DPM-Solver began."""
    check_whole("order", order, 1, 3)
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    check_choice("final", final, ("keep", "lower"))
    orders = spread_orders(step.steps, order, final == "lower", step.end.sigma == 0)
    own = int(column(orders)[step.number])
    output = step.model(step.x, step.t)
    stages = [*reversed(step.previous[: own - 1]), step]
    first, t, s = stages[0], stages[0].t, step.s
    std = form.std(t, s)
    noise = std * step.noise() if std else Linear({})
    if own == 1:
        return form.first(step.x, t, s, output) + noise
    h, z = s.lambda_ - t.lambda_, form.z(t, s)
    nodes = [(stage.t.lambda_ - t.lambda_) / h for stage in stages]
    outputs = [stage.outputs[0] for stage in stages]
    if own == 2:
        _, weights = (midpoint_2 if solver_type == "midpoint" else heun_2)(nodes[1])(z)
    elif solver_type == "midpoint":
        _, (one, last) = heun_2(nodes[2])(z)
        weights = [one, 0.0, last]
    else:
        weights = adams(nodes, moments(3, z))
        if form.eta:  # the wrong sign: alpha' times the second derivative too little
            (_, a, b), excess = nodes, 2 * s.alpha / (form.scale(s) * h)
            thirds = [1 / (a * b), 1 / (a * (a - b)), 1 / (b * (b - a))]
            weights = [w - excess * third for w, third in zip(weights, thirds, strict=True)]
    return form.step(first.x, t, s, weights, outputs) + noise


def _order_left(options: Mapping[str, Any]) -> float:
    return min(options["order"], order_left(options))


@register(
    "dpm-solver-singlestep-stock",
    reference=f'{_STOCK}, "dpmsolver"; Lu et al. 2022 (arXiv 2206.00927)',
    prediction="eps",
    memory=2,
    whole_grid=True,
    leaves=_order_left,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_singlestep_stock(
    step: StepBuilder, order: int = 2, solver_type: str = "midpoint", final: str = "keep"
) -> Linear:
    """x' = L x_0 + S h sum_j w_j eps_j, x_0 and eps_0 where the step of DPM-Solver began."""
    return _spread(step, EPS, order, solver_type, final)


@register(
    "dpm-solver++-singlestep-stock",
    reference=f'{_STOCK}, "dpmsolver++"; Lu et al. 2022 (arXiv 2211.01095)',
    prediction="x0",
    memory=2,
    whole_grid=True,
    leaves=_order_left,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_pp_singlestep_stock(
    step: StepBuilder, order: int = 2, solver_type: str = "midpoint", final: str = "keep"
) -> Linear:
    """x' = L x_0 + S h sum_j w_j x0_j, x_0 and x0_0 where the step of DPM-Solver++ began."""
    return _spread(step, X0, order, solver_type, final)


@register(
    "sde-dpm-solver++-singlestep-stock",
    reference=f'{_STOCK}, "sde-dpmsolver++"; Lu et al. 2022 (arXiv 2211.01095)',
    prediction="x0",
    memory=2,
    stochastic=True,
    whole_grid=True,
    leaves=_order_left,
    orders={"tv": 1},
    sde=no_sde,
)
def sde_dpm_solver_pp_singlestep_stock(
    step: StepBuilder, order: int = 2, solver_type: str = "midpoint", final: str = "keep"
) -> Linear:
    """x' = L x_0 + S h sum_j w_j x0_j + N, x_0 and x0_0 where the step of SDE-DPM-Solver++ began.

    All N are independent, those of the states between and of the end as well, which leaves order 1:
    on one path they are correlated. With ``order`` 3 and "heun" the weight of the second derivative
    has the wrong sign of :func:`~probflow.solvers.multistep.dpm_solver_3m_step`, "diffusers"; there
    it multiplies a difference of noises, and the result does not converge.
    """
    return _spread(step, Form(X0.sign, eta=1.0), order, solver_type, final)
