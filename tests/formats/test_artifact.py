"""The one door to files: every kind is told by its content, opened, described and hashed in one way."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import darkroom
from darkroom.errors import CheckpointError
from darkroom.formats import artifact
from darkroom.formats.artifact import KINDS, Kind, convert, describe, kind_of, open_artifact
from darkroom.formats.rules import network_class
from darkroom.formats.save import entries_of
from darkroom.formats.vae import save_vae
from darkroom.formats.weights import Artifact, Weights
from darkroom.formats.writer import write_safetensors
from darkroom.models.config import LpipsConfig, TinyAutoencoderConfig


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("embedded:model", "model", "diffusers folder"),
        ("embedded:edges", "ControlNet", "ControlNet, diffusers folder"),
        ("embedded:sepia", "LoRA", "LoRA"),
        ("embedded:blue-heart", "embedding", "embedding (textual inversion)"),
    ],
)
def test_what_comes_with_the_package_is_told_by_its_content(name: str, kind: str, told: str) -> None:
    found = open_artifact(name)
    assert kind_of(found.path).name == kind
    assert found.describe()["kind"] == told
    json.dumps(describe(name, with_hash=True))


def test_autoencoders_are_described(sd1: Any, tmp_path: Path) -> None:
    config, state = sd1.configs["autoencoder"], sd1.states["autoencoder"]
    folder = save_vae(tmp_path / "folder", state, config)
    entries = entries_of("autoencoder", "ldm", state, config, None, tmp_path)
    write_safetensors(tmp_path / "ldm.safetensors", entries, {})
    torch.manual_seed(0)
    tiny = network_class(TinyAutoencoderConfig())(TinyAutoencoderConfig()).state_dict()
    save_vae(tmp_path / "tiny", tiny, TinyAutoencoderConfig())
    for path, form in ((folder, "diffusers folder"), (tmp_path / "ldm.safetensors", "LDM file")):
        found = describe(path, with_hash=True)
        assert (found["kind"], found["fault"], found["downscale"]) == (f"autoencoder (VAE), {form}", None, 8)
        assert found["parameters"] == sum(tensor.numel() for tensor in state.values())
        assert found["dtypes"] == {"float32": len(state)}
        assert len(found["hash"]) == 10
    assert describe(tmp_path / "tiny")["parameters"] == sum(tensor.numel() for tensor in tiny.values())
    assert kind_of(sd1.save(tmp_path / "whole.safetensors")).name == "model"
    with pytest.raises(CheckpointError, match="has no U-Net"):
        convert(folder, tmp_path / "anew")


def test_networks_that_judge_are_described(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LpipsConfig("alex")
    network = network_class(config)(config)
    entries = entries_of("lpips", "torchvision", network.state_dict(), config, None, tmp_path)  # type: ignore[arg-type]
    write_safetensors(tmp_path / "lpips.safetensors", entries, {})
    found = describe(tmp_path / "lpips.safetensors")
    assert (found["kind"], found["fault"]) == ("network that judges, lpips", None)


def test_a_text_encoder_by_itself_is_described(sd1: Any, tmp_path: Path) -> None:
    folder = sd1.save(tmp_path / "model") / "text_encoder"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    found = describe(folder)
    assert (found["kind"], found["fault"]) == ("CLIP text encoder", None)
    assert found["parameters"] == sum(tensor.numel() for tensor in sd1.states["text_encoder"].values())


def test_a_new_kind_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of file that nobody knows yet is opened, described, hashed and built by its row alone."""
    config = TinyAutoencoderConfig()
    network = network_class(config)(config)

    def open_it(path: Path, variant: str | None) -> Artifact:
        weights = Weights(path, "diffusers", start="enlarger.")
        return Artifact(path=path, kind="enlarger", configs={"autoencoder": config}, weights={"autoencoder": weights})

    def convert_it(source: Path, target: Path, wanted: artifact.Wanted) -> Path:
        return save_vae(target, open_it(source, None).build("autoencoder").state_dict(), config, wanted.dtype)

    row = Kind("enlarger", lambda seen: seen.has("enlarger."), open_it, convert_it)
    entries = entries_of("autoencoder", "diffusers", network.state_dict(), config, None, tmp_path)
    save_file({f"enlarger.{entry.name}": entry.load().contiguous() for entry in entries}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a Stable Diffusion checkpoint"):
        describe(tmp_path / "x.safetensors")
    monkeypatch.setattr(artifact, "KINDS", [row, *KINDS])
    found = describe(tmp_path / "x.safetensors", with_hash=True)
    assert (found["kind"], found["fault"], len(found["hash"])) == ("enlarger", None, 10)
    opened = open_artifact(tmp_path / "x.safetensors")
    assert isinstance(opened, Artifact)
    built = opened.build("autoencoder", dtype=torch.float64)
    assert not any(p.requires_grad for p in built.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor.double())
    assert kind_of(convert(tmp_path / "x.safetensors", tmp_path / "vae")).name == "VAE"


# --- what is no file is refused at once, and blocks nothing


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("place", ["shard", "weights", "index", "config", "vocab"])
def test_a_model_with_what_is_no_file_is_refused_and_blocks_no_other(
    sd1: Any, tmp_path: Path, what: str, place: str
) -> None:
    folder = sd1.save(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    bad = {
        "shard": folder / "unet" / "shard.safetensors",
        "weights": weights,
        "index": folder / "model_index.json",
        "config": folder / "unet" / "config.json",
        "vocab": folder / "tokenizer" / "vocab.json",
    }[place]
    if place == "shard":
        index = {"weight_map": dict.fromkeys(("a.weight", "b.weight"), bad.name)}
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        weights.unlink()
    bad.unlink(missing_ok=True)
    os.symlink("/dev/zero", bad) if what == "link" else os.mkfifo(bad)
    begun = time.monotonic()
    refused = contextlib.nullcontext() if place in ("index", "vocab") else pytest.raises(CheckpointError, match="unet")
    with refused:  # the two are done without
        assert darkroom.load(folder, device="cpu").model_hash
    good = darkroom.load(sd1.save(tmp_path / "good"), device="cpu")
    assert len(good.model_hash or "") == 10
    assert time.monotonic() - begun < 20


def test_hashing_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for name in ("pipe", "link"):
        path = tmp_path / name
        os.mkfifo(path) if name == "pipe" else os.symlink("/dev/zero", path)
        file = Artifact(path=path, kind="x", configs={"unet": None}, weights={"unet": Weights(path, "ldm")})  # type: ignore[dict-item]
        with pytest.raises(CheckpointError, match="not a regular file"):
            file.hash()
