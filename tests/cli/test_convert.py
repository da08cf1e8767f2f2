"""`darkroom convert`: there and back, and nothing overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]  # see conftest.py


def test_there_and_back_draws_the_same_picture(command: Command, model: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "one.safetensors", tmp_path / "two"
    assert command("convert", model, file).paths == [file]
    assert command("convert", file, folder, "--json").json == {"path": str(folder)}
    path = command("generate", "a fox", "--steps", 2, "--model", model, "-o", tmp_path / "a.png").paths[0]
    for made in (file, folder):
        assert "identical" in command("verify", path, "--model", made).out


@pytest.mark.parametrize(("dtype", "stored"), [("float16", {"float16"}), ("float8_e4m3", {"float8_e4m3fn", "float16"})])
def test_dtype(dtype: str, stored: set[str], command: Command, model: Path, tmp_path: Path) -> None:
    assert command("convert", model, tmp_path / "a.safetensors", "--dtype", dtype).code == 0
    found = command("info", tmp_path / "a.safetensors", "--json").json
    assert {name for part in found["parts"].values() for name in part["dtypes"]} == stored


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "new"], "missing does not exist"),
        (["MODEL", ""], "'' can't be a file's name"),
        (["MODEL", "nul\0"], "can't be a file's name"),
        (["MODEL", "taken"], "exists already: choose another name, or add --overwrite"),
        (["MODEL", "full"], "exists already"),
        (["MODEL", "full", "--overwrite"], "full"),
        (["MODEL", "a.ckpt"], "writes no pickles"),
        (["MODEL", "new", "--dtype", "int4"], "--dtype is 'int4'; it must be one of float32, bfloat16, float16"),
        (["MODEL", "taken/new"], "taken"),
        (["MODEL", "MODEL", "--overwrite"], "both the source and the target"),
        (["MODEL", "new", "--variant", "fp8"], "no weights of the variant 'fp8'"),
    ],
)
def test_refusals_leave_everything_as_it_was(
    arguments: list[str], said: str, command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    answer = command("convert", *(str(model) if word == "MODEL" else word for word in arguments))
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert sorted(os.listdir()) == ["full", "taken"]
    assert Path("taken").read_text() == Path("full/mine").read_text() == "mine"


def test_overwrite_replaces_a_model(command: Command, model: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "a.safetensors", tmp_path / "b"):
        assert command("convert", model, target).code == 0
        assert command("convert", model, target, "--overwrite").code == 0
        assert command("info", target).code == 0
