"""`darkroom info`: models and pictures, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom.formats import tensors
from darkroom.formats.picture import write_picture

Command = Callable[..., Any]  # see conftest.py

RECIPE = {"prompt": "a fox\n\x1b[2Jsecond", "seed": 1, "steps": 3, "sampler": "euler", "width": 8, "height": 8}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_picture_of_ours(name: str, command: Command, tmp_path: Path) -> None:
    path = write_picture(Image.new("RGB", (8, 8)), tmp_path / name, RECIPE)
    answer = command("info", path)
    assert answer.code == 0
    assert "recipe: by Darkroom" in answer.out
    assert "\n  prompt   a fox\n           \\x1b[2Jsecond\n" in answer.out
    assert "\x1b" not in answer.out
    found = command("info", path, "--json").json
    assert found["recipe"] == {"schema": 1, **RECIPE}
    assert (found["source"], found["width"], found["texts"].keys()) == ("darkroom", 8, {"parameters", "darkroom"})


def test_a_picture_is_known_by_its_bytes(command: Command, tmp_path: Path) -> None:
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", RECIPE)
    (tmp_path / "a.png").rename(tmp_path / "noname")
    assert "recipe: by Darkroom" in command("info", tmp_path / "noname").out


def test_a_picture_of_a1111_and_one_of_nobody(command: Command, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a fox\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 5, Size: 8x8, Hires upscale: 2")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    answer = command("info", tmp_path / "a.png")
    assert "recipe: by A1111 infotext" in answer.out
    assert "  schedule         karras\n" in answer.out
    assert "also:\n  Hires upscale  2\n" in answer.out
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    answer = command("info", tmp_path / "b.png")
    assert (answer.code, answer.out.splitlines()[1]) == (0, "no recipe found")


def test_a_model(command: Command, model: Path) -> None:
    answer = command("info", model)
    assert (answer.code, answer.err) == (0, "")
    for said in ("tiny", "diffusers folder", "text-to-image", "64 x 64 pixels", "DDIMScheduler", "unet", "float32"):
        assert said in answer.out
    found = command("info", model, "--json", "--hash").json
    assert found["kind"] == "diffusers folder"
    assert len(found["hash"]) == 10
    assert found["hash"] in command("info", model, "--hash").out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "there is no picture"),
        ("missing.safetensors", "does not exist"),
        ("text.png", "is not a PNG, JPEG or WebP picture"),
        ("text.gif", "is not a PNG, JPEG or WebP picture"),
        ("text", "text"),
        ("empty", "empty"),
        ("", "does not exist"),
        ("nul\0", "nul"),
        ("x" * 5000, "x"),
    ],
)
def test_what_is_neither(
    name: str, said: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("hello")
    Path("text.png").write_text("hello")
    Path("empty").mkdir()
    Path("text.gif").write_text("hello")
    answer = command("info", name)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence


def test_a_faulty_model_is_described_and_refused(command: Command, model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = json.loads((broken / "unet" / "config.json").read_text())
    config["cross_attention_dim"] = 40
    (broken / "unet" / "config.json").write_text(json.dumps(config))
    answer = command("info", broken)
    assert answer.code == 2
    assert answer.sentence


@pytest.mark.parametrize("kind", ["embedding", "lora", "nothing"])
def test_a_pickle_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: Command
) -> None:
    path = tmp_path / "x.pt"
    values: dict[str, Any] = {
        "embedding": {"string_to_param": {"*": torch.ones(2, 768)}, "name": "cat"},
        "lora": {"lora_unet_a.lora_down.weight": torch.ones(1, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 1)},
        "nothing": {"epoch": 1},
    }
    torch.save(values[kind], path)
    asked: list[str] = []
    ask = tensors._ask
    monkeypatch.setattr(tensors, "_ask", lambda *given: asked.append(given[1]) or ask(*given))  # type: ignore[func-returns-value]
    assert command("info", path).code == (0 if kind != "nothing" else 2)
    assert len(asked) == 1


def test_a_file_of_another_model_is_called_by_its_name(command: Command, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}, path)
    answer = command("info", path)
    assert (answer.code, answer.err) == (0, "")
    assert "kind        Flux.1 model, " in answer.out
    assert "runs in     ComfyUI, diffusers; not in Darkroom\n" in answer.out
    assert command("info", path, "--json").json["kind"] == "Flux.1 model"
    answer = command("generate", "a fox", "--model", path)
    assert (answer.code, answer.out) == (2, "")
    said = f"{path} is a Flux.1 model, which Darkroom does not load (ComfyUI, diffusers can)"
    assert answer.err.strip().endswith(said)
    path.write_bytes(path.read_bytes()[:-1])
    answer = command("info", path)
    assert answer.code == 2
    assert "Flux.1 model" in answer.out
    assert "is cut short" in answer.err
