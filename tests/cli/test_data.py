"""`darkroom data`: scenes and glyphs as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.errors import TrainingError
from darkroom.formats.picture import write_png
from darkroom.toy.glyphs import find_font
from darkroom.toy.objects import OBJECTS
from darkroom.toy.scenes import draw_scene, render_scene, triple_held_out

Command = Callable[..., Any]  # see conftest.py


def test_pictures_captions_and_metadata(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    answer = command("data", "render", "--count", 5, "-o", folder, "--seed", 3)
    assert (answer.code, answer.paths) == (0, [folder])
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert len(list(folder.iterdir())) == 11
    for i, row in enumerate(rows):
        scene = draw_scene(3, i)
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])), render_scene(scene))
        assert (folder / f"{i:06d}.txt").read_text() == scene.caption + "\n"
        assert row["text"] == scene.caption
        assert [o["noun"] for o in row["objects"]] == [o.noun for o in scene.objects]


def test_a_kind_and_the_held_out(command: Command, tmp_path: Path) -> None:
    assert command("data", "render", "-n", 8, "-o", tmp_path / "x", "--kind", "relation", "--held-out").code == 0
    rows = [json.loads(line) for line in (tmp_path / "x" / "metadata.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"relation"}
    seen = draw_scene(0, 0, "relation", held_out=True)
    assert rows[0]["text"] == seen.caption
    assert seen.held_out
    assert any(triple_held_out(r["objects"][0]["noun"], r["relation"], r["objects"][1]["noun"]) for r in rows)


def test_nothing_is_overwritten_unasked(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    for extra, code in (([], 0), ([], 2), (["--overwrite"], 0)):
        answer = command("data", "render", "-n", 2 - len(extra), "-o", folder, *extra)
        assert answer.code == code
    assert len(list(folder.glob("*.png"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    answer = command("data", "render", "-n", 1, "-o", tmp_path / "mine", "--overwrite")
    assert answer.code == 2
    assert "is not empty" in answer.sentence
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "--count", "0"], "--count is 0"),
        (["render", "--count", "x"], "'x' is not a whole number"),
        (["render", "--seed", "-1"], "--seed is -1"),
        (["render", "--kind", "singel"], "did you mean 'single'?"),
        (["render", "--word", "w"], "--word tells of a new object; name it with --object"),
        (["render", "--object", "sloth", "--kind", "count"], "--kind is of the built-in scenes"),
        (["render", "--object", "sloth", "--held-out"], "--held-out is of the built-in scenes"),
        (["render", "--object", "fox"], "'fox' is one of the built-in objects"),
        (["glyphs", "--font", "/nowhere.ttf"], "there is no font '/nowhere.ttf'"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, tmp_path: Path) -> None:
    answer = command("data", *arguments, "-o", tmp_path / "x.webp")
    assert answer.code == 2
    assert said in answer.sentence
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_of_glyphs(command: Command, tmp_path: Path) -> None:
    try:
        find_font()
    except TrainingError:
        pytest.skip("the emoji font is not installed")
    assert command("data", "glyphs", "-o", tmp_path / "sheet.webp").code == 0
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.size == (12 * 96, -(-len(OBJECTS) // 12) * 96)
    assert "exists already" in command("data", "glyphs", "-o", tmp_path / "sheet.webp").sentence
    assert "must end in .webp" in command("data", "glyphs", "-o", tmp_path / "sheet.png").sentence
    (tmp_path / "font.ttf").write_bytes(b"no font")
    answer = command("data", "glyphs", "-o", tmp_path / "other.webp", "--font", tmp_path / "font.ttf")
    assert answer.code == 2
    assert "is no font" in answer.sentence
    assert not (tmp_path / "other.webp").exists()


def pictures(folder: Path) -> Path:
    """Three to learn from, one of them without a caption; one broken."""
    folder.mkdir()
    for i, size in enumerate([(160, 120), (120, 160), (128, 128)]):
        Image.new("RGB", size, (40 * i, 9, 7)).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("one")
    (folder / "1.txt").write_text("two")
    (folder / "broken.png").write_text("no picture")
    return folder


def test_scan_says_what_there_is(command: Command, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    answer = command("data", "scan", data, "--size", 128, "--buckets", "--grid", 32, "--json")
    assert answer.code == 0
    told = json.loads(answer.out)
    assert told["pictures"] == told["draws_in_a_round"] == 3
    assert told["without_caption"] == [str(data / "2.png")]
    assert told["sizes"] == [
        {"width": 96, "height": 160, "pictures": 1}, {"width": 128, "height": 128, "pictures": 1},
        {"width": 160, "height": 96, "pictures": 1},
    ]  # fmt: skip
    assert [row["path"] for row in told["left_out"]] == [str(data / "broken.png")]
    plain = command("data", "scan", data).out
    assert "3 pictures" in plain
    assert "1 without a caption" in plain
    assert "broken.png: can't be read" in plain


def test_scan_tells_the_size_that_training_uses(command: Command, model: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    assert "\nlearned at 128 pixels a side; 2 smaller ones are enlarged\n" in command("data", "scan", data).out
    told = command("data", "scan", data, "--buckets").out
    assert "learned at 128 pixels squared, in buckets" in told
    assert "\n     96 x 160 " in told  # in steps of 32, the embedded model's
    own = json.loads(command("data", "scan", data, "--model", model, "--json").out)
    assert own["sizes"] == [{"width": own["size"], "height": own["size"], "pictures": 3}]
    assert own["size"] == 64
    assert "learned at 256 pixels a side; 3 smaller" in command("data", "scan", data, "--size", 256).out
    assert "does not exist" in command("data", "scan", data, "--model", tmp_path / "none").sentence


def test_scan_finds_what_is_nearly_the_same_and_offers_prompts(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, i in (("a", 1), ("b", 2)):
        Image.fromarray(render_scene(draw_scene(5, i))).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"caption {name}")
    with Image.open(data / "a.png") as picture:
        picture.resize((256, 256)).save(data / "c.png")
    write_png(Image.new("RGB", (64, 64), "teal"), data / "d.png", {"prompt": "a teal\nsquare", "seed": 1})
    told = json.loads(command("data", "scan", data, "--json").out)
    assert told["alike"] == [[str(data / "a.png"), str(data / "c.png")]]
    assert told["prompts"] == {str(data / "d.png"): "a teal square"}
    said = command("data", "scan", data).out
    assert f"2 are nearly the same as another:\n  {data / 'a.png'}, {data / 'c.png'}\n" in said
    assert "1 of those hold the prompt that they were made from; --captions writes it beside them:" in said
    assert f"  {data / 'd.png'}: a teal square\n" in said
    assert not (data / "d.txt").exists()
    assert "are written beside them" in command("data", "scan", data, "--captions").out
    assert (data / "d.txt").read_text() == "a teal square\n"
    assert not (data / "c.txt").exists()
    assert json.loads(command("data", "scan", data, "--json").out)["prompts"] == {}


def test_scan_and_pack_refuse_in_a_sentence(command: Command, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    for arguments in (
        ("scan", tmp_path / "none"), ("scan", data, "--size", 8), ("scan", data, "--aspect", 0.2),
        ("scan", data, "--size", 20, "--buckets"), ("pack", data, "-o", data),
        ("pack", tmp_path / "x.tar", "-o", tmp_path / "y"),
        ("encode", data, "-o", tmp_path / "run", "--for", "autoencoder"),
        ("encode", data, "-o", tmp_path / "run", "--for", "nothing"),
    ):  # fmt: skip
        answer = command("data", *arguments)
        assert answer.code == 2, arguments
        assert answer.err.count("\n") == 1, answer.err


def test_packed_shards_are_scanned_as_the_folder_is(command: Command, tmp_path: Path) -> None:
    data, shards = pictures(tmp_path / "data"), tmp_path / "shards"
    assert command("data", "pack", data, "-o", shards, "--count", 2).paths == [shards]
    assert sorted(path.name for path in shards.iterdir()) == ["000000.tar", "000001.tar", "shards.json"]
    about = json.loads((shards / "shards.json").read_text())
    assert about["pictures"] == 3
    assert "broken.png" in about["left_out"][0]["path"]
    told = json.loads(command("data", "scan", shards, "--json").out)
    assert (told["pictures"], len(told["without_caption"])) == (3, 1)
    assert command("data", "pack", data, "-o", shards).code == 2
    assert command("data", "pack", data, "-o", shards, "--overwrite").code == 0
    assert not (shards / "000001.tar").exists()


def test_encode_does_what_comes_before_training(command: Command, tmp_path: Path) -> None:
    data, run = pictures(tmp_path / "data"), tmp_path / "run"
    answer = command("data", "encode", data, "-o", run, "--set", "flip=true", "--set", "variants=2")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("6 latents in")
    assert "broken.png" in (run / "left-out.txt").read_text()
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    assert command("data", "encode", data, "-o", run, "--set", "flip=true", "--set", "variants=2").code == 0
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
