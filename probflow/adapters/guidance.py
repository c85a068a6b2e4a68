"""Networks of diffusers as a :class:`probflow.Model`, with conditioning and guidance.

For what a scheduler cannot do: adaptive solvers, likelihoods, encoding, studies. The networks are
used through their calls alone, so nothing of diffusers is imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from probflow.adapters.noise_levels import NoiseLevels
from probflow.adapters.packed import PackedLatents, arguments_of_network, takes_packed
from probflow.models import Model
from probflow.words import check_flags

__all__ = ["Guided", "conditions_of", "merged", "model_of"]

# Arguments of a transformer that has no other need than text, as Wan's.
_TEXT_ONLY = {
    "attention_kwargs", "encoder_hidden_states", "encoder_hidden_states_image", "hidden_states",
    "return_dict", "timestep",
}  # fmt: skip


class Guided(torch.nn.Module):
    """A network with fixed conditioning, called as ``function(x, t)``.

    Parameters
    ----------
    network
        Called as ``network(x, timestep=t, **conditioning, return_dict=False)[0]``.
    conditioning
        Tensors have a first dimension of 1 or the batch size; mappings of tensors may be nested.
    unconditional
        The same names for the other branch of classifier-free guidance.
    guidance_scale
        w in ``f(x, empty) + w (f(x, conditioning) - f(x, empty))`` (Ho and Salimans 2022, arXiv
        2207.12598); 1 calls the conditional branch alone.
    batched
        Both branches in one call of twice the batch, or in two calls.
    sign
        Factor of the output.
    concatenated
        More channels of the network's input, the same at every call: (1 or batch, channels, ...).

    Raises
    ------
    ValueError
        If ``guidance_scale`` is not 1 and ``unconditional`` is missing or has other names.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        conditioning: Mapping[str, Any],
        unconditional: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        batched: bool = True,
        sign: float = 1.0,
        concatenated: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_guidance(guidance_scale, batched, concatenated)
        self.concatenated = concatenated
        self.guidance_scale, self.batched, self.sign = float(guidance_scale), batched, sign
        self.conditioning = dict(conditioning)
        if self.guidance_scale != 1.0 and unconditional is None:
            raise ValueError(
                f"guidance_scale: {guidance_scale:g} needs the conditioning of the other branch; "
                "give unconditional={...}"
            )
        if unconditional is not None and set(unconditional) != set(conditioning):
            raise ValueError(
                f"unconditional: needs the names of the conditioning, {sorted(conditioning)}, got "
                f"{sorted(unconditional)}"
            )
        self.unconditional = None if unconditional is None else dict(unconditional)
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided output.

        Parameters
        ----------
        x
            (batch, ...).
        t
            The model's times, (batch,).

        Returns
        -------
        Tensor
            Shape of ``x``.

        Raises
        ------
        ValueError
            If a tensor of the conditioning is neither for one sample nor for the batch.
        """
        count, fed = len(x), x
        conditional = {k: _expanded(v, count, k) for k, v in self.conditioning.items()}
        if self.concatenated is not None:
            more = _expanded(self.concatenated.to(x), count, "concatenated")
            if more.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"concatenated: need shape (1 or batch, channels, ...) beside states of shape "
                    f"{tuple(x.shape)}, got {tuple(self.concatenated.shape)}"
                )
            fed = torch.cat([x, more], dim=1)
        if self.guidance_scale == 1.0:
            return self._call(fed, t, conditional, x)
        assert self.unconditional is not None
        empty = {k: _expanded(v, count, k) for k, v in self.unconditional.items()}
        if self.batched:
            both = {k: _joined(empty[k], conditional[k]) for k in conditional}
            outputs = self._call(torch.cat([fed, fed]), torch.cat([t, t]), both, x)
            without, with_ = outputs.chunk(2)
        else:
            without, with_ = self._call(fed, t, empty, x), self._call(fed, t, conditional, x)
        return without + self.guidance_scale * (with_ - without)

    def _call(self, fed: Tensor, t: Tensor, conditioning: Mapping[str, Any], x: Tensor) -> Tensor:
        own = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        output = self.network(fed.to(own), timestep=t, **conditioning, return_dict=False)[0]
        if output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]  # learned variances
        return self.sign * output.to(x.dtype)


def _check_guidance(guidance_scale: Any, batched: Any, concatenated: Any) -> None:
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, Real):
        raise TypeError(f"guidance_scale: need a number, got {guidance_scale!r}")
    if not isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: need a finite number, got {guidance_scale}")
    check_flags({"batched": batched}, ("batched",))
    if concatenated is not None and not isinstance(concatenated, Tensor):
        raise TypeError(f"concatenated: need a tensor, got {type(concatenated).__name__}")


def _expanded(value: Any, count: int, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expanded(entry, count, f"{name}[{key!r}]") for key, entry in value.items()}
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == count:
        return value
    if len(value) == 1:
        return value.expand(count, *value.shape[1:])
    raise ValueError(
        f"{name}: its first dimension must be 1 or the batch size {count}, got {len(value)}"
    )


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, of which the second has the last word; mappings under one name are merged.

    Parameters
    ----------
    first, second
        Conditioning by name.

    Returns
    -------
    dict
        A new one; the two stay as they are.
    """
    both = {**first, **second}
    for name in set(first) & set(second):
        if isinstance(first[name], Mapping) and isinstance(second[name], Mapping):
            both[name] = {**first[name], **second[name]}
    return both


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping):
        return {key: _joined(first[key], second[key]) for key in first}
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat([first, second])
    return first


def model_of(
    network: torch.nn.Module,
    levels: NoiseLevels,
    conditioning: Mapping[str, Any],
    unconditional: Mapping[str, Any] | None,
    guidance_scale: float,
    batched: bool,
    concatenated: Tensor | None = None,
) -> Model:
    """The model of a network with conditioning, on the process of its noise levels.

    Parameters
    ----------
    network, conditioning, unconditional, guidance_scale, batched
        As those of :class:`Guided`.
    levels
        Process, prediction type and told times.

    Raises
    ------
    TypeError, ValueError
        As :class:`Guided`, and for a network that cannot be called.
    """
    if not callable(network):
        raise TypeError(f"unet: need a network, got {type(network).__name__}")
    if takes_packed(network):
        network = PackedLatents(network)
    guided = Guided(
        network, conditioning, unconditional, guidance_scale, batched, levels.sign, concatenated
    )
    return Model(guided, levels.process, levels.prediction, time=levels.told)


def conditions_of(
    pipe: Any,
    network: Any,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    guided: bool,
    size: tuple[int, int] | None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a pipeline's network is told of a prompt, with and without it.

    Parameters
    ----------
    pipe
        A pipeline of diffusers.
    network
        Its denoising network.
    prompt, negative_prompt
        What to draw and what not; a prompt of ``None`` is none.
    guided
        Whether the branch without the prompt is wanted, too.
    size
        Height and width of the image in pixels, of which Stable Diffusion XL is told; by default
        the network's.

    Returns
    -------
    tuple
        Conditioning by name with the prompt, and without it (``None`` unless ``guided``).

    Raises
    ------
    TypeError
        For a prompt that is no text.
    ValueError
        If the pipeline has no prompt, or one whose use is not known here, or a negative prompt
        would not be used.
    """
    for name, given in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        words = [given] if isinstance(given, str) else given or ()
        if not (isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)):
            raise TypeError(f"{name}: need a text or one for each sample, got {given!r}")
    if negative_prompt is not None and (prompt is None or not guided):
        raise ValueError(
            "negative_prompt: it is what guidance leads away from; give a prompt and a "
            "guidance_scale other than 1"
        )
    if prompt is None:
        return {}, {} if guided else None
    wanted = arguments_of_network(network)
    if not hasattr(pipe, "encode_prompt") or "encoder_hidden_states" not in wanted:
        raise ValueError(f"prompt: {type(pipe).__name__} takes none; leave it out")
    device = next(network.parameters()).device
    options = {
        "prompt": prompt,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": guided,
        "negative_prompt": negative_prompt,
    }
    takes = set(inspect.signature(pipe.encode_prompt).parameters)
    for extra in ("prompt_2", "prompt_3"):
        if extra in takes:
            options[extra] = None
    with torch.no_grad():
        encoded = pipe.encode_prompt(**{k: v for k, v in options.items() if k in takes})
        if len(encoded) == 3 and takes_packed(network):  # Flux: text, pooled text, places
            names = ("encoder_hidden_states", "pooled_projections")
            text = dict(zip(names, encoded, strict=False))
            if not guided:
                return text, None
            options["prompt"] = negative_prompt or ""
            encoded = pipe.encode_prompt(**{k: v for k, v in options.items() if k in takes})
            return text, dict(zip(names, encoded, strict=False))
    if len(encoded) == 2 and ("added_cond_kwargs" in wanted or wanted <= _TEXT_ONLY):
        return _pair("encoder_hidden_states", *encoded)
    if len(encoded) == 4 and "pooled_projections" in wanted:
        text, no_text = _pair("encoder_hidden_states", *encoded[:2])
        pooled, no_pooled = _pair("pooled_projections", *encoded[2:])
        return {**text, **pooled}, None if no_text is None else {**no_text, **(no_pooled or {})}
    config = getattr(network, "config", None)
    if len(encoded) == 4 and getattr(config, "addition_embed_type", None) == "text_time":
        # Stable Diffusion XL
        text, no_text = _pair("encoder_hidden_states", *encoded[:2])
        side = network.config.sample_size * pipe.vae_scale_factor
        height, width = size or (side, side)
        ids = torch.tensor([[height, width, 0, 0, height, width]], device=device)
        ids = ids.to(encoded[0].dtype)

        def added(pooled: Tensor) -> dict[str, Any]:
            return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}

        empty = None if no_text is None else {**no_text, **added(encoded[3])}
        return {**text, **added(encoded[2])}, empty
    raise ValueError(
        f"pipe: how {type(pipe).__name__} conditions its network is not known here; encode the "
        "prompt yourself and give the network's arguments to from_unet"
    )


def _pair(name: str, value: Tensor, empty: Tensor | None) -> tuple[dict, dict | None]:
    return {name: value}, None if empty is None else {name: empty}
