"""Networks that judge, opened from files of the published layouts: found by content, read strictly, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from darkroom.errors import CheckpointError
from darkroom.formats.features import open_features, require
from darkroom.formats.layouts import is_ignored, table
from darkroom.models.config import InceptionConfig, LpipsConfig
from darkroom.models.inception import Inception
from darkroom.models.layers import parameter_count
from darkroom.models.lpips import Lpips


def conv(name: str, out: int, into: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (out, into, *kernel)} | {
        f"{name}.bn.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var")
    }


def published_inception() -> dict[str, tuple[int, ...]]:
    """Names and shapes of pt_inception-2015-12-05-6726825d.pth, as torchvision's network prints itself."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out, into, k in (("1a_3x3", 32, 3, 3), ("2a_3x3", 32, 32, 3), ("2b_3x3", 64, 32, 3),
                               ("3b_1x1", 80, 64, 1), ("4a_3x3", 192, 80, 3)):  # fmt: skip
        shapes |= conv(f"Conv2d_{name}", out, into, k, k)
    for name, c, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        for branch, out, into, k in (("1x1", 64, c, 1), ("5x5_1", 48, c, 1), ("5x5_2", 64, 48, 5),
                                     ("3x3dbl_1", 64, c, 1), ("3x3dbl_2", 96, 64, 3), ("3x3dbl_3", 96, 96, 3),
                                     ("_pool", pool, c, 1)):  # fmt: skip
            shapes |= conv(f"Mixed_{name}.branch{branch}", out, into, k, k)
    for branch, out, into, k in (("3x3", 384, 288, 3), ("3x3dbl_1", 64, 288, 1), ("3x3dbl_2", 96, 64, 3),
                                 ("3x3dbl_3", 96, 96, 3)):  # fmt: skip
        shapes |= conv(f"Mixed_6a.branch{branch}", out, into, k, k)
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        for branch, out, into, h, w in (("1x1", 192, 768, 1, 1), ("7x7_1", c, 768, 1, 1), ("7x7_2", c, c, 1, 7),
                                        ("7x7_3", 192, c, 7, 1), ("7x7dbl_1", c, 768, 1, 1), ("7x7dbl_2", c, c, 7, 1),
                                        ("7x7dbl_3", c, c, 1, 7), ("7x7dbl_4", c, c, 7, 1), ("7x7dbl_5", 192, c, 1, 7),
                                        ("_pool", 192, 768, 1, 1)):  # fmt: skip
            shapes |= conv(f"Mixed_{name}.branch{branch}", out, into, h, w)
    for branch, out, into, h, w in (("3x3_1", 192, 768, 1, 1), ("3x3_2", 320, 192, 3, 3), ("7x7x3_1", 192, 768, 1, 1),
                                    ("7x7x3_2", 192, 192, 1, 7), ("7x7x3_3", 192, 192, 7, 1),
                                    ("7x7x3_4", 192, 192, 3, 3)):  # fmt: skip
        shapes |= conv(f"Mixed_7a.branch{branch}", out, into, h, w)
    for name, c in (("7b", 1280), ("7c", 2048)):
        for branch, out, into, h, w in (("1x1", 320, c, 1, 1), ("3x3_1", 384, c, 1, 1), ("3x3_2a", 384, 384, 1, 3),
                                        ("3x3_2b", 384, 384, 3, 1), ("3x3dbl_1", 448, c, 1, 1),
                                        ("3x3dbl_2", 384, 448, 3, 3), ("3x3dbl_3a", 384, 384, 1, 3),
                                        ("3x3dbl_3b", 384, 384, 3, 1), ("_pool", 192, c, 1, 1)):  # fmt: skip
            shapes |= conv(f"Mixed_{name}.branch{branch}", out, into, h, w)
    return shapes | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def meta(build: Any, config: Any) -> Any:
    with torch.device("meta"):
        return build(config)


def test_inceptions_names_and_shapes_are_the_published_ones() -> None:
    network = meta(Inception, InceptionConfig())
    native = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    places = table("inception", "torchvision", native, InceptionConfig())
    ours = {place.name: native[name] for name, place in places.items()}
    assert ours | {"fc.weight": (1008, 2048), "fc.bias": (1008,)} == published_inception()
    assert parameter_count(network) == 21_785_568  # torchvision's 23,834,568 without its 1000 classes
    for extra in ("fc.bias", "Mixed_7c.branch_pool.bn.num_batches_tracked"):
        assert is_ignored("inception", "torchvision", extra)


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_inception_is_found_and_torchvisions_own_is_refused(tmp_path: Path) -> None:
    few = {"Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1)}
    found = open_features([write(tmp_path / "a", few | {"fc.weight": (1008, 3)})])
    assert set(found) == {"inception"}
    assert len(found["inception"].hash()) == 10
    with pytest.raises(CheckpointError, match=r"of 1000 classes; distances are known by TensorFlow's of 1008"):
        open_features([write(tmp_path / "b", few | {"fc.weight": (1000, 3)})])
    with pytest.raises(CheckpointError, match="is a second inception network beside"):
        open_features([tmp_path / "a", write(tmp_path / "c", few)])


HEADS = {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate((64, 192, 384, 256, 256))}
BACKBONE = {
    "features.0.weight": (64, 3, 11, 11), "features.0.bias": (64,), "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,), "features.6.weight": (384, 192, 3, 3), "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3), "features.8.bias": (256,), "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,), "classifier.6.bias": (1000,),
}  # fmt: skip


def test_lpips_names_and_shapes_are_the_published_ones() -> None:
    native = {name: tuple(tensor.shape) for name, tensor in meta(Lpips, LpipsConfig("alex")).state_dict().items()}
    places = table("lpips", "torchvision", native, LpipsConfig("alex"))
    assert {p.name: native[n] for n, p in places.items()} | {"classifier.6.bias": (1000,)} == HEADS | BACKBONE


def test_lpips_comes_as_two_files_or_as_one(tmp_path: Path) -> None:
    from darkroom.evaluate.networks import load_lpips

    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in (HEADS | BACKBONE).items()}
    heads, backbone, whole = (tmp_path / n for n in ("alex.pth", "alexnet.pth", "whole.pth"))
    torch.save({n: t for n, t in tensors.items() if n in HEADS}, heads)
    torch.save({n: t for n, t in tensors.items() if n in BACKBONE}, backbone)
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    state = {n.replace("features.", f"net.slice{slices[int(n.split('.')[1])]}."): t for n, t in tensors.items()
             if n.startswith("features.")}  # fmt: skip
    state |= {n: t for n, t in tensors.items() if n in HEADS}
    state |= {f"lins.{k}.model.1.weight": state[f"lin{k}.model.1.weight"] for k in range(5)}
    torch.save(state | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, whole)
    answers = []
    for files in ([heads, backbone], [backbone, heads], [whole]):
        network = load_lpips(open_features(files)["lpips"])
        assert torch.equal(network.layers["8"].weight, tensors["features.8.weight"])
        assert torch.equal(network.heads[2].weight, tensors["lin2.model.1.weight"])
        with torch.no_grad():
            answers.append(network(torch.zeros(1, 3, 40, 40), torch.ones(1, 3, 40, 40)))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    with pytest.raises(CheckpointError, match="holds the heads of LPIPS; give its classifier as well"):
        open_features([heads])
    with pytest.raises(CheckpointError, match="holds the classifier of LPIPS; give its heads as well"):
        open_features([backbone])


def test_what_is_no_such_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its tensors are called lora\.x; give a folder of transformers"):
        open_features([write(tmp_path / "lora", {"lora.x": (1,)})])
    with pytest.raises(CheckpointError, match="does not exist"):
        open_features([tmp_path / "nowhere.pth"])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="is a 'bert'; it must be a CLIP"):
        open_features([tmp_path / "bert"])
    with pytest.raises(CheckpointError, match=r"fid needs a network that is not given; name it by --features: pt_inc"):
        require({}, "inception", "fid")
    broken = write(tmp_path / "half", {"lin0.model.1.weight": (1, 64, 1, 1), "features.0.weight": (64, 3, 5, 5)})
    with pytest.raises(CheckpointError, match="is neither VGG-16 nor AlexNet"):
        open_features([broken])
