"""`darkroom explain`, and embeddings on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darkroom.formats.embedding import save_embedding

Command = Callable[..., Any]  # see conftest.py


def test_explain(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    save_embedding(tmp_path / "toy.safetensors", torch.zeros(2, 32), "<t>")
    arguments = ["--model", tiny_folder, "--embedding", tmp_path / "toy.safetensors", "--steps", 4]
    answer = command("explain", "a [red:blue:2] toy\x1b[2J", *arguments)
    assert answer.code == 0
    assert "steps 1-2 of 4" in answer.out
    assert "embedding toy: 2 vectors" in answer.out
    assert "\x1b" not in answer.out
    told = command("explain", "a AND the :0.5", *arguments, "--json").json
    assert [part["weight"] for part in told["parts"]] == [1.0, 0.5]
    assert len(command("explain", "a AND the", *arguments, "--json", "--negative").json["parts"]) == 1
    folder = command("explain", "a TOY", "--model", tiny_folder, "--embedding-dir", tmp_path, "--json").json
    assert [word["name"] for word in folder["embeddings"]] == ["toy"]


def test_explaining_what_cannot_be(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    save_embedding(tmp_path / "toy.safetensors", torch.zeros(2, 768), "<t>")
    wide = command("explain", "toy", "--model", tiny_folder, "--embedding", tmp_path / "toy.safetensors")
    assert wide.code == 2
    assert "is for Stable Diffusion 1.x (width 768)" in wide.sentence
    assert command("explain", "a", "--steps", 0).sentence == "--steps is 0; it must be from 1 to 1000"
    assert "is no folder" in command("explain", "a", "--embedding-dir", tmp_path / "none").sentence
    assert "does not exist" in command("explain", "a", "--embedding", tmp_path / "none.pt").sentence


def test_info_and_convert(command: Command, tmp_path: Path) -> None:
    source = save_embedding(tmp_path / "toy.safetensors", torch.ones(2, 768), "<t>")
    (word,) = command("info", source, "--json").json["words"]
    assert (word["names"], word["vectors"], word["width"]) == (["toy", "<t>"], 2, [768])
    assert "textual inversion" in command("info", source).out
    target = tmp_path / "kohya.safetensors"
    assert command("convert", source, target).paths == [target]
    assert command("info", target, "--json").json["form"] == "kohya"
    assert "exists already" in command("convert", source, target).sentence
    assert command("convert", source, tmp_path / "x.safetensors", "--form", "x").code == 2
    assert "no pickles" in command("convert", source, tmp_path / "x.pt").sentence


def test_explaining_what_is_not_read(command: Command) -> None:
    """The embedded model's vocabulary is small; `objects` lists it."""
    assert command("explain", "a large fox on a yellow background").err == ""
    answer = command("explain", "a large dragoon, {red|blue}")
    assert answer.code == 0
    assert "'{red|blue}' in the prompt is read as plain text" in answer.err
    assert "this model doesn't know 'dragoon', and draws something else (near: dragon)" in answer.err
    listed = command("objects", "--json").json
    assert {"dragon", "teddy bear"} < set(listed["objects"])
    assert listed["relations"] == ["to the left of", "to the right of", "above", "below"]
    assert "teddy bear" in command("objects").out
