"""Pictures from outside, made plain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from darkroom.errors import ImageError
from darkroom.images import (
    from_pixels,
    latent_size,
    open_picture,
    pad_to_grid,
    tiled,
    to_pil,
    to_pixels,
    to_tensor,
    to_unit,
)


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGB", (4, 3), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 3), (0, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 3), (10, 20, 30)).quantize(), (10, 20, 30)),
        (Image.new("CMYK", (4, 3), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((3, 4), 65535, dtype=np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((3, 4), 257 * 100, dtype=np.uint16)), (100, 100, 100)),
        (Image.new("I", (4, 3), 200), (200, 200, 200)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_any_mode_becomes_rgb(picture: Image.Image, colour: tuple[int, int, int]) -> None:
    plain = open_picture(picture)
    assert (plain.mode, plain.size) == ("RGB", (4, 3))
    assert plain.getpixel((1, 1)) == colour


def test_exif_turns_a_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (4, 3)).save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").size == (3, 4)


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (4, 3)).save(tmp_path / "a.ppm")
    Image.frombytes("RGB", (64, 64), bytes(range(256)) * 48).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:150])
    for source in (tmp_path / "none.png", tmp_path / "text.png", tmp_path / "a.ppm", tmp_path / "cut.png", tmp_path):
        with pytest.raises(ImageError, match="image '"):
            open_picture(source)
    for wrong in (Image.new("F", (4, 3)), Image.new("RGB", (0, 3)), Image.new("1", (100_000, 1)), 5):
        with pytest.raises(ImageError):
            open_picture(wrong)  # type: ignore[arg-type]


def test_tensors_and_back() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.shape == (1, 3, 4, 4)
    assert -1 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(np.asarray(to_pil(to_unit(tensor)[0])), values)


def test_the_latent_grid() -> None:
    assert latent_size(512, 768, 8) == (96, 64)
    assert latent_size(513, 1, 8) == (1, 65)
    padded = pad_to_grid(torch.arange(6.0).reshape(1, 1, 2, 3), 4)
    assert padded.shape == (1, 1, 4, 4)
    assert padded[0, 0, :, 3].tolist() == [2, 5, 5, 5]


@pytest.mark.parametrize("ending", ["bmp", "tiff", "gif", "avif"])
def test_files_of_other_formats(tmp_path: Path, ending: str) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    Image.new("RGB", (16, 8), "red").save(tmp_path / f"a.{ending}")
    picture = open_picture(tmp_path / f"a.{ending}")
    assert (picture.mode, picture.size) == ("RGB", (16, 8))
    red, green, blue = picture.getpixel((8, 4))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_file_with_absurdly_much_beside_its_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp", exif=bytes(20 * 2**20))
    with pytest.raises(ImageError, match="more than 16 MB of texts and profiles"):
        open_picture(tmp_path / "a.webp")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a file"):
        open_picture(tmp_path / "pipe.png")


def test_pixels_there_and_back() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    pictures = from_pixels(pixels)
    assert pictures.shape == (2, 3, 4, 5)
    assert pictures[0, 0, 0, 0] == -1
    assert np.array_equal(to_pixels(pictures), pixels)


def test_rows_of_pictures_on_one_sheet() -> None:
    wide, tall = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (1, 4), "blue")
    sheet = tiled([[wide, tall], [tall]])
    assert sheet.size == (4, 8)
    assert [sheet.getpixel(at) for at in ((0, 0), (3, 3), (0, 7), (1, 7))] == [
        (255, 0, 0), (0, 0, 255), (0, 0, 255), (0, 0, 0)
    ]  # fmt: skip


def test_the_first_frame_of_an_animation_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    for name in ("a.gif", "a.tif", "a.avif", "a.webp", "a.png"):
        caplog.clear()
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        opened = open_picture(tmp_path / name)
        assert np.asarray(opened).astype(int)[0, 0] == pytest.approx([255, 0, 0], abs=4), name
        assert f"{name}' is an animation: its first frame is taken" in caplog.text
        caplog.clear()
        frames[1].save(tmp_path / name)
        assert np.asarray(open_picture(tmp_path / name)).astype(int)[0, 0] == pytest.approx([0, 255, 0], abs=4)
        assert not caplog.text
