"""`darkroom.train`: what the command does, in Python; progress, a result, and an end that leaves whole or nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import darkroom
from darkroom.errors import CheckpointError, RequestError, TrainingError
from darkroom.training.kinds import KINDS
from darkroom.training.loop import Stopped
from darkroom.training.lora import LoraRecipe
from darkroom.training.start import kind_of
from darkroom.training.state import checkpoints

FEW: dict[str, Any] = {"batch_size": 1, "rank": 1, "warmup": 1, "precision": "float32", "log_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "green", "blue", "gray")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} fox")
    return folder


@pytest.fixture(scope="module")
def model(tiny_pipe: darkroom.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipe.save(tmp_path_factory.mktemp("model") / "tiny")


def test_a_lora_is_trained_told_of_and_used(data: Path, model: Path, tmp_path: Path) -> None:
    told: list[darkroom.TrainingProgress] = []
    made = darkroom.train("lora", data, tmp_path / "run", model=model, steps=3, **FEW, on_progress=told.append)
    assert made.path == tmp_path / "run" / "lora.safetensors"
    assert made.recipe == darkroom.training_recipe("lora", steps=3, **FEW)
    steps = [p for p in told if p.figures]
    assert [(p.step, p.steps) for p in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(p.loss is not None and p.loss > 0 and p.seconds_left is not None for p in steps)
    assert [dict(p.figures) for p in steps] == made.log()
    assert told[0].step == 0
    assert made.next.startswith("darkroom generate ")
    assert all(picture.is_file() for picture in made.pictures)
    assert {p.run for p in steps} == {tmp_path / "run"}
    pipe = darkroom.load(model)
    assert pipe.generate("a red fox", steps=1, seed=1, loras=[made.path]).requests[0].loras[0].name == "lora"
    # The same call goes on, with nothing left to do; with more steps it makes them.
    again: list[darkroom.TrainingProgress] = []
    darkroom.train(made.recipe, data, tmp_path / "run", model=model, steps=4, on_progress=again.append)
    assert [p.step for p in again if p.figures] == [4]


class Enough(Exception):
    """What a callback raises."""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_what_a_callback_raises_stops_it_with_all_saved(data: Path, model: Path, tmp_path: Path, workers: int) -> None:
    def stop(progress: darkroom.TrainingProgress) -> None:
        if progress.step >= 2:
            raise Enough(progress.step)

    asked: dict[str, Any] = {"model": model, "steps": 100_000, "workers": workers, **FEW, "batch_size": workers}
    with pytest.raises(Enough):
        darkroom.train("lora", data, tmp_path / "run", **asked, on_progress=stop)
    (kept,) = checkpoints(tmp_path / "run")[-1:]
    assert torch.load(kept, weights_only=True, mmap=True)["step"] >= 2
    assert not (tmp_path / "run" / "lora.safetensors").exists()
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name.endswith(".part") or p.name == ".owner"]


def test_what_it_raises_at_the_first_word_leaves_nothing(data: Path, model: Path, tmp_path: Path) -> None:
    def stop(progress: darkroom.TrainingProgress) -> None:
        raise Enough

    with pytest.raises(Enough):
        darkroom.train("lora", data, tmp_path / "run", model=model, steps=100_000, **FEW, on_progress=stop)
    assert not checkpoints(tmp_path / "run") or torch.load(checkpoints(tmp_path / "run")[-1])["step"] <= 1
    assert not (tmp_path / "run" / "lora.safetensors").exists()


def test_ctrl_c_stops_it_with_all_saved_and_the_same_call_goes_on(data: Path, model: Path, tmp_path: Path) -> None:
    pressed = threading.Event()

    def press(progress: darkroom.TrainingProgress) -> None:
        if progress.step >= 2 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    asked: dict[str, Any] = {"model": model, "schedule": "constant", **FEW}
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        darkroom.train("lora", data, tmp_path / "run", steps=100_000, **asked, on_progress=press)
    assert isinstance(stopped.value, KeyboardInterrupt)
    done = int(checkpoints(tmp_path / "run")[-1].stem.partition("-")[2])
    made = darkroom.train("lora", data, tmp_path / "run", steps=done + 1, **asked)
    assert [row["step"] for row in made.log()] == [*range(1, done + 2)]


@pytest.mark.parametrize(
    ("asked", "sentence", "kind"),
    [
        ({"recipe": "lra"}, "kind is 'lra'; it must be one of .*did you mean 'lora'", RequestError),
        ({"recipe": 3}, "recipe is '3'; it must be one of embedded, .* or what training_recipe gives", RequestError),
        ({"stepz": 3}, "the recipe has no setting 'stepz'; did you mean 'steps'", TrainingError),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number", TrainingError),
        ({"recipe": "unet", "model": None, "workers": 0}, "workers is 0", RequestError),
        ({"recipe": "text-encoder"}, "model is for autoencoder, .*; text-encoder starts from nothing", RequestError),
        ({"recipe": "embedded", "model": None}, "data is for .*; embedded is trained on the built-in", RequestError),
        ({"data": "nowhere"}, "data is 'nowhere', which does not exist", RequestError),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all", CheckpointError),
        ({"preset": "tpu"}, "preset is 'tpu'", RequestError),
    ],
)
def test_what_can_not_be_is_one_sentence(
    asked: dict[str, Any], sentence: str, kind: type[Exception], data: Path, model: Path, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"recipe": "lora", "data": data, "output": tmp_path / "run", "model": model}
    with pytest.raises(kind, match=sentence) as error:
        darkroom.train(**(usual | asked))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_if_one_likes(data: Path, model: Path, tmp_path: Path) -> None:
    darkroom.train("lora", data, tmp_path / "run", model=model, steps=1, **FEW)
    with pytest.raises(TrainingError, match="holds a run already; let it go on, or choose another folder"):
        darkroom.train("lora", data, tmp_path / "run", model=model, steps=2, resume=False, **FEW)


@pytest.mark.parametrize("name", KINDS)
def test_recipes_know_what_they_train(name: str) -> None:
    recipe = darkroom.training_recipe(name)  # type: ignore[call-overload]
    assert type(KINDS[name].recipe_of()) is type(recipe)
    assert (kind_of(recipe).run, bool(kind_of(recipe).data)) == (KINDS[name].run, KINDS[name].data)


def test_recipes_are_typed_values() -> None:
    recipe = darkroom.training_recipe("lora", rank=8, targets=("attention", "ff"), rslora=True, lr=2e-3)
    assert isinstance(recipe, LoraRecipe)
    assert (recipe.rank, recipe.targets, recipe.rslora, recipe.lr) == (8, ("attention", "ff"), True, 2e-3)
    assert dataclasses.replace(recipe, rank=2).rank == 2
    both = darkroom.training_recipe("embedded", **{"unet.steps": 7})
    assert both.unet.steps == 7
