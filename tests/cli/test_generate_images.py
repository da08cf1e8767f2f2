"""`darkroom generate --image`: image-to-image, inpainting, outpainting; every wrong option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.formats.picture import read_metadata

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture
def generate(command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`darkroom generate ... --model TINY --steps 4` in a folder with image.png (48x32) and mask.png."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save("image.png")
    mask = Image.new("L", (48, 32), 0)
    mask.paste(255, (10, 10, 30, 25))
    mask.save("mask.png")
    return lambda *arguments: command("generate", "a fox", *arguments, "--model", model, "--steps", 4)


def test_image_to_image(generate: Command) -> None:
    answer = generate("--image", "image.png", "--strength", 0.5, "--seed", 1)
    assert answer.code == 0, answer.err
    with Image.open(answer.paths[0]) as image:
        assert image.size == (48, 32)
    recipe = read_metadata(answer.paths[0])
    assert recipe is not None
    exact = generate("--image", "image.png", "--strength", 0.5, "--seed", 1, "--exact-steps", "-o", "other")
    assert exact.code == 0, exact.err
    assert exact.paths[0].read_bytes() != answer.paths[0].read_bytes()


def test_inpainting_and_outpainting(generate: Command) -> None:
    with Image.open("image.png") as image, Image.open("mask.png") as mask:
        original, masked = np.asarray(image), np.asarray(mask) > 0
    for more in ([], ["--only-masked", "--mask-padding", 4, "--mask-blur", 2, "--fill", "fill"]):
        answer = generate("--image", "image.png", "--mask", "mask.png", "-o", f"out{len(more)}", *more)
        assert answer.code == 0, answer.err
        with Image.open(answer.paths[0]) as image:
            same = (np.asarray(image) == original).all(axis=2)
        assert same[~masked].all()
        assert not same[masked].all()
    answer = generate("--image", "image.png", "--outpaint", "left=16, bottom=8", "-o", "wide.png")
    assert answer.code == 0, answer.err
    with Image.open("wide.png") as image:
        assert image.size == (64, 40)
        assert (np.asarray(image)[:32, 16:] == original).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strength", "0.5"], "strength is 0.5, but there is no image"),
        (["--image", "image.png", "--strength", "2"], "--strength is 2.0; it must be from 0 to 1"),
        (["--image", "image.png", "--strength", "nan"], "--strength is nan"),
        (["--image", "none.png"], "--image is 'none.png', which does not exist"),
        (["--mask", "mask.png"], "--mask is given without --image"),
        (["--image", "image.png", "--mask", "none.png"], "--mask is 'none.png'"),
        (["--image", "image.png", "--fill", "grey"], "--fill is 'grey'"),
        (["--image", "image.png", "--mask-blur", "-1"], "--mask-blur is -1"),
        (["--image", "image.png", "--outpaint", "left"], "such as left=128,top=64"),
        (["--image", "image.png", "--outpaint", ""], "such as left=128,top=64"),
        (["--image", "image.png", "--outpaint", "left=1,left=2"], "such as left=128,top=64"),
        (["--image", "image.png", "--outpaint", "left=1e5"], "such as left=128,top=64"),
        (["--image", "image.png", "--outpaint", "up=8"], "no side 'up'"),
        (["--image", "image.png", "--outpaint", "left=-8"], "left is -8"),
        (["--image", "image.png", "--outpaint", "left=99999"], "left is 99999"),
        (["--image", "image.png", "--mask", "mask.png", "--outpaint", "left=8"], "leave one of them out"),
    ],
)
def test_wrong_options_are_one_sentence(generate: Command, arguments: list[str], sentence: str) -> None:
    answer = generate(*arguments)
    assert answer.code == 2
    assert sentence in answer.sentence
    assert answer.out == ""
