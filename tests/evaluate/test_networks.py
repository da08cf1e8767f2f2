"""The judging networks at work: CLIP against transformers, Inception against its definition written out, the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from darkroom.errors import CheckpointError, RequestError
from darkroom.evaluate.networks import ClipSeer, InceptionSeer, PixelSeer, see, tensorflow_resize
from darkroom.evaluate.pictures import Pictures
from darkroom.formats.features import open_features
from darkroom.formats.layouts import table
from darkroom.models.config import InceptionConfig
from darkroom.models.inception import Inception


def noise(seed: int, height: int = 40, width: int = 33) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def write(folder: Path, model: Any) -> None:
    """What `save_pretrained` writes, in a tenth of its time."""
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny CLIP as transformers writes it, with the tokenizer of the real one, and itself."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    from darkroom.prompts.tokenizer import Tokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=small | ids,
        vision_config=small | {"image_size": 24, "patch_size": 8},
        projection_dim=20,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp("clip")
    write(folder, model)
    Tokenizer.default().save(folder)
    about = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 28}, "image_mean": [0.5, 0.4, 0.3],
             "image_std": [0.2, 0.3, 0.25], "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder, model


def test_clip_is_transformers(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    seer = ClipSeer(open_features([folder])["clip"])
    pictures = [noise(1), noise(2, 24, 60)]
    ready = []
    for picture in pictures:  # written out: the shorter side to 28, the middle 24 x 24, normalised
        image = Image.fromarray(picture)
        scale = 28 / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 24) // 2, (image.height - 24) // 2
        pixels = np.asarray(image, np.float32)[top : top + 24, left : left + 24] / 255
        ready.append((pixels - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.25]))
    texts = ["a fox", "a very long text " * 40, ""]
    ids = torch.tensor([seer._texts()[1].padded(text) for text in texts])
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2))
        wanted = model.get_text_features(input_ids=ids)
    for found, answer in ((seer(pictures), expected), (seer.texts(texts), wanted)):
        vectors = answer if isinstance(answer, Tensor) else answer.pooler_output
        assert np.allclose(found, F.normalize(vectors, dim=-1).numpy(), atol=1e-5)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_clip_of_pictures_only_refuses_texts(clip: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    _, model = clip
    vision = CLIPVisionModelWithProjection(model.config.vision_config)
    write(tmp_path, vision)
    seer = ClipSeer(open_features([tmp_path])["clip"])
    assert seer([noise(1)]).shape == (1, model.config.vision_config.projection_dim)
    with pytest.raises(CheckpointError, match="sees pictures only; texts need a whole CLIP"):
        seer.texts(["a fox"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [1, "2", 3]}))
    with pytest.raises(CheckpointError, match="image_mean"):
        ClipSeer(open_features([tmp_path])["clip"])


# --- Inception ----------------------------------------------------------------------------------------------------


class WrittenOut:
    """FID's Inception by the names of the published file, one function a kind of block."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: Any = 0) -> Tensor:
        def get(rest: str) -> Tensor:
            return self.state[f"{name}.{rest}"]

        y = F.conv2d(x, get("conv.weight"), stride=stride, padding=padding)
        m, v = get("bn.running_mean")[:, None, None], get("bn.running_var")[:, None, None]
        y = (y - m) / (v + 1e-3).sqrt() * get("bn.weight")[:, None, None] + get("bn.bias")[:, None, None]
        return y.clamp(min=0)

    def chain(self, x: Tensor, block: str, *names: str, last_stride: int = 1) -> Tensor:
        for i, name in enumerate(names):
            kernel = self.state[f"{block}.branch{name}.conv.weight"].shape[2:]
            reduces = last_stride == 2 and i == len(names) - 1
            padding = 0 if reduces else (kernel[0] // 2, kernel[1] // 2)
            x = self.conv(x, f"{block}.branch{name}", 2 if reduces else 1, padding)
        return x

    @staticmethod
    def mean(x: Tensor) -> Tensor:
        """Over the pixels of a 3 x 3 window that lie inside the picture."""
        return F.avg_pool2d(x, 3, 1, 1) * 9 / (F.avg_pool2d(torch.ones_like(x), 3, 1, 1) * 9)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for name in ("5b", "5c", "5d"):
            b = f"Mixed_{name}"
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(x, b, "5x5_1", "5x5_2"),
                           self.chain(x, b, "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
                           self.chain(self.mean(x), b, "_pool")], 1)  # fmt: skip
        x = torch.cat([self.chain(x, "Mixed_6a", "3x3", last_stride=2),
                       self.chain(x, "Mixed_6a", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3", last_stride=2),
                       F.max_pool2d(x, 3, 2)], 1)  # fmt: skip
        for name in ("6b", "6c", "6d", "6e"):
            b = f"Mixed_{name}"
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(x, b, "7x7_1", "7x7_2", "7x7_3"),
                           self.chain(x, b, *(f"7x7dbl_{i}" for i in range(1, 6))),
                           self.chain(self.mean(x), b, "_pool")], 1)  # fmt: skip
        x = torch.cat([self.chain(x, "Mixed_7a", "3x3_1", "3x3_2", last_stride=2),
                       self.chain(x, "Mixed_7a", *(f"7x7x3_{i}" for i in range(1, 5)), last_stride=2),
                       F.max_pool2d(x, 3, 2)], 1)  # fmt: skip
        for name in ("7b", "7c"):
            b = f"Mixed_{name}"
            single, double = self.chain(x, b, "3x3_1"), self.chain(x, b, "3x3dbl_1", "3x3dbl_2")
            pooled = self.mean(x) if name == "7b" else F.max_pool2d(x, 3, 1, 1)
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(single, b, "3x3_2a"), self.chain(single, b, "3x3_2b"),
                           self.chain(double, b, "3x3dbl_3a"), self.chain(double, b, "3x3dbl_3b"),
                           self.chain(pooled, b, "_pool")], 1)  # fmt: skip
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of random weights under the published names."""
    torch.manual_seed(0)
    network = Inception(InceptionConfig())
    state = network.state_dict()
    for name, tensor in state.items():
        if ".bn." in name:
            tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.normal_(std=0.3)
    places = table("inception", "torchvision", state, InceptionConfig())
    published = {places[name].name: tensor for name, tensor in state.items()}
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    extras = {"fc.weight": torch.zeros(1008, 8), "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}
    torch.save(published | extras, path)
    return path, published


@torch.no_grad()
def test_inception_is_its_definition(inception: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = inception
    seer = InceptionSeer(open_features([path])["inception"])
    pixels = torch.rand(1, 3, 107, 99) * 2 - 1
    found, expected = seer.network(pixels), WrittenOut(state)(pixels)
    assert found.shape == (1, 2048)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std() > 1e-3  # the features do differ
    other = InceptionSeer(open_features([path])["inception"], like="pytorch-fid")
    assert other.key != seer.key
    picture = noise(1, 50, 64)
    half = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, (299, 299), mode="bilinear")
    assert torch.allclose(other.prepare(picture), half * 2 - 1, atol=1e-6)
    assert seer.prepare(np.full((9, 9, 3), 128, np.uint8)).abs().max() == 0
    assert seer.prepare(np.zeros((9, 9, 3), np.uint8)).unique().tolist() == [-1]


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
    pictures, seer, told = Pictures.of_arrays(arrays), Counting(), []
    first = see(pictures, seer, tmp_path, lambda done, total: told.append((done, total)))
    assert first.shape == (20, 2)
    assert first[:, 0] == pytest.approx([a.mean() for a in arrays])
    assert told[-1] == (20, 20)
    assert seer.shown == 20
    assert np.array_equal(see(pictures, seer, tmp_path), first)
    assert seer.shown == 20
    changed = Pictures.of_arrays([*arrays[:19], noise(99, 8, 8)])  # one in the last of three files
    see(changed, seer, tmp_path)
    assert seer.shown == 24
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert np.array_equal(np.concatenate([see(pictures, seer, tmp_path), see(changed, seer, tmp_path)])[:20], first)
    assert seer.shown in (28, 32)
    other = Counting()
    other.key = "other weights"
    see(pictures, other, tmp_path)
    assert other.shown == 20
    assert np.array_equal(see(pictures, seer), first)  # without a cache
    with pytest.raises(RequestError, match="no picture"):
        see(Pictures.of_arrays([]), seer)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="can't be made"):
        see(pictures, seer, tmp_path / "file" / "inside")


def test_pixels_are_seen_without_a_network() -> None:
    flat = np.full((64, 96, 3), 51, np.uint8)
    seen = PixelSeer()([flat, noise(1)])
    assert seen.shape == (2, 3072)
    assert np.allclose(seen[0], 0.2)
