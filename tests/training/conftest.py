"""A folder of pictures and a model small enough to train in a blink."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from darkroom.pipeline import Pipeline

CAPTIONS = ("a red fox", "a green car", "the blue rocket", "a large fox, on the left", "a photo of a car", "")
COLOURS = ("red", "green", "blue", "orange", "gray", "white")


@pytest.fixture(scope="session")
def tiny_model(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a diffusers folder: 64x64 pixels, pictures in steps of 16."""
    return tiny_pipe.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of one colour with a black box; two are wide, one has no caption."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (caption, colour) in enumerate(zip(CAPTIONS, COLOURS, strict=True)):
        picture = Image.new("RGB", (128, 64) if i in (2, 4) else (80, 72), colour)
        picture.paste("black", (8 * i, 8, 8 * i + 16, 40))
        picture.save(folder / f"{i}.png")
        if caption:
            (folder / f"{i}.txt").write_text(caption)
    return folder
