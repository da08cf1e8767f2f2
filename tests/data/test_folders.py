"""Folders of training pictures: whose caption is whose, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

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
    picture(tmp_path / ".hidden.png", 77)
    result = scan(tmp_path)
    assert [e.path.name for e in result.examples] == ["1.png"]
    reasons = {path.name: reason for path, reason in result.left_out}
    assert set(reasons) == {"2.png", "3.png", "4.png", "5.webp", "6.png"}
    assert "1.png" in reasons["2.png"]
    assert "8x400" in reasons["4.png"]
    assert "animation" in reasons["5.webp"]


def test_sizes_are_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "x.jpg", 5, (40, 24), exif=turned)
    (example,) = scan(tmp_path).examples
    assert (example.width, example.height) == (24, 40)


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


def test_nothing_to_learn_from_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no folder"):
        scan(tmp_path / "none")
    with pytest.raises(TrainingError, match="no picture"):
        scan(tmp_path)
    (tmp_path / "x.png").write_text("broken")
    with pytest.raises(TrainingError, match=r"x\.png: can't be read"):
        scan(tmp_path)
    picture(tmp_path / "y.png")
    (tmp_path / "y.txt").write_bytes(b"\xff\xfe bad")
    with pytest.raises(TrainingError, match="UTF-8"):
        scan(tmp_path)
