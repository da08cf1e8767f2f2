"""Folders of training pictures: whose caption is whose, and what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.data.buckets import Cut
from darkroom.data.dataset import open_dataset, scan_any
from darkroom.data.examples import Remembered, look, stamp_of
from darkroom.data.folders import scan
from darkroom.errors import TrainingError


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (40, 24), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 2 * shade % 256, 7)).save(path, **options)
    return path


def test_captions_come_from_metadata_then_from_beside_then_from_the_folders_name(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.jpg", "10_a grey cat/c.png", "10_a grey cat/d.webp", "plain/e.png")):
        picture(tmp_path / name, i + 1)
    (tmp_path / "a.txt").write_text("beside\n")
    (tmp_path / "b.caption").write_text("\ufefföld\n", encoding="utf-8")
    (tmp_path / "10_a grey cat" / "d.txt").write_text("its own")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "by metadata"}) + "\n\n")
    found = {e.path.name: (e.caption, e.repeats) for e in scan(tmp_path).examples}
    assert found == {
        "a.png": ("by metadata", 1), "b.jpg": ("öld", 1), "c.png": ("a grey cat", 10), "d.webp": ("its own", 10),
        "e.png": ("", 1),
    }  # fmt: skip


def test_what_can_t_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    first = picture(tmp_path / "1.png", 9)
    (tmp_path / "2.png").write_bytes(first.read_bytes())
    (tmp_path / "3.png").write_bytes(first.read_bytes()[:50])
    picture(tmp_path / "4.png", 3, (8, 400))
    Image.new("RGB", (20, 20)).save(
        tmp_path / "5.webp", save_all=True, append_images=[Image.new("RGB", (20, 20), "red")], duration=50
    )
    (tmp_path / "6.png").write_text("no picture at all")
    (tmp_path / "7.gif").write_text("nor this")
    (tmp_path / "8.heic").write_text("nor that")
    picture(tmp_path / "0_never" / "9.png", 44)
    Image.new("F", (20, 20)).save(tmp_path / "10.tif")
    picture(tmp_path / ".hidden.png", 77)
    result = scan(tmp_path)
    assert [(e.path.name, e.frames) for e in result.examples] == [("1.png", 1), ("5.webp", 2)]
    reasons = {path.name: reason for path, reason in result.left_out}
    assert set(reasons) == {"2.png", "3.png", "4.png", "6.png", "7.gif", "8.heic", "9.png", "10.tif"}
    assert "can't be read" in reasons["7.gif"]
    assert "convert" in reasons["8.heic"]
    assert reasons["9.png"] == "its folder's name says 0 times"
    assert "floating-point" in reasons["10.tif"]
    assert "1.png" in reasons["2.png"]
    assert "8x400" in reasons["4.png"]


def test_sizes_are_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "x.jpg", 5, (40, 24), exif=turned)
    (example,) = scan(tmp_path).examples
    assert (example.width, example.height) == (24, 40)


def test_odd_pictures_are_read_or_told(tmp_path: Path) -> None:
    picture(tmp_path / "one.png", size=(1, 1))
    Image.new("CMYK", (20, 30), (9, 80, 3, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (20, 30), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    Image.effect_noise((200, 200), 90).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) - 4000])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    found = scan(tmp_path)
    assert [e.path.name for e in found.examples] == ["clear.png", "cmyk.jpg", "deep.png"]
    reasons = {path.name: reason for path, reason in found.left_out}
    assert set(reasons) == {"one.png", "cut.jpg", "pipe.png"}
    assert "1x1" in reasons["one.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "sub/a.png", "caption": "x, y"}\n{"file_name": "b.png", "prompt": "z"}'),
        ("metadata.csv", 'file_name,text\nsub/a.png,"x, y"\n./b.png,z\n'),
        ("metadata.json", json.dumps({"sub/a": {"caption": "x", "tags": "y"}, "b.png": {"tags": "z"}})),
        (
            "meta_cap.json",
            json.dumps({"sub/a.png": {"caption": "x, y"}, "b": {"caption": "z", "train_resolution": [1]}}),
        ),
    ],
)
def test_a_metadata_file_speaks_for_the_folders_in_its_own(tmp_path: Path, name: str, text: str) -> None:
    picture(tmp_path / "sub" / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    picture(tmp_path / "c.png", 3)
    (tmp_path / name).write_text(text)
    assert {e.path.name: e.caption for e in scan(tmp_path).examples} == {"a.png": "x, y", "b.png": "z", "c.png": ""}


def test_names_without_a_picture_are_told_and_lead_nowhere(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "secret.png", 2)
    rows = [{"file_name": n, "text": "x"} for n in ("a.png", "gone.png", "../secret.png", "/etc/passwd")]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = scan(tmp_path / "in")
    assert [e.path.name for e in found.examples] == ["a.png"]
    assert [(path.name, why) for path, why in found.left_out] == [
        ("gone.png", "is named in metadata.jsonl, and is not there"),
        ("secret.png", "is named in metadata.jsonl, and leads out of the folder"),
        ("passwd", "is named in metadata.jsonl, and leads out of the folder"),
    ]


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("metadata.json", 75_000_000, r"has 75,000,000 bytes, and at most 67,108,864 are read; use metadata\.jsonl"),
        ("metadata.jsonl", 2_000_000_000, r"has 2,000,000,000 bytes, and at most 1,073,741,824 are read$"),
    ],
)
def test_endless_metadata_is_refused_before_it_is_understood(name: str, size: int, said: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)  # zeros, which take no place on the disk
    with pytest.raises(TrainingError, match=said):
        scan(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / "metadata.jsonl").write_text("\n" + "[" * 2_000_000)
    with pytest.raises(TrainingError, match=r"line 2 of .* has 2,000,000 characters; at most 1,048,576 are read"):
        scan(tmp_path)


def test_long_captions_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    (tmp_path / "b.txt").write_text("word " * 20_000)
    picture(tmp_path / "c.png", 3)
    (tmp_path / "c.txt").write_text("é" * 32_000)
    found = scan(tmp_path)
    assert [e.path.name for e in found.examples] == ["a.png", "c.png"]
    assert "caption" in found.left_out[0][1]


def test_what_was_found_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkroom.data import folders

    data, index = tmp_path / "data", tmp_path / "index.sqlite"
    for i in range(3):
        picture(data / f"{i}.png", i)
    (data / "broken.png").write_text("x")
    first = scan(data, Remembered(index))
    looked: list[int] = []
    monkeypatch.setattr(folders, "look", lambda d: looked.append(len(d)) or look(d))  # type: ignore[func-returns-value]
    assert scan(data, Remembered(index)) == first
    assert looked == []
    picture(data / "1.png", 77, (30, 30))
    assert scan(data, Remembered(index)).examples[1].width == 30
    assert len(looked) == 1
    index.write_bytes(b"")  # killed when it began
    assert len(scan(data, Remembered(index)).examples) == 3
    assert len(looked) == 5
    index.write_bytes(b"no database" * 100)
    with pytest.raises(TrainingError, match="delete it"):
        scan(data, Remembered(index))


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret" / "s.png", 4)
    inside = tmp_path / "data"
    picture(inside / "mine.png", 5)
    (inside / "theirs.png").symlink_to(secret)
    assert [e.path.name for e in scan(inside).examples] == ["mine.png"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 1"),
        ('{"text": "no name"}', "line 1"),
        ('{"file_name": 3, "text": "x"}', "line 1"),
        ("[" * 9999, "line 1"),
    ],
)
def test_broken_metadata_is_named(tmp_path: Path, line: str, part: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(TrainingError, match=part):
        scan(tmp_path)


@pytest.mark.parametrize(("row", "part"), [("a.png", "line 2 .* too few"), ("a.png,a fox, red", "line 2 .* too many")])
def test_a_row_of_a_table_has_as_many_columns_as_its_first(tmp_path: Path, row: str, part: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{row}\n")
    with pytest.raises(TrainingError, match=part):
        scan(tmp_path)


def test_nothing_to_learn_from_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no folder"):
        scan(tmp_path / "none")
    with pytest.raises(TrainingError, match="no picture"):
        scan(tmp_path)
    (tmp_path / "x.png").write_text("broken")
    with pytest.raises(TrainingError, match=r"x\.png' is a file"):
        scan(tmp_path / "x.png")
    with pytest.raises(TrainingError, match=r"x\.png: can't be read"):
        scan(tmp_path)
    picture(tmp_path / "y.png")
    (tmp_path / "y.txt").write_bytes(b"\xff\xfe bad")
    with pytest.raises(TrainingError, match="UTF-8"):
        scan(tmp_path)


def test_hostile_names_and_links_end_in_a_reason_or_a_sentence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "a.png", 1)
    (data / "one.png").symlink_to("two.png")
    (data / "two.png").symlink_to("one.png")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff.png")).write_bytes(picture(tmp_path / "b.png", 2).read_bytes())
    picture(data / "c.png", 3)
    (data / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "x \\ud800"}')
    found = scan(data, Remembered(tmp_path / "index.sqlite"))
    assert [e.path.name for e in found.examples] == ["a.png"]
    reasons = {path.name: reason for path, reason in found.left_out}
    assert set(reasons) == {"one.png", "two.png", "\udcff.png", "c.png"}
    assert "UTF-8" in reasons["\udcff.png"]
    (tmp_path / "secret").write_text("secret")
    (data / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(TrainingError, match=r"a\.txt' is a link that leads out"):
        scan(data)
    for name in ("", "x" * 5000, "\0"):
        with pytest.raises(TrainingError, match="no folder"):
            scan_any(name)


@pytest.mark.parametrize("text", ["a fox".encode("utf-16-le"), "a fox".encode("utf-16"), b"a\0fox"])
def test_captions_in_utf_16_are_refused_with_or_without_their_mark(text: bytes, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(TrainingError, match=r"a\.txt' is not UTF-8 text"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_that_names_a_picture_twice_loses_no_caption(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")

    def write(*texts: str) -> None:
        rows = [json.dumps({"file_name": "a.png", "text": text}) for text in texts]
        table = ["file_name,text", *(f"a.png,{text}" for text in texts)]
        (tmp_path / name).write_text("\n".join(rows if name.endswith("l") else table))

    write("x", "x")
    assert scan(tmp_path).examples[0].caption == "x"
    write("x", "y")
    with pytest.raises(TrainingError, match="again, with another text"):
        scan(tmp_path)


@pytest.mark.parametrize("ending", ["avif", "bmp", "gif", "tif", "tiff", "TIFF"])
def test_more_formats_are_learned_from(ending: str, tmp_path: Path) -> None:
    picture(tmp_path / f"x.{ending}", 90, (40, 32))
    (tmp_path / "x.TXT").write_text("told in capitals")
    (example,) = scan(tmp_path).examples
    assert (example.caption, example.width, example.height, example.frames) == ("told in capitals", 40, 32, 1)
    dataset = open_dataset(str(tmp_path), (32, 32))
    mean = np.asarray(dataset.picture(0)).reshape(-1, 3).mean(axis=0)
    assert mean == pytest.approx([90, 180, 7], abs=3)


def test_the_first_frame_of_an_animation_is_learned_from_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[1].save(tmp_path / "pages.tif", save_all=True, append_images=frames[2:])
    picture(tmp_path / "still.png")
    found = {e.path.name: e.frames for e in scan(tmp_path).examples}
    assert found["still.png"] == 1
    assert min(found["moving.gif"], found["pages.tif"]) > 1
    dataset = open_dataset(str(tmp_path), (32, 32))
    assert "2 are animations, of which the first frame is learned from" in caplog.text
    names = [Path(dataset.name(i)).name for i in range(len(dataset))]
    assert dataset.picture(names.index("moving.gif")).astype(int)[0, 0] == pytest.approx([255, 0, 0], abs=3)
    assert dataset.picture(names.index("pages.tif")).astype(int)[0, 0] == pytest.approx([0, 255, 0], abs=3)


def test_captions_are_found_in_any_case_and_the_usual_spelling_first(tmp_path: Path) -> None:
    for i, name in enumerate(("a.PNG", "b.png", "c.png", "C.jpg")):
        picture(tmp_path / name, i + 1)
    (tmp_path / "a.Caption").write_text("of a")
    (tmp_path / "b.txt").write_text("small")
    (tmp_path / "b.TXT").write_text("capital")
    (tmp_path / "C.txt").write_text("of the large one")
    found = {e.path.name: e.caption for e in scan(tmp_path).examples}
    assert found == {"a.PNG": "of a", "b.png": "small", "c.png": "", "C.jpg": "of the large one"}


def test_class_pictures_that_can_t_be_used_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "subject" / "1.png", 1, (32, 32))
    picture(tmp_path / "class" / "2.png", 2, (32, 32))
    (tmp_path / "class" / "3.png").write_text("no picture")
    picture(tmp_path / "class" / "4.png", 4, (20, 20))
    dataset = open_dataset(
        str(tmp_path / "subject"), (32, 32), Cut(enlarge=False), prior=str(tmp_path / "class"), prior_caption="a cat"
    )
    assert (list(dataset.prior), list(dataset.captions)) == ([False, True], ["", "a cat"])
    assert {path.name: why for path, why in dataset.left_out} == {
        "3.png": "can't be read (UnidentifiedImageError)",
        "4.png": "20x20 pixels are too few without being enlarged",
    }


def test_an_index_makes_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "1.png", 1)
    index = tmp_path / "new" / "deep" / "index.sqlite"
    first = scan(tmp_path / "data", Remembered(index))
    assert index.is_file()
    remembered = Remembered(index)
    assert remembered.find(str((tmp_path / "data" / "1.png").absolute()), stamp_of(tmp_path / "data" / "1.png"))
    assert scan(tmp_path / "data", remembered) == first
