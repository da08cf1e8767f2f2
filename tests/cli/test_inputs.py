"""What pictures are made from on the command line: each kind is drawn with, told by info, and needed to verify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from darkroom.adapters import init_lora
from darkroom.formats.control import save_controlnet
from darkroom.formats.embedding import save_embedding
from darkroom.formats.lora_save import save_lora
from darkroom.formats.picture import read_metadata
from darkroom.models.controlnet import ControlNet

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture(scope="module")
def made(tiny_pipe: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs for the tiny model; in the folders of LoRAs and embeddings one file is broken."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "loras").mkdir()
    (folder / "words").mkdir()
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate(("ink", "gold")):
            torch.manual_seed(seed)
            lora = init_lora(tiny_pipe.unet, 2)
            for up in lora.up:
                nn.init.normal_(up, std=0.3)
            save_lora(folder / f"loras/{name}.safetensors", lora.adapter(), tiny_pipe.loras.networks, "kohya")
            save_embedding(folder / f"words/{name}toy.safetensors", torch.randn(2, 32), "toy")
            net = ControlNet.from_unet(tiny_pipe.unet)
            for parameter in net.parameters():
                nn.init.normal_(parameter, std=0.1)
            save_controlnet(folder / f"{name}-net", net.state_dict(), net.config)
    for place in ("loras", "words"):
        (folder / place / "fox.safetensors").write_bytes(b"\xff" * 100)
        (folder / place / "car.pt").write_bytes(b"")
    values = np.random.default_rng(0)
    for name in ("photo", "other"):
        Image.fromarray(values.integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = Image.new("L", (48, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save(folder / "mask.png")
    shutil.copytree(model / "vae", folder / "vae")
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


INK, GOLD = "loras/ink.safetensors", "loras/gold.safetensors"
CASES: dict[str, tuple[str, list[str], list[tuple[list[str], str]], str]] = {
    # what is drawn; with which options; other options of verify, and what they are answered; what info says
    "lora": (
        "a photo", ["--lora", f"{INK}:0.8"],
        [([], "this recipe used the LoRA 'ink' (hash"), (["--lora", GOLD], "this recipe used the LoRA 'ink' (hash")],
        ") at 0.8\n",
    ),
    "lora by name": (
        "a <lora:ink:0.5> photo", ["--lora-dir", "loras"], [([], "give that file again, or the folder it is in")],
        ") at 0.5\n",
    ),
    "embedding": (
        "a inktoy photo", ["--embedding", "words/inktoy.safetensors"],
        [([], "was drawn with the embedding 'inktoy'"),
         (["--embedding", "words/goldtoy.safetensors"], "was drawn with the embedding 'inktoy'")],
        "  inktoy:",
    ),
    "embedding by name": (
        "a inktoy photo", ["--embedding-dir", "words"], [([], "was drawn with the embedding 'inktoy'")], "inktoy:"
    ),
    "control": (
        "a photo", ["--control", "ink-net=canny@photo.png:0.7:0-0.8"],
        [([], "pictures that were given to ControlNets ('ink-net'); give the same controls again"),
         (["--control", "ink-net=canny@other.png:0.7:0-0.8"], "was made with the controls ink-net ("),
         (["--control", "ink-net=canny@photo.png:0.6:0-0.8"], "at 0.7 from 0 to 0.8 of the steps after the picture"),
         (["--control", "gold-net=canny@photo.png:0.7:0-0.8"], "and given are gold-net (")],
        ") at 0.7 from 0 to 0.8 of the steps after the picture ",
    ),
    "image": (
        "a photo", ["--image", "photo.png"],
        [([], "was made with an image that was given"), (["--image", "other.png"], "was made with another image")],
        "\n  strength ",
    ),
    "mask": (
        "a photo", ["--image", "photo.png", "--mask", "mask.png"],
        [(["--image", "photo.png"], "was made with a mask that was given")], "\n  mask blur ",
    ),
    "outpaint": (
        "a photo", ["--image", "photo.png", "--outpaint", "left=16"], [([], "this recipe was made with an image")],
        "\n  outpaint ",
    ),
    "tile": ("a photo", ["--tile", "48", "--size", "72x64"], [], "\n  tile "),
    "hires": ("a photo", ["--hires", "1.5", "--hires-steps", "3"], [], "1.5 times as large, strength 0.7, 3 steps"),
    "all": (
        "a <lora:ink:0.5> goldtoy",
        ["--lora-dir", "loras", "--embedding-dir", "words", "--control", "ink-net=photo.png", "--image", "photo.png",
         "--mask", "mask.png", "--tile", "40"],
        [(["--lora-dir", "loras", "--control", "ink-net=photo.png", "--image", "photo.png", "--mask", "mask.png"],
          "was drawn with the embedding 'goldtoy'")],
        "\n  controls ",
    ),
}  # fmt: skip
OF_RECIPES = ("--strength", "--outpaint", "--tile", "--size", "--hires", "--hires-steps")  # verify knows them


@pytest.mark.parametrize("case", CASES)
def test_a_picture_needs_again_what_it_was_made_from(case: str, here: Path, command: Command, model: Path) -> None:
    prompt, options, others, told = CASES[case]
    file = Path(f"with {case}.png")
    drawn = command("generate", prompt, "--model", model, "--steps", 3, "--seed", 1, "-o", file, *options)
    assert (drawn.code, drawn.err) == (0, "")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    again = [word for pair in pairs if pair[0] not in OF_RECIPES for word in pair]
    answer = command("verify", file, "--model", model, *again)
    assert (answer.code, answer.out, answer.err) == (0, "identical\n", "")
    for given, said in others:
        answer = command("verify", file, "--model", model, *given)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.sentence
    assert told in command("info", file).out


def test_a_renamed_file_is_the_same_file(here: Path, command: Command, model: Path) -> None:
    common = ("--model", model, "--seed", 1, "--steps", 2, "-o", "renamed.png")
    assert command("generate", "a photo", "--lora", INK, "--control", "ink-net=photo.png", *common).code == 0
    shutil.copy(INK, "paint.safetensors")
    shutil.copytree("ink-net", "edges")
    given = ("--lora", "paint.safetensors", "--control", "edges=photo.png")
    assert command("verify", "renamed.png", "--model", model, *given).out == "identical\n"


def test_another_autoencoder(here: Path, command: Command, model: Path) -> None:
    common = ("--model", model, "--seed", 1, "--steps", 2)
    drawn = command("generate", "a photo", *common, "--vae", "vae", "-o", "vae.png")
    assert (drawn.code, drawn.err) == (0, "")
    assert read_metadata("vae.png").recipe["vae"] == "vae"
    assert command("verify", "vae.png", "--model", model, "--vae", "vae").err == ""
    assert "this model has its own" in command("verify", "vae.png", "--model", model).sentence
    assert "none" in command("generate", "a photo", *common, "--vae", "none").sentence


def test_a_broken_file_of_a_folder_stops_only_who_names_it(here: Path, command: Command, model: Path) -> None:
    common = ("--model", model, "--steps", 2, "--embedding-dir", "words", "--lora-dir", "loras", "-o", "out")
    assert command("generate", "a photo", *common).code == 0
    assert command("sweep", "a photo", "--x", "steps=1,2", *common[:2], *common[4:]).code == 0
    for prompt in ("a fox", "a car", "<lora:fox:1>", "<lora:car:1>"):
        answer = command("generate", prompt, *common)
        assert (answer.code, answer.out) == (2, "")
        assert "fox.safetensors" in answer.sentence or "car.pt" in answer.sentence
    answer = command("sweep", "a photo", "--x", "prompt=photo,car", *common[:2], *common[4:])
    assert (answer.code, "car.pt" in answer.sentence) == (2, True)


def test_what_does_not_fit_is_said(here: Path, command: Command, model: Path) -> None:
    for options, said in (
        (["--depth", "photo.png"], "this model takes no depth map"),
        (["--lora", "words/inktoy.safetensors"], "inktoy.safetensors"),
        (["--embedding", INK], "is no textual-inversion embedding"),
        (["--control", f"{INK}=photo.png"], "ink.safetensors"),
        (["--control", "words=photo.png"], "words"),
        (["--vae", INK], "ink.safetensors"),
        (["--tile", "4"], "--tile is 4"),
        (["--hires", "0.5"], "hires scale is 0.5"),
        (["--hires", "2", "--image", "photo.png"], "a given image is enlarged by upscale"),
        (["--lora-dir", "none"], None),
        (["--embedding-dir", "none"], "is no folder"),
    ):
        answer = command("generate", "a photo", "--model", model, "--steps", 2, "-o", "refused", *options)
        if said is not None:
            assert (answer.code, answer.out) == (2, "")
            assert said in answer.sentence
    assert not Path("refused.png").exists()
