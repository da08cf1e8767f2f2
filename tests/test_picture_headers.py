"""Files of a million parts: refused by every reader after a bounded number of reads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from darkroom.errors import ImageError
from darkroom.formats.picture import read_metadata
from darkroom.images import open_mask, open_picture
from darkroom.picture_headers import MAX_PARTS, check
from darkroom.serve.uploads import received

MILLION = 1_000_000


def plain(format: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, format)
    return buffer.getvalue()


def png_texts() -> bytes:
    data = plain("PNG")
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I4s3sI", 3, b"tEXt", b"a\0b", zlib.crc32(b"tEXta\0b"))
    return data[:at] + chunk * MILLION + data[at:]


def jpeg_segments() -> bytes:
    data = plain("JPEG")
    return data[:2] + b"\xff\xfe\0\3x" * MILLION + data[2:]


def jpeg_padding() -> bytes:
    data = plain("JPEG")
    return data[:2] + b"\xff" * MILLION + data[2:]


def webp_chunks() -> bytes:
    data = plain("WEBP")
    return data[:12] + b"junk\0\0\0\0" * MILLION + data[12:]


def gif_comments() -> bytes:
    data = plain("GIF")
    at = data.index(b"\x2c")
    return data[:at] + b"\x21\xfe\2xx\0" * MILLION + data[at:]


def gif_frames() -> bytes:
    data = plain("GIF")
    at = data.index(b"\x2c")
    return data[:at] + data[at:-1] * (MILLION // 5) + b";"


def tiff_tags() -> bytes:
    """A big TIFF, whose directories may count that far."""
    entries = b"".join(struct.pack("<HHQQ", 256 + i % 60_000, 3, 1, 8) for i in range(MILLION // 10))
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, MILLION) + entries * 10


def tiff_directories() -> bytes:
    """Directories of one pixel that lead to one another."""
    at = 8
    data = bytearray(b"II*\0" + struct.pack("<I", at))
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 1)]
    size = 2 + 12 * len(tags) + 4
    for i in range(MILLION // 10):
        last = i == MILLION // 10 - 1
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
        data += struct.pack("<I", 0 if last else at + size * (i + 1))
    return bytes(data)


REFUSED = (png_texts, jpeg_segments, jpeg_padding, webp_chunks, gif_comments, gif_frames, tiff_tags)


class Counted(BytesIO):
    """A file that knows how often it was read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("made", REFUSED)
def test_a_million_parts_are_refused_by_every_reader(made: Callable[[], bytes], tmp_path: Path) -> None:
    data = made()
    file = Counted(data)
    with pytest.raises(ImageError, match=r"more than 100,000 parts|a directory of 1000000 tags"):
        check(file, "the picture")
    assert file.reads <= 5 * MAX_PARTS
    (tmp_path / "a").write_bytes(data)
    for read in (open_picture, open_mask, read_metadata):
        with pytest.raises(ImageError, match="that is no picture"):
            read(tmp_path / "a")
    with pytest.raises(ImageError, match=r"that is no picture|is not a PNG, JPEG or WebP picture"):
        received(data, "image", 1 << 20)


def test_frames_beyond_the_first_are_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own count of a TIFF's frames would go through all directories."""
    (tmp_path / "a.tif").write_bytes(tiff_directories())
    file = Counted(tiff_directories())
    assert check(file, "the picture") == 1000
    assert file.reads <= 4000
    from PIL import TiffImagePlugin

    def walked(self: object) -> int:
        raise AssertionError("walked through all frames")

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(walked))
    assert open_picture(tmp_path / "a.tif").size == (1, 1)
    assert read_metadata(tmp_path / "a.tif").frames == 1000
