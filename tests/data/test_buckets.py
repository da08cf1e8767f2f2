"""Buckets, and what is cut out of a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom.data.buckets import Crop, Cut, sizes
from darkroom.data.dataset import open_dataset
from darkroom.errors import TrainingError


def test_the_buckets_of_512() -> None:
    found = sizes((512, 512), 64, 2.0)
    assert found == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    assert (1024, 1024) in sizes((1024, 1024), 64, 2.0)
    assert (1344, 768) in sizes((1024, 1024), 64, 2.0)  # one of SDXL's
    assert (832, 1216) in sizes((1024, 1024), 64, 2.0)


@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([(512, 512), (128, 128), (768, 512)]),
       st.sampled_from([8, 32, 64]), st.floats(1, 4), st.booleans())  # fmt: skip
def test_a_bucket_is_on_the_grid_and_no_larger_than_the_size(
    w: int, h: int, size: tuple[int, int], grid: int, aspect: float, enlarge: bool
) -> None:
    cut = Cut(buckets=True, grid=grid, aspect=aspect, enlarge=enlarge)
    try:
        sizes(size, grid, aspect)
    except TrainingError:
        return  # as tested below
    bucket = cut.bucket((w, h), size)
    assert bucket[0] % grid == bucket[1] % grid == 0
    assert bucket[0] * bucket[1] <= size[0] * size[1]
    assert max(bucket) <= aspect * min(bucket)
    if not enlarge and min(w, h) >= grid:
        assert bucket[0] <= w
        assert bucket[1] <= h


@given(st.integers(16, 900), st.integers(16, 900), st.sampled_from(["centre", "random"]), st.integers(0, 99))
def test_a_crop_lies_in_the_scaled_picture_and_touches_two_sides(w: int, h: int, kind: str, version: int) -> None:
    size = (64, 128)
    crop = Cut(crop=kind, flip=True, seed=3).of((w, h), size, "name", version)
    room = [s - c for s, c in zip(crop.scaled, size, strict=True)]
    assert min(room) == 0
    assert all(0 <= at <= r for at, r in zip(crop.corner, room, strict=True))
    assert crop.flipped == (version % 2 == 1)
    assert abs(crop.scaled[0] / w / (crop.scaled[1] / h) - 1) < 0.6 / min(crop.scaled) + 1e-9


def test_random_crops_are_spread_and_belong_to_picture_version_and_seed() -> None:
    cut = Cut(crop="random")
    lefts = [cut.of((200, 100), (100, 100), f"{i}", 0).corner[0] for i in range(200)]
    assert min(lefts) <= 3
    assert max(lefts) >= 97
    assert cut.of((200, 100), (100, 100), "a", 1) == cut.of((200, 100), (100, 100), "a", 1)
    assert cut.of((200, 100), (100, 100), "a", 1) != cut.of((200, 100), (100, 100), "a", 2)
    assert cut.of((200, 100), (100, 100), "a", 1) != Cut(crop="random", seed=1).of((200, 100), (100, 100), "a", 1)


def test_versions_are_as_many_as_said() -> None:
    assert Cut().versions == Cut(variants=9).versions == 1
    assert Cut(flip=True, variants=2).versions == 2
    assert {Cut(flip=True, variants=2).version(3, step, 0) for step in range(20)} == {0, 1}
    live = Cut(crop="random", variants=0)
    assert live.versions == 0
    assert len({live.version(3, step, 0) for step in range(50)}) == 50


def test_a_picture_shows_what_its_crop_says(tmp_path: Path) -> None:
    values = np.zeros((60, 120, 3), np.uint8)
    values[..., 0] = np.arange(120)[None, :] * 2
    values[..., 1] = np.arange(60)[:, None] * 4
    Image.fromarray(values).save(tmp_path / "a.png")
    dataset = open_dataset(str(tmp_path), (60, 60), Cut(crop="random", flip=True, variants=8))
    for version in range(8):
        crop = dataset.crop(0, version)
        assert (crop.original, crop.scaled) == ((120, 60), (120, 60))
        whole = values[:, ::-1] if crop.flipped else values
        left, top = crop.corner
        assert np.array_equal(dataset.picture(0, version), whole[top : top + 60, left : left + 60])
    assert len({dataset.crop(0, v).corner for v in range(8)}) > 4


def test_large_jpegs_are_read_as_well_as_small_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 18, 3), dtype=np.uint8)).resize((1800, 1200))
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.save(tmp_path / "a.jpg", quality=95, exif=turned)
    dataset = open_dataset(str(tmp_path), (80, 120))
    whole = smooth.transpose(Image.Transpose.ROTATE_270).resize((80, 120), Image.Resampling.LANCZOS)
    assert np.abs(dataset.picture(0).astype(int) - np.asarray(whole).astype(int)).max() <= 4


def test_pictures_that_must_not_be_enlarged(tmp_path: Path) -> None:
    for i, size in enumerate([(300, 200), (100, 90), (40, 30), (129, 500)]):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / f"{i}.png")
    dataset = open_dataset(str(tmp_path), (256, 256), Cut(buckets=True, grid=32, enlarge=False))
    assert dataset.sizes == [(288, 192), (96, 64), (128, 256)]
    assert [path.name for path, _ in dataset.left_out] == ["2.png"]
    for i in range(3):
        scaled, original = dataset.crop(i).scaled, dataset.crop(i).original
        assert scaled[0] <= original[0]
        assert dataset.picture(i).shape == (*dataset.sizes[i][::-1], 3)
    one = open_dataset(str(tmp_path), (96, 64), Cut(enlarge=False))
    assert len(one) == 3


def test_a_picture_that_changes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(path)
    dataset = open_dataset(str(tmp_path), (16, 16))
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, "PNG")
    path.write_bytes(stream.getvalue())
    with pytest.raises(TrainingError, match=r"a\.png' has changed"):
        dataset.picture(0)
    path.unlink()
    with pytest.raises(TrainingError, match="can't be read"):
        dataset.picture(0)


def test_class_pictures_share_the_subjects_buckets(tmp_path: Path) -> None:
    for name, size in (
        ("cat/a.png", (90, 60)),
        ("cat/b.png", (60, 60)),
        ("cats/1.png", (60, 90)),
        ("cats/2.png", (99, 60)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (len(name), size[0], size[1])).save(tmp_path / name)
    cut = Cut(buckets=True, grid=8)
    dataset = open_dataset(
        str(tmp_path / "cat"), (64, 64), cut, prior=str(tmp_path / "cats"), caption="my cat", prior_caption="a cat"
    )
    assert dataset.prior == [False, False, True, True]
    assert dataset.captions == ["my cat", "my cat", "a cat", "a cat"]
    assert set(dataset.sizes[2:]) <= set(dataset.sizes[:2])
    assert dataset.sizes[3] == dataset.sizes[0]


def test_settings_that_can_t_be_are_told() -> None:
    for bad, part in (({"crop": "left"}, "crop is 'left'"), ({"grid": 0}, "grid"), ({"aspect": 0.5}, "aspect")):
        with pytest.raises(TrainingError, match=part):
            Cut(**bad)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no bucket"):
        Cut(buckets=True, grid=64).bucket((10, 10), (32, 32))
    assert Crop((1, 1), (1, 1), (0, 0)).flipped is False
