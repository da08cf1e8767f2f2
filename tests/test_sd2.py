"""Stable Diffusion 2.x with v-prediction, end to end: a folder and a single file, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import darkroom
from darkroom.formats.artifact import convert
from darkroom.formats.tensors import open_tensors


@pytest.fixture(scope="module")
def reference(tiny_tokenizer_folder: Path) -> Any:
    """The shape of SD 2.1 768-v in small: heads by level, linear projections, GELU, padding by "!"."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_tokenizer_folder), pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=2, attention_head_dim=[2, 4],
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24, norm_num_groups=8, use_linear_projection=True,
        )  # fmt: skip
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4, sample_size=64,
        )  # fmt: skip
        config = CLIPTextConfig(
            vocab_size=max(tokenizer.get_vocab().values()) + 1, hidden_size=24, intermediate_size=48,
            num_hidden_layers=3, num_attention_heads=2, hidden_act="gelu", projection_dim=24,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )  # fmt: skip
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            set_alpha_to_one=False, steps_offset=1, clip_sample=False,
        )  # fmt: skip
        pipe = StableDiffusionPipeline(
            unet=unet, vae=autoencoder, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_folder_and_a_single_file_draw_what_diffusers_draws(reference: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sd2"
    reference.save_pretrained(folder)
    file = convert(folder, tmp_path / "sd2.safetensors")
    with open_tensors(file) as tensors:
        assert any(name.startswith("cond_stage_model.model.transformer.resblocks.") for name in tensors.names())
    for guidance, prompt in ((7.5, "a red fox"), (1.0, "a photo of the large green car on the left")):
        generator = torch.Generator("cpu").manual_seed(6)
        expected = reference(
            prompt, num_inference_steps=5, guidance_scale=guidance, generator=generator, output_type="pt"
        ).images
        assert expected.std() > 0.01
        for source in (folder, file):
            pipe = darkroom.load(source)
            assert pipe.schedule.prediction_type == "v_prediction"
            got = pipe.generate(prompt, steps=5, guidance_scale=guidance, seed=6, output="pt").images
            assert isinstance(got, torch.Tensor)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-3, msg=lambda m, s=source: f"{s}: {m}")
