"""The commands of docs/worked-examples.md, as they stand there, at toy size."""

from __future__ import annotations

import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

Command = Callable[..., Any]  # see conftest.py

ROOT = Path(__file__).parents[2]
TOY = {"--steps": "2", "--count": "4"}


def commands() -> list[list[str]]:
    """The arguments of every `darkroom` command on the page."""
    blocks = runpy.run_path(str(ROOT / "tools" / "run_docs.py"))["blocks"]
    page = (ROOT / "docs" / "worked-examples.md").read_text(encoding="utf-8")
    lines = "\n".join(b.text for b in blocks(page) if b.language == "sh").replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("darkroom ")]


def toy(words: list[str], glyph: Path) -> list[str]:
    """The same command, of few pictures and steps, its emoji replaced by a picture (the font may be missing)."""
    words = [TOY.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if "--object" in words:
        words += ["--glyph", str(glyph)]
    if words[0] == "evaluate":
        return [*words, *(("--count", "2", "--guidance", "1") if "--object" in words else ()), "--steps", "1"]
    if words[0] != "train":
        return words
    words += ["--workers", "1", "--set", "batch_size=4", "--set", "warmup=1"]
    words += [] if words[1] == "autoencoder" else ["--set", "compare=0"]
    if words[1] == "autoencoder":
        return [*words, "--data", "scenes", "--set", "held_out=2"]  # without every emoji of the font
    return [*words, "--set", "scenes=8"] if words[1] == "controlnet" else words


def test_the_page_runs_from_its_first_command_to_its_last(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glyph = tmp_path / "glyph.png"
    picture = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(picture).ellipse((10, 10, 90, 90), fill="teal")
    picture.save(glyph)
    monkeypatch.chdir(tmp_path)
    trained = set()
    for words in commands():
        answer = command(*toy(words, glyph))
        assert answer.code == 0, (words, answer.err)
        if words[0] == "train":
            trained.add(words[1])
            assert all(path.exists() for path in answer.paths)
        if "--sheet" in words:
            width, height = Image.open(words[words.index("--sheet") + 1]).size
            assert width > 2 * 128
            assert height > 3 * 128  # true, before, after
    assert trained == {"dreambooth-lora", "dreambooth", "textual-inversion", "controlnet", "autoencoder"}
