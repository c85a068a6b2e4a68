"""probflow's solvers as a scheduler of diffusers; public as ``probflow.diffusers``.

A plan is made once, in ``set_timesteps``, and ``step`` walks it one model call at a time. The state
is scaled as the model wants it (``init_noise_sigma`` is 1 and ``scale_model_input`` returns its
argument), so that pipelines that use neither are right as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import hypot, inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import diffusers
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        "probflow.diffusers needs diffusers: pip install 'probflow-solvers[diffusers]'"
    ) from error

from probflow.adapters import solver_with_plan
from probflow.adapters.guidance import conditions_of, model_of
from probflow.adapters.noise_levels import NoiseLevels
from probflow.integrate.noise import check_seed, normals, sample_indices
from probflow.integrate.walk import PlanWalk
from probflow.models import Model
from probflow.plan import Plan, Point, Register, Step, conversion
from probflow.processes import EDM
from probflow.solvers import Solver
from probflow.solvers.last_step import plan_to_data

__all__ = ["ProbflowScheduler", "ProbflowSchedulerOutput", "from_pipeline", "from_unet"]

# Whose timesteps a stock scheduler makes; the first words of its class name.
_STOCK_LAYOUTS = {
    **dict.fromkeys(("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE", "EDM", "Cosine"), "euler"),
    **dict.fromkeys(("FlowMatch", "LTXEuler"), "euler"),
    **dict.fromkeys(
        ("DDIM", "DDPM", "PNDM", "LCM", "TCD", "UnCLIP", "CogVideoX", "RePaint"), "ddim"
    ),
    **dict.fromkeys(("DPMSolverMultistep", "DPMSolverSinglestep", "DEIS", "SASolver"), "dpm"),
    "UniPC": "unipc",
}
_FLOWS = ("FlowMatch", "LTXEuler")
_REFUSED = ("DDPMWuerstchen", "DDIMInverse", "DPMSolverMultistepInverse")


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


class ProbflowScheduler(SchedulerMixin, ConfigMixin):
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
        (which differs from ``"dpm"`` for flows). ``from_config`` chooses it.
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
base_shift, max_shift, base_image_seq_len, max_image_seq_len
        Flow matching: ``flow_shift`` belongs to ``use_flow_sigmas``, ``shift`` to the rest. With
        ``use_dynamic_shifting``, ``set_timesteps`` needs ``mu``.
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
        For an argument that makes no sense, naming it; an unknown solver with near names.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012

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
        self._solver = _chosen(solver, solver_options)
        if not isinstance(solver, str):
            self.register_to_config(solver=self._solver.name, solver_options=self._solver.options)
        if seed is not None:
            check_seed(seed)
        check_seed(first_sample, "first_sample")
        self.noise_levels = NoiseLevels(dict(self.config))
        if self.noise_levels.family == "vp":
            times = np.arange(self.noise_levels.count, dtype=np.float64)
            neg_log_ab = self.noise_levels.process.neg_log_ab(times)
            betas = -np.expm1(-np.diff(neg_log_ab, prepend=0.0))
            self.betas = torch.tensor(betas, dtype=torch.float32)
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = torch.tensor(np.exp(-neg_log_ab), dtype=torch.float32)
            self.timesteps = torch.arange(self.noise_levels.count).flip(0)
        self.num_inference_steps: int | None = None
        self._times: list[float] = []
        self._plan: Plan | None = None
        self._walk: PlanWalk | None = None
        self._index: int | None = None
        self._begin_index: int | None = None

    # Configurations ------------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler with the noise process, model and timesteps of another one's configuration.

        Values that the other class has by default count as well (diffusers itself drops them, so
        that a change from Heun to DDPM changes the betas).

        Raises
        ------
        ValueError
            For a scheduler whose noise process is not known, or an argument that does not exist.
        """
        if isinstance(config, Mapping):
            config = _translated(config)
        unknown = sorted(set(kwargs) - set(_arguments(cls)))
        if unknown:
            raise ValueError(f"from_config: ProbflowScheduler has no argument {unknown[0]!r}")
        return super().from_config(config, return_unused_kwargs, **kwargs)

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
            flows, sigma (before the shift) at the starts of the steps.
        mu
            Exponent of the shift, with ``use_dynamic_shifting``.

        Raises
        ------
        ValueError
            For values that do not fit each other or the configuration.
        """
        self._times = self.noise_levels.grid(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu
        )
        self.num_inference_steps = len(self._times) - 1
        self._plan = self._planned(self._times)
        self._times[0] = self._plan.times[0]
        calls = np.array(_calls(self._plan))
        told = self.noise_levels.told(calls)
        whole = self.noise_levels.family == "vp" and bool((told == told.round()).all())
        self.timesteps = torch.tensor(
            told, dtype=torch.int64 if whole else torch.float32, device=device
        )
        levels = np.append(calls, self._times[-1])
        process = self.noise_levels.process
        sigma = process.sigma(levels)
        if self.noise_levels.family != "flow":
            sigma = sigma / process.alpha(levels) * self.noise_levels.data_scale
        self.sigmas = torch.tensor(sigma, dtype=torch.float32)
        self._index = self._begin_index = None
        self._begin(self._plan)

    def _planned(self, times: Sequence[float]) -> Plan:
        levels = self.noise_levels
        return plan_to_data(self._solver, levels.process, times, levels.prediction)

    def _begin(self, plan: Plan) -> None:
        """Start a walk, with the weights that give x0 at each of its calls."""
        self._walk = PlanWalk(plan)
        levels = self.noise_levels
        points = Point.many(levels.process, _calls(plan))
        self._to_x0 = [
            tuple(map(float, conversion(levels.process, levels.prediction, "x0", p)))
            for p in points
        ]
        self._from_x0 = [
            tuple(map(float, conversion(levels.process, "x0", levels.prediction, p)))
            for p in points
        ]

    @property
    def plan(self) -> Plan:
        """The plan of the timesteps from ``begin_index`` on.

        Raises
        ------
        ValueError
            Before :meth:`set_timesteps`.
        """
        self._made()
        assert self._walk is not None
        return self._walk.plan

    @property
    def order(self) -> int:
        """Model calls of a step (the last one may have fewer)."""
        steps = () if self._plan is None else self._plan.steps
        return len(steps[-2].stages) if len(steps) > 1 else self._solver.nfe

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the model's first input: 1, unless a step begins with a change."""
        factor, added = (1.0, 0.0) if self._plan is None else _before_call(self._plan.steps[0])
        return hypot(factor, added)

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

        Raises
        ------
        ValueError
            If no step begins with that model call, or the rest would need other calls than those
            in ``timesteps``.
        """
        self._begin_index, self._index = int(begin_index), None
        if self._plan is not None:
            self._begin(self._rest(self._begin_index))

    def _firsts(self) -> list[int]:
        """Numbers of the model calls with which steps begin."""
        steps = self._made().steps
        return list(accumulate((len(step.stages) for step in steps[:-1]), initial=0))

    def _rest(self, begin: int) -> Plan:
        """The plan of the steps from model call ``begin`` on."""
        plan, firsts = self._made(), self._firsts()
        if begin == 0:
            return plan
        if begin in firsts:
            rest = self._planned(self._times[firsts.index(begin) :])
            if _calls(rest) == _calls(plan)[begin:]:
                return rest
        raise ValueError(
            f"begin_index: {plan.solver} with these options cannot begin with model call {begin}, "
            f"because not all of its steps make {self.order} calls, or no step begins there; take "
            "a solver with as many calls in each step (start='euler', or accelerated-ode-multistep "
            "in the place of accelerated-ode)"
        )

    def _made(self) -> Plan:
        if self._plan is None:
            raise ValueError("timesteps: there are none yet; call set_timesteps first")
        return self._plan

    # Steps ---------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is: the state is scaled as the model wants it."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        **ignored: Any,
    ) -> ProbflowSchedulerOutput | tuple[Tensor]:
        """From a model call to the next model input.

        Parameters
        ----------
        model_output
            What the model returned, shape of ``sample`` (or twice its channels, see
            ``variance_type``).
        timestep
            Looked at in the first call only, and only if ``set_begin_index`` was not called.
        sample
            What the model was fed, (batch, ...): changes that a pipeline makes count.
        generator
            One, or one for each sample, for stochastic solvers without a seed; by default torch's
            global one.
        return_dict
            ``False`` returns a tuple of the sample.
        eta
            DDIM's: must be 0, because the solver decides on noise.
        ignored
            Arguments of other schedulers.

        Raises
        ------
        ValueError
            If shapes differ, ``timestep`` is none to begin with, or all calls are made.
        """
        self._made()
        if eta:
            raise ValueError(
                f"eta: got {eta}; choose a stochastic solver instead, and leave eta at 0"
            )
        if str(self.config.variance_type).startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output: must have the sample's shape {tuple(sample.shape)}, got "
                f"{tuple(model_output.shape)}"
            )
        if self._index is None:
            self._start(timestep)
        walk = self._walk
        assert walk is not None
        assert self._index is not None
        if walk.over:
            raise ValueError("step: all model calls of the plan are made; call set_timesteps again")
        wide = torch.promote_types(sample.dtype, torch.float32)
        fed, output = sample.to(wide), model_output.to(wide)
        if self.noise_levels.sign < 0:
            output = -output
        output, x0 = self._clipped(fed, output, wanted=return_dict)
        result = walk.advance(fed, output, lambda number: self._noise(number, fed, generator))
        if walk.over:
            result = result * self.noise_levels.data_scale
        self._index += 1
        result = result.to(sample.dtype)
        if not return_dict:
            return (result,)
        return ProbflowSchedulerOutput(result, None if x0 is None else x0.to(sample.dtype))

    def _start(self, timestep: Any) -> None:
        """Find out with which call the pipeline begins."""
        if self._begin_index is not None:
            self._index = self._begin_index
            return
        first, told = float(timestep), self.timesteps.tolist()
        close = [i for i in self._firsts() if abs(told[i] - first) <= 1e-5 * max(1.0, abs(first))]
        if not close:
            raise ValueError(
                f"timestep: no step begins at {first:g}; the scheduler's timesteps begin with "
                f"{told[0]:g}"
            )
        if close[0]:
            self._begin(self._rest(close[0]))
        self._index = close[0]

    def _clipped(self, fed: Tensor, output: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """The output after clipping of the data it predicts, and that data."""
        config, begin = self.config, len(self.timesteps) - len(self._to_x0)
        assert self._index is not None
        number = self._index - begin
        if not (config.clip_sample or config.thresholding or wanted):
            return output, None
        of_input, of_output = self._to_x0[number]
        scale = self.noise_levels.data_scale
        x0 = (of_input * scale) * fed + (of_output * scale) * output
        if config.thresholding:
            flat = x0.flatten(1).abs()
            bound = torch.quantile(flat, config.dynamic_thresholding_ratio, dim=1)
            bound = bound.clamp(1.0, config.sample_max_value).view(-1, *(1,) * (x0.ndim - 1))
            x0 = x0.clamp(-bound, bound) / bound
        elif config.clip_sample:
            x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
        else:
            return output, x0
        of_input, of_output = self._from_x0[number]
        return of_input * fed + (of_output / scale) * x0, x0

    def _noise(self, number: int, like: Tensor, generator: Any) -> Tensor:
        if self.config.seed is None:
            return randn_tensor(
                like.shape, generator=generator, device=like.device, dtype=like.dtype
            )
        return self._seeded(number + 1, like.shape, like.dtype, like.device)

    def _seeded(self, draw: int, shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
        samples = sample_indices(self.config.first_sample, shape[0], device)
        draws = torch.full((1,), draw, device=device)
        count = int(np.prod(shape[1:]))
        return normals(self.config.seed, samples, draws, count, dtype).view(shape)

    def initial_noise(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Unit normals of the seed, to pass to a pipeline as ``latents``.

        Sample i is the same for every batch size, and the same as in :func:`probflow.sample`.

        Raises
        ------
        ValueError
            If the scheduler has no seed.
        """
        if self.config.seed is None:
            raise ValueError("seed: the scheduler has none; make it with seed=...")
        wide = torch.promote_types(dtype, torch.float32)
        return self._seeded(0, tuple(shape), wide, device).to(dtype)

    # Noising -------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha x0 + sigma noise`` at timesteps, which may be fractional, shape (batch,) or (1,).

        Where solvers change the state before they call the model, the result is at the level of
        what they call it with.
        """
        alpha, sigma = self._alpha_sigma(timesteps, original_samples)
        walk = self._walk
        if walk is not None and self._begin_index is not None and not (walk.over or walk.stage):
            step = walk.plan.steps[walk.step]
            factor, added = _before_call(step)
            if (factor, added) != (1.0, 0.0):
                alpha, sigma = (
                    torch.full_like(alpha, factor * float(level(step.start)))
                    for level in (self.noise_levels.process.alpha, self.noise_levels.process.sigma)
                )
                sigma = (sigma**2 + added**2) ** 0.5
        return alpha / self.noise_levels.data_scale * original_samples + sigma * noise

    def _alpha_sigma(self, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps, shape (batch, 1, ...), computed in float64."""
        told = torch.as_tensor(timesteps, device=like.device)
        times = self.noise_levels.times(told).reshape(-1, *(1,) * (like.ndim - 1))
        process = self.noise_levels.process
        return process.alpha(times).to(like.dtype), process.sigma(times).to(like.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor | None = None) -> Tensor:
        """:meth:`add_noise` as pipelines of flow models call it."""
        if noise is None:
            raise ValueError("noise: give the noise to add")
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha noise - sigma sample`` at timesteps: the target of v-prediction."""
        alpha, sigma = self._alpha_sigma(timesteps, sample)
        return alpha * noise - sigma * sample


# The public path is what a saved pipeline names.
ProbflowScheduler.__module__ = ProbflowSchedulerOutput.__module__ = "probflow.diffusers"


def _calls(plan: Plan) -> list[float]:
    """Process times of the model calls."""
    return [stage.time for step in plan.steps for stage in step.stages]


def _before_call(step: Step) -> tuple[float, float]:
    """What a step does to its state before the first model call: factor, and noise added.

    The state that pipelines hold is the one after that, because they feed it to the model.
    """
    combination = step.stages[0].input
    factor = sum(weight for register, weight in combination if register == Register("x"))
    return factor, sum(w**2 for register, w in combination if register.kind == "z") ** 0.5


def _chosen(solver: Any, options: Mapping[str, Any] | None) -> Solver:
    found = solver_with_plan(solver, options)
    if "start" in found.options and "start" not in (options or {}) and isinstance(solver, str):
        euler = found.with_options(start="euler")
        with suppress(ValueError):  # some have other starts only
            euler.plan(EDM(), [3.0, 2.0, 1.0])
            return euler
    return found


@cache
def _stock_by_arguments() -> dict[frozenset[str], str]:
    """Names of diffusers' schedulers by the names of their arguments; kin share them."""
    found: dict[frozenset[str], str] = {}
    supported = tuple(_STOCK_LAYOUTS)
    for name in sorted(dir(diffusers.schedulers), key=lambda n: (not n.startswith(supported), n)):
        if name.endswith("Scheduler") and inspect.isclass(stock := getattr(diffusers, name, None)):
            found.setdefault(frozenset(_arguments(stock)), name)
    return found


def _arguments(scheduler: type) -> dict[str, Any]:
    """Arguments of a scheduler with their defaults."""
    parameters = list(inspect.signature(scheduler.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Another scheduler's configuration in the arguments of :class:`ProbflowScheduler`."""
    config = dict(config)
    known = set(_arguments(ProbflowScheduler))
    keys = frozenset(key for key in config if not key.startswith("_"))
    # A scheduler that was never saved or loaded does not say its class.
    name = config.get("_class_name") or _stock_by_arguments().get(keys)
    by_default = set(config.pop("_use_default_values", ()))
    if name == ProbflowScheduler.__name__ or (name is None and keys <= known):
        return config
    name = str(name)
    layouts = [word for word in _STOCK_LAYOUTS if name.startswith(word)]
    if name.startswith(_REFUSED) or not (layouts or "beta_schedule" in config):
        raise ValueError(
            f"config: the noise process of {name} is not known here; give ProbflowScheduler its "
            f"trained_betas, or its prediction_type and shift, yourself (got {sorted(keys)})"
        )
    stock = getattr(diffusers, name, None)
    for key, value in ({} if stock is None else _arguments(stock)).items():
        if key not in config:
            config[key] = value
            by_default.add(key)
    for clipping in ("clip_sample", "thresholding"):
        if clipping in by_default:
            del config[clipping]
    if layouts:
        config["timestep_layout"] = _STOCK_LAYOUTS[max(layouts, key=len)]
    if name.startswith(_FLOWS):
        config["prediction_type"] = "flow_prediction"
    if name.startswith("Cosine"):
        config["arctan_timesteps"] = True
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas: models that run from data to noise are not supported")
    if config.get("interpolation_type", "linear") != "linear":
        raise ValueError("interpolation_type: only linear is supported")
    config = {key: value for key, value in config.items() if key in known and value is not None}
    return {**config, "_class_name": ProbflowScheduler.__name__}


def from_unet(
    unet: Any,
    scheduler: Any,
    *,
    guidance_scale: float = 1.0,
    unconditional: Mapping[str, Any] | None = None,
    batched: bool = True,
    **conditioning: Any,
) -> Model:
    """A network of diffusers as a :class:`probflow.Model`.

    For adaptive solvers (:func:`probflow.odeint`), likelihoods, encoding and studies. The model's
    process is that of the states that the network is fed: for a discrete schedule, time is the
    training index from ``num_train_timesteps - 1`` down to 0; for flows it is sigma. For EDM's
    networks, data is divided by ``sigma_data``.

    Parameters
    ----------
    unet
        The network, called as ``unet(x, timestep=t, **conditioning, return_dict=False)[0]``.
    scheduler
        Any scheduler with the noise process and prediction type, stock or not.
    guidance_scale
        Of classifier-free guidance; 1 is none.
    unconditional
        The conditioning's names with the values of the other branch, for guidance.
    batched
        Both branches in one call of twice the batch (the default), or in two calls.
    conditioning
        The network's other arguments, such as ``encoder_hidden_states``; tensors have a first
        dimension of 1 or the batch size.

    Raises
    ------
    TypeError, ValueError
        For a scheduler that is not known, or conditioning that does not fit.
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"scheduler: need one of diffusers, got {type(scheduler).__name__}")
    levels = ProbflowScheduler.from_config(scheduler.config).noise_levels
    return model_of(unet, levels, conditioning, unconditional, guidance_scale, batched)


def from_pipeline(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    guidance_scale: float = 1.0,
    negative_prompt: str | Sequence[str] | None = None,
    batched: bool = True,
    size: tuple[int, int] | None = None,
    **conditioning: Any,
) -> Model:
    """The network of a pipeline as a :class:`probflow.Model`, told what the pipeline would tell it.

    Prompts are encoded for pipelines like Stable Diffusion, Stable Diffusion XL and Stable
    Diffusion 3; for others use :func:`from_unet`.

    Parameters
    ----------
    pipe
        The pipeline, with a ``unet`` or a ``transformer``, and its scheduler.
    prompt, negative_prompt
        Texts: one, or one for each sample. A pipeline without prompts takes none.
    guidance_scale, batched, conditioning
        As in :func:`from_unet`.
    size
        Height and width of the picture in pixels, for Stable Diffusion XL; by default the largest.

    Raises
    ------
    TypeError, ValueError
        For a pipeline that is not known.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise TypeError(f"pipe: need one with a unet or a transformer, got {type(pipe).__name__}")
    guided = guidance_scale != 1.0
    texts, empty = conditions_of(pipe, network, prompt, negative_prompt, guided, size)
    unconditional = None if empty is None else {**empty, **conditioning}
    return from_unet(
        network,
        pipe.scheduler,
        guidance_scale=guidance_scale,
        unconditional=unconditional if guided else None,
        batched=batched,
        **texts,
        **conditioning,
    )
