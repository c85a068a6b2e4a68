r"""The noise process and the grids that a diffusers scheduler's configuration describes.

Three families, each with its process and the times that its models are told:

=======  =============================================================  =======================
``vp``   ``betas`` of a discrete schedule; process time is the training   the training index, may
         index, and runs on to -1, where sigma is 0                      be fractional
``edm``  input :math:`y = x/\sqrt{\sigma^2+\sigma_d^2}`; process time     :math:`\ln(\sigma)/4`
         is :math:`\sigma`, data is :math:`x_0/\sigma_d`                  (or an arctangent)
``flow`` :math:`x = (1-\sigma) x_0 + \sigma\epsilon`; time is sigma       N sigma, or
                                                                         N (1 - sigma)
=======  =============================================================  =======================

No torch and no diffusers here: configurations are mappings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probflow.adapters.level_grids import LevelGrids
from probflow.adapters.training_levels import discrete, preconditioned
from probflow.processes import FlowMatching, Process
from probflow.schedules import Array, namespace
from probflow.words import check_choice, check_flags, check_real, check_whole

__all__ = ["LAYOUTS", "NoiseLevels"]

#: Whose timesteps: see :class:`NoiseLevels`.
LAYOUTS = ("euler", "ddim", "dpm", "unipc", "lcm")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


# Arguments that are numbers, with their intervals; None where it is allowed.
_INTERVALS = {
    "rho": "(0, inf]",
    "snr_shift_scale": "(0, inf]",
    "sigma_min": "(0, inf]",
    "sigma_max": "(0, inf]",
    "sigma_data": "(0, inf]",
    "flow_shift": "(0, inf]",
    "shift": "(0, inf]",
    "clip_sample_range": "(0, inf]",
    "sample_max_value": "(0, inf]",
    "dynamic_thresholding_ratio": "(0, 1]",
    "shift_terminal": "[0, 1)",
    "lambda_min_clipped": "[-inf, inf]",
    **dict.fromkeys(("beta_start", "beta_end", "base_shift", "max_shift"), "(-inf, inf]"),
}
_OPTIONAL = (
    "sigma_min", "sigma_max", "sigma_data", "base_shift", "max_shift", "shift_terminal",
)  # fmt: skip
_WHOLE = {"num_train_timesteps": 1, "original_inference_steps": 1, "steps_offset": 0,
          "base_image_seq_len": 1, "max_image_seq_len": 1}  # fmt: skip
_FLAGS = (
    "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "set_alpha_to_one", "use_flow_sigmas", "use_dynamic_shifting",
    "invert_sigmas", "arctan_timesteps", "clip_sample", "thresholding",
)  # fmt: skip
_WORDS = {
    "timestep_spacing": SPACINGS,
    "timestep_layout": LAYOUTS,
    "final_sigmas_type": (None, "zero", "sigma_min"),
    "timestep_type": ("discrete", "continuous"),
    "time_shift_type": ("exponential", "linear"),
    "sigma_schedule": ("karras", "exponential"),
    "variance_type": (
        None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned",
        "learned_range",
    ),
}  # fmt: skip


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` or ``TypeError`` for a number that makes no sense."""
    check_flags(config, _FLAGS)
    for name, least in _WHOLE.items():
        check_whole(name, config[name], least)
    for name, interval in _INTERVALS.items():
        if config[name] is not None or name not in _OPTIONAL:
            check_real(name, config[name], interval)
    low, high = config["sigma_min"], config["sigma_max"]
    if None not in (low, high) and low >= high:
        raise ValueError(f"sigma_min, sigma_max: need 0 < min < max, got {low}, {high}")


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
        both are 1 but for EDM, and for flows that are told their time from noise to data.

    Raises
    ------
    ValueError
        For a configuration that makes no sense, naming the argument.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_numbers(config)
        self.config = config
        self.count = int(config["num_train_timesteps"])
        self.sign, self.data_scale = 1.0, 1.0
        check_choice("prediction_type", config["prediction_type"], PREDICTION_TYPES)
        for name, allowed in _WORDS.items():
            check_choice(name, config[name], allowed)
        chosen = [n for n in ("karras", "exponential", "beta") if config[f"use_{n}_sigmas"]]
        if config["use_lu_lambdas"]:
            chosen.append("exponential")
        if len(set(chosen)) > 1:
            raise ValueError(
                "use_karras_sigmas, use_exponential_sigmas (use_lu_lambdas), use_beta_sigmas: "
                f"choose one, got {', '.join(chosen)}"
            )
        self.curve = chosen[0] if chosen else None
        kind = config["prediction_type"]
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
            self.process = preconditioned(scale, float(low), float(high))
            self.prediction, self.data_scale = "v", scale
            self.sign = -1.0 if kind == "epsilon" else 1.0
        elif kind == "flow_prediction" or config["use_flow_sigmas"]:
            self.family, self.process = "flow", FlowMatching()
            self.sign = -1.0 if config["invert_sigmas"] else 1.0
        else:
            self.family, self.process = "vp", discrete(config)
            self.count = int(self.process.t_max) + 1

    def told(self, times: Array) -> Array:
        """The model's times for process times: the kind and shape of ``times``, float64."""
        xp, times = namespace(times)
        if self.family == "flow":
            return (1.0 - times if self.sign < 0 else times) * self.count
        if self.family == "vp":
            return times
        if self.config["arctan_timesteps"]:
            return 2.0 / math.pi * xp.arctan(times)
        with np.errstate(divide="ignore"):
            return 0.25 * xp.log(times)

    def times(self, told: Array) -> Array:
        """The process times for the model's times: the inverse of :meth:`told`, float64."""
        xp, told = namespace(told)
        if self.family == "flow":
            return 1.0 - told / self.count if self.sign < 0 else told / self.count
        if self.family == "vp":
            return told
        return xp.tan(told * math.pi / 2) if self.config["arctan_timesteps"] else xp.exp(4.0 * told)

    def trained(self) -> np.ndarray:
        """Process times from noise to data at which the model was trained, before any grid.

        For EDM, whose training is continuous, a grid of ``num_train_timesteps``.

        Returns
        -------
        ndarray
            (num_train_timesteps,), float64, decreasing.
        """
        if self.family == "vp":
            return np.arange(self.count - 1.0, -1.0, -1.0)
        return np.array(LevelGrids(self).trained())

    def grid(
        self,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        distilled: tuple[int, float] | None = None,
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
        distilled
            Number of timesteps of a distillation, and the part of them to use, in the place of all
            of the configuration's (``timestep_layout="lcm"``).

        Returns
        -------
        list of float
            ``steps`` + 1 times, decreasing.

        Raises
        ------
        ValueError
            For arguments that do not fit each other or the configuration.
        """
        return LevelGrids(self).grid(steps, timesteps, sigmas, mu, distilled)
