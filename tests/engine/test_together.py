"""Features in one picture: each pair either acts together, or is refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import darkroom
from darkroom.adapters import init_lora
from darkroom.arguments import grouped
from darkroom.diffusion.condition import Condition
from darkroom.engine.advance import advance
from darkroom.engine.prepare import prepare
from darkroom.formats.lora_save import save_lora
from darkroom.models.controlnet import ControlNet
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet
from darkroom.pipeline import Pipeline
from darkroom.request import Hires, Request

SIZES = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24 + 6 * 8}


def picture(seed: int = 1, width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def half_masked() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def shaken(network: nn.Module, seed: int = 2) -> Any:
    """The same with random weights where it has zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return network.eval().requires_grad_(False)


def like(pipe: Pipeline, **unet: Any) -> Pipeline:
    """A pipeline whose U-Net is of another kind; the rest is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = UNet(replace(pipe.unet.config, **unet))
    return Pipeline(
        unet=network, autoencoder=pipe.autoencoder, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer,
        scheduler_config=pipe.scheduler_config, name="other",
    )  # fmt: skip


@pytest.fixture(scope="module")
def sdxl(tiny_pipe: Pipeline) -> Pipeline:
    """A pipeline of SDXL's kind: two text encoders, of widths 16 and 24, and sizes that are told."""
    tokenizer = tiny_pipe.tokenizer

    def texts(width: int, **more: Any) -> TextEncoder:
        config = replace(tiny_pipe.text_encoder.config, hidden_size=width, intermediate_size=32, **more)
        return TextEncoder(config)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        unet = replace(tiny_pipe.unet.config, cross_attention_dim=40, **SIZES)
        return Pipeline(
            unet=UNet(unet), autoencoder=tiny_pipe.autoencoder, text_encoder=texts(16),
            text_encoder_2=texts(24, projection_dim=24, projection=True), tokenizer=tokenizer, tokenizer_2=tokenizer,
            scheduler_config=tiny_pipe.scheduler_config, zero_negative=True, name="xl",
        )  # fmt: skip


@pytest.fixture(scope="module")
def brought(tiny_pipe: Pipeline, sdxl: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """Of each pipeline: what a picture may have, as keywords of `generate`."""
    folder = tmp_path_factory.mktemp("brought")
    made = {}
    for pipe in (tiny_pipe, sdxl):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            lora, net = init_lora(pipe.unet, 2), shaken(ControlNet.from_unet(pipe.unet))
            for up in lora.up:
                nn.init.normal_(up, std=0.3)
        file = folder / f"{pipe.name}.safetensors"
        save_lora(file, lora.adapter(), pipe.loras.networks, "kohya")
        made[pipe] = {
            "controls": {"controls": [darkroom.Control(net, picture(5))]},
            "guess": {"controls": [darkroom.Control(net, picture(5), guess=True)]},
            "lora": {"loras": [file]},
            "image": {"image": picture(), "strength": 0.7},
            "mask": {"image": picture(), "mask": half_masked()},
            "outpaint": {"image": picture(1, 48, 64), "outpaint": {"left": 16}},
            "tile": {"tile": 48},
            "hires": {"hires": Hires(1.5, 0.7)},
            "hires by lanczos": {"hires": Hires(1.5, 0.7, upscaler="lanczos")},
            "pag": {"pag_scale": 3.0},
            "and": {"prompt": "a red fox AND a car :0.7"},
            "schedule": {"prompt": "a [red:blue:0.5] fox"},
        }
    return made


def draw(pipe: Pipeline, **wishes: Any) -> torch.Tensor:
    result = pipe.generate(**grouped({"prompt": "a fox", "steps": 2, "seed": 1, "output": "pt", **wishes}))
    assert isinstance(result.images, torch.Tensor)
    assert result.images.isfinite().all()
    return result.images


PAIRS = [
    ("tile", "controls"),
    ("tile", "mask"),
    ("tile", "lora"),
    ("hires", "controls"),
    ("hires by lanczos", "controls"),
    ("hires", "lora"),
    ("hires", "tile"),
    ("hires", "schedule"),
    ("and", "pag"),
    ("and", "guess"),
    ("and", "lora"),
    ("and", "mask"),
    ("schedule", "image"),
    ("schedule", "mask"),
    ("pag", "guess"),
    ("mask", "controls"),
    ("outpaint", "lora"),
    ("outpaint", "tile"),
]
ALONE: dict[Pipeline, dict[str, torch.Tensor]] = {}  # pictures with one feature, drawn once
OF_SDXL = [
    ("lora", "controls"),
    ("tile", "controls"),
    ("tile", "lora"),
    ("hires", "controls"),
    ("and", "pag"),
    ("schedule", "image"),
    ("mask", "guess"),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_both_act(tiny_pipe: Pipeline, brought: Any, first: str, second: str) -> None:
    check_both_act(tiny_pipe, brought[tiny_pipe], first, second)


@pytest.mark.parametrize(("first", "second"), OF_SDXL)
def test_both_act_on_sdxl(sdxl: Pipeline, brought: Any, first: str, second: str) -> None:
    check_both_act(sdxl, brought[sdxl], first, second)


def check_both_act(pipe: Pipeline, brought: dict[str, dict[str, Any]], first: str, second: str) -> None:
    """A picture with both is neither the one with the first alone nor the one with the second alone."""
    both = draw(pipe, **brought[first], **brought[second])
    for alone in (first, second):
        if alone not in (known := ALONE.setdefault(pipe, {})):
            known[alone] = draw(pipe, **brought[alone])
        one = known[alone]
        assert one.shape != both.shape or (one - both).abs().max() > 1e-4, alone


@pytest.mark.parametrize("second", ["controls", "lora"])
def test_upscaling_takes_them(tiny_pipe: Pipeline, brought: Any, second: str) -> None:
    options = {"prompt": "a fox", "steps": 2, "seed": 1, "strength": 0.7, "output": "pt"}
    plain = tiny_pipe.upscale(picture(), **options).images
    other = tiny_pipe.upscale(picture(), **options, **brought[tiny_pipe][second]).images
    assert plain.shape == other.shape == (1, 3, 128, 128)
    assert (plain - other).abs().max() > 1e-4


def asked(pipe: Pipeline, **wishes: Any) -> list[tuple[torch.Tensor, Condition]]:
    """The rows of a picture's first step: what the network is shown, and on what condition."""
    given = {name: wishes.pop(name) for name in ("image", "mask", "depth", "controls", "loras") if name in wishes}
    request = Request(**{"prompt": "a fox", "steps": 2, "seed": 1, **wishes})
    job = prepare(pipe, request, "x", pipe.inputs(**given))
    rows: list[tuple[torch.Tensor, Condition]] = []

    def note(x: torch.Tensor, _sigmas: Any, conditions: Any, _told: Any) -> torch.Tensor:
        rows.extend(zip(x, conditions, strict=True))
        return x

    advance([job], note, 4)
    return rows


def test_a_window_is_steered_by_its_part_of_the_hint(tiny_pipe: Pipeline, brought: Any) -> None:
    """What lies at one place of the picture lies at that place of state, hint and mask alike."""
    wishes = {**brought[tiny_pipe]["controls"], "width": 104, "height": 72, "guidance_scale": 1.0}
    ((whole, condition),) = asked(tiny_pipe, **wishes)
    (control,) = condition.controls
    assert control.hint.shape == (3, 72, 104)
    rows = asked(tiny_pipe, **wishes, tile=40, overlap=16)
    assert len(rows) == 3 * 4
    for x, narrow in rows:
        (seen,) = narrow.controls
        assert (x.shape, seen.hint.shape) == ((4, 5, 5), (3, 40, 40))
        places = [(t, l) for t in range(5) for l in range(9) if torch.equal(whole[:, t : t + 5, l : l + 5], x)]
        ((top, left),) = places
        assert torch.equal(seen.hint, control.hint[:, 8 * top : 8 * top + 40, 8 * left : 8 * left + 40])


@pytest.mark.parametrize("kind", ["inpainting", "depth"])
def test_a_window_sees_its_part_of_what_lies_beside_the_latent(tiny_pipe: Pipeline, kind: str) -> None:
    pipe = like(tiny_pipe, in_channels=9 if kind == "inpainting" else 5)
    given = {"image": picture(2, 96, 64), "mask": half_masked().resize((96, 64))}
    if kind == "depth":
        given = {"depth": torch.rand(64, 96), "width": 96, "height": 64}
    ((whole, condition),) = asked(pipe, **given, guidance_scale=1.0)
    channels = condition.channels
    assert channels is not None
    rows = asked(pipe, **given, guidance_scale=1.0, tile=40)
    assert len(rows) > 4
    for x, narrow in rows:
        places = [(t, l) for t in range(4) for l in range(8) if torch.equal(whole[:, t : t + 5, l : l + 5], x)]
        ((top, left),) = places
        assert narrow.channels is not None
        assert torch.equal(narrow.channels, channels[:, top : top + 5, left : left + 5])
    draw(pipe, **given, tile=40)


def test_guess_mode_steers_every_part_of_a_composition(tiny_pipe: Pipeline, brought: Any) -> None:
    rows = asked(tiny_pipe, **brought[tiny_pipe]["guess"], prompt="a fox AND a car AND blue", negative_prompt="red")
    assert [bool(condition.controls) for _, condition in rows] == [True, True, True, False]


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"hires": Hires(), "image": picture()}, "a given image is enlarged by upscale"),
        ({"hires": Hires(), "image": picture(), "mask": half_masked()}, "a given image is enlarged by upscale"),
        ({"hires": Hires(), "stop": 0.5}, "hires is asked for, and stop"),
        ({"hires": Hires(), "start": 0.5, "latents": torch.zeros(1, 4, 8, 8)}, "hires is asked for, and start"),
    ],
)
def test_what_does_not_go_together_is_said(tiny_pipe: Pipeline, wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(darkroom.RequestError, match=said):
        tiny_pipe.generate("a fox", steps=3, **grouped(wishes))


def test_a_depth_model_makes_no_second_pass(tiny_pipe: Pipeline) -> None:
    """Said before anything is drawn: the second pass would begin with a picture that has no depths."""
    with pytest.raises(darkroom.RequestError, match="draws after a depth map"):
        asked(like(tiny_pipe, in_channels=5), depth=torch.rand(64, 64), hires=Hires())
