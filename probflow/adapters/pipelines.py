"""Networks and pipelines of diffusers as a :class:`probflow.Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probflow.adapters.diffusers import ProbflowScheduler, SchedulerMixin
from probflow.adapters.guidance import conditions_of, model_of
from probflow.models import Model

__all__ = ["from_pipeline", "from_unet"]


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

    Prompts are encoded for pipelines like Stable Diffusion, Stable Diffusion XL, Stable Diffusion 3
    and Flux; for others use :func:`from_unet`. States of Flux are latents that are not packed,
    (batch, channels, height, width); the guidance that its network was distilled for is its
    argument ``guidance``.

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

    Returns
    -------
    Model
        Of states as the network is fed; for any function of this library that takes a model.

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
