"""Scores: known values, and a whole evaluation of a painter that is always right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.evaluate.judge import SEED, Score, Verdict, evaluate, scenes_of, score
from darkroom.evaluate.reconstruction import psnr, reconstruct
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.toy.scenes import KINDS, draw_scene, render_scene


def test_psnr_of_known_errors() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr([black], [black + 255]) == pytest.approx(0)
    assert psnr([black], [black + 51]) == pytest.approx(20 * np.log10(5))
    assert psnr([black, black], [black, black + 51]) == pytest.approx(20 * np.log10(5) + 10 * np.log10(2))
    assert psnr([black + 255], [black]) == pytest.approx(0)  # no overflow of bytes
    assert psnr([black], [black]) > 100


def test_scores_are_fractions() -> None:
    verdicts = [Verdict(True, True, True), Verdict(True, True, False), Verdict(True, False, False)]
    verdicts.append(Verdict(False, True, True))
    assert Score.of(verdicts) == Score(4, 0.75, 0.75, 0.5, 0.25)
    assert Score.of([]) == Score(0, 0, 0, 0, 0)


def test_the_scenes_of_an_evaluation_are_always_the_same() -> None:
    seen, left = scenes_of("relation", False, 8), scenes_of("relation", True, 8)
    assert seen == scenes_of("relation", False, 12)[:8]
    assert {s.kind for s in seen + left} == {"relation"}
    assert not any(s.held_out for s in seen)
    assert all(s.held_out for s in left)
    assert score([render_scene(s) for s in seen], seen).right >= 7 / 8


def test_reconstruction_goes_through_the_autoencoder() -> None:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4))
    pictures = [render_scene(draw_scene(1, i)) for i in range(3)]
    back = reconstruct(network, pictures, rows=2)
    assert [p.shape for p in back] == [(128, 128, 3)] * 3
    x = torch.from_numpy(pictures[2]).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = ((network(x).clamp(-1, 1)[0] + 1) * 127.5).permute(1, 2, 0)
    assert np.abs(back[2] - expected.numpy()).max() < 1


class Painter:
    """Draws what the captions of the evaluation's scenes say, with an autoencoder that changes nothing."""

    def __init__(self) -> None:
        self.autoencoder = torch.nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.autoencoder.weight.copy_(torch.eye(3)[:, :, None, None])
        self.known = {s.caption: s for kind in KINDS for h in (False, True) for s in scenes_of(kind, h, 5)}
        self.asked: list[dict[str, Any]] = []

    def generate(self, prompts: list[str], **options: Any) -> SimpleNamespace:
        self.asked.append(options)
        return SimpleNamespace(images=[Image.fromarray(render_scene(self.known[p])) for p in prompts])


def test_a_painter_that_is_always_right_scores_as_the_renders_do() -> None:
    painter, told = Painter(), []
    table = evaluate(painter, 5, told.append, steps=7)  # type: ignore[arg-type]
    assert set(table["scores"]) == set(KINDS)
    for rows in table["scores"].values():
        assert set(rows) == {"seen", "held out", "chance", "renders", "reconstructions"}
        assert rows["held out"] == rows["renders"] == rows["reconstructions"]
        assert rows["seen"].right >= 0.8
        assert rows["chance"].right <= 0.2
    assert table["autoencoder_psnr"] > 60
    assert len(told) == 6
    assert all(options == {"seed": SEED, "steps": 7} for options in painter.asked)
