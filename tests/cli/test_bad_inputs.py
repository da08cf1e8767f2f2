"""Odd pictures, masks, hints and adapters on the command line: a picture, or one sentence and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from darkroom.formats.control import save_controlnet
from darkroom.models.controlnet import ControlNet

Command = Callable[..., Any]  # see conftest.py
CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def made(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    photo.save(folder / "p.png")
    for name, size in (("1x1", (1, 1)), ("10000x3", (10000, 3)), ("3x900", (3, 900)), ("8x8", (8, 8))):
        photo.resize(size).save(folder / f"{name}.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save(folder / "m.png")
    for mode in ("1", "P", "RGB"):
        mask.convert(mode).save(folder / f"m{mode}.png")
    Image.fromarray(np.asarray(mask).astype(np.uint16) * 257).save(folder / "m16.png")
    Image.merge("RGBA", (mask,) * 4).save(folder / "mRGBA.png")
    mask.convert("CMYK").save(folder / "mCMYK.jpg")
    mask.resize((32, 32)).save(folder / "half.png")
    mask.resize((50, 20)).save(folder / "wide.png")
    Image.new("L", (64, 64), 0).save(folder / "empty.png")
    Image.new("L", (64, 64), 255).save(folder / "full.png")
    (folder / "text.png").write_text("hello")
    (folder / "zero.png").write_bytes(b"")
    for width in (768, 1024, 2048):
        down, up = torch.ones(2, width), torch.ones(16, 2)
        save_file({f"{CROSS}.lora_down.weight": down, f"{CROSS}.lora_up.weight": up}, folder / f"l{width}.safetensors")
        save_file({"toy": torch.ones(2, width)}, folder / f"e{width}.safetensors")
    net = ControlNet.from_unet(tiny_pipe.unet)
    save_controlnet(folder / "net", net.state_dict(), net.config)
    other = replace(net.config, cross_attention_dim=768)
    save_controlnet(folder / "net768", ControlNet(other).state_dict(), other)
    file = save_controlnet(folder / "netnan", net.state_dict(), net.config) / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, file)
    return folder


@pytest.fixture
def generate(command: Command, made: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(made)

    def call(line: str) -> Any:
        return command("generate", "a toy fox", "--model", model, "--steps", 2, *line.split(), "-o", tmp_path / "o.png")

    return call


@pytest.mark.parametrize(
    ("line", "size"),
    [
        *[(f"--image p.png --mask {name}", (64, 64)) for name in ("m1.png", "mP.png", "mRGB.png", "m16.png")],
        *[(f"--image p.png --mask {name}", (64, 64)) for name in ("mRGBA.png", "mCMYK.jpg", "half.png", "full.png")],
        ("--image p.png --mask full.png --only-masked", (64, 64)),
        ("--image p.png --strength 1", (64, 64)),
        ("--image p.png --strength 1 --mask m.png --fill noise", (64, 64)),
        ("--image 1x1.png --size 24x16", (24, 16)),
        ("--image 3x900.png --size 8x64", (8, 64)),
        ("--image 8x8.png --outpaint left=3", (11, 8)),
        ("--control net=1x1.png", (64, 64)),
        ("--control net=canny@3x900.png:0.5:0-0.5", (64, 64)),
    ],
)
def test_what_can_be_drawn_is(generate: Command, line: str, size: tuple[int, int]) -> None:
    answer = generate(line)
    assert (answer.code, answer.err) == (0, "")
    with Image.open(answer.paths[0]) as picture:
        assert picture.size == size


@pytest.mark.parametrize("line", ["--strength 0", "--strength 0 --mask m.png", "--mask empty.png"])
def test_what_changes_nothing_gives_the_picture_back(generate: Command, line: str) -> None:
    path = generate(f"--image p.png {line}").paths[0]
    with Image.open(path) as picture, Image.open("p.png") as photo:
        apart = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(photo, int)).max()
    assert apart == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--image p.png --mask wide.png", "the mask is 50x20 pixels and the image 64x64"),
        ("--image p.png --mask text.png", "--mask: 'text.png' is not a PNG"),
        ("--image p.png --mask zero.png", "--mask: 'zero.png' is not a PNG"),
        ("--image p.png --strength nan", "--strength is nan; it must be from 0 to 1"),
        ("--image p.png --strength 1.01", "--strength is 1.01; it must be from 0 to 1"),
        ("--image 1x1.png", "would be 1x1 pixels, and its sides must be from 8 to 8192"),
        ("--image 10000x3.png", "would be 10000x3 pixels, and its sides must be from 8 to 8192"),
        ("--lora l768.safetensors", "made for Stable Diffusion 1.x (text width 768); this model is a custom model"),
        ("--lora l1024.safetensors", "made for Stable Diffusion 2.x (text width 1024); this model is a custom model"),
        ("--lora l2048.safetensors", "made for SDXL (text width 2048); this model is a custom model"),
        ("--embedding toy=e768.safetensors", "e768.safetensors"),
        ("--control net768=p.png", "is made for Stable Diffusion 1.x (texts of width 768), and this model is a custom"),
        ("--control netnan=p.png", "poisoned or broken"),
        ("--control net=text.png", "can't be read as a picture"),
        ("--control-guess", "--control-guess is given without --control"),
        ("--overlap 8", "--overlap is given without tile"),
        ("--tile 64 --overlap 64", "--overlap is 64; it must be below tile, which is 64"),
        ("--image p.png --hires 2", "a given image is enlarged by upscale; leave one of them out"),
        ("--image p.png --mask m.png --outpaint left=8", "leave one of them out"),
        ("--image p.png --only-masked", "there is no mask"),
        ("--mask m.png", "--mask is given without --image"),
        ("--outpaint left=8", "outpaint is given without an image"),
    ],
)
def test_what_can_not_be_is_one_sentence_and_nothing_is_lost(
    generate: Command, tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    answer = generate(line)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert os.listdir(tmp_path) == ["mine.txt"]
