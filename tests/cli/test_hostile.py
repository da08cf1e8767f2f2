"""Broken and hostile LoRAs, embeddings, ControlNets and recipes: info, convert and verify answer in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

Command = Callable[..., Any]  # see conftest.py

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = f"{LAYER}.lora_down.weight", f"{LAYER}.lora_up.weight"
NAN = float("nan")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    good = {DOWN: torch.ones(2, 64), UP: torch.ones(64, 2)}
    save_file(good, folder / "good.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    (folder / "header-cut.safetensors").write_bytes(whole[:40])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pt").write_bytes(b"")
    save_file({**good, DOWN: torch.full((2, 64), NAN)}, folder / "lora-nan.safetensors")
    save_file({DOWN: torch.ones(2, 64)}, folder / "half.safetensors")
    save_file({**good, UP: torch.ones(64, 3)}, folder / "ranks.safetensors")
    save_file({**good, f"{LAYER}.alpha": torch.ones(2)}, folder / "alpha.safetensors")
    save_file({DOWN: torch.ones(0, 64), UP: torch.ones(64, 0)}, folder / "nothing.safetensors")
    save_file({"x" * 1_000_000: torch.ones(2, 32)}, folder / "long-name.safetensors")
    save_file({"\x1b[2J": torch.ones(2, 32)}, folder / "escape.safetensors")
    save_file({"toy": torch.full((2, 32), NAN)}, folder / "word-nan.safetensors")
    save_file({"toy": torch.ones(0, 32)}, folder / "no-vectors.safetensors")
    torch.save({"string_to_param": {"*": torch.full((2, 32), NAN)}}, folder / "word-nan.pt")
    torch.save({"string_to_param": 7}, folder / "no-words.pt")
    torch.save([1, 2], folder / "list.pt")
    whole = (folder / "word-nan.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    hint = {"controlnet_cond_embedding.conv_in.weight": torch.ones(16, 3, 3, 3)}
    for name, config in (("net", None), ("net-list", "[1]"), ("net-huge", '{"block_out_channels": [1e9, "x"]}')):
        (folder / name).mkdir()
        save_file(hint, folder / name / "diffusion_pytorch_model.safetensors")
        if config is not None:
            told = config if config == "[1]" else json.dumps({"_class_name": "ControlNetModel", **json.loads(config)})
            (folder / name / "config.json").write_text(told)
    shutil.copytree(folder / "net-huge", folder / "net-empty")
    os.remove(folder / "net-empty/diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cut.safetensors", "is cut short"),
        ("header-cut.safetensors", "is cut short"),
        ("empty.safetensors", "is empty"),
        ("empty.pt", "is empty"),
        ("long-name.safetensors", "whose name has 1000000 characters"),
        ("escape.safetensors", r"'\x1b[2J'"),
        ("word-nan.safetensors", "holds NaN"),
        ("word-nan.pt", "holds NaN"),
        ("no-vectors.safetensors", "is [0, 32]"),
        ("no-words.pt", "holds 0 learned words"),
        ("list.pt", "holds a list"),
        ("cut.pt", "cut short"),
        ("net", "net"),
        ("net-list", "holds a JSON list"),
        ("net-huge", "block_out_channels is"),
        ("net-empty", "net-empty"),
    ],
)
def test_info_and_convert_refuse(name: str, said: str, files: Path, command: Command, tmp_path: Path) -> None:
    for arguments in (("info", files / name), ("convert", files / name, tmp_path / "out.safetensors")):
        answer = command(*arguments)
        assert answer.code == 2
        told = [line.split()[0] for line in answer.out.splitlines()[1:]]  # `info` names what it is, and no more
        assert set(told) <= ({"path", "kind"} if arguments[0] == "info" else set())
        assert said in answer.sentence
        assert len(answer.sentence) < 1000
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora-nan", "holds NaN"),
        ("half", "has no up"),
        ("ranks", "the ranks of"),
        ("alpha", "alpha is [2], not one number"),
        ("nothing", "no factor"),
    ],
)
def test_a_lora_that_can_not_act_is_not_written_anew(
    name: str, said: str, files: Path, command: Command, tmp_path: Path
) -> None:
    answer = command("convert", files / f"{name}.safetensors", tmp_path / "out.safetensors")
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert not os.listdir(tmp_path)
    assert command("info", files / f"{name}.safetensors").code == 0  # it tells what is there, without reading numbers


LORA = {"name": "\x1b[2J\nx", "hash": "\x1b[2J", "scale": 1, "text_scale": 1}
CONTROL = {"name": "\x1b[2J", "hash": "\x1b", "hint": "\x1b", "scale": 1, "start": 0, "stop": 1, "guess": False}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"loras": "x"}, "loras is 'x'; it must be a list"),
        ({"loras": [{"name": 1}]}, "each must have name, hash, scale and text_scale"),
        ({"loras": [{**LORA, "scale": NAN}]}, "a LoRA's scale is nan"),
        ({"loras": [LORA]}, "give that file again"),
        ({"controls": {"a": 1}}, "it must be a list"),
        ({"controls": [CONTROL]}, "give the same controls again"),
        ({"hires": {"scale": "x"}}, "hires scale is 'x'"),
        ({"hires": [1]}, "hires is [1]"),
        ({"hires": {"scale": 16}, "width": 4096, "height": 4096}, "sides must be from 8 to 8192"),
        ({"embeddings": [1]}, "an embedding is 1"),
        ({"embeddings": ["\x1b[2J:\x1b"]}, r"the embedding '\x1b[2J'"),
        ({"embeddings": ["e" * 1_000_000]}, "has 1,000,000 characters"),
        ({"image": "\x1b[2J"}, r"(fingerprint \x1b[2J)"),
        ({"outpaint": [1, 2]}, "outpaint is [1, 2]"),
    ],
)
def test_recipes(recipe: dict[str, Any], said: str, command: Command, model: Path, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("darkroom", json.dumps({"schema": 1, "prompt": "x", "seed": 1, "steps": 1, **recipe}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    answer = command("verify", tmp_path / "a.png", "--model", model)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    told = command("info", tmp_path / "a.png")
    assert told.code == 0
    assert "\x1b" not in told.out
