"""`darkroom evaluate`: a table, or JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]  # see conftest.py


def test_scores_of_a_model(command: Command, model: Path) -> None:
    answer = command("evaluate", model, "-n", 2, "--steps", 1, "--guidance", 1, "--json")
    assert (answer.code, answer.err) == (0, "")
    scores = answer.json
    assert scores["pictures_a_category"] == 2
    assert scores["autoencoder_psnr"] > 0
    assert set(scores["categories"]) == {"single", "count", "relation"}
    for rows in scores["categories"].values():
        assert set(rows) == {"seen", "held out", "renders", "reconstructions", "chance"}
        assert rows["renders"]["right"] >= 0.5
        assert rows["seen"]["right"] == 0  # a model of random weights draws no fox


def test_a_new_object(command: Command, model: Path, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(picture).ellipse((10, 10, 90, 90), fill="teal")
    picture.save(tmp_path / "coin.png")
    about = ("--object", "coin", "--glyph", tmp_path / "coin.png", "--word", "<coin>")
    few = ("-n", 2, "--steps", 1, "--guidance", 1)
    answer = command("evaluate", model, *about, *few, "--json")
    assert (answer.code, answer.err) == (0, "")
    rows = answer.json["rows"]
    assert set(rows) == {"new, before", "new, after", "old, before", "old, after", "renders", "reconstructions"}
    assert rows["renders"]["right"] == 1
    assert rows["new, after"]["right"] == 0


def test_pictures_are_measured_and_kept(command: Command, model: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(256, size=(40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text("a fox")
    asked = ("--metrics", "reconstruction,memorisation", "--data", data, "--steps", 1, "--keep", tmp_path / "kept")
    answer = command("evaluate", model, *asked, "--json", "--sheet", tmp_path / "pairs.png")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["reconstruction"]["pictures"] == answer.json["pictures"] == 4
    assert answer.json["memorisation"]["training_pictures"] == 4
    assert len(list((tmp_path / "kept").glob("*.png"))) == 4
    assert (tmp_path / "pairs.png").is_file()
    folders = command("evaluate", "--pictures", tmp_path / "kept", "--data", data, "--metrics", "memorisation")
    assert folders.out.startswith(f"4 pictures, compared with {data}\nmemorisation: ")


def test_scores_of_a_new_object_as_a_table() -> None:
    from darkroom.cli.evaluate import as_text

    score = {"background": 1.0, "objects": 0.5, "layout": 0.25, "right": 0.125}
    text = as_text({"word": "<coin>", "pictures_a_row": 8, "rows": {"new, after": score}})
    assert [line.split() for line in text.splitlines()][1:] == [
        ["new,", "after", "100.0%", "50.0%", "25.0%", "12.5%"],
        [],
        ["8", "pictures", "a", "row;", "new:", "<coin>"],
    ]


def test_scores_as_a_table() -> None:
    from darkroom.cli.evaluate import as_text

    score = {"background": 1.0, "objects": 0.5, "layout": 0.25, "right": 0.125}
    text = as_text({"autoencoder_psnr": 30.5, "pictures_a_category": 8, "categories": {"single": {"seen": score}}})
    assert [line.split() for line in text.splitlines()] == [
        ["background", "objects", "layout", "right"],
        ["single", "seen", "100.0%", "50.0%", "25.0%", "12.5%"],
        [],
        ["8", "pictures", "a", "row;", "the", "autoencoder", "reconstructs", "with", "30.50", "dB", "PSNR"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--guidance", "nan"], "--guidance is nan"),
        (["--sampler", "eulr"], "eulr"),
        (["--word", "<x>"], "--word tells of a new object; name it with --object"),
        (["--metrics", ","], "--metrics is empty"),
        (["--data", "x"], "--data is of no use to adherence; name other --metrics"),
        (["--metrics", "fud"], "metrics has 'fud'"),
        (["--metrics", "fid"], "fid needs a network that is not given; name it by --features: pt_inception"),
        (["--metrics", "memorisation"], "name them by --data"),
        (["--resize", "bicubic"], "--resize is 'bicubic'"),
        (["--features", "/nowhere.pth"], "/nowhere.pth does not exist"),
        (["--pictures", "x"], "would draw others; give one"),
        (["--object", "fox"], "'fox' is one of the built-in objects"),
        (["--object", "blarg", "--glyph", "nowhere.png"], "nowhere.png"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, model: Path) -> None:
    answer = command("evaluate", *([model] if arguments[0].startswith("-") else []), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
