"""Transformers that take latents as a sequence of 2 x 2 patches, as Flux, called with images.

Packing moves numbers to other places and nothing else, so densities, solvers and noise are those of
the latents themselves.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

__all__ = ["PackedLatents", "arguments_of_network", "takes_packed"]


def arguments_of_network(network: Any) -> set[str]:
    """Names of the arguments of a network, which may be compiled."""
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    return set(inspect.signature(getattr(network, "forward", network)).parameters)


def takes_packed(network: Any) -> bool:
    """Whether a network takes packed latents and the places of its tokens."""
    return {"img_ids", "txt_ids"} <= arguments_of_network(network)


class PackedLatents(torch.nn.Module):
    """A transformer like Flux's, called with latents of shape (batch, channels, height, width).

    Parameters
    ----------
    network
        Called with ``hidden_states`` (batch, height/2 width/2, 4 channels), ``timestep`` (sigma),
        ``img_ids`` and ``txt_ids``.

    Raises
    ------
    ValueError
        If its places have other than three coordinates.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        axes = len(getattr(network.config, "axes_dims_rope", (0, 0, 0)))
        if axes != 3:
            raise ValueError(
                f"network: {type(network).__name__} gives its tokens {axes} coordinates, known "
                "here are 3; give from_unet a network of your own that packs latents"
            )
        self.network = network

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        guidance: float | Tensor | None = None,
        return_dict: bool = False,
        **conditioning: Any,
    ) -> tuple[Tensor]:
        """The output at latents ``x`` and ``timestep`` 1000 sigma, shape of ``x``.

        Raises
        ------
        ValueError
            If the height or width is odd, or a guidance that the network embeds is missing.
        """
        batch, channels, height, width = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"x: height and width must be even, got {height} and {width}")
        embeds = bool(getattr(self.network.config, "guidance_embeds", False))
        if embeds and guidance is None:
            raise ValueError(
                "guidance: the network is told how much guidance it was distilled for; give "
                "guidance=3.5, for example"
            )
        rows, columns = height // 2, width // 2
        patches = x.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        ids = x.new_zeros(rows, columns, 3)
        ids[..., 1] += torch.arange(rows, device=x.device)[:, None]
        ids[..., 2] += torch.arange(columns, device=x.device)
        told = torch.as_tensor(guidance, dtype=torch.float32, device=x.device) if embeds else None
        output = self.network(
            hidden_states=patches.reshape(batch, rows * columns, 4 * channels),
            timestep=(timestep / 1000).to(x.dtype),
            guidance=None if told is None else told.expand(batch),
            encoder_hidden_states=encoder_hidden_states,
            txt_ids=x.new_zeros(encoder_hidden_states.shape[1], 3),
            img_ids=ids.reshape(rows * columns, 3),
            **conditioning,
            return_dict=return_dict,
        )[0]
        output = output.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return (output.reshape(batch, channels, height, width),)
