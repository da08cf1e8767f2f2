"""Canny against a plain reference, written pixel by pixel from the paper; soft edges by their properties."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from PIL import Image

from darkroom.errors import ImageError, RequestError
from darkroom.hints import canny, soft_edges


def noisy_scene(width: int, height: int, seed: int) -> Image.Image:
    """Discs and boxes of random colours, with noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), generator.integers(0, 256, 3), np.float64)
    for _ in range(4):
        cx, cy, r = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(2, 2 + width / 3)
        picture[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = generator.integers(0, 256, 3)
        picture[(abs(x - cy) < r / 2) & (abs(y - cx) < r / 3)] = generator.integers(0, 256, 3)
    return Image.fromarray((picture + generator.normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8))


def reference(picture: Image.Image, low: float, high: float) -> np.ndarray:
    """Canny's detector without smoothing, one pixel at a time, in whole numbers."""
    values = np.asarray(picture.convert("RGB")).astype(int)
    height, width = values.shape[:2]

    def at(row: int, column: int, channel: int) -> int:
        return int(values[min(max(row, 0), height - 1), min(max(column, 0), width - 1), channel])

    kernel = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    slopes = {}
    for row in range(height):
        for column in range(width):
            best = (-1, 0, 0)
            for channel in range(3):
                dx = dy = 0
                for i in range(3):
                    for j in range(3):
                        dx += kernel[i][j] * at(row + i - 1, column + j - 1, channel)
                        dy += kernel[j][i] * at(row + i - 1, column + j - 1, channel)
                if abs(dx) + abs(dy) > best[0]:
                    best = (abs(dx) + abs(dy), dx, dy)
            slopes[row, column] = best
    kept = {}
    for (row, column), (slope, dx, dy) in slopes.items():
        angle = math.degrees(math.atan2(abs(dy), abs(dx)))
        if angle < 22.5:
            step = (0, 1)
        elif angle > 67.5:
            step = (1, 0)
        else:
            step = (1, 1) if (dx < 0) == (dy < 0) else (1, -1)
        before = slopes.get((row - step[0], column - step[1]), (0, 0, 0))[0]
        after = slopes.get((row + step[0], column + step[1]), (0, 0, 0))[0]
        diagonal = 0 not in step
        if slope > low and slope > before and (slope > after or (slope == after and not diagonal)):
            kept[row, column] = slope > high
    edges = np.zeros((height, width), np.uint8)
    stack = [place for place, strong in kept.items() if strong]
    while stack:
        row, column = stack.pop()
        if (row, column) not in kept or edges[row, column]:
            continue
        edges[row, column] = 255
        stack += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return edges


@pytest.mark.parametrize(("size", "low", "high"), [((48, 37), 100, 200), ((33, 50), 40, 400), ((1, 9), 10, 20)])
def test_canny_equals_the_reference(size: tuple[int, int], low: float, high: float) -> None:
    picture = noisy_scene(*size, seed=size[0])
    ours = np.asarray(canny(picture, low, high, sigma=0))
    assert ours.shape == (size[1], size[0], 3)
    expected = reference(picture, low, high)
    assert (ours == expected[..., None]).all()
    assert expected.any() or size[0] == 1


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs OpenCV")
def test_canny_equals_opencv() -> None:
    import cv2

    picture = noisy_scene(200, 150, seed=5)
    assert (np.asarray(canny(picture, 100, 200, sigma=0))[..., 0] == cv2.Canny(np.asarray(picture), 100, 200)).all()


def test_canny_of_a_disc_is_a_thin_closed_ring_where_the_disc_ends() -> None:
    y, x = np.mgrid[:64, :64]
    far = np.hypot(x - 31.5, y - 31.5)
    disc = Image.fromarray(np.where(far < 20, 200, 30).astype(np.uint8))
    edges = np.asarray(canny(disc))[..., 0] > 0
    assert abs(far[edges] - 20).max() < 1.5
    angles = np.degrees(np.arctan2(y[edges] - 31.5, x[edges] - 31.5))
    assert np.diff(np.sort(angles)).max() < 8  # no gap
    assert edges.sum() < 2 * math.pi * 20 * 1.3  # about one pixel wide
    assert set(np.unique(np.asarray(canny(disc)))) == {0, 255}


def test_hysteresis_keeps_a_weak_edge_only_with_a_strong_one() -> None:
    """An edge that fades from left to right goes on below `high`, and a weak one of its own does not appear."""
    values = np.zeros((40, 100))
    values[20:] = np.linspace(90, 30, 100)
    values[5:8, 70:90] += 30
    picture = Image.fromarray(values.astype(np.uint8))
    edges = np.asarray(canny(picture, low=60, high=250, sigma=0))[..., 0] > 0
    assert edges[18:22].any(axis=0)[2:-2].all()
    assert not edges[:12].any()
    assert np.asarray(canny(picture, low=60, high=90, sigma=0))[:12].any()
    assert not np.asarray(canny(picture, low=300, high=380, sigma=0))[18:22, 60:].any()


def test_canny_smoothing_removes_noise_and_flat_pictures_have_no_edges() -> None:
    picture = noisy_scene(96, 96, seed=1)
    rough, smooth = (np.asarray(canny(picture, 60, 120, sigma=s)).mean() for s in (0, 2))
    assert smooth < rough / 2
    assert not np.asarray(canny(Image.new("RGB", (30, 20), (9, 90, 200)))).any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1"])
@pytest.mark.parametrize("hint", [canny, soft_edges])
def test_any_mode_and_size(mode: str, hint) -> None:
    for size in ((1, 1), (3, 700), (31, 17)):
        made = hint(Image.new(mode, size))
        assert (made.mode, made.size) == ("RGB", size)


def test_soft_edges_are_smooth_and_lie_on_the_edges() -> None:
    values = np.full((60, 60), 40, np.uint8)
    values[:, 30:] = 200
    soft = np.asarray(soft_edges(Image.fromarray(values)))[30, :, 0].astype(int)
    assert soft.argmax() in (29, 30)
    assert soft[29] > 230
    assert soft[:8].max() < 40
    assert (np.diff(soft[5:29]) >= 0).all()  # rises without a jump
    assert abs(np.diff(soft)).max() < 90
    assert np.asarray(soft_edges(Image.fromarray((values // 80 + 100).astype(np.uint8)))).max() < 120  # nearly flat


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda image: canny(image, 200, 100), "low is 200 and high is 100; low must not be above high"),
        (lambda image: canny(image, sigma=-1), "sigma is -1"),
        (lambda image: canny(image, low=float("nan")), "low is nan"),
        (lambda image: soft_edges(image, scales=0), "scales is 0"),
    ],
)
def test_options_that_can_not_be(call, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        call(Image.new("RGB", (8, 8)))


def test_pictures_that_can_not_be(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match="can't be read"):
        canny(tmp_path / "broken.png")
    with pytest.raises(ImageError, match="does not exist"):
        canny(tmp_path / "none.png")
    with pytest.raises(ImageError, match="of type int"):
        canny(3)
