r"""Exact 1-D laws of stochastic plans whose state is a pair of variables.

A multistep method with noise has (x_k, x_{k-1}) as its Markov state, a stage that shares its noise
with the update has (x, u). With the variables of :mod:`probflow.laws.variables`, every new one is
normal given at most two others,

.. math:: n = m(w, o) + s e,

and the joint density of two coordinates is carried by quadrature over the one that is no longer
needed, on grids that resolve densities and kernels. Where only a function g(n, w) of the new
variable is needed afterwards (a step without a noise of its own), its density follows by change of
variables, with g increasing in n. Kernels and joint densities are banded, and the sums run over the
bands alone: a step costs G B B evaluations instead of G^3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
from probflow.laws.variables import Commit, Variable, schedule, unroll
from probflow.plan import Plan
from probflow.targets import Target

__all__ = ["pair_law"]

NEGLIGIBLE = 1e-18  # of the largest density: left out of the bands
CHUNK = 2_000_000  # numbers held at a time
LARGEST_GRID = 10_000
LARGEST_STEP = 3e9  # evaluations of a kernel


@dataclass
class _Value:
    """Values with their derivatives with respect to coordinates."""

    value: np.ndarray
    slopes: dict[int, np.ndarray] = field(default_factory=dict)

    def slope(self, variable: int) -> np.ndarray:
        return self.slopes.get(variable, np.zeros(()))


class _Functions:
    """Values of variables as functions of given ones."""

    def __init__(self, variables: list[Variable], model: ExactModel) -> None:
        self._variables, self._model = variables, model

    def __call__(self, variable: int, given: dict[int, _Value]) -> _Value:
        """The terms of a variable (its mean, where it has noise) as a function of ``given``."""
        return self._sum(variable, dict(given))

    def _sum(self, variable: int, values: dict[int, _Value]) -> _Value:
        total = _Value(np.zeros(()))
        for symbol, weight in self._variables[variable].terms:
            term = self._value(symbol.variable, values)
            if symbol.time is not None:
                term = self._output(term, symbol.time)
            total.value = total.value + weight * term.value
            for key, slope in term.slopes.items():
                total.slopes[key] = total.slope(key) + weight * slope
        return total

    def _value(self, variable: int, values: dict[int, _Value]) -> _Value:
        if variable not in values:
            assert self._variables[variable].std == 0.0, "a random variable that was not given"
            values[variable] = self._sum(variable, values)
        return values[variable]

    def _output(self, u: _Value, time: float) -> _Value:
        points = column(u.value.ravel())
        if not u.slopes:
            return _Value(self._model(points, time).numpy().reshape(u.value.shape))
        output, jacobian = self._model.with_jacobian(points, time)
        derivative = jacobian.numpy().reshape(u.value.shape)
        slopes = {key: derivative * slope for key, slope in u.slopes.items()}
        return _Value(output.numpy().reshape(u.value.shape), slopes)


def pair_law(plan: Plan, process: Any, target: Target, *, points: int = 4001) -> LineLaw:
    """Law of a stochastic plan's output in one dimension, on a grid of ``points`` points.

    Raises
    ------
    Refusal
        If more than two variables are needed at once, a noise-free function of the noise is not
        increasing, the grids would be too large, or mass is lost.
    """
    require_line(target)
    variables = unroll(plan)
    commits = schedule(variables, plan.solver)
    engine = _Engine(plan, process, target, variables, commits)
    for commit in commits[:-1]:
        engine.commit(commit)
    law = engine.final(commits[-1], points)
    defect = abs(law.density.sum() * law.dx - 1.0)
    if not defect < MASS_DEFECT:
        raise Refusal(
            f"{plan.solver} with {len(plan.steps)} steps: the quadrature loses mass ({defect:.1e})"
        )
    return law


class _Engine:
    """The density of at most two coordinates, step by step.

    ``grids`` has the grid of each coordinate. ``density`` is (n,) for one, and (rows, columns) of
    the coordinates ``held`` for two.
    """

    def __init__(
        self,
        plan: Plan,
        process: Any,
        target: Target,
        variables: list[Variable],
        commits: list[Commit],
    ) -> None:
        self._plan, self._process, self._target = plan, process, target
        self._variables = variables
        self._function = _Functions(variables, ExactModel(plan, process, target))
        self._spacing: dict[int, float] = {}
        for commit in commits:
            self._require(commit)
        self.grids: dict[int, np.ndarray] = {}
        self.held: tuple[int, ...] = ()
        self.density = np.ones(())

    # Grids -------------------------------------------------------------------------------------

    def _require(self, commit: Commit) -> None:
        """Note the spacings that a kernel needs, from its slopes over the laws' supports."""
        time = self._variables[commit.coordinate].time
        own = RESOLVE_DENSITY * support(self._process, self._target, time)[2]
        if commit.row is not None:
            std = self._variables[commit.normal].std
            given: dict[int, _Value] = {}
            sources = [v for v in (commit.row, commit.column) if v is not None]
            for axis, variable in enumerate(sources):
                ends = support(self._process, self._target, self._variables[variable].time)[:2]
                x = np.expand_dims(np.linspace(*ends, 65), [i for i in range(3) if i != axis])
                given[variable] = _Value(x, {variable: np.ones_like(x)})
            mean = self._function(commit.normal, given)
            # Slopes of the noise that leads to a fixed value of the coordinate, times std.
            slopes, narrow, arrives = {v: mean.slope(v) for v in sources}, std, std
            if commit.coordinate != commit.normal:
                n = mean.value + std * np.linspace(-REACH, REACH, 9)
                g = self._function(
                    commit.coordinate,
                    {commit.row: given[commit.row]}
                    | {commit.normal: _Value(n, {commit.normal: np.ones_like(n)})},
                )
                rise = np.where(g.slope(commit.normal) > 0, g.slope(commit.normal), np.nan)
                if np.isnan(rise).all():
                    raise self._folds(commit, float(g.slope(commit.normal).max()))
                slopes[commit.row] = slopes[commit.row] + g.slope(commit.row) / rise
                # The function bends the kernel: twice the points.
                narrow, arrives = 0.5 * std, 0.5 * std * float(np.nanmin(rise))
            if commit.keep_row:
                own = min(own, arrives / RESOLVE_KERNEL)
            for variable, slope in slopes.items():
                steepest = max(float(np.nanmax(np.abs(slope))), 1e-300)
                needed = narrow / (RESOLVE_KERNEL * steepest)
                self._spacing[variable] = min(self._spacing[variable], needed)
        self._spacing[commit.coordinate] = own

    def _grid(self, commit: Commit, low: float, high: float) -> np.ndarray:
        spacing = self._spacing[commit.coordinate]
        count = int(np.ceil((high - low) / spacing)) + 1
        if count > LARGEST_GRID:
            raise Refusal(
                f"{self._plan.solver}: resolving the kernels near t = "
                f"{self._variables[commit.coordinate].time:g} would take {count} grid points; "
                "end the grid at a higher noise level"
            )
        return np.linspace(low, high, max(count, 64))

    def _folds(self, commit: Commit, derivative: float) -> Refusal:
        return Refusal(
            f"{self._plan.solver}: near t = {self._variables[commit.coordinate].time:g} the state "
            f"is no increasing function of its noise (derivative {derivative:.3g}), so its density "
            "has no single branch; take more steps"
        )

    # Steps -------------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> None:
        """Take a coordinate in."""
        if commit.row is None:
            time = self._variables[commit.coordinate].time
            grid = self._grid(commit, *support(self._process, self._target, time)[:2])
            self.density = np.exp(true_log_density(self._process, self._target, time, grid))
            self.held = (commit.coordinate,)
        else:
            bands = _Bands(self, commit)
            grid = self._grid(commit, bands.low, bands.high)
            self.density = bands.carry(grid)
            self.held = (commit.coordinate,)
            if commit.keep_row:
                self.held = (commit.row, commit.coordinate)
        self.grids = {v: self.grids[v] for v in self.held if v in self.grids}
        self.grids[commit.coordinate] = grid

    def final(self, commit: Commit, points: int) -> LineLaw:
        """The law of the last variable."""
        if commit.row is None:
            raise Refusal(f"{self._plan.solver} draws no noise: it is a map; use map_distances")
        bands = _Bands(self, commit)
        low, high, _ = support(self._process, self._target, self._plan.times[-1])
        grid = np.linspace(min(low, bands.low), max(high, bands.high), points)
        return LineLaw(grid, bands.carry(grid))


class _Bands:
    """Where a joint density is not negligible, and where its mass goes in one commit.

    Per row: a band of columns with their weights and the means of the new normal variable, and the
    ends of the interval in which the new coordinate arrives.
    """

    def __init__(self, engine: _Engine, commit: Commit) -> None:
        assert commit.row is not None
        self._engine, self._commit = engine, commit
        self._std = engine._variables[commit.normal].std
        rows, density = engine.grids[commit.row], engine.density
        if commit.column is None:
            joint, columns, width = density[:, None], np.zeros(1), 1.0
        else:
            joint = density if engine.held[0] == commit.row else density.T
            columns = engine.grids[commit.column]
            width = columns[1] - columns[0]
        weighty = joint > NEGLIGIBLE * joint.max()
        self._rows = np.flatnonzero(weighty.any(axis=1))
        joint, weighty = joint[self._rows], weighty[self._rows]
        first = weighty.argmax(axis=1)
        last = weighty.shape[1] - 1 - weighty[:, ::-1].argmax(axis=1)
        index = first[:, None] + np.arange(int((last - first).max()) + 1)
        inside = index <= last[:, None]
        index = np.minimum(index, len(columns) - 1)
        self._weights = np.where(inside, np.take_along_axis(joint, index, axis=1), 0.0) * width
        self._x, self._size = rows[self._rows], len(rows)
        self._dx = rows[1] - rows[0]
        given = {commit.row: _Value(self._x[:, None])}
        if commit.column is not None:
            given[commit.column] = _Value(columns[index])
        means = engine._function(commit.normal, given).value
        self._means = np.broadcast_to(means, index.shape)
        reach = REACH * self._std
        n_low = np.where(inside, self._means, np.inf).min(axis=1) - reach
        n_high = np.where(inside, self._means, -np.inf).max(axis=1) + reach
        # Beyond the band the means do not matter, but must not overflow.
        self._means = np.where(inside, self._means, n_low[:, None])
        self._ends = n_low, n_high
        self._arrival = n_low, n_high
        if commit.coordinate != commit.normal:
            self._arrival = self._increasing(n_low, n_high)
        self.low, self.high = float(self._arrival[0].min()), float(self._arrival[1].max())

    def _image(self, x: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``g(n, x)`` and its derivative by n, for ``x`` (rows, 1) and ``n`` (rows, points)."""
        commit = self._commit
        assert commit.row is not None
        given = {
            commit.row: _Value(x),
            commit.normal: _Value(n, {commit.normal: np.ones_like(n)}),
        }
        g = self._engine._function(commit.coordinate, given)
        return g.value, g.slope(commit.normal)

    def _increasing(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of g at the ends; a refusal if it does not rise from one to the other."""
        n = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, 129)
        values, slopes = self._image(self._x[:, None], n)
        if not slopes.min() > 0:
            raise self._engine._folds(self._commit, float(slopes.min()))
        return values[:, 0], values[:, -1]

    def _inverse(
        self, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """n with ``g(n, x) = y``, and dn/dy: Newton's method between ends that enclose n."""
        margin = 1e-6 * (high - low)  # so that Newton's steps to the ends are not cut off
        low, high = low - margin, high + margin
        bottom, top = self._image(x, low)[0], self._image(x, high)[0]
        n = low + (high - low) * np.clip((y - bottom) / (top - bottom), 0.0, 1.0)
        for _ in range(100):
            g, slope = self._image(x, n)
            residual = g - y
            if np.abs(residual).max() <= 1e-13 * (1.0 + np.abs(y).max()):
                break
            low, high = np.where(residual < 0, n, low), np.where(residual > 0, n, high)
            step = n - residual / slope
            n = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        return n, 1.0 / slope

    def carry(self, y: np.ndarray) -> np.ndarray:
        """The density on the grid ``y``: (n,), or (rows, n) where the row stays."""
        commit, dy = self._commit, y[1] - y[0]
        first = np.maximum(np.ceil((self._arrival[0] - y[0]) / dy).astype(np.int64), 0)
        last = np.minimum(np.floor((self._arrival[1] - y[0]) / dy).astype(np.int64), len(y) - 1)
        count = int((last - first).max()) + 1
        work = len(self._rows) * count * self._weights.shape[1]
        if work > LARGEST_STEP or (commit.keep_row and self._size * len(y) > 20 * CHUNK):
            raise Refusal(
                f"{self._engine._plan.solver}: the joint law near t = "
                f"{self._engine._variables[commit.normal].time:g} would take {work:.1e} kernel "
                "evaluations in one step; end the grid at a higher noise level"
            )
        shape = (self._size, len(y)) if commit.keep_row else (len(y),)
        result = np.zeros(shape)
        scale = 1.0 / (math.sqrt(2.0) * self._std)
        norm = 1.0 / (math.sqrt(2.0 * math.pi) * self._std)
        bent = commit.coordinate != commit.normal
        if bent and not commit.mixed:  # one function for all rows
            low, high = (np.array([[end]]) for end in (self._ends[0].min(), self._ends[1].max()))
            image = np.clip(y[None], self.low, self.high)
            of_y, rise = self._inverse(self._x[:1, None], image, low, high)
        chunk = max(1, CHUNK // (count * self._weights.shape[1]))
        for begin in range(0, len(self._rows), chunk):
            rows = slice(begin, begin + chunk)
            index = first[rows, None] + np.arange(count)
            keep = index <= last[rows, None]
            n, factor = y[0] + dy * index, np.asarray(norm)
            if bent and commit.mixed:
                image = np.minimum(n, self._arrival[1][rows, None])
                ends = (end[rows, None] for end in self._ends)
                n, slope = self._inverse(self._x[rows, None], image, *ends)
                factor = norm * slope
            elif bent:
                where = np.minimum(index, len(y) - 1)
                n, factor = of_y[0, where], norm * rise[0, where]
            # The largest array, (rows, points, columns), is worked on in place.
            z = (scale * n)[:, :, None] - (scale * self._means[rows])[:, None, :]
            np.multiply(z, z, out=z)
            np.negative(z, out=z)
            np.exp(z, out=z)
            values = (z @ self._weights[rows, :, None])[:, :, 0] * factor
            if commit.keep_row:
                where = np.broadcast_to(self._rows[rows, None], index.shape)
                result[where[keep], index[keep]] = values[keep]
            else:
                result += np.bincount(
                    index[keep], weights=values[keep] * self._dx, minlength=len(y)
                )
        return result
