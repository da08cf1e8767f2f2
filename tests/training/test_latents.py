"""Latents and texts on disk: what the networks say, drawn anew, whole after any kill, noticed when damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.data.buckets import Cut
from darkroom.data.dataset import Dataset, open_dataset
from darkroom.errors import TrainingError
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig
from darkroom.training import cache as caches
from darkroom.training.cache import key_of
from darkroom.training.latents import LatentStore, LiveLatents, TextStore, fill, keys, latents_of, place, stacked
from darkroom.training.loop import Stopped
from darkroom.training.parallel import Rank


def network(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    config = AutoencoderConfig(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=32, scaling_factor=0.5,
        shift_factor=0.25,
    )  # fmt: skip
    return Autoencoder(config).eval().requires_grad_(False)


def folder_of(place: Path, count: int = 6) -> Path:
    place.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (20, 30, 3) if i % 2 else (30, 20, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(place / f"{i}.png")
    return place


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six pictures in two buckets."""
    return open_dataset(str(folder_of(tmp_path / "data")), (24, 24), Cut(buckets=True, grid=8))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_moments_are_the_autoencoders(dataset: Dataset, tmp_path: Path) -> None:
    net = network()
    fill(tmp_path / "cache", dataset, net)
    store = latents_of(dataset, net, tmp_path / "cache")
    assert isinstance(store, LatentStore)
    for i in range(6):
        with torch.no_grad():
            mean, logvar = net.encode(stacked([dataset.picture(i)]))[0].chunk(2)
        found_mean, found_deviation = (torch.from_numpy(part.copy()).float() for part in store.moments(i))
        assert torch.allclose(found_mean, net.scale(mean), atol=2e-3)
        assert torch.allclose(found_deviation, torch.exp(logvar / 2) * 0.5, atol=2e-3)


def test_draws_are_anew_in_every_step_and_belong_to_a_picture(dataset: Dataset, tmp_path: Path) -> None:
    net = network()
    fill(tmp_path / "cache", dataset, net)
    store = latents_of(dataset, net, tmp_path / "cache")
    drawn = store.draw([0, 2, 4], 7, 1)
    assert drawn.shape == (3, 4, dataset.sizes[0][1] // 2, dataset.sizes[0][0] // 2)
    assert drawn.dtype == torch.float32
    assert torch.equal(store.draw([2], 7, 1)[0], drawn[1])
    assert not torch.equal(store.draw([2], 8, 1)[0], drawn[1])
    assert not torch.equal(store.draw([2], 7, 2)[0], drawn[1])
    assert isinstance(store, LatentStore)
    mean, deviation = (torch.from_numpy(part.copy()).float() for part in store.moments(2))
    many = torch.stack([store.draw([2], step, 1)[0] for step in range(300)])
    noise = (many - mean) / deviation
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    live = LiveLatents(dataset, net).draw([0, 2, 4], 7, 1)
    assert torch.allclose(live, drawn, atol=1e-5)


def test_random_crops_have_as_many_versions_as_said(tmp_path: Path) -> None:
    net, data = network(), str(folder_of(tmp_path / "data", 2))
    some = open_dataset(data, (16, 16), Cut(crop="random", flip=True, variants=4))
    fill(tmp_path / "cache", some, net)
    store = LatentStore(tmp_path / "cache", some, net)
    assert len(store.cache) == 8
    means = [store.moments(1, version)[0] for version in range(4)]
    assert not any(np.array_equal(means[0], other) for other in means[1:])
    endless = open_dataset(data, (16, 16), Cut(crop="random", variants=0))
    fill(tmp_path / "none", endless, net)
    assert not (tmp_path / "none").exists()
    live = latents_of(endless, net, tmp_path / "none")
    assert torch.equal(live.draw([1, 0], 3, 0)[0], live.draw([1], 3, 0)[0])


def test_several_processes_fill_one_cache_and_a_part_is_not_the_whole(dataset: Dataset, tmp_path: Path) -> None:
    net, folder = network(), tmp_path / "cache"
    fill(folder, dataset, net, Rank(0, 2))
    with pytest.raises(Stopped, match=r"of 6 latents are still missing"):
        latents_of(dataset, net, folder)
    fill(folder, dataset, net, Rank(1, 2))
    fill(tmp_path / "alone", dataset, net)
    store, alone = (latents_of(dataset, net, f) for f in (folder, tmp_path / "alone"))
    for i in range(6):
        assert torch.equal(store.draw([i], 0, 0), alone.draw([i], 0, 0))


def test_only_what_is_new_is_encoded(dataset: Dataset, tmp_path: Path) -> None:
    net, folder, done = network(), tmp_path / "cache", [0]
    fill(folder, dataset, net)
    before = files(folder)
    told: list[tuple[int, int]] = []
    fill(folder, dataset, net, report=lambda *row: told.append(row))
    assert (told, files(folder)) == ([], before)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "data" / "9.png")
    (tmp_path / "data" / "0.txt").write_text("other words encode nothing again")
    more = open_dataset(str(tmp_path / "data"), (24, 24), dataset.cut)
    fill(folder, more, net, report=lambda *row: told.append(row))
    assert told == [(1, 1)]
    assert {name: data for name, data in files(folder).items() if name in before} == before
    assert done == [0]
    assert place(folder, net) != place(folder, network(1))
    assert keys(open_dataset(str(tmp_path / "data"), (32, 32), dataset.cut)) != keys(more)


def test_files_are_of_bounded_size(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MAX_ENTRIES", 2)
    fill(tmp_path / "cache", dataset, network())
    assert len(files(tmp_path / "cache")) == 4  # three of each bucket
    LatentStore(tmp_path / "cache", dataset, network())


@pytest.mark.parametrize("fault", ["byte", "short", "long", "metadata"])
def test_a_damaged_cache_is_noticed(dataset: Dataset, tmp_path: Path, fault: str) -> None:
    net, folder = network(), tmp_path / "cache"
    fill(folder, dataset, net)
    path = sorted(place(folder, net).glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    if fault == "byte":
        data[-7] ^= 1
    elif fault == "short":
        data = data[:-9]
    elif fault == "long":
        data += b"x"
    else:
        data = data.replace(b'"sums"', b'"gums"')
    path.write_bytes(bytes(data))
    with pytest.raises(TrainingError, match="delete") as caught:
        [latents_of(dataset, net, folder).draw([i], 0, 0) for i in range(6)]
    assert path.name in str(caught.value)
    path.unlink()
    fill(folder, dataset, net)
    latents_of(dataset, net, folder)


def test_a_full_disk_is_told_and_leaves_what_was_whole(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "MAX_ENTRIES", 2)
    real, count = os.replace, [0]

    def full(source: str, target: str) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(TrainingError, match="No space left"):
            fill(tmp_path / "cache", dataset, network())
    assert len(files(tmp_path / "cache")) == 2
    assert not list(tmp_path.rglob("*.part"))
    fill(tmp_path / "cache", dataset, network())
    latents_of(dataset, network(), tmp_path / "cache")


def test_nan_is_told(dataset: Dataset, tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        next(net.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        fill(tmp_path / "cache", dataset, net)


WORK = """
import sys, time
from pathlib import Path
from test_latents import network
from darkroom.data.buckets import Cut
from darkroom.data.dataset import open_dataset
from darkroom.training import cache
from darkroom.training.latents import fill
cache.MAX_ENTRIES = 1
fill(Path(sys.argv[2]), open_dataset(sys.argv[1], (24, 24), Cut(buckets=True, grid=8)), network(),
     report=lambda done, total: time.sleep(0.05))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    data, folder = folder_of(tmp_path / "data", 12), tmp_path / "cache"
    source = Path(darkroom.__file__).parents[1]  # this tree's, not what may be installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(source)])}
    worker = subprocess.Popen([sys.executable, "-c", WORK, str(data), str(folder)], env=environment)
    end = time.monotonic() + 120
    while len(files(folder)) < 2 and worker.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    worker.kill()
    assert worker.wait(60) == -signal.SIGKILL
    assert 2 <= len(files(folder)) < 12
    dataset = open_dataset(str(data), (24, 24), Cut(buckets=True, grid=8))
    fill(folder, dataset, network())
    fill(tmp_path / "alone", dataset, network())
    store, alone = (LatentStore(f, dataset, network()) for f in (folder, tmp_path / "alone"))
    assert all(torch.equal(store.draw([i], 0, 0), alone.draw([i], 0, 0)) for i in range(12))


def test_an_interruption_keeps_what_was_done(dataset: Dataset, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    fill(tmp_path / "cache", dataset, network(), report=interrupt)
    with pytest.raises(Stopped, match="3 of 6"):
        latents_of(dataset, network(), tmp_path / "cache")


def test_texts_are_the_same_from_disk_and_without(tmp_path: Path) -> None:
    calls: list[str] = []

    def encode(caption: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        calls.append(caption)
        generator = torch.Generator().manual_seed(len(caption))
        return torch.randn(5, 8, generator=generator), torch.randn(3, generator=generator)

    live, kept = TextStore(tmp_path / "none", encode), TextStore(tmp_path / "texts", encode)
    kept.fill(["", "a", "bb", "a"])
    assert sorted(calls) == ["", "a", "bb"]
    for caption in ("a", "", "bb"):
        for x, y in zip(live(caption), kept(caption), strict=True):
            assert x is not None
            assert y is not None
            assert torch.equal(x, y)
            assert x.dtype == torch.float32
    assert len(calls) == 6
    again = TextStore(tmp_path / "texts", encode)
    again.fill(["a", "bb"])
    assert len(calls) == 6
    assert key_of("a") in again.cache
    assert torch.equal(again("ccc")[0], live("ccc")[0])
