"""--control's texts, `darkroom hint`, and ControlNets in info and convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from darkroom.cli.options import controls
from darkroom.errors import RequestError
from darkroom.formats.control import open_controlnet, save_controlnet
from darkroom.models.config import ControlNetConfig
from darkroom.models.controlnet import ControlNet


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("edges.png", "a=b:1.png", "canny@x.png", "odd:0.5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").save(tmp_path / name, format="PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net.safetensors=edges.png", ("net.safetensors", "edges.png", 1.0, 0.0, 1.0, None)),
        ("net=edges.png:0.8", ("net", "edges.png", 0.8, 0.0, 1.0, None)),
        ("net=canny@edges.png:.8", ("net", "edges.png", 0.8, 0.0, 1.0, "canny")),
        ("net=soft_edges@edges.png:-1:0.1-0.6", ("net", "edges.png", -1.0, 0.1, 0.6, "soft-edges")),
        ("C:/n=1/net.pth=a=b:1.png:2", ("C:/n=1/net.pth", "a=b:1.png", 2.0, 0.0, 1.0, None)),
        ("net=canny@x.png", ("net", "canny@x.png", 1.0, 0.0, 1.0, None)),
        ("net=canny@canny@x.png", ("net", "canny@x.png", 1.0, 0.0, 1.0, "canny")),
        ("net=odd:0.5", ("net", "odd:0.5", 1.0, 0.0, 1.0, None)),
        ("net=odd:0.5:0.7", ("net", "odd:0.5", 0.7, 0.0, 1.0, None)),
    ],
)
def test_texts(here: Path, text: str, expected: tuple[Any, ...]) -> None:
    (control,) = controls([text], guess=False)
    assert (control.net, control.image, control.scale, control.start, control.stop, control.hint) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("net", "give a ControlNet and a picture"),
        ("=edges.png", "give a ControlNet and a picture"),
        ("net=none.png:0.5", "there is no picture 'none.png"),
        ("net=canny@none.png", "there is no picture 'none.png'"),
        ("net=edges.png:99", "a control's scale is 99"),
        ("net=edges.png:1:0.6-0.2", r"starts at 0\.6 and stops at 0\.2"),
    ],
)
def test_texts_that_can_not_be(here: Path, text: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        controls([text], guess=False)


def test_guess_mode_needs_a_network(command: Any, here: Path) -> None:
    answer = command("generate", "x", "--control-guess")
    assert (answer.code, answer.sentence) == (
        2,
        "--control-guess is given without --control; give it too, or leave it out",
    )


def test_hint(command: Any, here: Path) -> None:
    assert command("hint", "canny", "edges.png", "-o", "out.png").out.strip() == "out.png"
    assert Image.open(here / "out.png").size == (256, 256)
    assert "exists already" in command("hint", "canny", "edges.png", "-o", "out.png").err
    command("hint", "palette", "edges.png", "-o", "out.png", "--overwrite", "--set", "cells=2")
    assert len(Image.open(here / "out.png").getcolors()) == 2
    command("hint", "depth", "edges.png", "-o", "far.png", "--set", "far_is_white=true")
    for arguments, sentence in (
        (("cany", "edges.png"), "did you mean 'canny'"),
        (("canny", "none.png"), "does not exist"),
        (("canny", "edges.png", "--set", "low"), "give an option and its value"),
        (("canny", "edges.png", "--set", "low=x"), "low of the hint 'canny' is 'x'; it must be a number"),
        (("canny", "edges.png", "--set", "lo=3"), "did you mean 'low'"),
        (("tile", "edges.png", "-o", "folder"), "give a file that ends in"),
    ):
        answer = command("hint", *arguments)
        assert answer.code == 2
        assert sentence in answer.err


def test_info_and_convert(command: Any, here: Path) -> None:
    config = ControlNetConfig(
        block_out_channels=(32, 64),
        layers_per_block=(1, 1),
        attention_levels=(True, False),
        only_cross_attention=(False, False),
        transformer_layers=(1, 1),
        heads=(8, 8),
        cross_attention_dim=768,
    )
    with torch.random.fork_rng(devices=[]):
        save_controlnet("net", ControlNet(config).state_dict(), config)
    assert command("convert", "net", "net.safetensors", "--dtype", "float16").out.strip().endswith("net.safetensors")
    assert open_controlnet("net.safetensors").controlnet_config == config
    told = command("info", "net.safetensors").out
    assert "ControlNet, original file" in told
    assert "sd1, text of width 768" in told
    assert "float16" in told
    found = command("info", "net", "--hash", "--json").json
    assert (found["text_width"], found["fault"], len(found["hash"])) == (768, None, 10)
    command("convert", "net.safetensors", "again", "--dtype", "float32")
    assert open_controlnet("again").kind == "diffusers folder"
