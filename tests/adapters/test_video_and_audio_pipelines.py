"""Pipelines of larger models with tiny networks: the stock scheduler's numbers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import transformers
from test_diffusers import normal
from test_more_pipelines import DISCRETE, Case, check
from tiny_pipelines import vae

from probflow.diffusers import ProbflowScheduler

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

Flow = diffusers.FlowMatchEulerDiscreteScheduler
SIDE = {"height": 32, "width": 32}


def texts(width: int, mask: str = "prompt_attention_mask", length: int = 5) -> dict[str, Any]:
    """Embeddings of a prompt and of a negative one, with their masks."""
    called: dict[str, Any] = {}
    for seed, prefix in enumerate(("", "negative_")):
        called[f"{prefix}prompt_embeds"] = normal(1, length, width, seed=seed)
        called[f"{prefix}{mask}"] = torch.ones(1, length, dtype=torch.long)
    return called


def no_text(*names: str) -> dict[str, None]:
    numbers = ("", "_2", "_3", "_4")
    return {f"{name}{number}": None for name in names for number in numbers}


def made(kind: type, scheduler: Any, network: torch.nn.Module, **parts: Any) -> Any:
    """A pipeline without text encoders, since embeddings are given."""
    known = set(kind.__init__.__code__.co_varnames)
    empty = no_text("text_encoder", "tokenizer")
    name = "unet" if "unet" in known else "transformer"
    given = {**empty, "scheduler": scheduler, name: network.eval(), "vae": vae(), **parts}
    pipe = kind(**{key: value for key, value in given.items() if key in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen() -> Case:
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = Flow(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9)
    pipe = made(diffusers.QwenImagePipeline, scheduler, network, vae=coder)
    return pipe, {**texts(16, "prompt_embeds_mask"), "true_cfg_scale": 2.0, **SIDE}


def hunyuan_video() -> Case:
    network = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    coder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    )
    pipe = made(diffusers.HunyuanVideoPipeline, Flow(shift=7.0), network, vae=coder)
    told = {key: value for key, value in texts(16).items() if not key.startswith("negative")}
    pooled = {"pooled_prompt_embeds": normal(1, 8, seed=3)}
    return pipe, {**told, **pooled, "height": 16, "width": 16, "num_frames": 9}


def aura_flow() -> Case:
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
        joint_attention_dim=16, out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return made(diffusers.AuraFlowPipeline, Flow(shift=1.73), network), {**texts(16), **SIDE}


def hidream() -> Case:
    network = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32), llama_layers=(0, 1),
    )  # fmt: skip
    pipe = made(diffusers.HiDreamImagePipeline, Flow(shift=3.0), network)
    pipe.default_sample_size = 4
    call: dict[str, Any] = {}
    for seed, prefix in enumerate(("", "negative_")):
        call[f"{prefix}prompt_embeds_t5"] = normal(1, 5, 32, seed=seed)
        call[f"{prefix}prompt_embeds_llama3"] = normal(2, 1, 5, 16, seed=seed + 2)
        call[f"{prefix}pooled_prompt_embeds"] = normal(1, 64, seed=seed + 4)
    return pipe, call


def mochi() -> Case:
    """Its network is told times that rise from noise to data."""
    network = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, text_embed_dim=16, time_embed_dim=4,
        max_sequence_length=5,
    )  # fmt: skip
    torch.nn.init.zeros_(network.pos_frequencies)
    coder = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipe = made(diffusers.MochiPipeline, Flow(invert_sigmas=True), network, vae=coder)
    call = {key: value.bool() if "mask" in key else value for key, value in texts(16).items()}
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 7}


def ltx() -> Case:
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
    )  # fmt: skip
    scheduler = Flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)
    pipe = made(diffusers.LTXPipeline, scheduler, network, vae=coder)
    return pipe, {**texts(16), **SIDE, "num_frames": 9}


def sana() -> Case:
    network = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
        cross_attention_dim=8, caption_channels=8, sample_size=32,
    )  # fmt: skip
    coder = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = made(diffusers.SanaPipeline, scheduler, network, vae=coder)
    call = {**texts(8), **SIDE, "negative_prompt": None, "use_resolution_binning": False}
    return pipe, call


def pixart() -> Case:
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        caption_channels=16, in_channels=4, cross_attention_dim=16, out_channels=8,
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(**DISCRETE)
    pipe = made(diffusers.PixArtSigmaPipeline, scheduler, network)
    return pipe, {**texts(16), "negative_prompt": None, "use_resolution_binning": False}


def cogvideox() -> Case:
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=16, num_layers=1, sample_width=2, sample_height=2,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=5,
    )  # fmt: skip
    coder = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", snr_shift_scale=3.0, timestep_spacing="trailing"
    )
    pipe = made(diffusers.CogVideoXPipeline, scheduler, network, vae=coder)
    call = {key: value for key, value in texts(16).items() if "mask" not in key}
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 8}


def kolors() -> Case:
    if importlib.util.find_spec("sentencepiece") is None:  # its tokenizer alone, not used here
        sys.modules["sentencepiece"] = ModuleType("sentencepiece")
    try:
        module = importlib.import_module("diffusers.pipelines.kolors.pipeline_kolors")
    finally:
        if getattr(sys.modules.get("sentencepiece"), "__file__", None) is None:
            sys.modules.pop("sentencepiece", None)
    network = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        addition_embed_type="text_time", addition_time_embed_dim=8, norm_num_groups=4,
        projection_class_embeddings_input_dim=56, cross_attention_dim=8,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        steps_offset=1, beta_schedule="scaled_linear", timestep_spacing="leading"
    )
    pipe = made(module.KolorsPipeline, scheduler, network)
    call = {key: value for key, value in texts(8).items() if "mask" not in key}
    for seed, prefix in enumerate(("", "negative_")):
        call[f"{prefix}pooled_prompt_embeds"] = normal(1, 8, seed=seed + 4)
    return pipe, {**call, "height": 16, "width": 16}


def audioldm2() -> Case:
    network = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32,
        in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=(8, 16),
    )  # fmt: skip
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=8, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], normalize_before=False,
            resblock_dilation_sizes=[[1]],
        )
    )  # fmt: skip
    # The dtypes and the kind of these two are looked at, no more.
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=10, d_model=8, d_ff=8, d_kv=8, num_heads=1, num_layers=1)
    )
    language = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=8, n_head=1, n_layer=1, vocab_size=10, n_positions=9, bos_token_id=1,
            eos_token_id=2,
        )
    )  # fmt: skip
    others = dict.fromkeys(("projection_model", "feature_extractor"))
    pipe = made(
        diffusers.AudioLDM2Pipeline, diffusers.DDIMScheduler(**DISCRETE), network, vae=vae(),
        vocoder=vocoder, text_encoder_2=encoder, language_model=language, **others,
    )  # fmt: skip
    call = texts(16, "attention_mask")
    for seed, prefix in enumerate(("", "negative_")):
        call[f"{prefix}generated_prompt_embeds"] = normal(1, 4, 16, seed=seed + 4)
    return pipe, {**call, "audio_length_in_s": 0.02}


def stable_audio() -> Case:
    network = diffusers.StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=1, attention_head_dim=4, out_channels=3,
        num_key_value_attention_heads=2, cross_attention_dim=4, time_proj_dim=8,
        global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip
    coder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    kind = importlib.import_module("diffusers.pipelines.stable_audio")
    projection = kind.StableAudioProjectionModel(4, 4, min_value=0, max_value=32)
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(
        sigma_data=1.0, sigma_schedule="exponential"
    )
    pipe = made(
        diffusers.StableAudioPipeline, scheduler, network, vae=coder, projection_model=projection
    )
    return pipe, texts(4, "attention_mask")


@pytest.mark.parametrize(
    ("case", "method"),
    [
        *((case, "euler") for case in (qwen, hunyuan_video, aura_flow, hidream, mochi, ltx)),
        (sana, "dpm-solver++-2m"),
        *((case, "ddim") for case in (pixart, cogvideox, kolors, audioldm2)),
        (stable_audio, "sde-dpm-solver++-2m"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_pipelines(case: Callable[[], Case], method: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    pipe, call = case()
    if case is sana:  # stock cuts the times of flows to whole numbers, and tells the network those
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer, "forward",
            lambda *args, timestep, **rest: forward(*args, timestep=timestep.floor(), **rest),
        )  # fmt: skip
    if case is stable_audio:  # the same increments, not those of a tree with a seed of its own
        drawn = normal(5, 1, 3, 4, seed=9)
        pipe.scheduler.set_timesteps(5)
        levels = pipe.scheduler.sigmas.tolist()
        monkeypatch.setattr(
            type(pipe.scheduler), "noise_sampler", property(
                lambda self: lambda sigma, after: drawn[levels.index(float(sigma))],
                lambda self, value: None,
            ), raising=False,
        )  # fmt: skip
        monkeypatch.setattr(
            ProbflowScheduler, "_noise", lambda self, number, like, generator: drawn[number]
        )
    check(pipe, call, method)
