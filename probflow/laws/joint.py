r"""Exact 1-D laws of stochastic plans whose state is more than two variables.

A multistep method of memory 2 with noise has (x_k, x_{k-1}, x_{k-2}) as its Markov state, a third
stage on the path of the update (x, u_1, u_2). With the variables of :mod:`probflow.laws.variables`,
every new one is normal given those that are held,

.. math:: n = m(held) + s e.

The newest variable lies on a uniform grid that resolves its density and the kernel that leaves it.
Given that one, the others are nearly normal, and what follows depends on them weakly and smoothly:
a few Gauss nodes in each suffice. So the law is a sum of point masses at grid x nodes x nodes.
A step takes each of them to a normal law on the next grid; there, the masses of one grid point are
brought to new nodes by projection on polynomials that are orthonormal under these very masses
(Gauss quadrature of a discrete measure), of what each older variable is beyond its regression on
the newer ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

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
from probflow.laws.registers import ExactModel, Refusal
from probflow.laws.variables import Holding, Terms, TooManyVariables, Variable, holdings, unroll
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = ["joint_law"]

#: Nodes in each older variable, the newest first, by the number of these; and in a second run that
#: tells the error.
NODES: dict[int, tuple[int, ...]] = {0: (), 1: (12,), 2: (8, 8), 3: (8, 6, 6), 4: (6, 5, 4, 4)}
FEWER_NODES: dict[int, tuple[int, ...]] = {0: (), 1: (9,), 2: (6, 6), 3: (6, 5, 5), 4: (5, 4, 3, 3)}
BAND_LIMIT = 1e-14  # Fourier coefficients below it are left out, of those of a mass of 1
LARGEST_REST = 1e-6  # that may be left out
RESOLVE_END = 0.05  # spacing in standard deviations before last steps without noise
DEGENERATE = 1e-10  # norm of a polynomial of which no point is left
NEGLIGIBLE = 1e-18  # of the largest mass
CHUNK = 4_000_000  # numbers held at a time
LARGEST_GRID = 10_000
LARGEST_STEP = 3e9  # evaluations of a kernel


def joint_law(plan: Plan, process: Any, target: Target, *, points: int = 4001) -> LineLaw:
    """Law of a stochastic plan's output in one dimension, on a grid of ``points`` points.

    It is computed twice, with :data:`FEWER_NODES` for an estimate of its error.

    Raises
    ------
    Refusal
        If too many variables are needed at once, the grids would be too large, mass is lost, or
        a last step without a noise of its own makes a density too sharp for the grid.
    """
    require_line(target)
    variables = unroll(plan)
    commits = holdings(variables, plan.solver)
    laws = []
    for nodes in (NODES, FEWER_NODES):
        engine = _Engine(plan, process, target, variables, nodes)
        for commit, following in pairwise([*commits, None]):
            assert commit is not None
            engine.commit(commit, following, points)
        laws.append(engine.law(points))
        if not any(commit.keep for commit in commits):
            return laws[0]
    law, coarse = laws
    defect = abs(law.density.sum() * law.dx - 1.0)
    if not defect < MASS_DEFECT:
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps: the quadrature loses mass ({defect:.1e})"
        )
    other = CubicSpline(coarse.x, coarse.density)(law.x, extrapolate=False)
    gap = np.abs(law.density - np.nan_to_num(other)).sum()
    return replace(law, error=0.5 * float(gap * law.dx))


class _Engine:
    """Masses at the points grid x nodes x ..., and the values of the held variables there.

    ``given`` holds an array for each, of a shape that broadcasts to that of ``masses``.
    """

    def __init__(
        self,
        plan: Plan,
        process: Any,
        target: Target,
        variables: list[Variable],
        nodes: dict[int, tuple[int, ...]],
    ) -> None:
        self._plan, self._process, self._target = plan, process, target
        self._variables, self._nodes = variables, nodes
        self._model = ExactModel(plan, process, target)
        self._newest = 0
        self.grid, self.masses = np.zeros(0), np.ones(())
        self.given: dict[int, np.ndarray] = {}

    # Variables as functions of others ----------------------------------------------------------

    def _sum(self, terms: Terms, given: dict[int, np.ndarray]) -> np.ndarray:
        """Terms in variables that are given, or functions of given ones."""
        total = np.zeros(())
        for symbol, weight in terms:
            u = self._value(symbol.variable, given)
            if symbol.time is not None:
                u = self._model(column(u.ravel()), symbol.time).numpy().reshape(u.shape)
            total = total + weight * u
        return total

    def _value(self, variable: int, given: dict[int, np.ndarray]) -> np.ndarray:
        if variable not in given:
            assert self._variables[variable].std == 0.0, "a random variable that was not given"
            given[variable] = self._sum(self._variables[variable].terms, given)
        return given[variable]

    def _steepest(self, variable: int, newest: int, x: np.ndarray) -> float:
        """Largest slope of a mean by the newest variable, where all follow it as alpha does."""

        def alpha(index: int) -> float:
            return float(Point.at(self._process, self._variables[index].time).alpha)

        @cache
        def follow(index: int) -> tuple[np.ndarray, np.ndarray]:
            v = self._variables[index]
            if index == newest or v.std > 0 or not v.terms:
                ratio = alpha(index) / alpha(newest)
                return ratio * x, np.full_like(x, ratio)
            return total(index)

        def total(index: int) -> tuple[np.ndarray, np.ndarray]:
            value, slope = np.zeros_like(x), np.zeros_like(x)
            for symbol, weight in self._variables[index].terms:
                u, du = follow(symbol.variable)
                if symbol.time is not None:
                    f, jacobian = self._model.with_jacobian(column(u), symbol.time)
                    u, du = f[:, 0].numpy(), jacobian[:, 0, 0].numpy() * du
                value, slope = value + weight * u, slope + weight * du
            return value, slope

        return float(np.abs(total(variable)[1]).max())

    # Steps -------------------------------------------------------------------------------------

    def commit(self, commit: Holding, following: Holding | None, points: int) -> None:
        """Take a variable in."""
        variable = self._variables[commit.normal]
        if len(commit.keep) + 1 not in self._nodes:
            raise TooManyVariables(
                f"{self._plan.solver}: the law of what follows t = {variable.time:g} depends on "
                f"{len(commit.keep) + 1} random variables at once; quadrature carries "
                f"{len(self._nodes) - 1}"
            )
        low, high, _ = support(self._process, self._target, variable.time)
        if not self.given:
            y = self._grid(commit, following, low, high)
            density = np.exp(true_log_density(self._process, self._target, variable.time, y))
            self.masses = density * (y[1] - y[0])
            self._hold(commit, y, [])
            return
        mean = np.broadcast_to(self._sum(variable.terms, self.given), self.masses.shape)
        weighty = np.abs(self.masses) > NEGLIGIBLE * np.abs(self.masses).max()
        axes = tuple(range(1, mean.ndim))
        lows = np.where(weighty, mean, np.inf).min(axis=axes) - REACH * variable.std
        highs = np.where(weighty, mean, -np.inf).max(axis=axes) + REACH * variable.std
        if commit.normal == len(self._variables) - 1:
            y = np.linspace(min(low, lows.min()), max(high, highs.max()), points)
        else:
            y = self._grid(commit, following, float(lows.min()), float(highs.max()))
        self._carry(commit, y, mean, lows, highs)

    def _grid(
        self, commit: Holding, following: Holding | None, low: float, high: float
    ) -> np.ndarray:
        time = self._variables[commit.normal].time
        ends = support(self._process, self._target, time)
        spacing = RESOLVE_DENSITY * ends[2]
        if following is not None:
            x = np.linspace(*ends[:2], 513)
            slope = self._steepest(following.normal, commit.normal, x)
            std = self._variables[following.normal].std
            spacing = min(spacing, std / (RESOLVE_KERNEL * max(slope, 1e-300)))
        elif commit.normal != len(self._variables) - 1:
            spacing = RESOLVE_END * ends[2]
        count = math.ceil((high - low) / spacing) + 1
        if count > LARGEST_GRID:
            raise Refusal(
                f"{self._plan.solver}: resolving the kernels near t = {time:g} would take {count} "
                "grid points; end the grid at a higher noise level"
            )
        return np.linspace(low, high, max(count, 64))

    def _hold(self, commit: Holding, y: np.ndarray, others: list[np.ndarray]) -> None:
        """Note what is held: the newest on ``y``, the others (targets, nodes, ...) at nodes."""
        ndim = len(others) + 1
        self.grid, self._newest = y, commit.normal
        self.given = {commit.normal: _along(y, 0, ndim)}
        for values, (variable, (_, of_new)) in zip(others, commit.keep.items(), strict=True):
            new = np.broadcast_to(self._sum(of_new, {commit.normal: y}), y.shape)
            held = values + _along(new, 0, values.ndim)
            self.given[variable] = held.reshape(*held.shape, *(1,) * (ndim - held.ndim))

    def _carry(
        self,
        commit: Holding,
        y: np.ndarray,
        mean: np.ndarray,
        lows: np.ndarray,
        highs: np.ndarray,
    ) -> None:
        """Masses at the grid ``y``, each grid point's from the rows in whose reach it lies."""
        std, dy = self._variables[commit.normal].std, y[1] - y[0]
        old = [self._sum(of_old, self.given) for of_old, _ in commit.keep.values()]
        old = [o.reshape(*o.shape, *(1,) * (mean.ndim - o.ndim)) for o in old]
        first = np.searchsorted(np.maximum.accumulate(highs), y, side="left")
        last = np.searchsorted(np.minimum.accumulate(lows[::-1])[::-1], y, side="right") - 1
        band = max(int((last - first).max()) + 1, 1)
        # Axes on which nothing that is kept depends are summed over first.
        dropped = tuple(a for a in range(1, mean.ndim) if all(o.shape[a] == 1 for o in old))
        sizes = np.array(mean.shape[1:])
        work = band * int(sizes.prod())
        if len(y) * work > LARGEST_STEP:
            raise Refusal(
                f"{self._plan.solver}: the joint law near t = "
                f"{self._variables[commit.normal].time:g} would take {len(y) * work:.1e} kernel "
                "evaluations in one step; end the grid at a higher noise level"
            )
        count, nodes = len(old), self._nodes[len(old)]
        left = band * int(np.prod([n for a, n in enumerate(sizes, 1) if a not in dropped]))
        chunk = max(1, CHUNK // (work + left * (sum(nodes) + math.prod(nodes[1:]))))
        parts = []
        scale = 1.0 / (math.sqrt(2.0) * std)
        norm = scale * dy / math.sqrt(math.pi)
        for begin in range(0, len(y), chunk):
            index = first[begin : begin + chunk, None] + np.arange(band)
            inside = index <= last[begin : begin + chunk, None]
            index = np.minimum(index, len(mean) - 1)
            # The largest array, (targets, rows, nodes, ...), is worked on in place.
            z = mean[index]
            z -= _along(y[begin : begin + chunk], 0, z.ndim)
            z *= scale
            np.multiply(z, z, out=z)
            np.negative(z, out=z)
            np.exp(z, out=z)
            z *= self.masses[index]
            z *= np.where(inside, norm, 0.0).reshape(*inside.shape, *(1,) * (z.ndim - 2))
            z = z.sum(axis=tuple(a + 1 for a in dropped), keepdims=True)
            shape = (len(z), -1)
            sources = [
                np.broadcast_to(o[index] if len(o) > 1 else o[None], z.shape).reshape(shape)
                for o in old
            ]
            parts.append(_project(z.reshape(shape), sources, nodes))
        self.masses = np.concatenate([masses for masses, _ in parts])
        self._hold(commit, y, [np.concatenate([p[1][k] for p in parts]) for k in range(count)])

    # The law of the last variable --------------------------------------------------------------

    def law(self, points: int) -> LineLaw:
        """Density of the last variable."""
        end = len(self._variables) - 1
        if self._newest == end:
            return LineLaw(self.grid, self.masses / (self.grid[1] - self.grid[0]))
        if self._newest == 0:
            raise Refusal(f"{self._plan.solver} draws no noise: it is a map; use map_distances")
        return self._of_function(self._value(end, self.given), points)

    def _of_function(self, values: np.ndarray, points: int) -> LineLaw:
        """Density of a function of what is held, from its Fourier coefficients."""
        weighty = np.abs(self.masses) > NEGLIGIBLE * np.abs(self.masses).max()
        values = np.broadcast_to(values, self.masses.shape)[weighty]
        ends = support(self._process, self._target, self._plan.times[-1])
        low, high = min(ends[0], values.min()), max(ends[1], values.max())
        length = high - low
        turn = np.exp(-2j * math.pi / length * (values - low))
        term = self.masses[weighty].astype(complex)
        coefficients = np.zeros(points // 2 + 1, dtype=complex)
        rest = 1.0
        # From half the grid's own frequency on, coefficients repeat those of lower frequencies.
        for m in range(min(points, len(self.grid)) // 2):
            coefficients[m] = term.sum()
            rest = float(np.abs(coefficients[max(m - 7, 0) : m + 1]).max())
            if rest < BAND_LIMIT:
                break
            term *= turn
        if not rest < LARGEST_REST:
            raise Refusal(
                f"{self._plan.solver}: its last step draws no noise of its own, and makes a "
                f"density too sharp for the grid (coefficients of {rest:.1e} are left out); take "
                "more steps"
            )
        x = low + length / points * np.arange(points)
        return LineLaw(x, np.fft.irfft(coefficients, points) * points / length)


# Gauss quadrature of discrete measures -----------------------------------------------------------


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """``values`` (targets,), or (targets, n) with n on ``axis``, as an array of ``ndim`` axes."""
    shape = [1] * ndim
    shape[0] = len(values)
    if values.ndim == 2:
        shape[axis] = values.shape[1]
    return values.reshape(shape)


def _polynomials(
    size: np.ndarray, xi: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polynomials that are orthonormal under point masses, and their Gauss quadrature.

    ``size`` and ``xi`` are masses of sum 1 and places, (targets, points). Returns the polynomials
    there, (count, targets, points), the nodes (targets, count), and matrices (targets, count,
    count) from moments in the polynomials to masses at the nodes. By Stieltjes' procedure and the
    eigenvectors of the Jacobi matrix (Golub, Welsch 1969).
    """
    values = np.zeros((count, *xi.shape))
    jacobi = np.zeros((len(xi), count, count))
    values[0] = 1.0
    for n in range(count):
        new = values[n] * xi
        jacobi[:, n, n] = centre = _inner(size, values[n], new)
        if n + 1 == count:
            break
        new -= centre[:, None] * values[n]
        if n:
            new -= jacobi[:, n, n - 1, None] * values[n - 1]
        norm = np.sqrt(_inner(size, new, new))
        norm = np.where(norm > DEGENERATE, norm, 0.0)  # fewer points than polynomials
        jacobi[:, n, n + 1] = jacobi[:, n + 1, n] = norm
        np.divide(new, norm[:, None], out=values[n + 1], where=norm[:, None] > 0)
    nodes, vectors = np.linalg.eigh(jacobi)
    return values, nodes, vectors[:, :1] * vectors


def _inner(size: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean of a product under the masses ``size``, per target."""
    return np.einsum("jp,jp,jp->j", size, one, other)


def _project(
    z: np.ndarray, sources: list[np.ndarray], nodes: tuple[int, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Masses (targets, nodes, ...) in place of ``z`` (targets, points), and values at the nodes.

    ``sources`` are the values of the variables at the points. Those of the k-th at the nodes have
    k node axes: it is its regression on the ones before, plus what the last axis stands for.
    """
    if not sources:
        return z.sum(axis=1), []
    size = np.abs(z)
    total = size.sum(axis=1)
    size /= np.where(total > 0, total, 1.0)[:, None]
    known: list[tuple[np.ndarray, np.ndarray]] = []
    values, parts, matrices = [], [], []
    for ndim, source in enumerate(sources, start=2):
        centre = np.einsum("jp,jp->j", size, source)
        rest, at_nodes = source - centre[:, None], _along(centre, 0, ndim)
        for axis, (other, xi) in enumerate(known, start=1):
            slope = _inner(size, rest, other)[:, None]
            rest -= slope * other
            at_nodes = at_nodes + _along(slope * xi, axis, ndim)
        spread = np.sqrt(_inner(size, rest, rest))[:, None]
        rest /= np.where(spread > 0, spread, 1.0)
        part, xi, matrix = _polynomials(size, rest, nodes[ndim - 2])
        known.append((rest, xi))
        values.append(at_nodes + _along(spread * xi, ndim - 1, ndim))
        parts.append(part)
        matrices.append(matrix)
    left, right = parts[0] * z, np.ones((1, *z.shape))
    for part in parts[1:]:
        right = (right[:, None] * part).reshape(-1, *z.shape)
    masses = np.matmul(left.transpose(1, 0, 2), right.transpose(1, 2, 0))
    for axis, matrix in enumerate(matrices):
        masses = masses.reshape(len(z), math.prod(nodes[:axis]), nodes[axis], -1)
        masses = np.einsum("jpnq,jna->jpaq", masses, matrix, optimize=True)
    return masses.reshape(len(z), *nodes), values
