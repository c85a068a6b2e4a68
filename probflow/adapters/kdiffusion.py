"""probflow's solvers as sampling functions in the manner of k-diffusion.

Front ends built on k-diffusion call ``sample_fn(model, x, sigmas, ...)`` with a model that returns
the denoised state. :func:`sample` makes such a function of a solver; k-diffusion is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import inf, log
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.adapters import solver_with_plan
from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.integrate.noise import GeneratorNoise, SeededNoise
from probflow.integrate.walk import PlanWalk
from probflow.models import check_output, time_dtype
from probflow.plan import Plan
from probflow.processes import EDM, Process
from probflow.solvers import Solver, get_solver
from probflow.solvers.last_step import plan_to_data
from probflow.words import check_hook, check_whole, dictionary, near, no_option

__all__ = ["STOCK", "sample"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


_CHURN = {"s_churn": "S_churn", "s_tmin": "S_tmin", "s_tmax": "S_tmax", "s_noise": "S_noise"}
_CHURNED = {"S_churn": 0.0, "S_tmin": 0.0, "S_tmax": inf, "S_noise": 1.0}

#: k-diffusion's functions: the solver and options with their numbers.
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "sample_euler": ("edm-churn", {**_CHURNED, "method": "euler"}),
    "sample_heun": ("edm-churn", {**_CHURNED, "method": "heun"}),
    "sample_dpm_2": ("edm-churn", {**_CHURNED, "method": "dpm2"}),
    "sample_euler_ancestral": ("euler-ancestral", {}),
    "sample_dpm_2_ancestral": ("dpm2-ancestral", {}),
    "sample_lms": ("lms-4", {"start": "euler"}),
    "sample_dpm_fast": ("dpm-solver-fast-ancestral", {"eta": 0.0}),
    "sample_dpmpp_2s_ancestral": ("dpm-solver++-2s-ancestral", {}),
    "sample_dpmpp_sde": ("dpm-solver++-sde-stock", {}),
    "sample_dpmpp_2m": ("dpm-solver++-2m", {}),
    "sample_dpmpp_2m_sde": ("sde-dpm-solver++-2m", {}),
    "sample_dpmpp_3m_sde": (
        "sde-dpm-solver++-3m",
        {"factor": 1.0, "solver_type": "heun", "start": "euler"},
    ),
}


def sample(name: Any, *, process: Process | None = None, **options: Any) -> Callable[..., Tensor]:
    """A sampling function of k-diffusion's signature that runs a solver of probflow.

    Parameters
    ----------
    name
        A solver of :func:`probflow.solver_names`, which has k-diffusion's short names as well
        (``"dpmpp_2m"``); or a function of k-diffusion (``"sample_dpmpp_2m"``), which gives that
        function's numbers, see :data:`STOCK`.
    process
        A process whose time is the sigma that the model is told: by default :class:`probflow.EDM`,
        with states ``x0 + sigma eps``; :class:`probflow.FlowMatching` for models of flows, with
        states ``(1 - sigma) x0 + sigma eps``.
    options
        Options of the solver; of a function of k-diffusion its arguments (``s_churn``, ``eta``,
        ``order`` of LMS).

    Returns
    -------
    Callable
        ``sample_fn(model, x, sigmas, extra_args=None, callback=None, disable=None,
        noise_sampler=None, seed=None, generator=None, **options)``, see below; for
        ``"sample_dpm_fast"`` with ``sigma_min, sigma_max, n`` in the place of ``sigmas``, as there.

    Raises
    ------
    TypeError
        For an option that is not a number where one is due.
    ValueError
        For an unknown solver, with near names, or option, or a method with adaptive steps. The
        function raises ``NonFiniteError`` that names step and sigma of the model's first NaN.

    Notes
    -----
    ``model(x, sigma, **extra_args)`` returns the denoised x, with sigma of shape (batch,).
    ``sigmas`` strictly decrease; the last one may be 0, and then
    :func:`probflow.solvers.last_step.plan_to_data` says what the last step is. ``callback`` gets a
    dictionary with ``x``, ``i``, ``sigma``, ``sigma_hat`` (where the model was evaluated) and
    ``denoised`` after the first evaluation of every step. Stochastic solvers draw from
    ``noise_sampler(sigma, sigma_next)``, from a seed (sample i is the same for every batch size),
    from a generator, or from torch's global one. As in k-diffusion, the noise sampler is asked only
    where ``sigma_next > 0``, because trees begin at the least positive sigma. What it returns for
    ``"sample_dpmpp_sde"`` must be increments of one path: both parts of a step are asked, where
    k-diffusion asks a part and the whole. Only churn has noise in a step to 0; that comes from
    torch's global generator, as all churn does there. ``options`` of the call replace those of
    :func:`sample`. The result has the dtype of ``x``; half precision is computed in float32.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> sample_fn = pf.kdiffusion.sample("dpm-solver++-2m")
    >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
    >>> x = sample_fn(lambda x, sigma: 0 * x + 2.0, 10 * torch.ones(4, 3), sigmas, disable=True)
    >>> bool((x == 2).all())
    True
    """
    chosen = _chosen(name, options)
    levels = EDM() if process is None else process
    if not isinstance(levels, Process):
        raise TypeError(f"process: need a process of probflow, got {process!r}")

    def sample_fn(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        _check_arguments(model, x, callback, noise_sampler, generator)
        kwargs = dictionary(extra_args, "extra_args")
        times = _times(sigmas)
        solver = _with_options(name, chosen, options)
        plan = plan_to_data(solver, levels, times, "x0")
        wide = torch.promote_types(x.dtype, torch.float32)
        draw = _source(plan, x.to(wide), noise_sampler, seed, generator)
        walk = PlanWalk(plan)
        state = walk.begin(x.to(wide), draw).to(x.dtype)
        calls = [stage.time for step in plan.steps for stage in step.stages]
        finite = [torch.isfinite(x).all()]  # looked at in the end only, where a run fails
        told = torch.tensor(calls, dtype=time_dtype(x.dtype), device=x.device)
        with torch.no_grad(), tqdm(total=len(plan.steps), disable=disable) as bar:
            for sigma in told:
                number, first = walk.step, walk.stage == 0
                denoised = model(state, sigma.expand(len(x)), **kwargs)
                check_output(denoised, state)
                finite.append(torch.isfinite(denoised).all())
                if callback is not None and first:
                    callback(
                        {
                            "x": state,
                            "i": number,
                            "sigma": sigmas[number],
                            "sigma_hat": sigma,
                            "denoised": denoised,
                        }
                    )
                state = walk.advance(state.to(wide), denoised.to(wide), draw).to(x.dtype)
                bar.update(walk.step - number)
        if not all_finite(state):
            raise NonFiniteError(f"{plan.solver}: NaN or infinity in {_failure(plan, finite)}")
        return state

    def sample_dpm_fast(
        model: Callable[..., Tensor],
        x: Tensor,
        sigma_min: float,
        sigma_max: float,
        n: int,
        *arguments: Any,
        **options: Any,
    ) -> Tensor:
        numbers = isinstance(sigma_min, Real) and isinstance(sigma_max, Real)
        if not (numbers and 0 < sigma_min < sigma_max < inf):
            raise ValueError(
                f"sigma_min, sigma_max: need 0 < min < max, got {sigma_min}, {sigma_max}"
            )
        check_whole("n", n, 1)
        ends = log(sigma_max), log(sigma_min)
        sigmas = torch.linspace(*ends, n // 3 + 2, dtype=torch.float64).exp()
        sigmas[0], sigmas[-1] = sigma_max, sigma_min
        return sample_fn(model, x, sigmas, *arguments, remainder=n % 3, **options)

    if _canonical(name) == "sample_dpm_fast":
        return sample_dpm_fast
    sample_fn.__name__ = _canonical(name) if _canonical(name) in STOCK else f"sample_{chosen.name}"
    return sample_fn


def _times(sigmas: Any) -> list[float]:
    """The levels as floats; ``ValueError`` unless they strictly decrease and are not negative."""
    try:
        times = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").tolist()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"sigmas: need a tensor of numbers, got {sigmas!r}") from None
    flat = isinstance(times, list) and not any(isinstance(time, list) for time in times)
    if not flat or len(times) < 2 or any(not inf > a > b >= 0 for a, b in pairwise(times)):
        raise ValueError(
            f"sigmas: need at least 2 that strictly decrease and are not negative, got {times}"
        )
    return times


def _failure(plan: Plan, finite: list[Tensor]) -> str:
    """Where a run failed, by flags of the initial state and the model's outputs."""
    steps = enumerate(plan.steps)
    calls = [(number, stage.time) for number, step in steps for stage in step.stages]
    flags = torch.stack(finite).tolist()
    if all(flags):
        return "the final state, though the model's outputs were finite (overflow)"
    first = flags.index(False)
    if not first:
        return "the initial state x"
    number, sigma = calls[first - 1]
    return f"the model's output at step {number} of {len(plan.steps)}, sigma = {sigma:g}"


def _check_arguments(model: Any, x: Any, callback: Any, noise_sampler: Any, generator: Any) -> None:
    """Raise ``TypeError`` for what cannot be called, is no tensor, mapping or generator."""
    if not callable(model):
        raise TypeError(f"model: need a callable f(x, sigma), got {model!r}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
        raise TypeError(f"x: need a tensor of floats, shape (batch, ...), got {got}")
    check_hook("callback", callback, "a callable f(entry) or None")
    check_hook("noise_sampler", noise_sampler, "a callable f(sigma, sigma_next) or None")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: need a torch.Generator or None, got {generator!r}")


def _canonical(name: Any) -> str:
    """A name in k-diffusion's spelling; empty for a solver itself."""
    return name.strip().lower().replace("-", "_") if isinstance(name, str) else ""


def _chosen(name: Any, options: Mapping[str, Any]) -> Solver:
    """The solver of a name of ours or of k-diffusion's functions."""
    own = _canonical(name)
    if own in ("sample_dpm_adaptive", "dpm_adaptive"):
        raise ValueError(
            f"name: {name!r} chooses its steps while it runs; take pf.sample or pf.odeint with "
            "'dpm-solver-12' or 'dpm-solver-23', rtol and atol, and a pf.Model of your network"
        )
    if own in STOCK:
        found, fixed = STOCK[own]
        return _with_options(name, get_solver(found, **fixed), options)
    if own.startswith("sample_"):
        raise ValueError(
            f"name: no function of k-diffusion is named {name!r}{near(own, tuple(STOCK))}"
        )
    return solver_with_plan(name, options)


def _with_options(name: Any, solver: Solver, options: Mapping[str, Any]) -> Solver:
    """The solver with options in the spelling of whoever defines the name."""
    options, own = dict(options), _canonical(name)
    if own not in STOCK or not options:
        return solver.with_options(**options) if options else solver
    if own == "sample_lms" and "order" in options:
        order = options.pop("order")
        check_whole("order", order, 1, 4)
        solver = get_solver(f"lms-{order}", **({"start": "euler"} if order > 2 else {}))
    if solver.name == "edm-churn":
        unknown = sorted(set(options) - set(_CHURN))
        if unknown:
            raise ValueError(no_option(own, unknown[0], _CHURN))
        options = {_CHURN[key]: value for key, value in options.items()}
    return solver.with_options(**options)


def _drawn_every_step(plan: Plan, like: Tensor) -> Callable[[int], Tensor]:
    """Normals of torch's global generator, which k-diffusion asks where no churn is as well."""
    owners = [number for number, step in enumerate(plan.steps) for _ in step.noises]
    asked = 0

    def draw(number: int) -> Tensor:
        nonlocal asked
        while asked < owners[number]:
            asked += 1
            torch.randn_like(like)
        asked += 1
        return torch.randn_like(like)

    return draw


def _source(
    plan: Plan,
    like: Tensor,
    noise_sampler: NoiseSampler | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> Callable[[int], Tensor]:
    """Normals by their number in the plan."""
    given = [
        n
        for n, v in (("noise_sampler", noise_sampler), ("seed", seed), ("generator", generator))
        if v is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: give one of them")
    if noise_sampler is not None:
        ends = [interval for step in plan.steps for interval in step.noises]
        pairs = torch.tensor(ends, dtype=like.dtype, device=like.device)

        def draw(number: int) -> Tensor:
            if ends[number][1] == 0:
                return torch.randn_like(like)
            noise = noise_sampler(pairs[number, 0], pairs[number, 1])
            if not isinstance(noise, Tensor) or noise.shape != like.shape:
                got = tuple(noise.shape) if isinstance(noise, Tensor) else repr(noise)
                raise ValueError(
                    f"noise_sampler: must return a tensor of shape {tuple(like.shape)}, "
                    f"returned {got}"
                )
            return noise.to(like.dtype)

        return draw
    if plan.solver == "edm-churn" and seed is None and generator is None:
        return _drawn_every_step(plan, like)
    if seed is not None:
        seeded = SeededNoise(seed, like.shape, like.dtype, like.device)
        seeded()  # the draw of the initial state
        return lambda number: seeded()
    if generator is not None:
        drawn = GeneratorNoise(generator, like.shape, like.dtype, like.device)
        return lambda number: drawn()
    return lambda number: torch.randn_like(like)
