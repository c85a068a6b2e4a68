"""Normals of probflow's scheduler of diffusers: in its steps, and in the noising of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from probflow.adapters.noise_levels import NoiseLevels
from probflow.adapters.scheduler_run import SchedulerRun, before_call, check_tensors
from probflow.integrate.noise import normals, sample_indices

__all__ = ["NoisingMixin"]


class NoisingMixin:
    """What a scheduler has to do with normals; it has ``config``, ``noise_levels`` and a run."""

    config: Any
    noise_levels: NoiseLevels
    _run: SchedulerRun | None
    _begin_index: int | None
    _pairs: np.ndarray | None

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
            If the scheduler has no seed, or for a shape or dtype that is none.
        """
        if self.config.seed is None:
            raise ValueError("seed: the scheduler has none; make it with seed=...")
        if not (dtype.is_floating_point and len(shape) and all(size >= 0 for size in shape)):
            raise ValueError(
                f"shape, dtype: need (batch, ...) and one of floats, got {shape}, {dtype}"
            )
        wide = torch.promote_types(dtype, torch.float32)
        return self._seeded(0, tuple(shape), wide, device).to(dtype)

    # Noising -------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha x0 + sigma noise`` at timesteps, which may be fractional, shape (batch,) or (1,).

        Where solvers change the state before they call the model, the result is at the level of
        what they call it with.

        Raises
        ------
        ValueError
            For a timestep outside the training (on the CPU; elsewhere that would wait for the
            device), or shapes that do not fit each other.
        TypeError
            For samples or noise that are no tensors of floats.
        """
        alpha, sigma = self._alpha_sigma(timesteps, original_samples, noise)
        step = None
        if self._run is not None and self._begin_index is not None:
            step = self._run.at_first_call()
        factor, added = (1.0, 0.0) if step is None else before_call(step)
        if step is not None and (factor, added) != (1.0, 0.0):
            process = self.noise_levels.process
            alpha, sigma = (
                torch.full_like(alpha, factor * float(level(step.start)))
                for level in (process.alpha, process.sigma)
            )
            sigma = (sigma**2 + added**2) ** 0.5
        noisy = alpha / self.noise_levels.data_scale * original_samples + sigma * noise
        return noisy.to(original_samples.dtype)

    def _alpha_sigma(self, timesteps: Any, like: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps, shape (batch, 1, ...), computed in float64."""
        check_tensors(samples=like, noise=noise)
        told = torch.as_tensor(timesteps, device=like.device)
        # One sample and many timesteps or noises, or the other way round.
        if noise.shape[1:] != like.shape[1:] or len({1, len(like), len(noise), told.numel()}) > 2:
            raise ValueError(
                f"noise, timesteps: do not fit samples of shape {tuple(like.shape)}, got shapes "
                f"{tuple(noise.shape)} and {tuple(told.shape)}"
            )
        if told.device.type == "cpu" and self.noise_levels.family == "vp":
            most = self.noise_levels.process.t_max
            if not bool(((told >= -1) & (told <= most)).all()):
                raise ValueError(f"timesteps: must lie in [0, {most:g}], got {told.tolist()}")
        if self._pairs is None:
            times = self.noise_levels.times(told)
        else:
            times = torch.as_tensor(np.interp(told.cpu(), *self._pairs[::-1]), device=like.device)
        times = times.reshape(-1, *(1,) * (like.ndim - 1))
        process = self.noise_levels.process
        wide = torch.promote_types(like.dtype, torch.float32)
        return process.alpha(times).to(wide), process.sigma(times).to(wide)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor | None = None) -> Tensor:
        """:meth:`add_noise` as pipelines of flow models call it."""
        if noise is None:
            raise ValueError("noise: give the noise to add")
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha noise - sigma sample`` at timesteps: the target of v-prediction."""
        alpha, sigma = self._alpha_sigma(timesteps, sample, noise)
        return (alpha * noise - sigma * sample).to(sample.dtype)
