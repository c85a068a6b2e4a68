r"""Exponential Runge-Kutta methods: DPM-Solver's single-step forms, and their relatives.

z, L and S and the two forms of the equation (eps and x0) are those of
:mod:`probflow.solvers.forms`; phi_k are the functions of :mod:`probflow.solvers.phi`. Stages
lie at fractions c of h in log-SNR. A step to sigma' = 0 (h infinite, so nothing lies between) is a
DDIM step in all of them.
"""

from __future__ import annotations

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import sqrt
from probflow.solvers.forms import (
    EPS,
    X0,
    Tableau,
    check_fraction,
    euler_1,
    heun_2,
    krogstad_4,
    kutta_3,
    midpoint_2,
    runge_kutta,
)
from probflow.solvers.registry import register
from probflow.words import check_choice

_HO = "Hochbruck, Ostermann 2005 (SIAM J. Numer. Anal. 43)"

#: Nodes and tableau of DPM-Solver-1 to -3.
_DPM_SOLVER: dict[int, tuple[list[float], Tableau]] = {
    1: ([], euler_1),
    2: ([0.5], midpoint_2(0.5)),
    3: ([1 / 3, 2 / 3], kutta_3(1 / 3, 2 / 3)),
}


@register(
    "exponential-rk2",
    reference=f"{_HO}, eq. 5.3; Zhang et al. 2023 (arXiv 2308.02157), RES of order 2",
    prediction="eps",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def exponential_rk2(step: StepBuilder, c2: float = 0.5) -> Linear:
    """x' = L x + S h [phi_1 eps + phi_2/c2 (eps_2 - eps)], eps_2 at c2 of h after a DDIM step."""
    return runge_kutta(step, EPS, [check_fraction("c2", c2)], heun_2(c2))


@register(
    "exponential-rk3",
    reference=f"{_HO}, eq. 5.8-5.9; Zhang et al. 2023 (arXiv 2308.02157), RES of order 3",
    prediction="eps",
    nfe=3,
    orders={"tv": 3, "strong": 3},
)
def exponential_rk3(step: StepBuilder, c2: float = 0.5, c3: float = 1.0) -> Linear:
    """x' = L x + S h [phi_1 eps + b (g (eps_2 - eps) + eps_3 - eps)].

    b = phi_2/(g c2 + c3) and g = (3 c3 - 2) c3/((2 - 3 c2) c2); eps_2 lies at c2 of h after a DDIM
    step, eps_3 at c3 after one with a32 (eps_2 - eps) in addition,
    a32 = g c2 phi_2(c2 z) + c3^2/c2 phi_2(c3 z).
    """
    check_fraction("c2", c2)
    check_fraction("c3", c3)
    if c2 == c3 or (abs(c2 - 2 / 3) < 1e-12 and c3 != 2 / 3):
        raise ValueError(f"c2, c3: no method of order 3 has c2 = {c2:g}, c3 = {c3:g}")
    return runge_kutta(step, EPS, [c2, c3], kutta_3(c2, c3))


@register(
    "exponential-rk4",
    reference=f"Krogstad 2005 (J. Comput. Phys. 203); {_HO}, eq. 5.18",
    prediction="eps",
    nfe=4,
    orders={"tv": 4, "strong": 4},
)
def exponential_rk4(step: StepBuilder) -> Linear:
    """x' = L x + S h [b1 eps + b2 (eps_2 + eps_3) + b4 eps_4], c = (0, 1/2, 1/2, 1).

    b1 = phi_1 - 3 phi_2 + 4 phi_3, b2 = 2 phi_2 - 4 phi_3, b4 = 4 phi_3 - phi_2; the stages'
    weights: [phi_1(z/2)/2], [phi_1(z/2)/2 - phi_2(z/2), phi_2(z/2)],
    [phi_1 - 2 phi_2, 0, 2 phi_2].
    """
    return runge_kutta(step, EPS, [0.5, 0.5, 1.0], krogstad_4)


@register(
    "dpm-solver-3",
    reference="Lu et al. 2022 (arXiv 2206.00927), Algorithm 5 (DPM-Solver-3)",
    prediction="eps",
    nfe=3,
    orders={"tv": 3, "strong": 3},
)
def dpm_solver_3(step: StepBuilder, r1: float = 1 / 3, inner: str = "exact") -> Linear:
    """x' = L x + S h [phi_1 eps + phi_2/r2 (eps_2 - eps)], with r2 = 2/3.

    eps_1 lies at r1 of h after a DDIM step, eps_2 at r2 after one with
    r2^2/r1 phi_2(r2 z) (eps_1 - eps) in addition. ``exponential-rk3`` with c2 = r1, c3 = 2/3.
    ``inner`` "midpoint", as in diffusers, has phi_1/2 in the place of this phi_2.
    """
    if not 0 < r1 < 2 / 3:
        raise ValueError(f"r1: must lie between 0 and 2/3, got {r1}")
    return runge_kutta(step, EPS, [r1, 2 / 3], kutta_3(r1, 2 / 3, inner))


@register(
    "dpm-solver-fast",
    aliases=("dpm-fast",),
    reference="Lu et al. 2022 (arXiv 2206.00927), section 3.4 (DPM-Solver-fast)",
    prediction="eps",
    nfe=3,
    whole_grid=True,
    orders={"tv": 3, "strong": 3},
)
def dpm_solver_fast(step: StepBuilder, remainder: int = 2) -> Linear:
    """x' = that of ``dpm-solver-3`` in all steps but the last, which take fewer evaluations.

    ``remainder`` is K mod 3, where K is the number of evaluations of the whole run. 2: the last
    step is one of ``dpm-solver-2``, so that n steps have K = 3 n - 1; its single error of h^3
    leaves order 3. As published for the other K: 1, the last step is a DDIM step (K = 3 n - 2);
    0, the last two are of ``dpm-solver-2`` and DDIM (K = 3 n - 3). The error h^2 of that DDIM step
    leaves order 2.
    """
    return fast_step(step, remainder)


def fast_step(step: StepBuilder, remainder: int, to: Point | None = None) -> Linear:
    """The step of ``dpm-solver-fast``, which may lead to another point than its end, ``to``."""
    orders = {2: (2,), 1: (1,), 0: (1, 2)}  # of the steps, from the last one back
    check_choice("remainder", remainder, tuple(orders))
    last = orders[remainder]
    order = last[step.remaining - 1] if step.remaining <= len(last) else 3
    nodes, tableau = _DPM_SOLVER[order]
    return runge_kutta(step, EPS, nodes, tableau, to)


@register(
    "dpm-solver++-2s",
    aliases=("dpmpp-2s",),
    reference="Lu et al. 2022 (arXiv 2211.01095), Algorithm 1",
    prediction="x0",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def dpm_solver_pp_2s(step: StepBuilder, r1: float = 0.5) -> Linear:
    """x' = L x + S h phi_1 [x0 + (x0_r - x0)/(2 r1)], x0_r at r1 of h after a DDIM step."""
    return runge_kutta(step, X0, [check_fraction("r1", r1)], midpoint_2(r1))


@register(
    "dpm-solver++-3s",
    aliases=("dpmpp-3s",),
    reference="Lu et al. 2022 (arXiv 2211.01095), in the authors' code: DPM-Solver-3 on x0",
    prediction="x0",
    nfe=3,
    orders={"tv": 3, "strong": 3},
)
def dpm_solver_pp_3s(step: StepBuilder, r1: float = 1 / 3, inner: str = "exact") -> Linear:
    """x' = L x + S h [phi_1 x0 + phi_2/r2 (x0_2 - x0)], with r2 = 2/3: ``dpm-solver-3`` on x0."""
    if not 0 < r1 < 2 / 3:
        raise ValueError(f"r1: must lie between 0 and 2/3, got {r1}")
    return runge_kutta(step, X0, [r1, 2 / 3], kutta_3(r1, 2 / 3, inner))


@register(
    "edm-dpm2",
    aliases=("dpm-2",),
    reference="k-diffusion's sample_dpm_2 without churn; Lu et al. 2022 (arXiv 2206.00927)",
    prediction="eps",
    coordinates="ve",
    nfe=2,
    orders={"tv": 2, "strong": 2},
)
def edm_dpm2(step: StepBuilder) -> Linear:
    """y' = y + (rho' - rho) eps(y + (r - rho) eps, r), with r = sqrt(rho rho') and y = x/alpha.

    The midpoint rule in rho = sigma/alpha, at the geometric mean. A step to sigma = 0 is an Euler
    step.
    """
    t, s = step.t, step.s
    eps = step.model(step.x, t)
    if s.sigma == 0:
        return step.x + (s.rho - t.rho) * eps
    r = step.at_lambda(0.5 * (t.lambda_ + s.lambda_))
    middle = step.model(step.x + (sqrt(t.rho * s.rho) - t.rho) * eps, r)
    return step.x + (s.rho - t.rho) * middle
