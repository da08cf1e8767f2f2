"""`darkroom bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from darkroom.bench import table

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SIDE", {"cpu": 128})


def test_a_table(command: Command) -> None:
    asked = ("bench", "--architecture", "tiny", "--size", 64, "--rounds", 2, "--dtype", "float32", "--device", "cpu")
    told = command(*asked, "--json").json
    assert [row["what"] for row in told["rows"]] == ["tiny U-Net step, 64 px", "tiny decode, 64 px"]
    assert list(told["ceilings"]) == ["float32"]
    for row in told["rows"]:
        assert 0 < row["least"] <= row["seconds"] <= row["most"]
        assert (row["rounds"], row["dtype"]) == (2, "float32")
        assert row["share"] == pytest.approx(row["gflop"] / row["seconds"] / told["ceilings"]["float32"])
    lines = command(*asked).out.splitlines()
    assert len(lines) == 4
    assert "threads, torch" in lines[0]
    assert lines[2].startswith("tiny U-Net step, 64 px")


def test_what_does_not_fit_is_left_out(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "memory_free", lambda: 10**9)
    monkeypatch.setattr(table, "cold_start", lambda *_: table.Row("cold", (1.0,)))
    monkeypatch.setattr(table, "SIZES", {"embedded": 64, "sd15": 64})
    answer = command("bench", "--rounds", 1, "--dtype", "float32", "--device", "cpu")
    assert answer.code == 0
    assert "sd15 is left out" in answer.sentence
    assert [line.split(",")[0] for line in answer.out.splitlines()[2:4]] == ["embedded U-Net step", "embedded decode"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "100"], "--size is 100; give a multiple of 8 from 64 to 2048"),
        (["--size", "big"], "'big' is not a whole number"),
        (["--dtype", "int4"], "--dtype is 'int4'; there are float32, bfloat16, float16"),
        (["--architecture", "sd51"], "--architecture is 'sd51'; did you mean 'sd15'?"),
        (["--rounds", "0"], "--rounds is 0; it must be from 1 to 1000"),
        (["--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_what_can_be_wrong(command: Command, arguments: list[str], sentence: str) -> None:
    answer = command("bench", *arguments)
    assert answer.code == 2
    assert sentence in answer.sentence
