r"""The noise process and the grids that a diffusers scheduler's configuration describes.

Three families, each with its process and the times that its models are told:

=======  =============================================================  =======================
``vp``   ``betas`` of a discrete schedule; process time is the training   the training index, may
         index, and runs on to -1, where sigma is 0                      be fractional
``edm``  input :math:`y = x/\sqrt{\sigma^2+\sigma_d^2}`; process time     :math:`\ln(\sigma)/4`
         is :math:`\sigma`, data is :math:`x_0/\sigma_d`                  (or an arctangent)
``flow`` :math:`x = (1-\sigma) x_0 + \sigma\epsilon`; time is sigma       N sigma
=======  =============================================================  =======================

No torch and no diffusers here: configurations are mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import beta as beta_law

from probflow.processes import VP, FlowMatching, Process
from probflow.schedules import Array, Discrete, namespace
from probflow.solvers.last_step import START_ALPHA

__all__ = ["LAYOUTS", "NoiseLevels", "alphas_cumprod_of"]

#: Whose timesteps: see :class:`NoiseLevels`.
LAYOUTS = ("euler", "ddim", "dpm", "unipc")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


def alphas_cumprod_of(config: Mapping[str, Any]) -> np.ndarray:
    """``alphas_cumprod`` of a configuration in float64, shape (num_train_timesteps,).

    At zero terminal SNR (``rescale_betas_zero_snr``; Lin et al. 2024, arXiv 2305.08891) the last
    value is 2^-24 instead of 0, as in most of diffusers' schedulers.

    Raises
    ------
    ValueError
        For an unknown ``beta_schedule``, or betas that are none.
    """
    return np.exp(-_neg_log_ab(config))


def _neg_log_ab(config: Mapping[str, Any]) -> np.ndarray:
    betas = _betas(config)
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(
            f"betas: must lie in (0, 1], got {betas.min():g} to {betas.max():g}; see "
            "trained_betas, beta_start, beta_end"
        )
    with np.errstate(divide="ignore"):
        value = np.cumsum(-np.log1p(-betas))
    shift = config["snr_shift_scale"]
    if shift != 1.0:  # CogVideoX: SNR divided by the shift
        value = np.log1p(shift * np.expm1(value))
    if config["rescale_betas_zero_snr"]:
        root = np.exp(-0.5 * value)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        with np.errstate(divide="ignore"):
            value = -2.0 * np.log(root)
    if not math.isfinite(value[-1]):
        value[-1] = -2.0 * math.log(START_ALPHA)
    return value


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    count = int(config["num_train_timesteps"])
    first, last = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    kind = config["beta_schedule"]
    if kind == "linear":
        return np.linspace(first, last, count)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17)
        steps = np.arange(count + 1) / count
        ab = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - ab[1:] / ab[:-1], 0.999)
    if kind == "exp":
        return np.full(count, -math.expm1(-12.0 / count))
    if kind == "sigmoid":
        return expit(np.linspace(-6.0, 6.0, count)) * (last - first) + first
    raise ValueError(
        f"beta_schedule: got {kind!r}, allowed are linear, scaled_linear, squaredcos_cap_v2, exp, "
        "sigmoid; give others as trained_betas"
    )


class _ToZero:
    """A discrete schedule from training index 0 on, with B falling to 0 from there to -1.

    Nothing is trained between -1 and 0; only the end, where sigma = 0, is used.
    """

    t_min = -1.0

    def __init__(self, neg_log_ab: np.ndarray) -> None:
        self._trained = Discrete(neg_log_ab, first=0)
        self.t_max, self._first = self._trained.t_max, float(neg_log_ab[0])

    def B(self, t: Array) -> Array:  # noqa: N802
        xp, t = namespace(t)
        inside = xp.where(t > 0, t, 0.0 * t)
        return xp.where(t >= 0, self._trained.B(inside), self._first * (1.0 + t))

    def dB(self, t: Array) -> Array:  # noqa: N802
        xp, t = namespace(t)
        inside = xp.where(t > 0, t, 0.0 * t)
        return xp.where(t >= 0, self._trained.dB(inside), 0.0 * t + self._first)

    def t_of_B(self, value: Array) -> Array:  # noqa: N802
        xp, value = namespace(value)
        inside = xp.where(value > self._first, value, 0.0 * value + self._first)
        return xp.where(
            value >= self._first, self._trained.t_of_B(inside), value / self._first - 1.0
        )


class _Preconditioned(Process):
    """EDM's network input as a process: alpha = s/sqrt(s^2 + t^2), sigma = t/sqrt(s^2 + t^2).

    t is the sigma and s the ``sigma_data`` of Karras et al. 2022 (arXiv 2206.00364, table 1), x0 is
    data over s. The network's output is then +v or -v (Salimans and Ho 2022).
    """

    t_min, t_max = 0.0, math.inf
    default_grid = "karras"

    def __init__(self, sigma_data: float, sigma_min: float, sigma_max: float) -> None:
        self._scale, self.start, self.end = sigma_data, sigma_max, sigma_min

    def _norm(self, t: Array) -> Array:
        return (namespace(t)[1] ** 2 + self._scale**2) ** 0.5

    def alpha(self, t: Array) -> Array:
        return self._scale / self._norm(t)

    def sigma(self, t: Array) -> Array:
        return namespace(t)[1] / self._norm(t)

    def dalpha(self, t: Array) -> Array:
        return -self._scale * namespace(t)[1] / self._norm(t) ** 3

    def dsigma(self, t: Array) -> Array:
        return self._scale**2 / self._norm(t) ** 3

    def lambda_(self, t: Array) -> Array:
        xp, t = namespace(t)
        with np.errstate(divide="ignore"):
            return math.log(self._scale) - xp.log(t)

    def t(self, lambda_: Array) -> Array:
        xp, lambda_ = namespace(lambda_)
        return self._scale * xp.exp(-lambda_)

    def prior_std(self, t: float | None = None) -> float:
        return 1.0


class NoiseLevels:
    """Process, model times and grids of a configuration.

    Parameters
    ----------
    config
        All arguments of :class:`probflow.diffusers.ProbflowScheduler`.

    Attributes
    ----------
    family : str
        ``"vp"``, ``"edm"`` or ``"flow"``.
    process : Process
        The noising process of the states that the model is fed.
    prediction : str
        The model's prediction type in probflow's words.
    sign, data_scale : float
        The model's output is ``sign`` times that prediction, and data is ``data_scale`` times x0;
        both are 1 but for EDM.

    Raises
    ------
    ValueError
        For a configuration that makes no sense, naming the argument.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.count = int(config["num_train_timesteps"])
        self.sign, self.data_scale = 1.0, 1.0
        kind = config["prediction_type"]
        if kind not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type: got {kind!r}, allowed are {', '.join(PREDICTION_TYPES)}"
            )
        for name, allowed in (
            ("timestep_spacing", SPACINGS),
            ("timestep_layout", LAYOUTS),
            ("final_sigmas_type", (None, "zero", "sigma_min")),
            ("timestep_type", ("discrete", "continuous")),
            ("time_shift_type", ("exponential", "linear")),
            ("sigma_schedule", ("karras", "exponential")),
        ):
            if config[name] not in allowed:
                words = ", ".join(str(word) for word in allowed)
                raise ValueError(f"{name}: got {config[name]!r}, allowed are {words}")
        chosen = [n for n in ("karras", "exponential", "beta") if config[f"use_{n}_sigmas"]]
        if config["use_lu_lambdas"]:
            chosen.append("exponential")
        if len(set(chosen)) > 1:
            raise ValueError(
                "use_karras_sigmas, use_exponential_sigmas (use_lu_lambdas), use_beta_sigmas: "
                f"choose one, got {', '.join(chosen)}"
            )
        self._curve = chosen[0] if chosen else None
        self.prediction = PREDICTION_TYPES[kind]
        continuous = config["timestep_type"] == "continuous" and kind == "v_prediction"
        self.process: Process
        if config["sigma_data"] is not None or continuous:
            self.family = "edm"
            if kind not in ("epsilon", "v_prediction"):
                raise ValueError(
                    f"prediction_type: EDM models have epsilon or v_prediction, got {kind!r}"
                )
            scale = 1.0 if config["sigma_data"] is None else float(config["sigma_data"])
            low, high = config["sigma_min"], config["sigma_max"]
            if low is None or high is None or not 0 < low < high:
                raise ValueError(f"sigma_min, sigma_max: need 0 < min < max, got {low}, {high}")
            self.process = _Preconditioned(scale, float(low), float(high))
            self.prediction, self.data_scale = "v", scale
            self.sign = -1.0 if kind == "epsilon" else 1.0
        elif kind == "flow_prediction" or config["use_flow_sigmas"]:
            self.family, self.process = "flow", FlowMatching()
            self.process.start, self.process.end = 1.0, 0.0
        else:
            self.family = "vp"
            schedule = _ToZero(_neg_log_ab(config))
            self.count = int(schedule.t_max) + 1
            self.process = VP(schedule, schedule.t_max, 0.0, "vp-discrete")

    def told(self, times: Array) -> Array:
        """The model's times for process times."""
        xp, times = namespace(times)
        if self.family == "flow":
            return times * self.count
        if self.family == "vp":
            return times
        if self.config["arctan_timesteps"]:
            return 2.0 / math.pi * xp.arctan(times)
        with np.errstate(divide="ignore"):
            return 0.25 * xp.log(times)

    def times(self, told: Array) -> Array:
        """The process times for the model's times."""
        xp, told = namespace(told)
        if self.family == "flow":
            return told / self.count
        if self.family == "vp":
            return told
        return xp.tan(told * math.pi / 2) if self.config["arctan_timesteps"] else xp.exp(4.0 * told)

    # Grids ---------------------------------------------------------------------------------------

    def grid(
        self,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> list[float]:
        """Process times of all levels, ``steps`` + 1, from noise to data.

        Parameters
        ----------
        steps
            Number of steps, >= 1.
        timesteps
            The model's times at which the steps start, decreasing, instead.
        sigmas
            Levels sigma/alpha (of a flow: sigma) instead. A flow's have one entry per step, and
            the end 0 is added where missing; the others' include the end.
        mu
            Exponent of the resolution's shift (``use_dynamic_shifting``).

        Raises
        ------
        ValueError
            For arguments that do not fit each other or the configuration.
        """
        given = [n for n, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None]
        if len(given) > 1:
            raise ValueError("timesteps, sigmas: give one of them, not both")
        if mu is not None and self.family != "flow":
            raise ValueError("mu: shifts the levels of flow models; this is none")
        if not given:
            if steps is None:
                raise ValueError("num_inference_steps: give it, or timesteps, or sigmas")
            if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
                raise ValueError(f"num_inference_steps: need a whole number >= 1, got {steps!r}")
            levels = self._levels(int(steps), mu)
        else:
            values = _decreasing(sigmas if timesteps is None else timesteps, given[0])
            levels = self._given(values, given[0], mu)
            asked = len(levels) - 1
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

    def _given(self, values: np.ndarray, name: str, mu: float | None) -> np.ndarray:
        if name == "timesteps":
            for option in ("karras", "exponential", "beta"):
                if self._curve == option:
                    raise ValueError(
                        f"timesteps: the configuration asks for {option} sigmas; choose one"
                    )
            return np.append(self.times(values), self._end())
        if self.family == "flow":
            return self._flow_ends(values[values > 0], mu)
        with np.errstate(divide="ignore"):
            levels = self.process.t(-np.log(values))
        if not np.isfinite(levels).all():
            bad = values[~np.isfinite(levels)][0]
            raise ValueError(f"sigmas: {bad:g} lies outside the trained noise levels")
        return np.clip(levels, self.process.t_min, self.process.t_max)

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

    def _levels(self, steps: int, mu: float | None) -> np.ndarray:
        if self.family == "edm":
            curve = self._curve or self.config["sigma_schedule"]
            low, high = self.process.end, self.process.start
            sigmas = self._between(curve, high, low, steps if self._to_zero() else steps + 1)
            return np.append(sigmas, 0.0) if self._to_zero() else sigmas
        if self.family == "flow":
            return self._flow(steps, mu)
        return self._discrete(steps)

    def _discrete(self, steps: int) -> np.ndarray:
        to_zero = self._to_zero()
        times = self._spaced(steps, self.config["timestep_layout"] in ("dpm", "unipc"))
        if not to_zero and times[-1] == 0.0:  # the last call would lead from the end to the end
            times = self._spaced(steps, True)
        if self._curve is None:
            return np.append(times, self._end())
        ends = float(times[0]), float(times[-1])
        if self.config["timestep_layout"] in ("dpm", "unipc") or not to_zero:
            ends = self.process.t_max, 0.0
        high, low = (math.exp(-float(self.process.lambda_(t))) for t in ends)
        high = high if self.config["sigma_max"] is None else float(self.config["sigma_max"])
        low = low if self.config["sigma_min"] is None else float(self.config["sigma_min"])
        sigmas = self._between(self._curve, high, low, steps if to_zero else steps + 1)
        levels = self.process.t(-np.log(sigmas))
        if not np.isfinite(levels).all():
            raise ValueError(
                f"sigma_min, sigma_max: {low:g}, {high:g} lie outside the trained noise levels"
            )
        levels = np.clip(levels, 0.0, self.process.t_max)
        return np.append(levels, -1.0) if to_zero else levels

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
            times = np.linspace(0.0, count - 1.0, number)[::-1]
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
        if self._curve is not None:
            sigmas = self._between(self._curve, sigmas[0], sigmas[-1], len(sigmas))
        # To the smallest trained sigma only if that lies below.
        return np.append(sigmas, self._end() if self._end() < sigmas[-1] else 0.0)

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        """The shift of flow models by resolution (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
        config = self.config
        if config["use_dynamic_shifting"]:
            if mu is None:
                raise ValueError("mu: needed, because the configuration has use_dynamic_shifting")
            shift = math.exp(mu) if config["time_shift_type"] == "exponential" else float(mu)
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
        raise ValueError(f"{name}: must be finite and strictly decrease, got {array.tolist()}")
    return array
