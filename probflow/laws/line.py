r"""Exact 1-D laws of a plan: no sampling.

Deterministic plans are maps: a fine grid of starting points is pushed through with its derivative,
and the density follows by change of variables. Stochastic plans are Markov chains: the density is
carried through each kernel by quadrature (Chapman-Kolmogorov), on a uniform grid for each step
that resolves both the density and the kernel. Where a step is no product of kernels in one
variable, :mod:`probflow.laws.pair` carries the joint density of two, and
:mod:`probflow.laws.joint` the joint law of more.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline, PPoly
from scipy.special import logsumexp

from probflow.laws.distances import chi2_on_grid, kl_on_grid, tv_on_grid, w2_on_grid
from probflow.laws.joint import joint_law
from probflow.laws.pair import pair_law
from probflow.laws.quadrature import (
    MASS_DEFECT,
    REACH,
    RESOLVE_DENSITY,
    RESOLVE_KERNEL,
    LineLaw,
    column,
    require_line,
    support,
    true_log_density,
)
from probflow.laws.registers import (
    ExactModel,
    HalfNoise,
    Kernel,
    NormalKernel,
    Refusal,
    kernels,
    push,
)
from probflow.laws.variables import TooManyVariables
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = ["distances_1d", "law_distances", "line_law", "map_distances"]

MISSED_MASS = 1e-13  # largest true mass outside the image of a map
LARGEST_REACH = 60.0


# Deterministic plans ---------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _flow(
    target: Target,
    low: float,
    high: float,
    points: int,
    source: tuple[float, float],
    goal: tuple[float, float],
) -> np.ndarray:
    """Exact flow of a grid; kept, because all plans between the same two times share it."""
    return target.flow(column(np.linspace(low, high, points)), source, goal)[:, 0].numpy()


def map_distances(
    plan: Plan, process: Any, target: Target, points: int = 4001, *, reach: float = REACH
) -> dict[str, float]:
    """TV, KL, chi^2, W2 and strong error of a deterministic plan in one dimension.

    Parameters
    ----------
    plan, process, target
        The plan starts from the exact law at its first time.
    points
        Number of points of the quadrature.
    reach
        Standard deviations of the first law that are pushed through the plan. A plan that contracts
        too much leaves true mass outside their image; then this is enlarged (and ``points``).

    Returns
    -------
    dict
        ``tv``, ``kl``, ``chi2``, ``w2`` and ``strong`` (the last two are equal: on the line the
        exact flow is the optimal coupling). KL is infinite where the image stays too small.

    Raises
    ------
    Refusal
        If the map is not increasing: then the change of variables is invalid.
    """
    require_line(target)
    low, high, _ = support(process, target, plan.times[0], reach)
    x = np.linspace(low, high, points)
    dx = x[1] - x[0]
    mapped, slopes = push(plan, process, target, column(x), jacobian=True)
    assert slopes is not None
    y, slope = mapped[:, 0].numpy(), slopes[:, 0, 0].numpy()
    if not (np.isfinite(y).all() and np.isfinite(slope).all()):
        raise Refusal(f"{plan.solver} with {len(plan.steps)} steps overflows")
    if not slope.min() > 0:
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps is no increasing map (its smallest "
            f"derivative is {slope.min():.3g}), so the change of variables is invalid; take more "
            "steps"
        )
    start = Point.at(process, plan.times[0])
    stop = Point.at(process, plan.times[-1])
    log_cdf, log_sf = target._log_tails(column(y[[0, -1]]), stop.alpha, stop.sigma)
    missed = math.exp(log_cdf[0]) + math.exp(log_sf[1])
    if missed > MISSED_MASS and reach < LARGEST_REACH:
        return map_distances(plan, process, target, 3 * points // 2, reach=1.5 * reach)
    log_start = true_log_density(process, target, plan.times[0], x)
    log_end = true_log_density(process, target, plan.times[-1], y)
    log_ratio = log_start - np.log(slope) - log_end  # ln(p/q) at y(x)
    p, q = np.exp(log_start), np.exp(log_end) * slope  # q dy = q slope dx
    levels = (start.alpha, start.sigma), (stop.alpha, stop.sigma)
    exact = _flow(target, float(low), float(high), points, *levels)
    strong = float(np.sqrt(np.sum(p * (y - exact) ** 2) * dx))
    return {
        "tv": tv_on_grid(q, p, dx) + 0.5 * missed,
        "kl": kl_on_grid(q, p, log_ratio, dx) if missed <= MISSED_MASS else math.inf,
        "chi2": chi2_on_grid(q, p, log_ratio, dx),
        "w2": strong,
        "strong": strong,
    }


# Stochastic plans ------------------------------------------------------------------------------


def inverse_of_inner(
    kernel: HalfNoise, model: ExactModel, low: float, high: float, points: int = 6001
) -> CubicHermiteSpline:
    """Inverse of H on the values that it takes for u in [low, high], exact slopes at the knots."""
    u = np.linspace(low, high, points)
    h = kernel.inner(column(u), model)[:, 0].numpy()
    slope = kernel.inner_jacobian(column(u), model)[:, 0, 0].numpy()
    if not slope.min() > 0:
        raise Refusal(
            f"the step's map of its noise is not increasing (derivative {slope.min():.3g}): its "
            "density has no single branch; take more steps"
        )
    return CubicHermiteSpline(h, u, 1.0 / slope)


class _KernelDensity:
    """Density ``k(x, y)`` of one kernel, for sorted sources x."""

    def __init__(self, kernel: Kernel, model: ExactModel, x: np.ndarray) -> None:
        self._kernel, self._x = kernel, x
        self._outer = np.ones(1), np.zeros((len(x), 1))  # weights, shifts of x'
        if isinstance(kernel, HalfNoise):
            # Twice the reach: the true kernel may be wider than this one.
            reach = 2.0 * REACH * abs(kernel.e)
            ends = float(x[0] * kernel.r - reach), float(x[-1] * kernel.r + reach)
            inverse = inverse_of_inner(kernel, model, *ends)
            slope = np.concatenate([np.zeros((1, len(inverse.x) - 1)), inverse.derivative().c])
            # u and du/dh together: looking up the cell is what costs.
            self._inverse = PPoly(np.stack([inverse.c, slope], axis=-1), inverse.x)
            inner_slope = kernel.inner_jacobian(column(kernel.r * x), model)[:, 0, 0].numpy()
            self.mean = kernel.inner(column(kernel.r * x), model)[:, 0].numpy() + kernel.shift * x
            self.slope = float(np.abs(inner_slope * kernel.r + kernel.shift).max())
            local = abs(kernel.e) * inner_slope
            self.std, self.width = float(local.min()), REACH * float(local.max()) * 1.05
            if kernel.rest is not None:
                self._integrate_outer(kernel, model)
            return
        means, slopes = kernel.means(column(x), model, jacobian=True)
        assert slopes is not None
        self.mean = means[:, 0].numpy()
        self.slope = float(np.abs(slopes[:, 0, 0].numpy()).max())
        if isinstance(kernel, NormalKernel):
            self._stds = np.full(len(x), kernel.std)
        else:
            factors = kernel.factors(column(x), model)[:, :, 0, 0]
            self._stds = factors.square().sum(0).sqrt().numpy()
            # z = (y - mean)/std depends on x through the std, too.
            self.slope += REACH * float(np.abs(np.gradient(self._stds, x)).max())
        self.std, self.width = float(self._stds.min()), REACH * float(self._stds.max())

    def _integrate_outer(self, kernel: HalfNoise, model: ExactModel) -> None:
        """Nodes over the outer noise: as many as its effect needs, relative to the kernel."""

        def added(node: float) -> np.ndarray:
            x = column(self._x)
            return kernel.added(x, torch.full_like(x, node), model)[:, 0].numpy()

        centre = added(0.0)
        self.mean = self.mean + centre
        self.slope += float(np.abs(np.gradient(centre, self._x)).max())
        if kernel.outer is None:
            self._outer = np.ones(1), centre[:, None]
            return
        steepest = max(float(np.abs(added(k + 0.5) - added(k - 0.5)).max()) for k in range(-4, 5))
        ratio = max(steepest / self.std, 1e-8)
        if ratio > 0.8:
            raise Refusal(
                f"a noise of the step moves the model's output by {ratio:.2g} of the width of its "
                "kernel: too much for a quadrature over it; take more steps"
            )
        # n nodes leave an error of the size ratio^2n.
        count = max(math.ceil(math.log(1e-17) / (2.0 * math.log(ratio))), 4)
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        shifts = np.stack([added(node) for node in nodes], axis=1)
        self._outer = weights / weights.sum(), shifts
        self.width += float(np.abs(shifts - centre[:, None]).max())

    def log(self, rows: slice, y: np.ndarray) -> np.ndarray:
        """Log-density at ``y`` (n, m) for the sources ``x[rows]`` (n,)."""
        kernel = self._kernel
        if not isinstance(kernel, HalfNoise):
            stds = self._stds[rows, None]
            if not stds.min() > 0:
                raise Refusal("a step adds no noise, so its kernel is a point mass without density")
            z = (y - self.mean[rows, None]) / stds
            return -0.5 * z**2 - np.log(stds * np.sqrt(2 * np.pi))
        weights, shifts = self._outer
        values = []
        for k in range(len(weights)):
            z, factor = self._half(kernel, rows, y - shifts[rows, k, None])
            with np.errstate(divide="ignore"):
                values.append(np.log(factor) - 0.5 * z**2)
        if len(values) == 1:
            return values[0]
        return logsumexp(np.stack(values), b=weights[:, None, None], axis=0)

    def __call__(self, rows: slice, y: np.ndarray) -> np.ndarray:
        """Density at ``y`` (n, m) for the sources ``x[rows]`` (n,)."""
        kernel = self._kernel
        if not isinstance(kernel, HalfNoise):
            return np.exp(self.log(rows, y))
        weights, shifts = self._outer
        total = np.zeros(y.shape)
        for k, weight in enumerate(weights):
            z, factor = self._half(kernel, rows, y - shifts[rows, k, None])
            total += weight * factor * np.exp(-0.5 * z**2)
        return total

    def _half(self, kernel: HalfNoise, rows: slice, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The noise z that leads to y, and the factor of ``exp(-z^2/2)`` in the density."""
        x = self._x[rows, None]
        argument = y - kernel.shift * x
        knots = self._inverse.x
        inside = (argument > knots[0]) & (argument < knots[-1])
        both = self._inverse(np.clip(argument, knots[0], knots[-1]))
        z = (both[..., 0] - kernel.r * x) / kernel.e
        return z, np.where(inside, both[..., 1] / (math.sqrt(2 * math.pi) * abs(kernel.e)), 0.0)


def _carry(density: _KernelDensity, law: LineLaw, y: np.ndarray) -> np.ndarray:
    """Chapman-Kolmogorov on a band: ``p'(y_j) = sum_i p(x_i) k(x_i, y_j) dx``."""
    step = y[1] - y[0]
    first = np.floor((density.mean - density.width - y[0]) / step).astype(np.int64)
    count = int(np.ceil(2 * density.width / step)) + 2
    offsets = np.arange(count)
    result = np.zeros(len(y))
    size = max(1, 2_000_000 // count)
    for begin in range(0, len(law.x), size):
        rows = slice(begin, begin + size)
        index = first[rows, None] + offsets
        values = density(rows, y[0] + step * index) * (law.density[rows, None] * law.dx)
        keep = (index >= 0) & (index < len(y))
        result += np.bincount(index[keep], weights=values[keep], minlength=len(y))
    return result


def line_law(
    plan: Plan, process: Any, target: Target, *, points: int = 4001, widen: float = 1.0
) -> LineLaw:
    """Law of a stochastic plan's output in one dimension, on a grid of ``points`` points.

    Each step's density lives on a uniform grid with a spacing of at most ``std/(2.2 slope)`` of
    the kernel that leaves it and 0.3 standard deviations of the narrowest component.

    Parameters
    ----------
    plan, process, target
        The plan starts from the exact law at its first time.
    points
        Number of points on which the result is given.
    widen
        Factor of the grids' width.

    Returns
    -------
    LineLaw
        The density, and an estimate of what it may be wrong by.

    Raises
    ------
    Refusal
        If the plan is deterministic, too many variables are needed at once (see
        :func:`probflow.laws.pair.pair_law` and :func:`probflow.laws.joint.joint_law`), the grid
        would be too large, or mass is lost.
    """
    require_line(target)
    if not plan.stochastic:
        raise Refusal(f"{plan.solver} is deterministic: it is a map; use map_distances")
    model = ExactModel(plan, process, target)
    try:
        chain = [(step, kernel) for step in plan.steps for kernel in kernels(step, plan.solver)]
    except Refusal:
        chain = []
    if not chain or any(isinstance(k, NormalKernel) and k.std == 0.0 for _, k in chain):
        try:
            return pair_law(plan, process, target, points=points)
        except TooManyVariables:
            return joint_law(plan, process, target, points=points)

    def grid(time: float, spread: float, kernel: Kernel | None, slope: float) -> np.ndarray:
        low, high, narrow = support(process, target, time, REACH * widen)
        low, high = low - REACH * spread, high + REACH * spread
        if kernel is None:
            return np.linspace(low, high, points)
        if isinstance(kernel, HalfNoise):
            std = 0.5 * abs(kernel.c)  # half of the noise survives the map of the other half
        elif isinstance(kernel, NormalKernel):
            std = kernel.std
        else:
            std = _KernelDensity(kernel, model, np.linspace(low, high, 1001)).std
        spacing = min(std / (RESOLVE_KERNEL * slope), RESOLVE_DENSITY * narrow)
        count = int(np.ceil((high - low) / spacing)) + 1
        if count > 200_000:
            raise Refusal(
                f"{plan.solver}: resolving its kernel (std {std:.3g}) would take {count} grid "
                "points; end the grid at a higher noise level"
            )
        return np.linspace(low, high, max(count, 64))

    def prepared(time: float, spread: float, kernel: Kernel) -> _KernelDensity:
        # The slope of the mean map sets the spacing and is known on a grid only: look, then fit.
        if isinstance(kernel, HalfNoise):
            return _KernelDensity(kernel, model, grid(time, spread, kernel, 1.0))
        coarse = _KernelDensity(kernel, model, grid(time, spread, kernel, 1.0))
        return _KernelDensity(kernel, model, grid(time, spread, kernel, max(coarse.slope, 1.0)))

    current = prepared(plan.times[0], 0.0, chain[0][1])
    x = current._x
    law = LineLaw(x, np.exp(true_log_density(process, target, plan.times[0], x)))
    for position, (step, kernel) in enumerate(chain):
        last = position + 1 == len(chain)
        following = None if last else chain[position + 1][1]
        inside = not last and chain[position + 1][0] is step
        time = step.start if inside else step.stop
        spread = kernel.std if inside and isinstance(kernel, NormalKernel) else 0.0
        upcoming = None if following is None else prepared(time, spread, following)
        y = grid(time, 0.0, None, 1.0) if upcoming is None else upcoming._x
        law = LineLaw(y, _carry(current, law, y))
        if upcoming is not None:
            current = upcoming
    defect = abs(law.density.sum() * law.dx - 1.0)
    if not defect < MASS_DEFECT:
        if widen < 3.0:
            return line_law(plan, process, target, points=points, widen=widen * 1.5)
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps: the quadrature loses mass ({defect:.1e})"
        )
    return law


LARGEST_ERROR = 0.1  # of a law, relative to its distance from the true one


def law_distances(plan: Plan, process: Any, target: Target) -> dict[str, float]:
    """TV, KL, chi^2 and W2 of a stochastic plan's law in one dimension.

    ``error`` is what they may be wrong by, relative to them: 0 but for laws of several variables.

    Raises
    ------
    Refusal
        See :func:`line_law`; and if the law is no better known than to a tenth of its distance.
    """
    law = line_law(plan, process, target)
    log_q = true_log_density(process, target, plan.times[-1], law.x)
    q = np.exp(log_q)
    # Kernels are cut off at REACH; what true mass lies where nothing arrives must not count.
    reached = law.density > 0
    missed = float(q[~reached].sum() * law.dx)
    log_ratio = np.log(np.where(reached, law.density, q)) - log_q
    finite = missed <= MISSED_MASS
    tv = tv_on_grid(q, law.density, law.dx)
    if law.error > LARGEST_ERROR * tv:
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps: the joint law of its variables is known "
            f"to {law.error:.1e} in total variation only, at a distance of {tv:.1e} from the true "
            "law; take more steps"
        )
    return {
        "tv": tv,
        "kl": kl_on_grid(q, law.density, log_ratio, law.dx) if finite else math.inf,
        "chi2": chi2_on_grid(q, law.density, log_ratio, law.dx),
        "w2": w2_on_grid(q, law.density, law.x),
        "error": law.error / tv if tv > 0 else 0.0,
    }


def distances_1d(plan: Plan, process: Any, target: Target) -> dict[str, float]:
    """All marginal distances of a plan in one dimension.

    Parameters
    ----------
    plan, process, target
        The plan, the process of its times, and the data law.

    Returns
    -------
    dict
        ``tv``, ``kl``, ``chi2``, ``w2``; for deterministic plans ``strong``.

    Raises
    ------
    Refusal
        As :func:`map_distances` for deterministic plans, :func:`law_distances` for others.
    """
    return (law_distances if plan.stochastic else map_distances)(plan, process, target)
