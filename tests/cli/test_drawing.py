"""The options of drawing commands: whatever `Pipeline.generate` takes, a command line can say, and it arrives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import darkroom
from darkroom.arguments import GROUPS
from darkroom.cli import generate as command_file
from darkroom.cli import options
from darkroom.cli.drawing import options_of
from darkroom.cli.generate import generate
from darkroom.pipeline import Pipeline
from darkroom.request import Hires, Request
from darkroom.settings import settings

# `Pipeline.generate`'s and `load`'s names -> the command's, where no field of a request declares them.
CALLED = {
    "prompt": "prompts", "num_images": "count", "controls": "control", "loras": "lora", "embeddings": "embedding",
    "source": "model",
}  # fmt: skip
PYTHON_ALONE = {
    "latents": "a tensor",
    "start": "goes on with such a tensor",
    "stop": "gives one to another model",
    "on_progress": "a function; the command shows a bar",
    "deterministic": "the command chooses by device",
    "preview": "no preview is shown",
}
COMMAND_ALONE = {
    "prompts_file", "more", "sheet", "in_terminal", "recipe", "strict", "overwrite", "as_json",  # files in and out
    "control_guess", "embedding_dir",  # of Control; in Python a folder is scanned by scan_embeddings
    "upscaler",  # Pipeline.upscaler
    "threads",  # torch.set_num_threads
}  # fmt: skip


def test_python_and_the_command_line_can_say_the_same() -> None:
    """What a field of a request declares is its option; what a request doesn't hold is one of the lists above."""
    options = {option.name: option for option in options_of()}
    declared = {field for option in options.values() for field in (option.fields if not option.inside else ())}
    python = {*inspect.signature(Pipeline.generate).parameters, *inspect.signature(darkroom.load).parameters}
    python -= {"self", "moved", "hires", "enlarge", *GROUPS, *declared}
    python |= {name for name, setting in settings(Request).items() if setting.group and setting.option is None}
    command = set(inspect.signature(generate).parameters)
    said = {CALLED.get(name, name) for name in python - set(PYTHON_ALONE)}
    assert said | set(options) <= command, f"no option for {sorted((said | set(options)) - command)}"
    assert command - said - set(options) == COMMAND_ALONE
    assert not set(PYTHON_ALONE) & command
    inside = {option.fields[0] for option in options.values() if option.inside}
    assert inside == {field.name for field in fields(Hires)} - {"upscaler_hash"}  # which a finished recipe tells
    for field in fields(darkroom.Control):  # --control NET=HINT@IMAGE:SCALE:START-STOP, --control-guess
        assert field.name in {"net", "image", "scale", "start", "stop", "guess", "hint"}


@pytest.fixture
def asked(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Request]:
    """The request that a command line makes, without a model."""
    seen: list[Request] = []
    pipe = SimpleNamespace(device=torch.device("cpu"), inputs=lambda **given: darkroom.Inputs())
    monkeypatch.setattr(options, "load", lambda *given, **named: pipe)
    monkeypatch.setattr("darkroom.engine.Engine", lambda pipe, deterministic: None)
    monkeypatch.setattr(command_file, "draw", lambda engine, requests, *rest: seen.extend(requests) or 0)

    def call(*arguments: str) -> Request:
        answer = command("generate", "x", *arguments)
        assert answer.code == 0, answer.err
        return seen[-1]

    return call


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--cache-interval 3", "cache_interval", 3),
        ("--token-merging 0.5", "token_merging", 0.5),
        ("--guidance-interval 0.3,5", "guidance_interval", (0.3, 5)),
        ("--guidance-interval 1,inf", "guidance_interval", (1, float("inf"))),
        ("--pag 3 --pag-adaptive 0.01", "pag_adaptive_scale", 0.01),
        ("--noise-level 30", "noise_level", 30),
        ("--original-size 512x384", "original_size", (512, 384)),
        ("--crop 64,0", "crop", (64, 0)),
        ("--target-size 1024x768", "target_size", (1024, 768)),
        ("--aesthetic-score 7.5", "aesthetic_score", 7.5),
        ("--negative-original-size 256x256", "negative_original_size", (256, 256)),
        ("--negative-crop 0,9", "negative_crop", (0, 9)),
        ("--negative-target-size 64x32", "negative_target_size", (64, 32)),
        ("--negative-aesthetic-score 1", "negative_aesthetic_score", 1.0),
        ("--size 72x48", "width", 72),
    ],
)
def test_what_is_said_arrives(asked: Callable[..., Request], arguments: str, name: str, value: object) -> None:
    assert getattr(asked(*arguments.split()), name) == value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--cache-interval 0", "--cache-interval is 0; it must be from 1 to 100"),
        ("--token-merging 0.9", "--token-merging is 0.9; it must be from 0 to 0.75"),
        ("--guidance-interval 5", "--guidance-interval is '5'; give two noise levels, such as 0.3,5"),
        ("--guidance-interval 5,1", "its first number must be below its second"),
        ("--guidance-interval a,b", "--guidance-interval is 'a,b'"),
        ("--original-size 512", "--original-size is '512'; give width and height in pixels"),
        ("--original-size 0x9", "--original-size"),
        ("--crop 1", "--crop is '1'; give two pixels, such as 64,0"),
        ("--crop 1.5,2", "--crop"),
        ("--crop=-1,2", "--crop"),
        ("--negative-crop 1,2,3", "--negative-crop is '1,2,3'"),
        ("--aesthetic-score 11", "--aesthetic-score is 11"),
        ("--pag-adaptive 2", "--pag-adaptive is 2"),
    ],
)
def test_what_can_not_be(command: Callable[..., Any], arguments: str, sentence: str) -> None:
    answer = command("generate", "x", *arguments.split())
    assert answer.code == 2
    assert sentence in answer.sentence
