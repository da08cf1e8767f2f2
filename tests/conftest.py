"""A model small enough to draw in a blink: made by hand, and saved by diffusers as an ordinary folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for what several rooms' tests share
from twins import difference, peer, twins  # noqa: F401

if TYPE_CHECKING:
    from darkroom.pipeline import Pipeline

WORDS = (
    "a",
    "the",
    "red",
    "green",
    "blue",
    "fox",
    "rocket",
    "car",
    "on",
    "to",
    "left",
    "of",
    "large",
    "photo",
    ",",
    "!",
)
LENGTH = 77

# A busy machine must not fail a test of what is right: none of them is about time.
hypothesis.settings.register_profile("darkroom", deadline=None)
hypothesis.settings.load_profile("darkroom")


PEERS = ("diffusers", "transformers", "peft", "scipy", "safetensors", "openvino")


class MissingPeers:
    """Skips whatever imports a library that tests compare with, where it isn't installed: a plain install has none."""

    def find_spec(self, name: str, *_: object) -> None:
        """Asked last, by `import`, for what nobody else has found."""
        if name in PEERS:
            pytest.skip(f"{name} is not installed; pip install '.[test]' brings it", allow_module_level=True)


sys.meta_path.append(MissingPeers())  # type: ignore[arg-type]


def pytest_configure() -> None:
    """Let Ctrl-C be what it is to a person: a program started in the background inherits it as ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tokenizer with a vocabulary of a few hundred tokens."""
    from darkroom.prompts.tokenizer import build_vocabulary, write_vocabulary

    folder = tmp_path_factory.mktemp("tokenizer")
    vocab, merges = build_vocabulary(WORDS)
    write_vocabulary(folder, vocab, merges, LENGTH)
    return folder


@pytest.fixture(scope="session")
def tiny_pipe(tiny_tokenizer_folder: Path) -> Pipeline:
    """A pipeline of small random networks, made without diffusers. 64x64 pixels, latents [4, 8, 8]."""
    import torch

    from darkroom.models.autoencoder import Autoencoder
    from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
    from darkroom.models.text_encoder import TextEncoder
    from darkroom.models.unet import UNet
    from darkroom.pipeline import Pipeline
    from darkroom.prompts.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(tiny_tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pipeline(
            unet=UNet(
                UNetConfig(
                    sample_size=8,
                    block_out_channels=(16, 32),
                    layers_per_block=(1, 1),
                    attention_levels=(True, False),
                    only_cross_attention=(False, False),
                    transformer_layers=(1, 1),
                    heads=(2, 2),
                    cross_attention_dim=32,
                    norm_num_groups=8,
                )
            ),
            autoencoder=Autoencoder(
                AutoencoderConfig(
                    block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64
                )
            ),
            text_encoder=TextEncoder(
                TextEncoderConfig(
                    vocab_size=tokenizer.vocab_size,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    bos_token_id=tokenizer.bos_id,
                    eos_token_id=tokenizer.eos_id,
                    pad_token_id=tokenizer.pad_id,
                    projection_dim=32,
                )
            ),
            tokenizer=tokenizer,
            scheduler_config={
                "_class_name": "DDIMScheduler",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "set_alpha_to_one": False,
                "steps_offset": 1,
                "clip_sample": False,
            },
            name="tiny",
        )


@pytest.fixture(scope="session")
def tiny_reference(tiny_tokenizer_folder: Path) -> Any:
    """diffusers' StableDiffusionPipeline of the same shape, with random weights of its own."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_tokenizer_folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=max(tokenizer.get_vocab().values()) + 1,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=32,
            )
        )
    pipe = StableDiffusionPipeline(
        unet=unet,
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_folder(tiny_reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That pipeline as the diffusers folder that diffusers itself writes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_reference.save_pretrained(folder)
    return folder
