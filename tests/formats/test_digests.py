"""The digests of weights files: found once, kept for large ones, never those of another file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from darkroom.errors import CheckpointError
from darkroom.formats import weights
from darkroom.formats.weights import digest_of


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own, in which small files are large."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "LARGE", 10)
    return tmp_path / "cache" / "digests"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one", tmp_path / "two"]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 3000)
    return paths


def sha(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_what_is_known_is_not_read_again(files: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_of(files) == sha(*files)
    assert digest_of(files[:1]) == sha(files[0])
    assert digest_of(files[::-1]) == sha(*files[::-1])
    expected = sha(*files)
    assert len(list(kept.iterdir())) == 3
    monkeypatch.setattr(weights, "feed", lambda *_: pytest.fail("read again"))
    assert digest_of(files) == expected


def test_a_changed_file_is_read_again(files: list[Path]) -> None:
    digest_of(files[:1])
    stat = files[0].stat()
    files[0].write_bytes(b"x" * 3000)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size, and said to be as old
    assert digest_of(files[:1]) == sha(files[0])
    files[1].replace(files[0])
    assert digest_of(files[:1]) == sha(files[0])


def test_what_can_t_be_a_digest_is_none(files: list[Path], kept: Path) -> None:
    digest_of(files)
    (place,) = kept.iterdir()
    for text in ("", "g" * 64, "0" * 63, "-" + "0" * 63, "\N{GREEK SMALL LETTER ALPHA}" * 64):
        place.write_text(text, encoding="utf-8")
        assert digest_of(files) == sha(*files)
        assert place.read_text() == sha(*files)


def test_a_cache_that_can_t_be_written_costs_nothing_else(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_CACHE", str(files[0] / "no folder"))
    assert digest_of(files) == sha(*files)


def test_small_files_are_not_kept(files: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", 10_000)
    assert digest_of(files) == sha(*files)
    assert not kept.exists()


def test_a_file_that_is_gone(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone can't be read: No such file"):
        digest_of([*files, tmp_path / "gone"])
