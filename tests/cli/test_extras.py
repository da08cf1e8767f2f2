"""What comes with the embedded model, by name: "embedded:NAME", in place of files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import darkroom
from darkroom import embedded
from darkroom.adapters import init_lora
from darkroom.errors import CheckpointError
from darkroom.formats.control import save_controlnet
from darkroom.formats.embedding import save_embedding
from darkroom.formats.hub import resolve
from darkroom.formats.lora_save import save_lora
from darkroom.models.config import ControlNetConfig, UNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.pipeline import Pipeline


@pytest.fixture
def extras(tiny_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins, for the tiny model, of a ControlNet, a LoRA and a learned word."""
    home = tmp_path / "home"
    config = ControlNetConfig(
        **{field.name: getattr(tiny_pipe.unet.config, field.name) for field in fields(UNetConfig)}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ControlNet(config)
        for tensor in net.state_dict().values():
            tensor.normal_(std=0.2)
        save_controlnet(home / "controlnet-edges", net.state_dict(), config)
        lora = init_lora(tiny_pipe.unet, 2, 2.0)
        with torch.no_grad():
            for parameter in lora.parameters():
                parameter.normal_()
        save_lora(home / "lora/ink.safetensors", lora.adapter("unet"), tiny_pipe.loras.networks)
        save_embedding(home / "word/toy.safetensors", torch.randn(2, 32), "toy")
    monkeypatch.setattr(embedded, "HOME", home)
    return home


def test_names(extras: Path) -> None:
    assert embedded.extras() == {
        "edges": extras / "controlnet-edges",
        "ink": extras / "lora/ink.safetensors",
        "toy": extras / "word/toy.safetensors",
        "model": extras / "model",
    }
    assert resolve("embedded:edges") == extras / "controlnet-edges"
    assert embedded.place_of("other/embedded:ink") == "other/embedded:ink"
    for name in ("", "../lora/ink", "lora/ink", "ink.safetensors"):
        with pytest.raises(CheckpointError, match="it has edges, ink, toy"):
            embedded.place_of(f"embedded:{name}")


def test_each_acts_as_its_file_does(command: Any, extras: Path, model: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "hint.png")
    base = ("generate", "a toy fox", "--model", model, "--steps", 2, "--seed", 1)
    plain = command(*base, "-o", tmp_path / "plain.png").paths[0]
    for option, name, place, rest in (
        ("--control", "embedded:edges", "controlnet-edges", f"={tmp_path}/hint.png:0.5"),
        ("--lora", "embedded:ink", "lora/ink.safetensors", ":0.5"),
        ("--embedding", "embedded:toy", "word/toy.safetensors", ""),
    ):
        called = command(*base, option, f"{name}{rest}", "-o", tmp_path / f"{option}1.png").paths[0]
        given = command(*base, option, f"{extras / place}{rest}", "-o", tmp_path / f"{option}2.png").paths[0]
        pictures = [Image.open(path).tobytes() for path in (plain, called, given)]
        assert pictures[1] == pictures[2] != pictures[0], option
        assert "identical" in command("verify", called, "--model", model, option, f"{name}{rest}").out


def test_info_and_what_is_not_there(command: Any, extras: Path, model: Path) -> None:
    assert "ControlNet" in command("info", "embedded:edges").out
    assert "LoRA" in command("info", "embedded:ink").out
    assert "embedding" in command("info", "embedded:toy").out
    said = "the embedded model has no 'none': it has edges, ink, toy, model"
    for arguments in (
        ("info", "embedded:none"),
        ("generate", "a", "--model", model, "--lora", "embedded:none:0.8"),
        ("generate", "a", "--model", model, "--embedding", "embedded:none"),
    ):
        answer = command(*arguments)
        assert (answer.code, answer.sentence) == (2, said)


def test_prompts_may_name_the_embedded_loras(extras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.loading.HOME", extras)
    assert darkroom.load().loras.folder == extras / "lora"
    assert darkroom.load(lora_dir=extras).loras.folder == extras
