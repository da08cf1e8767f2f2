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


def made(step: int, weights: torch.Tensor | None = None) -> dict[str, Any]:
    """A checkpoint of the loop, with weights under one name."""
    named = {} if weights is None else {"net": {"w": weights}}
    return {
        "step": step, "skipped": 0, "recipe": {"steps": 12}, "modules": named, "ema": named,
        "optimizer": {"state": {}},
    }  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (3, 20, 100, 1000):
        state.save(tmp_path, step, made(step), keep=2)
    assert names(tmp_path) == ["step-000000100.pt", "step-000001000.pt"]
    assert state.load_last(tmp_path) == made(1000)
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
    state.save(tmp_path, 1, made(1, torch.ones(3)))

    def fail(value: Any, file: Any) -> None:
        file.write(b"PK half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(TrainingError, match=r"step-000000002\.pt could not be written"):
        state.save(tmp_path, 2, made(2, torch.zeros(3)))
    assert names(tmp_path) == ["step-000000001.pt"]
    saved = state.load_last(tmp_path)
    assert saved is not None
    assert saved["ema"]["net"]["w"].tolist() == [1, 1, 1]


def test_an_interruption_while_writing_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path, 1, made(1))

    def interrupt(value: Any, file: Any) -> None:
        file.write(b"PK half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            state.save(tmp_path, 2, made(2))
    assert state.load_last(tmp_path) == made(1)
    state.save(tmp_path, 3, made(3))
    assert names(tmp_path) == ["step-000000001.pt", "step-000000003.pt"]


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and no more"])
def test_a_broken_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step-000000007.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"step-000000007\.pt can't be read: it is damaged, or none of ours; del"):
        state.load_last(tmp_path)


def test_the_one_before_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        state.save(tmp_path, step, made(step, torch.ones(500)))
    newest = tmp_path / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:-700])
    said = r"can't be read: it is damaged, .*; add --skip-damaged or delete it, to go on from step-000000001\.pt"
    with pytest.raises(TrainingError, match=said):
        state.load_last(tmp_path)
    newest.unlink()
    assert state.load_last(tmp_path) is not None


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Files may not grow beyond 64 kB: the write fails half-way, as it does on a full disk."""
    state.save(tmp_path, 1, made(1, torch.ones(1000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(TrainingError, match=r"step-000000002\.pt could not be written"):
            state.save(tmp_path, 2, made(2, torch.ones(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000000001.pt"]
    saved = state.load_last(tmp_path)
    assert saved is not None
    assert saved["ema"]["net"]["w"].sum() == 1000


@pytest.mark.parametrize("links", [True, False])
def test_the_best_one_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr("os.link", refuse)
    for step in (1, 2, 3, 4):
        state.save(tmp_path, step, made(step), keep=1)
        if step in (1, 2):
            state.keep_best(tmp_path, step)
    assert names(tmp_path) == ["best.pt", "step-000000004.pt"]
    assert state.load_best(tmp_path) == made(2)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": Evil()}, tmp_path / "step-000000001.pt")
    with pytest.raises(TrainingError):
        state.load_last(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- what has changed, and what is odd


def test_no_changed_bit_goes_unseen(tmp_path: Path) -> None:
    """Wherever a bit flips, the checkpoint is refused, or what is read is what was written (in the padding)."""
    torch.manual_seed(0)
    path = state.save(tmp_path, 3, made(3, torch.randn(40)))
    content, refused = path.read_bytes(), 0
    before = state.load_last(tmp_path)
    assert before is not None
    for at in [*range(0, len(content), 13), content.index(before["ema"]["net"]["w"].numpy().tobytes()) + 5]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            after = state.load_last(tmp_path)
        except TrainingError:
            refused += 1
            continue
        assert after is not None
        assert torch.equal(after["ema"]["net"]["w"], before["ema"]["net"]["w"])
        assert (after["step"], after["recipe"]) == (3, {"steps": 12})
    assert refused > 30


def test_a_flipped_bit_of_a_weight_is_named_and_the_one_before_is_taken_when_asked(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state.save(tmp_path, step, made(step, torch.arange(50.0)), keep=3)
    for step in (2, 3):
        path = tmp_path / f"step-{step:09d}.pt"
        content = bytearray(path.read_bytes())
        content[content.index(torch.arange(50.0).numpy().tobytes()) + 17] ^= 4
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"step-000000003\.pt is damaged: .*data/0' in it has changed since it was"):
        state.load_last(tmp_path)
    damaged, step = state.set_damaged_aside(tmp_path)
    assert step == 1
    assert [path.name for path in damaged] == ["step-000000003.pt.damaged", "step-000000002.pt.damaged"]
    assert state.steps_done(tmp_path) == 1
    assert state.set_damaged_aside(tmp_path) == ([], 1)
    (tmp_path / "step-000000001.pt").write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"no checkpoint in .* is whole"):
        state.set_damaged_aside(tmp_path)
    assert state.steps_done(tmp_path) == 1


ODD = {
    "step": [None, -1, 4, 3.0, "3", True, 10**30],
    "skipped": [None, -1, "0"],
    "recipe": [None, {}, {"steps": "12"}, {"steps": 12, "lr": torch.ones(2)}, {"steps": 12, 3: 4}],
    "modules": [None, [], {"net": None}, {"net": {"w": 3}}, {3: {}}],
    "ema": [None, torch.ones(2), {"net": {"w": None}}],
    "optimizer": [None, {}, {"state": []}, {"state": {"a": {}}}, {"state": {0: 3}}],
    "powers": [None, {"a": {}}, {0.1: {"net": {"w": 1}}}],
    "best": [None, {"step": "3"}, []],
    "scale": [1.0, {}, {"factor": torch.ones(2), "good_steps": torch.ones(())}],
    "opponents": [None, {"modules": {}}, {"modules": {}, "optimizer": {}}],
}


@pytest.mark.parametrize("field", ODD)
def test_odd_and_missing_fields_are_said(field: str, tmp_path: Path) -> None:
    for value in ODD[field]:
        state.save(tmp_path, 3, {**made(3), field: value})
        with pytest.raises(TrainingError, match=r"step-000000003\.pt is none of ours: it"):
            state.load_last(tmp_path)
    if field in made(3):
        state.save(tmp_path, 3, {name: value for name, value in made(3).items() if name != field})
        with pytest.raises(TrainingError, match=f"is none of ours: it has no '{field}'"):
            state.load_last(tmp_path)
