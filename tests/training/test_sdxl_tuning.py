"""SDXL learns with both its text encoders, and is told of each picture what it is told when it draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.errors import TrainingError
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.pipeline import Pipeline
from darkroom.prompts.tokenizer import Tokenizer
from darkroom.training.distill import DistillRecipe
from darkroom.training.finetune import FinetuneRecipe, FinetuneStage
from darkroom.training.kinds import Source
from darkroom.training.lora import LoraRecipe
from darkroom.training.parallel import Rank
from darkroom.training.run import run as tune
from darkroom.training.textual_inversion import InversionRecipe

SETTINGS: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "lr": 0.003, "optimizer": "adamw", "warmup": 1, "log_every": 1, "dropout": 0.0,
    "precision": "float32", "ema": 0.5, "save_dtype": "float32",
}  # fmt: skip
EULER = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL in small, 64 pixels a side, made of random numbers."""
    tokenizer = Tokenizer.from_folder(tiny_tokenizer_folder)
    second = Tokenizer.from_files(
        tiny_tokenizer_folder / "vocab.json", tiny_tokenizer_folder / "merges.txt", pad_token="!"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        common = {
            "vocab_size": tokenizer.vocab_size, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 2, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id,
            "projection_dim": 20,
        }  # fmt: skip
        pipe = Pipeline(
            unet=UNet(UNetConfig(
                sample_size=8, block_out_channels=(16, 32), layers_per_block=(1, 1), attention_levels=(False, True),
                only_cross_attention=(False, False), transformer_layers=(1, 1), heads=(2, 4), cross_attention_dim=40,
                norm_num_groups=8, use_linear_projection=True, addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=20 + 6 * 8,
            )),
            autoencoder=Autoencoder(AutoencoderConfig(
                block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64
            )),
            text_encoder=TextEncoder(TextEncoderConfig(hidden_size=16, pad_token_id=tokenizer.pad_id, **common)),
            tokenizer=tokenizer,
            text_encoder_2=TextEncoder(TextEncoderConfig(
                hidden_size=24, hidden_act="gelu", projection=True, pad_token_id=second.pad_id, **common
            )),
            tokenizer_2=second,
            scheduler_config=EULER,
            zero_negative=True,
        )  # fmt: skip
    return pipe.save(tmp_path_factory.mktemp("sdxl") / "model")


def test_it_is_told_of_a_picture_what_it_is_told_when_it_draws(model: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = FinetuneRecipe(**{**SETTINGS, "dropout": 0.4}, cut="random", variants=2)
    stage = FinetuneStage.open(recipe, Source(str(model), str(pictures)), tmp_path)
    stage.encode(tmp_path / "cache")
    stage.take(tmp_path / "cache")
    pipe, dataset = stage.pipe, stage.dataset
    empty = 0
    for step in range(4):
        _, rows, captions = stage.batch(step, Rank())
        told = stage.condition(captions, rows, step)
        assert told.pooled is not None
        assert told.sizes is not None
        for k, (i, caption) in enumerate(zip(rows, captions, strict=True)):
            text, pooled = pipe.prompts.encode(caption, "plain"), pipe.prompts.pooled(caption, "plain")
            assert pooled is not None
            if not caption:  # what guidance leads away from is zeros here
                empty += 1
                text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
            torch.testing.assert_close(told.text[k], text, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(told.pooled[k], pooled, rtol=1e-4, atol=1e-5)
            crop = dataset.crop(i, dataset.version(i, step, 0))
            with Image.open(pictures / f"{i}.png") as picture:
                assert told.sizes[k, :2].tolist() == [picture.height, picture.width]
            assert told.sizes[k, 2:].tolist() == [crop.corner[1], crop.corner[0], 64, 64]
    assert empty


@pytest.mark.parametrize("train", ["unet", "both"])
def test_both_text_encoders_read_long_captions(train: str, model: Path, pictures: Path, tmp_path: Path) -> None:
    """The second may need more chunks than the first; the summary is of the first chunk."""
    recipe = FinetuneRecipe(**SETTINGS, train=train, chunks=2)
    stage = FinetuneStage.open(recipe, Source(str(model), str(pictures)), tmp_path)
    pipe = stage.pipe
    first, second = pipe.prompts.encoders  # type: ignore[union-attr]
    second.tokenizer = Tokenizer(first.tokenizer.vocab, [], pad_token="!")  # letter by letter
    texts = ("a red fox", "a large fox " * 10, "a large fox " * 30, "")
    assert [[len(e.chunks(text, "plain")) for e in (first, second)] for text in texts] == [
        [1, 1],
        [1, 2],
        [2, 4],
        [1, 1],
    ]
    told = stage.condition(texts, [0, 1, 2, 3], 0)
    assert told.pooled is not None
    length = 2 * first.length
    assert told.text.shape[1] == length
    for k, caption in enumerate(texts):
        text, pooled = pipe.prompts.encode(caption, "plain")[:length], pipe.prompts.pooled(caption, "plain")
        assert pooled is not None
        if not caption:
            text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
        torch.testing.assert_close(told.text[k], text.repeat(length // len(text), 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told.pooled[k], pooled, rtol=1e-4, atol=1e-5)


def test_all_of_it_learns_and_diffusers_draws_the_same(model: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = FinetuneRecipe(**SETTINGS, train="both")
    made = tune(recipe, Source(str(model), str(pictures)), tmp_path / "run")
    before, after = (darkroom.load(path, device="cpu", dtype="float32") for path in (model, made))
    for name in ("unet", "text_encoder", "text_encoder_2"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert any(not torch.equal(old[key], new[key]) for key in old), name
    from diffusers import StableDiffusionXLPipeline

    theirs = StableDiffusionXLPipeline.from_pretrained(made, torch_dtype=torch.float32, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red fox", num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(3),
        output_type="np", height=64, width=64,
    ).images[0]  # fmt: skip
    ours = after.generate("a red fox", steps=3, guidance_scale=5.0, seed=3, output="pt").images
    assert isinstance(ours, torch.Tensor)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < 2e-3


def test_a_lora_of_it_is_its_own(model: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = LoraRecipe(**{**SETTINGS, "lr": 0.05}, rank=2, train="both")
    made = tune(recipe, Source(str(model), str(pictures)), tmp_path / "run")
    pipe = darkroom.load(model, device="cpu", dtype="float32")
    plain = pipe.generate("a red fox", seed=1, steps=2, output="latent").images
    changed = pipe.generate("a red fox", seed=1, steps=2, output="latent", loras=[darkroom.Lora(made)]).images
    assert isinstance(plain, torch.Tensor)
    assert isinstance(changed, torch.Tensor)
    assert (plain - changed).abs().max() > 1e-4


def test_a_word_needs_a_model_with_one_text_encoder(model: Path, pictures: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "save_dtype"}
    with pytest.raises(TrainingError, match="two text encoders"):
        tune(replace(InversionRecipe(**settings), word="blorb"), Source(str(model), str(pictures)), tmp_path / "run")


def test_a_distilled_one_is_drawn_with_by_diffusers(model: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = DistillRecipe(**SETTINGS, guidance=(2.0, 6.0))
    made = tune(recipe, Source(str(model), str(pictures)), tmp_path / "run")
    from diffusers import StableDiffusionXLPipeline

    theirs = StableDiffusionXLPipeline.from_pretrained(made, torch_dtype=torch.float32, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red fox", num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(3),
        output_type="np", height=64, width=64,
    ).images[0]  # fmt: skip
    pipe = darkroom.load(made, device="cpu", dtype="float32")
    ours = pipe.generate("a red fox", guidance_scale=5.0, seed=3, output="pt").images
    assert isinstance(ours, torch.Tensor)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() < 2e-3
