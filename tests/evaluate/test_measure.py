"""A whole measurement with tiny networks: what is drawn once, gone on with, and refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.errors import CheckpointError, RequestError, TrainingError
from darkroom.evaluate.judge import SEED, scenes_of
from darkroom.evaluate.measure import Measurement, measure
from darkroom.evaluate.memorisation import Memorisation
from darkroom.evaluate.networks import PixelExtractor
from darkroom.evaluate.pictures import Pictures, draw
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.request import Request
from darkroom.toy.scenes import draw_scene, render_scene


def picture(seed: int, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(256, size=(4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)).astype(np.uint8)


def write(folder: Path, seeds: Any, caption: str = "picture {}") -> Path:
    folder.mkdir()
    for i in seeds:
        Image.fromarray(picture(i)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption.format(i))
    return folder


class Painter:
    """Draws the picture whose number its prompt names; stops after so many calls, as a Ctrl-C would."""

    size = (32, 32)
    model_hash = "abc"

    def __init__(self, calls: int = 1000) -> None:
        self.calls, self.drawn = calls, list[str]()
        torch.manual_seed(0)
        config = AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
        self.autoencoder = Autoencoder(config)

    def generate(self, prompts: list[str], seed: int, on_progress: Any, **options: Any) -> SimpleNamespace:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.drawn += prompts
        assert options["prompt_style"] == "plain"
        for _ in prompts:
            on_progress(SimpleNamespace(steps=1))
        images = [Image.fromarray(picture(int(p.split()[-1]))) for p in prompts]
        requests = [Request(prompt=p, seed=seed + i, prompt_style="plain") for i, p in enumerate(prompts)]
        return SimpleNamespace(images=images, requests=requests)


def test_an_interrupted_drawing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.evaluate.pictures.TOGETHER", 2)
    prompts = [f"picture {i}" for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        draw(Painter(calls=2), prompts, tmp_path / "kept", seed=7, steps=3)  # type: ignore[arg-type]
    painter, told = Painter(), []
    drawn = draw(painter, prompts, tmp_path / "kept", seed=7, report=lambda *a: told.append(a), steps=3)  # type: ignore[arg-type]
    assert painter.drawn == ["picture 4"]
    assert told[-1] == (4, 1, 1)
    assert all(np.array_equal(drawn.read(i), picture(i)) for i in range(5))
    (tmp_path / "kept" / "000001.png").unlink()
    more = Painter()
    draw(more, [*prompts, "picture 5"], tmp_path / "kept", seed=7, steps=3)  # type: ignore[arg-type]
    assert more.drawn == ["picture 1", "picture 5"]
    for change in ({"seed": 8}, {"steps": 4}, {"loras": ["x"]}):
        with pytest.raises(RequestError, match=r"holds pictures of .* name another folder"):
            draw(painter, prompts, tmp_path / "kept", **({"seed": 7, "steps": 3} | change))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="is a picture of 'picture 0'; name another folder"):
        draw(painter, ["other 1"], tmp_path / "kept", seed=7, steps=3)  # type: ignore[arg-type]
    (tmp_path / "kept" / "evaluation.json").write_text("[")
    with pytest.raises(RequestError, match=r"not valid JSON .* name another folder"):
        draw(painter, prompts, tmp_path / "kept", seed=7, steps=3)  # type: ignore[arg-type]


def test_a_model_that_repeats_its_data_is_told_of(tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(12))
    told: list[str] = []
    asked = Measurement(["reconstruction", "memorisation"], data=str(data), sheet=tmp_path / "sheet.png")
    found = measure(asked, Painter(), lambda what, done, total: told.append(what))  # type: ignore[arg-type]
    assert found["reconstruction"]["pictures"] == 12
    assert found["reconstruction"]["psnr"] < 20  # random weights
    copies = found["memorisation"]
    assert (copies["pictures"], copies["training_pictures"], copies["seen_by"]) == (12, 12, "pixels")
    assert copies["suspicious"] == 1
    assert copies["distance"]["median"] == 0 < copies["threshold"]
    assert {(Path(p["picture"]).stem[-3:], Path(p["training"]).stem) for p in copies["closest"]} <= {
        (f"{i:03d}", f"{i:03d}") for i in range(12)
    }
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 192
    assert {"reconstructing", "drawing", "pixels looks at the pictures", "pixels looks at the data"} == set(told)


def test_two_folders_are_compared_without_a_model(tmp_path: Path) -> None:
    data, same, other = (
        write(tmp_path / "a", range(9)),
        write(tmp_path / "b", range(9)),
        write(tmp_path / "c", range(20, 29)),
    )
    near = measure(Measurement(["memorisation"], data=str(data), pictures=str(same)))
    far = measure(Measurement(["memorisation"], data=str(data), pictures=str(other)))
    assert near["memorisation"]["distance"]["median"] == 0
    assert far["memorisation"]["suspicious"] <= 2 / 9
    assert far["pictures"] == 9


def test_nearest_is_found_by_going_through_all() -> None:
    rng = np.random.default_rng(0)
    drawn, training = rng.normal(size=(700, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    found = Memorisation.of(drawn, training)
    all_pairs = np.linalg.norm(drawn[:, None] - training[None], axis=2)
    assert np.array_equal(found.nearest, all_pairs.argmin(axis=1))
    assert np.allclose(found.distances, all_pairs.min(axis=1), atol=1e-6)
    among = np.linalg.norm(training[:, None] - training[None], axis=2) + np.diag([np.inf] * 40)
    assert np.allclose(found.among, among.min(axis=1), atol=1e-6)
    assert list(found.closest(3)) == list(np.argsort(found.distances)[:3])
    with pytest.raises(RequestError, match="1 training picture has no other one"):
        Memorisation.of(drawn, training[:1])


def test_a_fresh_sample_is_not_suspicious_and_copies_are() -> None:
    scenes = [render_scene(draw_scene(3, i, "single")) for i in range(60)]
    fresh = [render_scene(s) for s in scenes_of("single", False, 30)]
    assert len({s.caption for s in scenes_of("single", False, 30)}) > 20
    extractor = PixelExtractor()
    rate = Memorisation.of(extractor(fresh), extractor(scenes)).suspicious
    assert rate < 0.2
    assert Memorisation.of(extractor(scenes[:30]), extractor(scenes)).suspicious == 1


def test_a_picture_that_has_gone_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(3))
    pictures = Pictures.of_data(str(data))
    assert list(pictures.captions) == ["picture 0", "picture 1", "picture 2"]
    (data / "001.png").unlink()
    with pytest.raises(TrainingError, match=r"001.png' can't be read"):
        pictures.read(1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metrics": ["psnr"]}, "metrics has 'psnr'; there are adherence"),
        ({"metrics": ["memorisation"]}, "name them by --data"),
        ({"metrics": ["memorisation"], "pictures": "p"}, "name those by --data"),
        ({"metrics": ["reconstruction"], "pictures": "p"}, "reconstruction is measured on a model"),
        ({"metrics": ["memorisation"], "pictures": "p", "data": "x.npz"}, "memorisation needs pictures"),
        ({"metrics": [], "data": "x.npz"}, "has no captions to draw by"),
        ({"metrics": [], "statistics": Path("s.npz")}, "statistics are written"),
    ],
)
def test_what_can_t_be_measured_is_one_sentence(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Measurement(**asked)


@pytest.mark.parametrize(
    ("metric", "where"), [("fid", "pt_inception"), ("kid", "pt_inception"), ("cmmd", "openai/clip")]
)
def test_without_its_network_a_metric_says_where_to_get_it(metric: str, where: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{metric} needs a network that is not given; .*{where}"):
        Measurement([metric], data="x")


def test_the_seed_of_an_evaluation_is_noted(tmp_path: Path) -> None:
    draw(Painter(), ["picture 1"], tmp_path / "kept", seed=SEED)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "kept" / "evaluation.json").read_text()) == {
        "model": "abc",
        "seed": SEED,
        "settings": {},
    }
