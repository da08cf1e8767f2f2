"""Pictures by networks that enlarge: any mode and size, in tiles as at once, by name from requests and recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enlargers import architecture
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import darkroom
from darkroom.engine import enlarge
from darkroom.engine.enlarge import Upscaler, load_upscaler
from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.upscaler import save_upscaler
from darkroom.models.upscaler import Compact, CompactConfig

CONFIG = CompactConfig(width=4, layers=1, scale=2)


def written(path: Path, config: CompactConfig = CONFIG, plain: bool = True) -> Path:
    """A network; a `plain` one repeats pixels."""
    torch.manual_seed(0)
    network = Compact(config)
    if plain:
        for p in network.parameters():
            p.data.zero_()
    return save_upscaler(path, network.state_dict(), config)


@pytest.fixture
def doubling(tmp_path: Path) -> Upscaler:
    return load_upscaler(written(tmp_path / "doubling.safetensors"))


def pixels(mode: str, size: tuple[int, int] = (7, 5)) -> Image.Image:
    rng = np.random.default_rng(0)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}[mode]
    most, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    values = rng.integers(1, most, (size[1], size[0], channels)).astype(kind)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_every_mode_stays_what_it_is(mode: str, doubling: Upscaler) -> None:
    picture = pixels(mode)
    large = doubling.enlarge(picture)
    assert (large.mode, large.size) == (mode, (14, 10))
    assert np.array_equal(np.asarray(large), np.asarray(picture).repeat(2, 0).repeat(2, 1))  # to the last bit of 16


def test_palettes_bits_and_turned_pictures(doubling: Upscaler, tmp_path: Path) -> None:
    assert doubling.enlarge(pixels("L").convert("1")).mode == "L"
    assert doubling.enlarge(pixels("RGB").convert("P")).mode == "RGB"
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels("RGB").save(tmp_path / "turned.png", exif=turned)
    assert doubling.enlarge(tmp_path / "turned.png").size == (10, 14)


def test_colours_that_nobody_sees_stay_unseen(tmp_path: Path) -> None:
    """A disc on transparent black: its edge has the disc's colour, not a dark one."""
    up = load_upscaler(written(tmp_path / "a.safetensors", replace(CONFIG, scale=4), plain=False))
    values = np.zeros((16, 16, 4), np.uint8)
    values[4:12, 4:12] = (200, 200, 200, 255)
    seen: list[Tensor] = []
    network = up.network
    watched = replace(up, network=lambda x, run: (seen.append(x), network(x, run))[1])
    watched.enlarge(Image.fromarray(values))
    assert seen[0].min() > 0.7


@pytest.mark.parametrize(
    ("scale", "size"), [(2.0, (14, 10)), (3, (21, 15)), (16, (112, 80)), (0.5, (4, 2)), (1, (7, 5))]
)
def test_any_scale(scale: float, size: tuple[int, int], doubling: Upscaler) -> None:
    assert doubling.enlarge(pixels("RGB"), scale).size == size


def test_tiles_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up = load_upscaler(written(tmp_path / "a.safetensors", plain=False))
    picture = pixels("RGB", (90, 70))
    whole = np.asarray(up.enlarge(picture)).astype(int)
    ticks: list[int] = []
    for budget, kept in ((0, 1 << 30), (1 << 30, 0), (0, 0)):
        monkeypatch.setattr(enlarge, "BUDGET", budget)
        monkeypatch.setattr(enlarge, "KEPT", kept)
        ticks.clear()
        assert np.abs(np.asarray(up.enlarge(picture, tick=lambda: ticks.append(1))) - whole).max() <= 1
        assert len(ticks) > 3


def test_what_can_not_be(doubling: Upscaler, tmp_path: Path) -> None:
    for scale in (0, 17, float("nan")):
        with pytest.raises(RequestError, match="scale is"):
            doubling.enlarge(pixels("L"), scale)
    with pytest.raises(RequestError, match="sides may have 8,192"):
        doubling.enlarge(Image.new("L", (5000, 10)))
    with pytest.raises(darkroom.ImageError, match="floating-point"):
        doubling.enlarge(Image.new("F", (4, 4)))
    save_file({"text_encoder.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="is no upscaler but a LoRA"):
        load_upscaler(tmp_path / "lora.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"broken\.pth"):
        load_upscaler(tmp_path / "broken.pth")


@torch.no_grad()
def test_other_networks_come_from_spandrel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = architecture("PLKSR").PLKSR(dim=8, n_blocks=2, upscaling_factor=2, kernel_size=5).eval()
    torch.save({"params": theirs.state_dict()}, tmp_path / "other.pth")
    up = load_upscaler(tmp_path / "other.pth")
    assert (up.name, up.scale, up.channels) == ("other", 2, 3)
    picture = pixels("RGB", (20, 16))
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
    wanted = (theirs(x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(up.enlarge(picture)).astype(int) - wanted).max() <= 1


def test_spandrel_fails_in_sentences(tmp_path: Path) -> None:
    architecture("PLKSR")
    save_file(
        {"feats.0.weight": torch.zeros(2, 2), "feats.1.lk.conv.weight": torch.zeros(2)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"a.safetensors (can't be opened by spandrel|is no network)"):
        load_upscaler(tmp_path / "a.safetensors")


# --- by name, from requests and recipes


@pytest.fixture
def pipe(tiny_pipe: Any) -> Any:
    tiny_pipe.upscalers.clear()
    return tiny_pipe


def test_a_picture_is_enlarged_at_the_end(pipe: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "doubling.safetensors")
    plain = pipe.generate("a fox", seed=1, steps=2)
    found = pipe.generate("a fox", seed=1, steps=2, enlarge=darkroom.Enlarge(2, str(file)))
    assert np.array_equal(np.asarray(found.images[0]), np.asarray(plain.images[0]).repeat(2, 0).repeat(2, 1))
    told = found.requests[0].enlarge
    assert told == darkroom.Enlarge(2.0, "doubling", pipe.upscaler(str(file)).hash)
    again = pipe.draw(found.requests)
    assert again.images[0].tobytes() == found.images[0].tobytes()
    assert pipe.draw([replace(found.requests[0], enlarge=darkroom.Enlarge(2.0, "renamed", told.upscaler_hash))]).images
    pipe.upscalers.clear()  # a recipe opens no file
    with pytest.raises(RequestError, match="there is no upscaler 'doubling' here"):
        pipe.draw(found.requests)
    pipe.upscaler(written(tmp_path / "sub" / "doubling.safetensors", plain=False))
    with pytest.raises(RequestError, match=r"used the upscaler 'doubling' \(hash"):
        pipe.draw(found.requests)
    with pytest.raises(RequestError, match="output is 'pt'"):
        pipe.generate("a fox", seed=1, steps=2, enlarge=darkroom.Enlarge(2, str(file)), output="pt")
    with pytest.raises(RequestError, match="sides may have"):
        pipe.generate("a fox", width=1024, height=8, steps=1, enlarge=darkroom.Enlarge(16, str(file)))


def test_a_second_pass_begins_with_a_network(pipe: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "doubling.safetensors")
    hires = darkroom.Hires(scale=2, strength=0.0, upscaler=str(file))
    found = pipe.generate("a fox", seed=1, steps=2, hires=hires)
    assert found.images[0].size == tuple(2 * side for side in pipe.size)
    told = found.requests[0].hires
    assert (told.upscaler, len(told.upscaler_hash)) == ("doubling", 10)
    assert pipe.draw(found.requests).images[0].tobytes() == found.images[0].tobytes()
    lanczos = pipe.generate("a fox", seed=1, steps=2, hires=replace(hires, upscaler="lanczos")).images[0]
    assert lanczos.tobytes() != found.images[0].tobytes()
    # Another tool's recipe names it without a hash: what isn't here is told, and Lanczos takes its place.
    theirs = replace(found.requests[0], hires=replace(hires, upscaler="4x-Unknown"))
    with pytest.warns(UserWarning, match="by Lanczos, not by the upscaler '4x-Unknown'"):
        assert pipe.draw([theirs]).images[0].tobytes() == lanczos.tobytes()


def test_a1111s_names_are_understood(pipe: Any, tmp_path: Path) -> None:
    pipe.upscaler(written(tmp_path / "RealESRGAN_x4plus.safetensors"))
    assert pipe.find_upscaler("R-ESRGAN 4x+").name == "RealESRGAN_x4plus"
