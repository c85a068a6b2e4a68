"""Networks and pipelines of diffusers as a :class:`probflow.Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.adapters.diffusers import ProbflowScheduler, SchedulerMixin
from probflow.adapters.guidance import conditions_of, merged, model_of
from probflow.models import Model

__all__ = ["from_pipeline", "from_unet"]


def from_unet(
    unet: Any,
    scheduler: Any,
    *,
    guidance_scale: float = 1.0,
    unconditional: Mapping[str, Any] | None = None,
    batched: bool = True,
    concatenated: Tensor | None = None,
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
        The network, called as ``unet(x, timestep=t, **conditioning, return_dict=False)[0]``; one
        with packed latents like Flux's by :class:`probflow.adapters.packed.PackedLatents`.
    scheduler
        Any scheduler with the noise process and prediction type, stock or not.
    guidance_scale
        Of classifier-free guidance; 1 is none.
    unconditional
        The conditioning's names with the values of the other branch, for guidance.
    batched
        Both branches in one call of twice the batch (the default), or in two calls.
    concatenated
        Channels that the network takes beside the state's, (1 or batch, channels, ...), the same at
        every call: mask and masked latents of inpainting, latents of an image, a depth map.
    conditioning
        The network's other arguments, such as ``encoder_hidden_states``; tensors have a first
        dimension of 1 or the batch size.

    Returns
    -------
    Model
        Of states as the network is fed; for any function of this library that takes a model.

    Raises
    ------
    TypeError, ValueError
        For a scheduler that is not known, or conditioning that does not fit.
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"scheduler: need one of diffusers, got {type(scheduler).__name__}")
    levels = ProbflowScheduler.from_config(scheduler.config).noise_levels
    return model_of(
        unet, levels, conditioning, unconditional, guidance_scale, batched, concatenated
    )


def from_pipeline(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    guidance_scale: float = 1.0,
    negative_prompt: str | Sequence[str] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    batched: bool = True,
    concatenated: Tensor | None = None,
    size: tuple[int, int] | None = None,
    **conditioning: Any,
) -> Model:
    """The network of a pipeline as a :class:`probflow.Model`, told what the pipeline would tell it.

    Prompts are encoded for pipelines like Stable Diffusion (also XL and 3), Wan and Flux; others
    take :func:`from_unet`. States of Flux are latents that are not packed, (batch, channels,
    height, width); the guidance that its network was distilled for is its argument ``guidance``.

    Parameters
    ----------
    pipe
        The pipeline, with a ``unet`` or a ``transformer``, and its scheduler.
    prompt, negative_prompt
        Texts: one, or one for each sample. A pipeline without prompts takes none.
    guidance_scale, batched, concatenated, conditioning
        As in :func:`from_unet`. Networks that were distilled with guidance (latent consistency) are
        told ``guidance_scale``, as their pipelines do.
    unconditional
        What the other branch of guidance is told beside the negative prompt: the network's argument
        names, where they differ from ``conditioning``.
    size
        Height and width of the picture in pixels, for Stable Diffusion XL; by default the largest.

    Returns
    -------
    Model
        Of states as the network is fed; for any function of this library that takes a model.

    Raises
    ------
    TypeError, ValueError
        For a pipeline that is not known.
    """
    network = getattr(pipe, "unet", None)
    if network is None:  # not by its truth: that of a compiled one is an error
        network = getattr(pipe, "transformer", None)
    if network is None:
        raise TypeError(f"pipe: need one with a unet or a transformer, got {type(pipe).__name__}")
    if (
        getattr(pipe, "transformer_2", None) is not None
        or getattr(pipe, "unet_2", None) is not None
    ):
        raise ValueError(
            f"pipe: {type(pipe).__name__} has two networks for two ranges of noise levels; give "
            "from_unet a module that calls the one or the other"
        )
    guided = guidance_scale != 1.0
    embedded = getattr(getattr(network, "config", None), "time_cond_proj_dim", None)
    if embedded is not None and "timestep_cond" not in conditioning:
        told = torch.tensor([float(guidance_scale) - 1.0])
        embedding = pipe.get_guidance_scale_embedding(told, embedding_dim=embedded)
        conditioning["timestep_cond"] = embedding.to(next(network.parameters()))
        guided, guidance_scale = False, 1.0
    texts, empty = conditions_of(pipe, network, prompt, negative_prompt, guided, size)
    if guided and prompt is None and not unconditional:
        raise ValueError(
            f"guidance_scale: {guidance_scale:g} without a prompt would guide between two equal "
            "branches; give unconditional={...} with what the other one is told"
        )
    other = merged(merged(empty or {}, conditioning), unconditional or {})
    return from_unet(
        network,
        pipe.scheduler,
        guidance_scale=guidance_scale,
        unconditional=other if guided else None,
        batched=batched,
        concatenated=concatenated,
        **merged(texts, conditioning),
    )
