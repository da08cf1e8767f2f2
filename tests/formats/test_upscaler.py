"""Files of networks that enlarge: told by content, by whatever names, read strictly, written for others to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from enlargers import architecture, spandrel
from safetensors.torch import load_file, save_file

from darkroom.errors import CheckpointError
from darkroom.formats.artifact import convert, describe, kind_of, open_artifact
from darkroom.formats.upscaler import PART, open_upscaler, save_upscaler
from darkroom.models.upscaler import CLASSES, CompactConfig, RRDBConfig, SpanConfig, UpscalerConfig

REAL = Path(__file__).parents[2].parent / "shared" / "real"
RRDB = RRDBConfig(width=8, growth=4, blocks=2, doublings=2)
SMALL: list[UpscalerConfig] = [RRDB, CompactConfig(width=8, layers=3, scale=2), SpanConfig(width=8, scale=4)]


def state(config: UpscalerConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network: Any = CLASSES[type(config)](config)
    found: dict[str, torch.Tensor] = network.state_dict()
    return found


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_what_is_written_is_read(config: UpscalerConfig, tmp_path: Path) -> None:
    path = save_upscaler(tmp_path / "a.safetensors", state(config), config)
    found = open_upscaler(path)
    assert found.upscaler_config == config
    again: Any = found.build(PART)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state(config).values(), strict=True))
    told = describe(path, with_hash=True)
    assert told["kind"] == f"upscaler, {config.architecture}"
    assert (told["scale"], told["channels"], told["fault"]) == (config.scale, 3, None)
    assert len(told["hash"]) == 10


@pytest.mark.parametrize("start", ["", "params_ema.", "params."])
def test_a_trainers_wrapping_is_looked_into(start: str, tmp_path: Path) -> None:
    config = CompactConfig(width=8, layers=3, scale=2)
    weights = state(config)
    save_file({start + name: value for name, value in weights.items()}, tmp_path / "a.safetensors")
    torch.save({start.removesuffix("."): weights} if start else weights, tmp_path / "a.pth")
    x = torch.rand(1, 3, 5, 4)
    one, other = (open_upscaler(tmp_path / f"a.{end}").build(PART) for end in ("safetensors", "pth"))
    assert torch.equal(one(x), other(x))


def test_the_average_is_taken_where_both_are_there(tmp_path: Path) -> None:
    config = CompactConfig(width=8, layers=3, scale=2)
    weights = state(config)
    torch.save({"params": {k: v + 1 for k, v in weights.items()}, "params_ema": weights}, tmp_path / "a.pth")
    assert torch.equal(open_upscaler(tmp_path / "a.pth").build(PART).body[0].weight, weights["body.0.weight"])


@pytest.mark.parametrize(("scale", "shuffle", "plus"), [(1, None, False), (2, None, True), (8, None, False),
                                                        (4, 2, False), (4, 4, False)])  # fmt: skip
@torch.no_grad()
def test_esrgans_first_names(scale: int, shuffle: int | None, plus: bool, tmp_path: Path) -> None:
    library = architecture("ESRGAN")
    torch.manual_seed(0)
    theirs = library.ESRGAN(
        in_nc=3 * (shuffle or 1) ** 2, num_filters=8, num_blocks=2, scale=scale, plus=plus, shuffle_factor=shuffle
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = open_upscaler(tmp_path / "a.pth").build(PART)
    x = torch.rand(1, 3, 13, 10)
    wanted = theirs(x)
    assert ours.config.scale == wanted.shape[-1] // 10
    assert torch.allclose(ours(x), wanted, atol=1e-6)
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    if not plus:  # by the newer names, which spandrel reads too
        again = library.ESRGANArch().load(dict(load_file(tmp_path / "b.safetensors"))).model.eval()
        assert torch.allclose(again(x), wanted, atol=1e-6)
    assert torch.equal(open_upscaler(tmp_path / "b.safetensors").build(PART)(x), ours(x))


def test_bsrgans_names(tmp_path: Path) -> None:
    old = {
        name.replace("body.", "RRDB_trunk.", name.startswith("body.")).replace("rdb", "RDB")
        .replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv").replace("up.0", "upconv1")
        .replace("up.1", "upconv2"): value
        for name, value in state(RRDB).items()
    }  # fmt: skip
    save_file(old, tmp_path / "a.safetensors")
    ours = open_upscaler(tmp_path / "a.safetensors").build(PART)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in state(RRDB).items())


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_a_broken_file_ends_in_a_sentence(config: UpscalerConfig, tmp_path: Path) -> None:
    path = save_upscaler(tmp_path / "a.safetensors", state(config), config)
    weights = load_file(path)
    last = sorted(weights)[-1]
    for name, changed in (
        ("missing", {k: v for k, v in weights.items() if k != last}),
        ("extra", weights | {"body.0.rdb1.conv1.more": torch.zeros(1), "conv_1.sk.more": torch.zeros(1)}),
        ("misshapen", weights | {last: torch.zeros(3, 3)}),
        ("endless", {k: torch.full_like(v, float("nan")) for k, v in weights.items()}),
    ):
        save_file(changed, tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError) as caught:
            open_upscaler(tmp_path / f"{name}.safetensors").build(PART)
        assert f"{name}.safetensors" in str(caught.value)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_upscaler(tmp_path / "cut.safetensors")


def test_what_is_no_upscaler_is_called_by_its_name(tmp_path: Path) -> None:
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="is no upscaler but a LoRA"):
        open_upscaler(tmp_path / "lora.safetensors")
    save_file({"layers.0.swin1.weight": torch.zeros(2, 2)}, tmp_path / "drct.safetensors")
    with pytest.raises(CheckpointError, match=r"upscaler \(DRCT\).*spandrel"):
        open_upscaler(tmp_path / "drct.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_upscaler(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [("RealESRGAN_x4plus_anime_6B", "ESRGAN", 6), ("realesr-animevideov3-x4", "Compact", 16)],
)
@torch.no_grad()
def test_published_networks(name: str, kind: str, blocks: int) -> None:
    path = REAL / f"{name}.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not here: a published network to try")
    assert kind_of(path).name == "upscaler"
    found: Any = open_artifact(path)
    config = found.upscaler_config
    assert (found.kind, config.scale, getattr(config, "blocks", None) or config.layers) == (kind, 4, blocks)
    library = spandrel()
    inside = next(iter(torch.load(path, weights_only=True).values()))
    theirs = library.ModelLoader().load_from_state_dict({k: v.float() for k, v in inside.items()}).model.eval()
    x = torch.rand(1, 3, 12, 9)
    assert torch.allclose(found.build(PART, dtype=torch.float32)(x), theirs(x), atol=1e-5)
