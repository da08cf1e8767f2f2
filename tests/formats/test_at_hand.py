"""Finding the model that a recipe means in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from darkroom.errors import CheckpointError
from darkroom.formats.at_hand import find_model, hash_told, stem


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "SD").mkdir()
    (tmp_path / "SD" / "v1-5.safetensors").write_bytes(bytes(2**21))
    (tmp_path / "other.ckpt").write_bytes(bytes(2**20) + b"x" * 2**17)
    (tmp_path / "notes.txt").write_text("v1-5")
    parts = tmp_path / "folder" / "unet"
    parts.mkdir(parents=True)
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    (parts / "v1-5.safetensors").write_bytes(b"a part")
    return tmp_path


def test_by_hash_whatever_the_name(models: Path) -> None:
    file = models / "other.ckpt"
    digits = hashlib.sha256(file.read_bytes()).hexdigest()
    for told in (digits[:10], digits, digits[:10].upper()):
        assert find_model(models, "v1-5", told) == file
    assert find_model(models, "v1-5", "0" * 10) is None


def test_by_a1111s_old_hash(models: Path) -> None:
    old = hashlib.sha256(b"x" * 2**16).hexdigest()[:8]
    assert find_model(models, None, old) == models / "other.ckpt"
    assert find_model(models, "other", "0" * 8) is None


def test_by_name_where_no_hash_can_be_compared(models: Path) -> None:
    file = models / "SD" / "v1-5.safetensors"
    for name in ("v1-5", "SD/V1-5.safetensors", "C:\\models\\v1-5.ckpt"):
        assert find_model(models, name, None) == file
    assert find_model(models, "v1-5", "blake3:0123456789") == file
    assert find_model(models, "folder", None) == models / "folder"
    assert find_model(models, "v2", None) is None
    assert find_model(models, None, None) is None
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_model(models / "none", "v1-5", None)


def test_what_is_no_hash() -> None:
    assert hash_told("6CE0161689") == "6ce0161689"
    assert [hash_told(told) for told in (None, "", "45dee52b", "blake3:0123456789", "sha256 ABCDEF", "0" * 11)] == [
        None
    ] * 6
    assert stem("a.b/c.d.safetensors") == "c.d"
