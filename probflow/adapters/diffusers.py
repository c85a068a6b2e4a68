"""probflow's solvers as a scheduler of diffusers; public as ``probflow.diffusers``.

A plan is made once, in ``set_timesteps``, and ``step`` walks it one model call at a time. The state
is scaled as the model wants it (``init_noise_sigma`` is 1 and ``scale_model_input`` returns its
argument), so that pipelines that use neither are right as well.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import hypot, inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils import BaseOutput
except ImportError as error:
    raise ImportError(
        "probflow.diffusers needs diffusers: pip install 'probflow-solvers[diffusers]'"
    ) from error

from probflow.adapters.noise_levels import NoiseLevels
from probflow.adapters.noising import NoisingMixin
from probflow.adapters.scheduler_run import (
    SchedulerRun,
    before_call,
    calls_of,
    check_arguments,
    check_step,
    clipping,
    distillation,
    solver_of,
    tokens_at,
)
from probflow.adapters.stock_configs import arguments_of, compatibles, translated, with_stock_solver
from probflow.adapters.stock_solvers import STOCK
from probflow.integrate.noise import check_seed
from probflow.plan import Plan

__all__ = ["ProbflowScheduler", "ProbflowSchedulerOutput"]


@dataclass
class ProbflowSchedulerOutput(BaseOutput):
    """What :meth:`ProbflowScheduler.step` returns.

    Attributes
    ----------
    prev_sample : Tensor
        What the model is to be fed next, or the result.
    pred_original_sample : Tensor
        The model's prediction of the data at this call.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class ProbflowScheduler(NoisingMixin, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler that runs any solver of :func:`probflow.solver_names`.

    ``ProbflowScheduler.from_config(pipe.scheduler.config, solver=...)`` takes the noise process,
    the prediction type and the timesteps of the scheduler that a pipeline came with.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        The discrete noise schedule, as in diffusers, with the schedules ``linear``,
        ``scaled_linear``, ``squaredcos_cap_v2``, ``exp`` and ``sigmoid``. In float64.
    rescale_betas_zero_snr, snr_shift_scale
        Its changes: zero terminal SNR, where the last ``alphas_cumprod`` becomes 2^-24, and
        CogVideoX's shift.
    prediction_type
        ``"epsilon"``, ``"sample"``, ``"v_prediction"`` or ``"flow_prediction"``.
    solver
        Name of a solver, or a :class:`probflow.Solver`.
    solver_options
        Options of the solver. Where it has an option ``start``, the default here is ``"euler"``,
        which makes every step as many model calls as the others: img2img needs that.
    seed, first_sample
        Noise of stochastic solvers as a function of (seed, sample, draw), whatever the batch size;
        ``first_sample`` numbers the first sample of a batch. Without a seed the noise comes from
        the generator, or the list of them, that the pipeline passes on.
    timestep_spacing, steps_offset, timestep_layout
        ``"linspace"``, ``"leading"`` or ``"trailing"``, as in diffusers. Its schedulers differ in
        what they mean by it; ``timestep_layout`` says whose timesteps: ``"euler"`` (down to 0, not
        rounded; Heun, LMS, KDPM2 as well), ``"ddim"`` (down to 0, rounded; DDPM and PNDM as well),
        ``"dpm"`` (steps + 1 of them without the last; DEIS and SA-Solver as well), ``"unipc"``
        (which differs from ``"dpm"`` for flows), ``"lcm"`` (those of the distillation, see
        ``original_inference_steps``; TCD as well). ``from_config`` chooses it.
    original_inference_steps
        Number of timesteps that a consistency model was distilled at.
    use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas, use_beta_sigmas, rho
        Levels on that curve of sigma/alpha instead. The model is told exact, fractional timesteps.
    sigma_min, sigma_max
        Ends of that curve.
    final_sigmas_type, set_alpha_to_one
        The end of the last step: ``"zero"`` or ``"sigma_min"`` (timestep 0). Where it is ``None``,
        ``set_alpha_to_one=False`` means ``"sigma_min"``. Where the last timestep is that end
        already, there is one step more and the last timestep becomes the end.
    lambda_min_clipped
        Levels with a smaller log-SNR are left out.
    use_flow_sigmas, flow_shift, shift, use_dynamic_shifting, time_shift_type, shift_terminal, \
invert_sigmas, base_shift, max_shift, base_image_seq_len, max_image_seq_len
        Flow matching: ``flow_shift`` belongs to ``use_flow_sigmas``, ``shift`` to the rest. With
        ``use_dynamic_shifting``, ``set_timesteps`` needs ``mu``. With ``invert_sigmas`` (Mochi) the
        model is told times that rise, and predicts minus the velocity.
    sigma_data, sigma_schedule, timestep_type, arctan_timesteps
        EDM's preconditioning. ``timestep_type="continuous"`` with v-prediction is Stable Video
        Diffusion's (``sigma_data`` 1).
    clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value
        Clipping of the predicted data. It takes a solver off its order. ``from_config`` honours
        these only where the other configuration sets them itself: DDPM and DDIM clip by default.
    variance_type
        ``"learned"`` or ``"learned_range"``: a model's second half of channels is left out.

    Raises
    ------
    ValueError
        For an argument that makes no sense, naming it; an unknown solver with near names; a solver
        that chooses its steps while it runs or takes derivatives of the model.
    """

    _compatibles = compatibles()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        solver: Any = "dpm-solver++-2m",
        solver_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        first_sample: int = 0,
        timestep_spacing: str = "linspace",
        timestep_layout: str = "euler",
        steps_offset: int = 0,
        original_inference_steps: int = 50,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        rho: float = 7.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        final_sigmas_type: str | None = None,
        set_alpha_to_one: bool = True,
        lambda_min_clipped: float = -inf,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        sigma_data: float | None = None,
        sigma_schedule: str = "karras",
        timestep_type: str = "discrete",
        arctan_timesteps: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
    ) -> None:
        self._solver = solver_of(solver, solver_options)
        if not isinstance(solver, str):
            self.register_to_config(solver=self._solver.name, solver_options=self._solver.options)
        if seed is not None:
            check_seed(seed)
        check_seed(first_sample, "first_sample")
        self._configured = self.config
        self.noise_levels = NoiseLevels(dict(self.config))
        trained = self.noise_levels.trained()
        if self.noise_levels.family == "vp":
            neg_log_ab = self.noise_levels.process.neg_log_ab(trained[::-1])
            betas = -np.expm1(-np.diff(neg_log_ab, prepend=0.0))
            self.betas = torch.tensor(betas, dtype=torch.float32)
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = torch.tensor(np.exp(-neg_log_ab), dtype=torch.float32)
        self.num_inference_steps: int | None = None
        self._pairs: np.ndarray | None = None
        self._counted_in_calls = False
        self._tell(trained, np.append(trained, self.noise_levels.process.t_min))
        self._run: SchedulerRun | None = None
        self._index: int | None = None
        self._begin_index: int | None = None

    # Configurations ------------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler with the noise process, model and timesteps of another one's configuration.

        The other class's default values count as well (diffusers itself drops them, so that a
        change from Heun to DDPM changes the betas). With another ``solver``, options are dropped.
        ``solver="stock"`` is the one, with its options, that has the numbers of that scheduler.

        Parameters
        ----------
        config
            The configuration of a scheduler, stock or not.
        return_unused_kwargs
            Also return the arguments that are no part of a configuration, as in diffusers.
        kwargs
            Arguments of :class:`ProbflowScheduler` that replace those of ``config``.

        Returns
        -------
        ProbflowScheduler
            A new scheduler.

        Raises
        ------
        ValueError
            For a scheduler whose noise process is not known, or an argument that does not exist;
            for ``"stock"`` where no solver has the numbers, naming the option that is in the way.
        """
        hidden: dict[str, Any] = {}
        if isinstance(config, Mapping):
            known = set(arguments_of(ProbflowScheduler))
            if kwargs.get("solver") == STOCK:
                kwargs = with_stock_solver(config, known, kwargs)
            config, hidden = translated(config, known)
        unknown = sorted(set(kwargs) - set(arguments_of(cls)))
        if unknown:
            raise ValueError(f"from_config: ProbflowScheduler has no argument {unknown[0]!r}")
        if isinstance(config, dict) and kwargs.get("solver") not in (None, config.get("solver")):
            config.pop("solver_options", None)  # they belong to the other solver
        made = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        scheduler.register_to_config(**hidden)
        return made

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # The plan ------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Make the plan. Afterwards ``timesteps`` has one entry for each model call.

        Parameters
        ----------
        num_inference_steps
            Number of steps.
        device
            Of ``timesteps``.
        timesteps
            Timesteps at which steps start, decreasing, instead of a number; may be fractional.
        sigmas
            Levels sigma/alpha instead, with the end of the last step as the last of them; for
            flows, sigma (before the shift) at the starts of the steps. Flow models that are told
            other times than their levels, as CogView4, get both; between the steps' starts the
            times are linear in the levels.
        mu
            Exponent of the shift, with ``use_dynamic_shifting``.
        original_inference_steps, strength
            As pipelines of latent consistency models give them: number of timesteps of the
            distillation, by default the configuration's, and the part of them to use, in (0, 1].

        Raises
        ------
        ValueError
            For values that do not fit each other or the configuration.
        """
        if self._configured is not self.config:  # pipelines change it: steps_offset, clip_sample
            self._configured, self.noise_levels = self.config, NoiseLevels(dict(self.config))
        distilled = None
        if original_inference_steps is not None or strength != 1.0:
            distilled = distillation(self.config, original_inference_steps, strength)
            if timesteps is not None:
                timesteps = timesteps[len(timesteps) - int(len(timesteps) * strength) :]
        times = self.noise_levels.grid(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu, distilled=distilled
        )
        self.num_inference_steps = len(times) - 1
        self._counted_in_calls = num_inference_steps is None
        self._run = SchedulerRun(self.noise_levels, self._solver, times)
        calls = np.array(calls_of(self._run.whole))
        self._pairs = None
        if timesteps is not None and sigmas is not None:
            self._pairs = np.array([times[::-1], [0.0, *map(float, reversed(list(timesteps)))]])
        self._tell(calls, np.append(calls, times[-1]), device)
        self._index = self._begin_index = None

    def _tell(self, calls: np.ndarray, levels: np.ndarray, device: Any = None) -> None:
        """Set ``timesteps`` for model calls at process times, and ``sigmas`` for levels."""
        told = self._told_at(calls)
        whole = self.noise_levels.family == "vp" and bool((told == told.round()).all())
        self.timesteps = torch.tensor(
            told, dtype=torch.int64 if whole else torch.float32, device=device
        )
        self._told = told.tolist()
        process = self.noise_levels.process
        sigma = process.sigma(levels)
        if self.noise_levels.family != "flow":
            sigma = sigma / process.alpha(levels) * self.noise_levels.data_scale
        self.sigmas = torch.tensor(sigma, dtype=torch.float32)

    def _told_at(self, times: np.ndarray) -> np.ndarray:
        """What the model is told at process times."""
        if self._pairs is None:
            return self.noise_levels.told(times)
        return np.interp(times, *self._pairs)

    def _made(self) -> SchedulerRun:
        if self._run is None:
            raise ValueError("timesteps: there are none yet; call set_timesteps first")
        return self._run

    @property
    def plan(self) -> Plan:
        """The plan of the timesteps from ``begin_index`` on.

        Raises
        ------
        ValueError
            Before :meth:`set_timesteps`.
        """
        return self._made().plan

    @property
    def order(self) -> int:
        """Model calls of a step (the last one may have fewer), as pipelines count them.

        1 where :meth:`set_timesteps` was given levels and no number: they count in calls then.
        """
        if self._run is None:
            return self._solver.nfe
        return 1 if self._counted_in_calls else self._run.calls_of_step

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the model's first input: 1, unless a step begins with a change."""
        return 1.0 if self._run is None else hypot(*before_call(self._run.whole.steps[0]))

    @property
    def step_index(self) -> int | None:
        """Number of the next model call, once the first is made."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """Number of the model call with which a pipeline begins."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with a later step, as img2img does: a new plan for the rest of the grid.

        Parameters
        ----------
        begin_index
            Number of the model call with which that step begins.

        Raises
        ------
        ValueError
            If no step begins with that model call, or the rest would need other calls than those
            in ``timesteps``.
        TypeError
            If it is no whole number.
        """
        try:
            first = operator.index(begin_index)
        except TypeError:
            raise TypeError(f"begin_index: need a whole number, got {begin_index!r}") from None
        if self._run is not None:
            self._run = copy(self._run)
            self._run.begin(first)
        self._begin_index, self._index = first, None

    # Steps ---------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is: the state is scaled as the model wants it.

        Raises
        ------
        ValueError
            For a level in the place of a sample: such a pipeline computes with another scale.
        """
        if sample.ndim == 0:
            raise ValueError(
                "sample: got a 0-d tensor; the pipeline computes with states x0 + sigma eps of its "
                "own scheduler, and those here are scaled as the model wants them"
            )
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        per_token_timesteps: Tensor | None = None,
        **others: Any,
    ) -> ProbflowSchedulerOutput | tuple[Tensor, ...]:
        """From a model call to the next model input.

        Parameters
        ----------
        model_output
            What the model returned, shape of ``sample`` (or twice its channels, see
            ``variance_type``).
        timestep
            The next of ``timesteps``; the first call may be that of any step. On a GPU it is looked
            at in the first call only, without ``set_begin_index``.
        sample
            What the model was fed, (batch, ...): changes that a pipeline makes count.
        generator
            One, or one for each sample, for stochastic solvers without a seed; by default torch's
            global one.
        return_dict
            ``False`` returns a tuple of the sample; with timesteps of a distillation also of the
            data predicted, which is the result at the end.
        eta
            DDIM's: must be 0, because the solver decides on noise.
        per_token_timesteps
            Timesteps of the tokens, (batch, tokens), for samples (batch, tokens, ...): a token at
            another timestep than ``timestep`` stays as it is. As in
            ``FlowMatchEulerDiscreteScheduler``, ``model_output`` is minus the velocity then.
        others
            Arguments of other schedulers, at values that change nothing.

        Returns
        -------
        ProbflowSchedulerOutput or tuple of Tensor
            ``prev_sample``, the next model input, and ``pred_original_sample``, the predicted data,
            both of the sample's shape and dtype.

        Raises
        ------
        ValueError
            If shapes differ, ``timestep`` is not the next one, all calls are made, or an argument
            of another scheduler would change its step.
        TypeError
            If ``model_output`` or ``sample`` is no tensor, ``generator`` no generator, or an
            argument is not known.
        """
        check_arguments({"eta": eta, **others})
        check_step(model_output, sample, generator)
        if str(self.config.variance_type).startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output: must have the sample's shape {tuple(sample.shape)}, got "
                f"{tuple(model_output.shape)}"
            )
        self._run = run = copy(self._made())  # copies of the scheduler keep their place
        first = self._begin_index if self._index is None else self._index
        index = run.next_call(timestep, self._told, first)
        wide = torch.promote_types(sample.dtype, torch.float32)
        fed, output = sample.to(wide), model_output.to(wide)
        if (self.noise_levels.sign < 0) != (per_token_timesteps is not None):
            output = -output
        clip, x0 = clipping(self.config), None
        pair = self.config.timestep_layout == "lcm" and not return_dict
        if return_dict or clip is not None or pair:
            output, x0 = run.clipped(fed, output, clip)
        result = run.advance(fed, output, lambda number: self._noise(number, fed, generator))
        if per_token_timesteps is not None:
            here = tokens_at(per_token_timesteps, self._told[index], sample.ndim)
            result = torch.where(here, result, fed)
        self._index = index + 1
        result = result.to(sample.dtype)
        x0 = None if x0 is None else x0.to(sample.dtype)
        if pair:
            return (result, result if run.walk.over or x0 is None else x0)
        return ProbflowSchedulerOutput(result, x0) if return_dict else (result,)


# The public path is what a saved pipeline names.
ProbflowScheduler.__module__ = ProbflowSchedulerOutput.__module__ = "probflow.diffusers"
