"""probflow's solvers as sampling functions in the manner of k-diffusion.

Front ends built on k-diffusion call ``sample_fn(model, x, sigmas, ...)`` with a model that returns
the denoised state. :func:`sample` makes such a function of a solver; k-diffusion is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.adapters import solver_with_plan
from probflow.integrate.noise import GeneratorNoise, SeededNoise
from probflow.integrate.walk import PlanWalk
from probflow.models import check_output, time_dtype
from probflow.processes import EDM, Process
from probflow.solvers.last_step import plan_to_data

__all__ = ["sample"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sample(name: Any, *, process: Process | None = None, **options: Any) -> Callable[..., Tensor]:
    """A sampling function of k-diffusion's signature that runs a solver of probflow.

    Parameters
    ----------
    name
        A solver of :func:`probflow.solver_names`.
    process
        A process whose time is the sigma that the model is told: by default :class:`probflow.EDM`,
        with states ``x0 + sigma eps``; :class:`probflow.FlowMatching` for models of flows, with
        states ``(1 - sigma) x0 + sigma eps``.
    options
        Options of the solver.

    Returns
    -------
    Callable
        ``sample_fn(model, x, sigmas, extra_args=None, callback=None, disable=None,
        noise_sampler=None, seed=None, generator=None)``, see below.

    Raises
    ------
    ValueError
        For an unknown solver, with near names, or option, or a method with adaptive steps.

    Notes
    -----
    ``model(x, sigma, **extra_args)`` returns the denoised x, with sigma of shape (batch,).
    ``sigmas`` strictly decrease; the last one may be 0, and then
    :func:`probflow.solvers.last_step.plan_to_data` says what the last step is. ``callback`` gets a
    dictionary with ``x``, ``i``, ``sigma``, ``sigma_hat`` (where the model was evaluated) and
    ``denoised`` after the first evaluation of every step. Stochastic solvers draw from
    ``noise_sampler(sigma, sigma_next)``, from a seed (sample i is the same for every batch size),
    from a generator, or from torch's global one. The result has the dtype of ``x``; half precision
    is computed in float32.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> sample_fn = pf.kdiffusion.sample("dpm-solver++-2m")
    >>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
    >>> x = sample_fn(lambda x, sigma: 0 * x + 2.0, 10 * torch.ones(4, 3), sigmas, disable=True)
    >>> bool((x == 2).all())
    True
    """
    solver = solver_with_plan(name, options)
    levels = EDM() if process is None else process

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
    ) -> Tensor:
        times = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").tolist()
        if len(times) < 2 or any(not a > b >= 0 for a, b in pairwise(times)):
            raise ValueError(
                f"sigmas: need at least 2 that strictly decrease and are not negative, got {times}"
            )
        plan = plan_to_data(solver, levels, times, "x0")
        wide = torch.promote_types(x.dtype, torch.float32)
        draw = _source(plan, x.to(wide), noise_sampler, seed, generator)
        walk, kwargs = PlanWalk(plan), dict(extra_args or {})
        state = walk.begin(x.to(wide), draw).to(x.dtype)
        calls = [stage.time for step in plan.steps for stage in step.stages]
        told = torch.tensor(calls, dtype=time_dtype(x.dtype), device=x.device)
        with torch.no_grad(), tqdm(total=len(plan.steps), disable=disable) as bar:
            for sigma in told:
                number, first = walk.step, walk.stage == 0
                denoised = model(state, sigma.expand(len(x)), **kwargs)
                check_output(denoised, state)
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
        return state

    sample_fn.__name__ = f"sample_{solver.name}"
    return sample_fn


def _source(
    plan: Any,
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
            return noise_sampler(pairs[number, 0], pairs[number, 1]).to(like.dtype)

        return draw
    if seed is not None:
        seeded = SeededNoise(seed, like.shape, like.dtype, like.device)
        seeded()  # the draw of the initial state
        return lambda number: seeded()
    if generator is not None:
        drawn = GeneratorNoise(generator, like.shape, like.dtype, like.device)
        return lambda number: drawn()
    return lambda number: torch.randn_like(like)
