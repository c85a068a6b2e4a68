"""Grids of noise levels that a diffusers scheduler's configuration asks for.

The three families of :mod:`probflow.adapters.noise_levels`, whose timesteps, spacings, sigma curves
and shifts are those of diffusers' schedulers, in float64 and without their rounding of levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import beta as beta_law

from probflow.words import check_whole

if TYPE_CHECKING:
    from probflow.adapters.noise_levels import NoiseLevels

__all__ = ["LevelGrids"]

_DPM = ("dpm", "unipc")  # layouts with steps + 1 timesteps, the last left out


class LevelGrids:
    """Grids of a :class:`~probflow.adapters.noise_levels.NoiseLevels`."""

    def __init__(self, levels: NoiseLevels) -> None:
        self.levels, self.config = levels, levels.config
        self.family, self.process, self.count = levels.family, levels.process, levels.count

    def grid(
        self,
        steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
        distilled: tuple[int, float] | None,
    ) -> list[float]:
        """See :meth:`~probflow.adapters.noise_levels.NoiseLevels.grid`."""
        given = [n for n, v in (("sigmas", sigmas), ("timesteps", timesteps)) if v is not None]
        if len(given) > 1 and self.family != "flow":
            raise ValueError("timesteps, sigmas: give one of them, not both")
        if timesteps is not None and self.config["invert_sigmas"]:
            raise ValueError("timesteps: give sigmas; with invert_sigmas the model's times rise")
        if mu is not None and self.family != "flow":
            raise ValueError("mu: shifts the levels of flow models; this is none")
        if not given:
            if steps is None:
                raise ValueError("num_inference_steps: give it, or timesteps, or sigmas")
            steps = check_whole("num_inference_steps", steps, 1)
            levels = self._levels(steps, mu, distilled)
        else:
            values = _decreasing(timesteps if sigmas is None else sigmas, given[0])
            levels = self._given(values, given[0], mu)
            asked = len(levels) - 1
            if len(given) > 1 and len(_decreasing(timesteps, "timesteps")) != asked:
                raise ValueError(f"timesteps: need one for each of the {asked} sigmas")
            if steps is not None and steps != asked:
                raise ValueError(
                    f"num_inference_steps: {given[0]} are for {asked} steps, got {steps}"
                )
        if not (np.diff(levels) < 0).all():
            raise ValueError(
                f"{given[0] if given else 'num_inference_steps'}: two levels are equal or out of "
                f"order, with the end at t = {levels[-1]:g}: {np.array2string(levels, threshold=8)}"
            )
        self.process.check_times(levels, given[0] if given else "timesteps")
        return levels.tolist()

    def trained(self) -> np.ndarray:
        """Levels of a flow or of EDM that stand for those of the training."""
        if self.family == "edm":
            curve = self.config["sigma_schedule"]
            return self._between(curve, self.process.start, self.process.end, self.count)
        sigmas = np.arange(self.count, 0, -1) / self.count
        if self.config["use_dynamic_shifting"]:
            return sigmas
        shift = self.config["flow_shift" if self.config["use_flow_sigmas"] else "shift"]
        return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)

    def _given(self, values: np.ndarray, name: str, mu: float | None) -> np.ndarray:
        if name == "timesteps":
            for option in ("karras", "exponential", "beta"):
                if self.levels.curve == option:
                    raise ValueError(
                        f"timesteps: the configuration asks for {option} sigmas; choose one"
                    )
            return np.append(self.levels.times(values), self._end())
        if self.family == "flow":
            if values[0] <= 0:
                raise ValueError(f"sigmas: need one above 0, got {values.tolist()}")
            return self._flow_ends(values[values > 0], mu)
        if len(values) < 2:
            raise ValueError(
                f"sigmas: need at least 2, the last for the end of the last step, got {values[0]:g}"
            )
        if self.family == "vp":  # published levels are rounded: 14.615 for 14.6146
            most = math.exp(-float(self.process.lambda_(self.process.t_max)))
            values = np.where((values > most) & (values < 1.001 * most), most, values)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 is the end, what is below refused
            levels = self.process.t(-np.log(values))
        if not np.isfinite(levels).all():
            bad = values[~np.isfinite(levels)][0]
            raise ValueError(
                f"sigmas: {bad:g} lies outside the trained noise levels, {self._trained_sigmas()}"
            )
        return np.clip(levels, self.process.t_min, self.process.t_max)

    def _trained_sigmas(self) -> str:
        ends = (math.exp(-float(self.process.lambda_(t))) for t in (0.0, self.process.t_max))
        return "{:g} to {:g}, or 0 at the end".format(*ends)

    def _to_zero(self) -> bool:
        """Whether the grid ends at sigma = 0."""
        kind = self.config["final_sigmas_type"]
        if kind is None:
            kind = "zero" if self.config["set_alpha_to_one"] else "sigma_min"
        return kind == "zero"

    def _end(self) -> float:
        """The last level: no noise, or the smallest that was trained."""
        if self._to_zero():
            return self.process.t_min
        return {"vp": 0.0, "edm": self.process.end, "flow": 1.0 / self.count}[self.family]

    def _levels(
        self, steps: int, mu: float | None, distilled: tuple[int, float] | None
    ) -> np.ndarray:
        if self.family == "edm":
            curve = self.levels.curve or self.config["sigma_schedule"]
            low, high = self.process.end, self.process.start
            sigmas = self._between(curve, high, low, steps if self._to_zero() else steps + 1)
            return np.append(sigmas, 0.0) if self._to_zero() else sigmas
        if self.family == "flow":
            return self._flow(steps, mu)
        return self._discrete(steps, distilled or (int(self.config["original_inference_steps"]), 1))

    def _discrete(self, steps: int, distilled: tuple[int, float]) -> np.ndarray:
        to_zero, layout = self._to_zero(), self.config["timestep_layout"]
        if layout == "lcm":
            times = self._distilled(steps, *distilled)
        else:
            times = self._spaced(steps, layout in _DPM)
        ends = float(times[0]), float(times[-1])
        if not to_zero and times[-1] == 0.0:  # the last call would lead from the end to the end
            times = self._spaced(steps, True)
        if self.levels.curve is None:
            return np.append(times, self._end())
        if layout in _DPM:
            ends = self.process.t_max, 0.0
        elif not to_zero:
            ends = ends[0], 0.0
        high, low = (math.exp(-float(self.process.lambda_(t))) for t in ends)
        high = high if self.config["sigma_max"] is None else float(self.config["sigma_max"])
        low = low if self.config["sigma_min"] is None else float(self.config["sigma_min"])
        sigmas = self._between(self.levels.curve, high, low, steps if to_zero else steps + 1)
        levels = self.process.t(-np.log(sigmas))
        if not np.isfinite(levels).all():
            raise ValueError(
                f"sigma_min, sigma_max: {low:g}, {high:g} lie outside the trained noise levels, "
                f"{self._trained_sigmas()}"
            )
        levels = np.clip(levels, 0.0, self.process.t_max)
        return np.append(levels, -1.0) if to_zero else levels

    def _distilled(self, steps: int, count: int, strength: float) -> np.ndarray:
        """Some of the times that consistency models were distilled at (Luo et al. 2023, LCM)."""
        used = int(count * strength)
        if not steps <= used <= count <= self.count:
            raise ValueError(
                f"num_inference_steps: at most original_inference_steps times strength = {used} "
                f"for this model, with the former at most {self.count}, got {steps}"
            )
        chosen = np.floor(np.linspace(0, used, steps, endpoint=False))
        return (used - chosen) * (self.count // count) - 1.0

    def _spaced(self, steps: int, without_end: bool) -> np.ndarray:
        """Times of the model calls; ``without_end``: those of steps + 1 but the last."""
        spacing, count = self.config["timestep_spacing"], self._usable()
        number = steps + 1 if without_end else steps
        rounded = self.config["timestep_layout"] != "euler"
        if (rounded or spacing != "linspace") and number > count:
            raise ValueError(
                f"num_inference_steps: at most {count - int(without_end)} for timesteps that "
                f"are whole numbers below {count}, got {steps}"
            )
        if spacing == "linspace":
            times = (
                np.linspace(0.0, count - 1.0, number)[::-1]
                if number > 1
                else np.array([count - 1.0])
            )
            times = times.round() if rounded else times
        elif spacing == "leading":
            ratio = count // number
            if ratio == 1 and number < count - 1:
                raise ValueError(
                    f"num_inference_steps: timestep_spacing 'leading' with {steps} steps would "
                    f"start at timestep {number - 1} of {count}, amid the noise levels; use "
                    "'trailing' or 'linspace'"
                )
            times = ratio * np.arange(number, dtype=np.float64)[::-1] + self.config["steps_offset"]
            times = np.minimum(times, count - 1.0)
        else:
            # The same for both layouts: the timesteps end above 0.
            exact = self.count * np.arange(steps, 0, -1) / steps
            times = np.minimum(exact.round(), count) - 1.0
            return times
        return times[:-1] if without_end else times

    def _usable(self) -> int:
        """How many noise levels have a log-SNR of at least ``lambda_min_clipped``."""
        lowest = self.config["lambda_min_clipped"]
        if lowest == -math.inf:
            return self.count
        levels = self.process.lambda_(np.arange(self.count, dtype=np.float64))
        usable = int((levels >= lowest).sum())
        if usable < 1:
            raise ValueError(f"lambda_min_clipped: no noise level has a log-SNR above {lowest:g}")
        return usable

    def _flow(self, steps: int, mu: float | None) -> np.ndarray:
        layout, least = self.config["timestep_layout"], 1.0 / self.count
        if layout == "unipc":
            sigmas = np.linspace(1.0, least, steps + 1)[:-1]
        elif layout == "dpm":
            sigmas = np.linspace(1.0 - least, 0.0, steps + 1)[:-1]
        else:
            dynamic, shift = self.config["use_dynamic_shifting"], float(self.config["shift"])
            least = least if dynamic else shift * least / (1.0 + (shift - 1.0) * least)
            sigmas = np.linspace(1.0, least, steps)
        return self._flow_ends(sigmas, mu)

    def _flow_ends(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        """All levels, for sigmas before the shift."""
        sigmas = self._shifted(sigmas, mu)
        if self.levels.curve is not None:
            sigmas = self._between(self.levels.curve, sigmas[0], sigmas[-1], len(sigmas))
        # To the smallest trained sigma only if that lies below.
        return np.append(sigmas, self._end() if self._end() < sigmas[-1] else 0.0)

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        """The shift of flow models by resolution (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
        config = self.config
        if config["use_dynamic_shifting"]:
            if mu is None:
                raise ValueError("mu: needed, because the configuration has use_dynamic_shifting")
            exponential = config["time_shift_type"] == "exponential"
            low, high = (-700.0, 700.0) if exponential else (0.0, math.inf)
            if not (isinstance(mu, Real) and low < mu < high):
                raise ValueError(f"mu: need a number in ({low:g}, {high:g}), got {mu!r}")
            shift = math.exp(mu) if exponential else float(mu)
        else:
            shift = config["flow_shift"] if config["use_flow_sigmas"] else config["shift"]
        sigmas = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
        rest = 1.0 - sigmas
        if config["shift_terminal"] and rest[-1] > 0:
            sigmas = 1.0 - rest * ((1.0 - config["shift_terminal"]) / rest[-1])
        return sigmas

    def _between(self, curve: str, high: float, low: float, number: int) -> np.ndarray:
        """Sigmas from high to low."""
        if number == 1:
            return np.array([high])
        ramp = np.linspace(0.0, 1.0, number)
        if curve == "karras":  # Karras et al. 2022 (arXiv 2206.00364, eq. 5)
            rho = self.config["rho"]
            sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        elif curve == "exponential":
            sigmas = np.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
        else:  # quantiles of Beta(0.6, 0.6), in sigma as in diffusers (Lee et al. 2024 take times)
            sigmas = low + beta_law.ppf(1.0 - ramp, 0.6, 0.6) * (high - low)
        sigmas[0], sigmas[-1] = high, low
        return sigmas


def _decreasing(values: Any, name: str) -> np.ndarray:
    try:
        array = np.array([float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: need a sequence of numbers, got {values!r}") from None
    if len(array) < 1 or not np.isfinite(array).all() or not (np.diff(array) < 0).all():
        # Pipelines know their place by the timestep, which may not come twice.
        rises = (np.diff(array) > 0).any() and (np.diff(array) < 0).any()
        instead = (
            "; for a grid that rises on its way, as restarts do, take pf.sample with a "
            "pf.grids.restart grid, of a pipeline with pf.diffusers.from_pipeline(pipe)"
        )
        raise ValueError(
            f"{name}: must be finite and strictly decrease, got {array.tolist()}"
            f"{instead if rises else ''}"
        )
    return array
