"""Windows cover a latent, cut what belongs to them, and join without a seam."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch

from darkroom.diffusion.condition import Condition
from darkroom.diffusion.regions import Windows


@pytest.mark.parametrize(
    ("height", "width", "side", "overlap"),
    [(64, 64, 64, 16), (65, 64, 64, 16), (100, 37, 16, 4), (7, 90, 8, 7), (3, 5, 8, 2), (33, 33, 8, 0)],
)
def test_every_pixel_is_covered_and_neighbours_overlap(height, width, side, overlap):
    windows = Windows(height, width, side, overlap)
    seen = torch.zeros(height, width)
    for top, bottom, left, right in windows.places:
        assert bottom - top == min(side, height)
        assert right - left == min(side, width)
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    assert windows.count == len(windows.places)
    for edges in ({p[:2] for p in windows.places}, {p[2:] for p in windows.places}):
        ordered = sorted(edges)
        assert all(first[1] - second[0] >= overlap for first, second in pairwise(ordered))


def test_windows_of_one_picture_join_to_it():
    windows = pickle.loads(pickle.dumps(Windows(21, 34, 8, 3)))
    x = torch.randn(4, 21, 34)
    assert (windows.join([windows.cut(x, place) for place in windows.places]) - x).abs().max() < 1e-6


def test_answers_that_disagree_join_smoothly():
    windows = Windows(8, 50, 16, 8)
    answers = [torch.full((1, 8, 16), float(i)) for i in range(windows.count)]  # a stair of windows
    joined = windows.join(answers)
    assert joined[0, 0, 0] == 0
    assert joined[0, 0, -1] == windows.count - 1
    assert joined.diff(dim=2).min() >= 0
    assert joined.diff(dim=2).max() < 0.35  # a hard seam would be a step of 1


def test_a_condition_shows_its_window():
    windows = Windows(10, 12, 6, 2)
    channels = torch.arange(120.0).reshape(1, 10, 12)
    condition = Condition(torch.zeros(77, 8), channels=channels, class_label=3)
    top, bottom, left, right = place = windows.places[-1]
    narrow = windows.narrow(condition, place)
    assert narrow.class_label == 3
    assert narrow.text is condition.text
    assert torch.equal(narrow.channels, channels[:, top:bottom, left:right])
    finer = channels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert windows.cut(finer, place).shape == (1, 8 * (bottom - top), 8 * (right - left))
