"""The judging networks at work: CLIP against transformers, Inception against its definition written out, the cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darkroom.errors import CheckpointError, RequestError
from darkroom.evaluate.networks import ClipExtractor, InceptionExtractor, PixelExtractor, extract, tensorflow_resize
from darkroom.evaluate.pictures import Pictures
from darkroom.formats.features import open_features

sys.path.insert(0, str(Path(__file__).parent))
from judges import WrittenOut, prepared, write, write_clip, write_inception


def noise(seed: int, height: int = 40, width: int = 33) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder)


def test_clip_is_transformers(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    extractor = ClipExtractor(open_features([folder])["clip"])
    pictures = [noise(1), noise(2, 24, 60)]
    texts = ["a fox", "a very long text " * 40, ""]
    ids = torch.tensor([extractor._texts()[1].padded(text) for text in texts])
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=prepared(pictures))
        wanted = model.get_text_features(input_ids=ids)
    for found, answer in ((extractor(pictures), expected), (extractor.texts(texts), wanted)):
        vectors = answer if isinstance(answer, Tensor) else answer.pooler_output
        assert np.allclose(found, F.normalize(vectors, dim=-1).numpy(), atol=1e-5)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_clip_of_pictures_only_refuses_texts(clip: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    _, model = clip
    vision = CLIPVisionModelWithProjection(model.config.vision_config)
    write(tmp_path, vision)
    extractor = ClipExtractor(open_features([tmp_path])["clip"])
    assert extractor([noise(1)]).shape == (1, model.config.vision_config.projection_dim)
    with pytest.raises(CheckpointError, match="sees pictures only; texts need a whole CLIP"):
        extractor.texts(["a fox"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [1, "2", 3]}))
    with pytest.raises(CheckpointError, match="image_mean"):
        ClipExtractor(open_features([tmp_path])["clip"])


# --- Inception ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    return path, write_inception(path)


@torch.no_grad()
def test_inception_is_its_definition(inception: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = inception
    extractor = InceptionExtractor(open_features([path])["inception"])
    pixels = torch.rand(1, 3, 107, 99) * 2 - 1
    found, expected = extractor.network(pixels), WrittenOut(state)(pixels)
    assert found.shape == (1, 2048)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std() > 1e-3  # the features do differ
    other = InceptionExtractor(open_features([path])["inception"], like="pytorch-fid")
    assert other.key != extractor.key
    picture = noise(1, 50, 64)
    half = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, (299, 299), mode="bilinear")
    assert torch.allclose(other.prepare(picture), half * 2 - 1, atol=1e-6)
    assert extractor.prepare(np.full((9, 9, 3), 128, np.uint8)).abs().max() == 0
    assert extractor.prepare(np.zeros((9, 9, 3), np.uint8)).unique().tolist() == [-1]


def test_tensorflows_resizing_is_its_own() -> None:
    """Pixel i is read at i * H / side, between floor and the next pixel; the last one is not left."""
    line = torch.tensor([0.0, 10, 20, 30]).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    grown = tensorflow_resize(line, 8)[0, 0, 3]
    assert grown.tolist() == [0, 5, 10, 15, 20, 25, 30, 30]
    shrunk = tensorflow_resize(line, 3)[0, 0, 0]
    assert shrunk.tolist() == pytest.approx([0, 40 / 3, 80 / 3], abs=1e-5)
    assert torch.equal(tensorflow_resize(line, 4), line)


# --- the cache ----------------------------------------------------------------------------------------------------


class Counting:
    """Sees one number, and counts how many pictures it was shown."""

    key = "counting"

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, pictures: Any) -> np.ndarray:
        self.shown += len(pictures)
        return np.float32([[p.mean(), 1] for p in pictures])


def test_what_was_seen_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.evaluate.networks.CHUNK", 8)
    monkeypatch.setattr("darkroom.evaluate.networks.ROWS", 3)
    arrays = [noise(i, 8, 8) for i in range(20)]
    pictures, extractor, told = Pictures.of_arrays(arrays), Counting(), []
    first = extract(pictures, extractor, tmp_path, lambda done, total: told.append((done, total)))
    assert first.shape == (20, 2)
    assert first[:, 0] == pytest.approx([a.mean() for a in arrays])
    assert told[-1] == (20, 20)
    assert extractor.shown == 20
    assert np.array_equal(extract(pictures, extractor, tmp_path), first)
    assert extractor.shown == 20
    changed = Pictures.of_arrays([*arrays[:19], noise(99, 8, 8)])  # one in the last of three files
    extract(changed, extractor, tmp_path)
    assert extractor.shown == 24
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert np.array_equal(
        np.concatenate([extract(pictures, extractor, tmp_path), extract(changed, extractor, tmp_path)])[:20], first
    )
    assert extractor.shown in (28, 32)
    other = Counting()
    other.key = "other weights"
    extract(pictures, other, tmp_path)
    assert other.shown == 20
    assert np.array_equal(extract(pictures, extractor), first)  # without a cache
    with pytest.raises(RequestError, match="no picture"):
        extract(Pictures.of_arrays([]), extractor)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="can't be made"):
        extract(pictures, extractor, tmp_path / "file" / "inside")


def test_pixels_are_seen_without_a_network() -> None:
    flat = np.full((64, 96, 3), 51, np.uint8)
    seen = PixelExtractor()([flat, noise(1)])
    assert seen.shape == (2, 3072)
    assert np.allclose(seen[0], 0.2)
