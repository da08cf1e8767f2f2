"""Checkpoints: whole or absent, the last few kept."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.training import state


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (3, 20, 100, 1000):
        state.save(tmp_path, step, {"step": step}, keep=2)
    assert names(tmp_path) == ["step-000000100.pt", "step-000001000.pt"]
    assert state.load_last(tmp_path) == {"step": 1000}
    assert [state.step_of(p) for p in state.checkpoints(tmp_path)] == [100, 1000]


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert state.load_last(tmp_path / "none") is None
    (tmp_path / "step-12.pt").write_text("not ours")
    assert state.checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="step-12"):
        state.step_of(tmp_path / "step-12.pt")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("enforce fail")])
def test_a_full_disk_leaves_the_last_one_whole(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path, 1, {"weights": torch.ones(3)})

    def fail(value: Any, file: Any) -> None:
        file.write(b"PK half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(TrainingError, match=r"step-000000002\.pt could not be written"):
        state.save(tmp_path, 2, {"weights": torch.zeros(3)})
    assert names(tmp_path) == ["step-000000001.pt"]
    saved = state.load_last(tmp_path)
    assert saved is not None
    assert saved["weights"].tolist() == [1, 1, 1]


def test_an_interruption_while_writing_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path, 1, {"step": 1})

    def interrupt(value: Any, file: Any) -> None:
        file.write(b"PK half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            state.save(tmp_path, 2, {"step": 2})
    assert state.load_last(tmp_path) == {"step": 1}
    state.save(tmp_path, 3, {"step": 3})
    assert names(tmp_path) == ["step-000000001.pt", "step-000000003.pt"]


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and no more"])
def test_a_broken_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step-000000007.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"step-000000007\.pt can't be read: it is damaged, or none of ours; del"):
        state.load_last(tmp_path)


def test_the_one_before_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        state.save(tmp_path, step, {"weights": torch.ones(500)})
    newest = tmp_path / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:-700])
    with pytest.raises(
        TrainingError, match=r"can't be read: it is damaged, .*; delete it to go on from step-000000001\.pt"
    ):
        state.load_last(tmp_path)
    newest.unlink()
    assert state.load_last(tmp_path) is not None


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Files may not grow beyond 64 kB: the write fails half-way, as it does on a full disk."""
    state.save(tmp_path, 1, {"step": 1, "weights": torch.ones(1000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(TrainingError, match=r"step-000000002\.pt could not be written"):
            state.save(tmp_path, 2, {"step": 2, "weights": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000000001.pt"]
    saved = state.load_last(tmp_path)
    assert saved is not None
    assert saved["weights"].sum() == 1000


@pytest.mark.parametrize("links", [True, False])
def test_the_best_one_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr("os.link", refuse)
    for step in (1, 2, 3, 4):
        state.save(tmp_path, step, {"step": step}, keep=1)
        if step in (1, 2):
            state.keep_best(tmp_path, step)
    assert names(tmp_path) == ["best.pt", "step-000000004.pt"]
    assert state.load_best(tmp_path) == {"step": 2}


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": Evil()}, tmp_path / "step-000000001.pt")
    with pytest.raises(TrainingError):
        state.load_last(tmp_path)
    assert not (tmp_path / "ran").exists()
