"""WebDataset shards: what is in them, read at any place; what is hostile in them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.data.dataset import open_dataset
from darkroom.data.examples import Remembered
from darkroom.data.folders import scan
from darkroom.data.shards import braces, members, scan_shards, shard_files, write_shards
from darkroom.errors import TrainingError


def encoded(shade: int, kind: str = "PNG", size: tuple[int, int] = (40, 24)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 2 * shade % 256, 7)).save(stream, kind)
    return stream.getvalue()


def shard(path: Path, content: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


LONG = "a" * 120 + "/" + "ü" * 90


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_those_of_the_standard_library(tmp_path: Path, form: int) -> None:
    path = shard(tmp_path / "x.tar", {"a.txt": b"one", f"{LONG}.txt": b"", "b.bin": bytes(1000), "c": b"x" * 512}, form)
    with tarfile.open(path) as archive:
        wanted = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert [(m.name, m.start, m.length) for m in members(path)] == wanted


def test_samples_have_their_captions_and_repeats(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", {
        "000.txt": b"a cat\n", "000.jpg": encoded(1, "JPEG"), "000.cls": b"3",
        "dir.v1/001.png": encoded(2), "dir.v1/001.json": json.dumps({"caption": "a dog", "repeats": 5}).encode(),
        "002.webp": encoded(3, "WEBP"),
        "003.PNG": encoded(4), "003.seg.png": encoded(9), "003.caption": "größer".encode(),
        "._000.jpg": b"a macintosh was here", "004.txt": b"no picture",
        "005.png": b"broken", "006.png": encoded(2), "007.png": encoded(8), "007.txt": b"x " * 80_000,
    })  # fmt: skip
    found = scan_shards([path])
    told = {e.member: (e.caption, e.repeats) for e in found.examples}
    assert told == {
        "000.jpg": ("a cat", 1), "dir.v1/001.png": ("a dog", 5), "002.webp": ("", 1), "003.PNG": ("größer", 1)
    }  # fmt: skip
    assert {p.name for p, _ in found.left_out} == {"005.png", "006.png", "007.png"}
    dataset = open_dataset(str(path), (16, 16))
    assert abs(int(dataset.picture(1)[0, 0, 0]) - 2) <= 1


def test_packed_pictures_are_the_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "3_a hat").mkdir(parents=True)
    for i in range(5):
        (data / "3_a hat" / f"{i}.png").write_bytes(encoded(40 * i, size=(30 + i, 40)))
    (data / "3_a hat" / "1.txt").write_text("a red hat")
    before = scan(data)
    out = tmp_path / "shards"
    out.mkdir()
    assert [p.name for p in write_shards(before.examples, out, 1 << 30, 2)] == [
        "000000.tar",
        "000001.tar",
        "000002.tar",
    ]
    with tarfile.open(out / "000000.tar") as archive:
        names = archive.getnames()
    assert names == [f"00000000{i}.{end}" for i in (0, 1) for end in ("png", "txt", "json")]
    for text in (str(out), str(out / "0000{00..02}.tar"), str(out / "*.tar"), str(out / "{000000,000001,000002}.tar")):
        files = shard_files(text)
        assert files is not None
        after = scan_shards(files)
        assert [(e.digest, e.caption, e.repeats, e.width) for e in after.examples] == [
            (e.digest, e.caption, e.repeats, e.width) for e in before.examples
        ]
    a, b = open_dataset(str(data), (16, 16)), open_dataset(str(out), (16, 16))
    assert a.key == b.key
    assert all(np.array_equal(x, y) for x, y in zip(a.pictures(), b.pictures(), strict=True))
    again = tmp_path / "again"
    again.mkdir()
    write_shards(before.examples, again, 1 << 30, 2)
    assert (again / "000001.tar").read_bytes() == (out / "000001.tar").read_bytes()


def test_a_shard_is_read_once_and_noticed_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkroom.data import shards

    path, index = shard(tmp_path / "x.tar", {"0.png": encoded(1), "0.txt": b"x"}), tmp_path / "index.sqlite"
    first = scan_shards([path], Remembered(index))
    dataset = open_dataset(str(path), (16, 16), index=index)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "members", None)
        assert scan_shards([path], Remembered(index)) == first
    shard(path, {"0.png": encoded(200), "0.txt": b"y"})
    assert scan_shards([path], Remembered(index)).examples[0].caption == "y"
    with pytest.raises(TrainingError, match=r"x\.tar/0\.png' has changed"):
        dataset.picture(0)


def test_braces() -> None:
    assert braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert braces("{a,{b,c}}{1..2}") == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert braces("plain.tar") == ["plain.tar"]
    for bad in ("{0..999999999}", "{0..999}{0..999}{0..999}", "{5..1}"):
        with pytest.raises(TrainingError, match="shard"):
            braces(bad)


def test_what_names_no_shards_is_told_or_left_to_others(tmp_path: Path) -> None:
    assert shard_files(str(tmp_path)) is None
    assert shard_files(str(tmp_path / "pictures")) is None
    for bad, part in (("x-{0..3}.tar", "no shard"), ("x*.tar", "no shard"), ("https://a/b.tar", "fetch")):
        with pytest.raises(TrainingError, match=part):
            shard_files(bad if "://" in bad else str(tmp_path / bad))


def hostile(path: Path, name: str = "a.png", **changes: object) -> Path:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    with tarfile.open(path, "w") as archive:
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def test_hostile_shards_are_refused_in_a_sentence(tmp_path: Path) -> None:
    good = shard(tmp_path / "good.tar", {"0.png": encoded(1), "0.txt": b"x"}).read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "up": (hostile(tmp_path / "1.tar", "../a.png").read_bytes(), "leads out"),
        "root": (hostile(tmp_path / "2.tar", "/etc/a.png").read_bytes(), "leads out"),
        "link": (hostile(tmp_path / "3.tar", type=tarfile.SYMTYPE, linkname="/etc/passwd").read_bytes(), "a link"),
        "hard": (hostile(tmp_path / "4.tar", type=tarfile.LNKTYPE, linkname="b").read_bytes(), "a link"),
        "device": (hostile(tmp_path / "5.tar", type=tarfile.CHRTYPE).read_bytes(), "a device"),
        "header": (hostile(tmp_path / "6.tar", type=tarfile.XHDTYPE, size=3 << 20).read_bytes(), "hostile"),
        "records": (hostile(tmp_path / "7.tar", type=tarfile.XHDTYPE, size=20).read_bytes(), "extended header"),
        "short": (good[:600], "cut short"),
        "end": (good[: 512 * 4], "cut short"),
        "empty": (b"", "cut short"),
        "text": (b"no archive" * 100, "no tar archive"),
        "gzip": (b"\x1f\x8b" + bytes(2000), "compressed"),
        "sum": (good[:100] + b"\x01" + good[101:], "no tar archive"),
        "none": (bytes(1024), "no picture"),
    }  # fmt: skip
    for name, (data, part) in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(TrainingError, match=part) as caught:
            scan_shards([path])
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_captions_in_shards_are_utf8_and_their_json_is_json(tmp_path: Path) -> None:
    for name, data, part in (
        ("0.txt", b"\xff\xfe bad", "UTF-8"),
        ("0.json", b"[1", "JSON"),
        ("0.json", b"[1]", "JSON"),
    ):
        with pytest.raises(TrainingError, match=part):
            scan_shards([shard(tmp_path / "x.tar", {"0.png": encoded(1), name: data})])
