"""A tiny random model on disk, and commands run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from darkroom.cli import run

if TYPE_CHECKING:
    from darkroom.pipeline import Pipeline


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def paths(self) -> list[Path]:
        return [Path(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The only line on stderr; that it is the only one is part of what is tested."""
        assert self.err.startswith("darkroom: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("darkroom: ").rstrip("\n")


Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `darkroom ARGUMENTS...` in this process."""
    monkeypatch.delenv("DARKROOM_DEBUG", raising=False)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture(scope="session")
def model(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder that draws 64x64 pictures in a blink."""
    return tiny_pipe.save(tmp_path_factory.mktemp("models") / "tiny")
