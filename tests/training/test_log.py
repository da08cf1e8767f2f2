"""What a run says of itself."""

from __future__ import annotations

import json
import sys
import types
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.training import loop
from darkroom.training.log import Log
from darkroom.training.loop import operations, peak, train

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyStage, toy_config


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEASURED", 2)
    monkeypatch.setattr("darkroom.training.log.time", types.SimpleNamespace(monotonic=count().__next__))
    train(ToyStage(toy_config(warmup=4, log_every=3, precision="bfloat16")), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 12]
    first, second, *_, last = rows(tmp_path)
    assert first["lr"] == pytest.approx(0.01 * first["rate"])
    assert first["rate"] == pytest.approx(3 / 4)
    assert first["left"] > second["left"] > last["left"] == 0
    assert "utilisation" in first
    assert second["utilisation"] >= 0


def test_a_resumed_run_drops_the_rows_it_does_again(tmp_path: Path) -> None:
    config = toy_config()
    train(ToyStage(config), tmp_path, until=5)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "loss": 9}\n{"step": 7, "loss": 9}\n{"step": 8, "lo')
    train(ToyStage(config), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    assert all(row["loss"] < 9 for row in rows(tmp_path))


def test_pairs_are_sums_and_counts(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    with Log(tmp_path, toy_config(), 0) as log:
        for good, total, count in ((True, 6.0, 2.0), (True, 0.0, 0.0), (False, float("nan"), 3.0)):
            pair, none = torch.tensor([total, count]), torch.tensor([0.0, 0.0])
            log.add({"good": torch.tensor(good), "loss": torch.tensor(total), "low": pair, "high": none})
        log.write(3, optimizer, torch.tensor(1.0), validation=0.5)
    (row,) = rows(tmp_path)
    assert (row["low"], row["loss"], row["skipped"], row["validation"]) == (3.0, 3.0, 1, 0.5)
    assert "high" not in row


def test_the_others_write_nothing(tmp_path: Path) -> None:
    with Log(None, toy_config(tensorboard=True), 0) as log:
        log.add({"good": torch.tensor(True)})
        log.write(1, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01), torch.zeros(()))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((folder, 0.0, purge_step))

        def add_scalar(self, key: str, value: float, step: int) -> None:
            told.append((key, value, step))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(ToyStage(toy_config(steps=2, tensorboard=True)), tmp_path)
    assert told[0] == (str(tmp_path / "tensorboard"), 0.0, 1)
    for row in rows(tmp_path):
        for key in ("loss", "lr", "norm", "samples_per_second"):
            assert (key, row[key], row["step"]) in told


def test_without_tensorboard_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="TensorBoard isn't installed; pip install"):
        train(ToyStage(toy_config(steps=2, tensorboard=True)), tmp_path)


def test_operations_are_counted() -> None:
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7
    assert operations(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5 * 7
    assert peak(torch.device("cpu"), torch.float32) > 1e8
