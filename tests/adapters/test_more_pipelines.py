"""More pipelines of diffusers with tiny networks: stock numbers, and solvers of several calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from test_diffusers import normal
from tiny_pipelines import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl, vae

from probflow.diffusers import ProbflowScheduler

pytestmark = pytest.mark.peers

#: Where every scheduler takes the same steps.
DISCRETE = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
TEXTS = {"prompt_embeds": normal(1, 5, 16, seed=1), "pooled_prompt_embeds": normal(1, 16, seed=2)}
Case = tuple[Any, dict[str, Any]]


def parts(pipe: Any, kind: type, **changed: Any) -> Any:
    components = {**pipe.components, **changed}
    names = set(kind.__init__.__code__.co_varnames)
    made = kind(**{k: v for k, v in components.items() if k in names})
    made.set_progress_bar_config(disable=True)
    return made


def dit(folder: Path) -> Case:
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2,
        in_channels=4, out_channels=8, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    pipe = diffusers.DiTPipeline(network, vae(), diffusers.DDIMScheduler(**DISCRETE))
    return pipe, {"class_labels": [1], "output_type": "np"}


def controlnet(folder: Path) -> Case:
    pipe = stable_diffusion(folder)
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(8, 16)
    )
    kind = diffusers.StableDiffusionControlNetPipeline
    return parts(pipe, kind, controlnet=control.eval()), {"prompt": "a cat", "image": IMAGE}


def pix2pix(folder: Path) -> Case:
    pipe = stable_diffusion(folder)
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, in_channels=8).eval()
    kind = diffusers.StableDiffusionInstructPix2PixPipeline
    return parts(pipe, kind, unet=network), {"prompt": "a cat", "image": IMAGE}


def xl_image(folder: Path) -> Case:
    pipe = parts(stable_diffusion_xl(folder), diffusers.StableDiffusionXLImg2ImgPipeline)
    return pipe, {"prompt": "a cat", "image": IMAGE, "strength": 0.8}


def xl_inpaint(folder: Path) -> Case:
    pipe = parts(stable_diffusion_xl(folder), diffusers.StableDiffusionXLInpaintPipeline)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    call = {"prompt": "a cat", "image": IMAGE, "mask_image": mask, "strength": 0.8}
    return pipe, {**call, "height": 16, "width": 16}


def sd3_image(folder: Path) -> Case:
    pipe = stable_diffusion_3()
    pipe.vae.register_to_config(shift_factor=0.0)
    made = parts(pipe, diffusers.StableDiffusion3Img2ImgPipeline)
    return made, {**TEXTS, "image": IMAGE, "strength": 0.7, "guidance_scale": 1.0}


def flux_image(folder: Path) -> Case:
    pipe = flux()
    pipe.vae.register_to_config(shift_factor=0.0)
    made = parts(pipe, diffusers.FluxImg2ImgPipeline)
    # It counts in model calls: 0.7 begins with a step of 5 in 5 calls, and of 5 in 9 calls.
    return made, {**TEXTS, "image": IMAGE, "strength": 0.7, "height": 16, "width": 16}


def flux_inpaint(folder: Path) -> Case:
    pipe = flux()
    pipe.vae.register_to_config(shift_factor=0.0)
    made = parts(pipe, diffusers.FluxInpaintPipeline)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    call = {"image": IMAGE, "mask_image": mask, "strength": 0.7, "height": 16, "width": 16}
    return made, {**TEXTS, **call}


def wan(folder: Path) -> Case:
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=16, freq_dim=32, ffn_dim=16, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=16,
    ).eval()  # fmt: skip
    coder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=coder, scheduler=scheduler, transformer=network
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt_embeds": TEXTS["prompt_embeds"], "guidance_scale": 1.0}
    return pipe, {**call, "height": 16, "width": 16, "num_frames": 5}


def run(pipe: Any, call: dict[str, Any], steps: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    given = {"output_type": "latent", "num_inference_steps": steps, **call}
    result = pipe(generator=generator, **given)[0]
    return torch.as_tensor(result)


@pytest.mark.parametrize(
    "case",
    [dit, controlnet, pix2pix, xl_image, xl_inpaint, sd3_image, flux_image, flux_inpaint, wan],
    ids=lambda case: case.__name__,
)
def test_pipelines(case: Callable[[Path], Case], tmp_path: Path) -> None:
    pipe, call = case(tmp_path)
    flow = "Flow" in type(pipe.scheduler).__name__
    if not flow:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **DISCRETE)
    check(pipe, call, "euler" if flow else "ddim")


def check(pipe: Any, call: dict[str, Any], method: str, error: float = 2e-4) -> None:
    """The stock scheduler's latents for its own method, and finite ones for others."""
    stock = pipe.scheduler
    expected = run(pipe, call)
    results = {}
    for solver in (method, "dpm-solver++-3m", "exponential-rk2", "ddpm"):
        pipe.scheduler = ProbflowScheduler.from_config(stock.config, solver=solver, seed=1)
        results[solver] = run(pipe, call)
        assert torch.isfinite(results[solver]).all()
    assert (results[method] - expected).abs().max() / expected.std() < error
    assert not torch.equal(results["ddpm"], results["dpm-solver++-3m"])
