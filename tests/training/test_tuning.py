"""Tunings: they learn, they leave the model alone, and what they write is what others read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import darkroom
from darkroom.data.dataset import SceneDataset, open_dataset
from darkroom.errors import TrainingError
from darkroom.toy.scenes import draw_scene, render_scene
from darkroom.training.controlnet import ControlNetRecipe
from darkroom.training.kinds import KINDS as ALL
from darkroom.training.kinds import Source
from darkroom.training.lora import LoraRecipe
from darkroom.training.pictures import PictureRecipe
from darkroom.training.recipe import check, override
from darkroom.training.run import estimate, finish, train_to_end
from darkroom.training.run import run as tune
from darkroom.training.textual_inversion import InversionRecipe, InversionStage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six gray scenes with captions."""
    place = tmp_path_factory.mktemp("dataset")
    for i in range(6):
        scene = draw_scene(3, i)
        Image.fromarray(render_scene(scene)).convert("L").resize((160, 128)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(scene.caption)
    return place


def weights(pipe: darkroom.Pipeline) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in (pipe.unet.state_dict() | pipe.text_encoder.state_dict()).items()}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["error"] for line in (run / "log.jsonl").read_text().splitlines()]


RECIPE = {"steps": 12, "batch_size": 4, "warmup": 1, "log_every": 1, "dropout": 0.0, "precision": "float32"}
KINDS: list[PictureRecipe] = [
    LoraRecipe(lr=0.01, rank=2, targets=("all",), **RECIPE),
    InversionRecipe(lr=0.02, word="blorb", vectors=2, initial="fox", **RECIPE),
    ControlNetRecipe(lr=0.003, attention=False, hint_widths=(4, 8, 8, 16), **RECIPE),
]


@pytest.mark.parametrize("recipe", KINDS, ids=lambda r: type(r).__name__)
def test_a_tuning_learns_and_its_file_draws_it(recipe: PictureRecipe, folder: Path, tmp_path: Path) -> None:
    subject = Source(None, str(folder))
    made = tune(recipe, subject, tmp_path / "run")
    assert tune(recipe, subject, tmp_path / "run") == made  # finished: nothing is done again
    assert len(losses(tmp_path / "run")) == 12
    pipe = darkroom.load()
    plain = pipe.generate("a fox", seed=1, steps=2, output="latent").images
    if isinstance(recipe, LoraRecipe):
        changed = pipe.generate("a fox", seed=1, steps=2, output="latent", loras=[darkroom.Lora(made)]).images
    elif isinstance(recipe, InversionRecipe):
        with safe_open(made, "pt") as file:
            assert list(file.keys()) == ["blorb"]
            assert file.get_tensor("blorb").shape == (2, 192)
        changed = pipe.generate("a blorb", seed=1, steps=2, output="latent", embeddings=[made]).images
    else:
        hint = Image.fromarray(render_scene(draw_scene(3, 0)))
        control = darkroom.Control(made, hint)
        changed = pipe.generate("a fox", seed=1, steps=2, output="latent", controls=[control]).images
    assert isinstance(plain, torch.Tensor)
    assert isinstance(changed, torch.Tensor)
    assert (plain - changed).abs().max() > 1e-4
    again = pipe.generate("a fox", seed=1, steps=2, output="latent").images
    assert isinstance(again, torch.Tensor)
    assert torch.equal(again, plain)


def test_the_loss_falls_and_the_model_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    from darkroom.training.loop import train
    from darkroom.training.parallel import Rank

    for recipe in KINDS:
        stage = recipe.stage.open(recipe, Source(None, str(folder)), tmp_path)
        before = weights(stage.pipe)
        stage.encode(tmp_path / "cache")
        stage.take(tmp_path / "cache")
        batch = stage.batch(0, Rank())

        def error(stage=stage, batch=batch) -> float:  # type: ignore[no-untyped-def]
            torch.manual_seed(5)
            with torch.no_grad():
                return float(stage.loss(batch, 0, Rank())[1]["error"])

        first = error()
        train(stage, tmp_path / type(recipe).__name__)
        assert error() < first, type(recipe).__name__
        after = weights(stage.pipe)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_long_captions_are_counted_and_the_model_is_left_bare(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, data := tmp_path / "data")
    (data / "0.txt").write_text("a large fox on a yellow background " * 20)
    (data / "1.txt").write_text("fox " * 75)  # as many as there is room for
    (data / "2.txt").write_text("")
    recipe = LoraRecipe(lr=0.01, **(RECIPE | {"steps": 1}))
    run = tmp_path / "run"
    stage = train_to_end(recipe, Source(None, str(data)), run)
    assert "1 of 6 captions are longer than the 75 tokens that chunks=1 reads" in caplog.text
    assert "1 of 6 pictures have no caption" in caplog.text
    assert any(m._forward_hooks for m in stage.pipe.unet.modules())
    finish(stage, run, run)
    assert not any(m._forward_hooks for m in stage.pipe.unet.modules())
    caplog.clear()
    tune(replace(recipe, chunks=2, batch_size=6), Source(None, str(data)), tmp_path / "longer")
    assert "captions are longer" not in caplog.text
    assert losses(tmp_path / "longer")[0] > 0


def test_a_word_is_learned_whatever_the_captions_say(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, data := tmp_path / "data")
    texts = ("a blorb", "A BLORB, red", "blorbs", "fox " * 80 + "blorb", "nothing", "")
    for i, text in enumerate(texts):
        (data / f"{i}.txt").write_text(text)
    recipe = replace(KINDS[1], steps=1, dropout=1.0)  # a batch in which no caption has the word changes nothing
    subject = Source(None, str(data))
    stage = train_to_end(replace(recipe, template="{}"), subject, tmp_path / "run")
    assert losses(tmp_path / "run")[0] > 0
    undropped = InversionStage(replace(recipe, dropout=0.0), stage.pipe, stage.dataset)  # type: ignore[attr-defined]
    assert undropped.captions(range(6), 0) == [*texts[:2], *["a photo of blorb"] * 4]
    named = replace(recipe, template="a photo of {}|a painting of {}")
    assert InversionStage.open(named, subject, tmp_path).dataset.captions[5] == "blorb"
    with pytest.raises(TrainingError, match="vectors is 73"):
        tune(replace(recipe, vectors=73), subject, tmp_path / "many")


def test_folder_pictures_are_scaled_and_cut_around_the_middle(tmp_path: Path) -> None:
    values = np.zeros((40, 80, 3), np.uint8)
    values[:, 20:60] = 200
    Image.fromarray(values).save(tmp_path / "a.png")
    dataset = open_dataset(str(tmp_path), (32, 32))
    assert dataset.picture(0).shape == (32, 32, 3)
    assert dataset.picture(0)[16, 16, 0] == 200
    (tmp_path / "a.txt").write_text("other words")
    assert open_dataset(str(tmp_path), (32, 32)).key != dataset.key


def test_scene_dataset_are_the_scenes() -> None:
    dataset = SceneDataset.of(3, 7)
    assert dataset.captions == [draw_scene(7, i).caption for i in range(3)]
    assert np.array_equal(dataset.picture(2), render_scene(draw_scene(7, 2)))


def test_recipes_are_checked_in_a_sentence(tmp_path: Path) -> None:
    for kind, key, part in (
        ("lora", "rank=0", "rank"), ("lora", "targets=everything", "targets"),
        ("textual-inversion", "vectors=99", "vectors"),
        ("textual-inversion", "word=", "word"),
        ("controlnet", "hint=canyn", "hint is 'canyn'"),
        ("lora", "cut=left", "cut is 'left'"), ("lora", "variants=-1", "variants is -1"),
    ):  # fmt: skip
        with pytest.raises(TrainingError, match=part):
            check(override(ALL[kind].recipe_of(), [key]))
    for widths, part in (((16, -3), r"hint_widths is \(16, -3\)"), ((16, 32), "hint_widths has 2 widths")):
        bad = ControlNetRecipe(lr=0.1, hint_widths=widths, scenes=2, **RECIPE)
        with pytest.raises(TrainingError, match=part):
            tune(bad, Source(None, None), tmp_path / "run")
        with pytest.raises(TrainingError, match=part):  # before anything is encoded
            estimate(bad)


def test_a_frozen_model_that_is_looked_at_between_steps_goes_on_learning_in_float32(
    folder: Path, tmp_path: Path
) -> None:
    """Looking packs its layers for drawing; the next step finds them (`models.products`)."""
    recipe = replace(KINDS[0], precision="float32", steps=3, validate_every=1)
    train_to_end(recipe, Source(None, str(folder)), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation" in row] == [1, 2, 3]


def test_a_finished_run_is_no_other_recipe_s(folder: Path, tmp_path: Path) -> None:
    subject, run = Source(None, str(folder)), tmp_path / "run"
    recipe = replace(KINDS[0], steps=1)
    made = tune(recipe, subject, run).read_bytes()
    (draft := run / ".model.01234567.part").mkdir()  # left by a process that was killed while it wrote its result
    for name, value in (("rank", 3), ("kind", "dora"), ("lr", 0.5)):
        with pytest.raises(TrainingError, match=f"was trained with {name}="):
            tune(replace(recipe, **{name: value}), subject, run)
    with pytest.raises(TrainingError, match="is of another architecture"):
        tune(InversionRecipe(**(RECIPE | {"lr": 0.01, "steps": 1})), subject, run)
    assert tune(recipe, subject, run).read_bytes() == made
    assert not draft.exists()
    assert tune(replace(recipe, form="kohya"), subject, run).read_bytes() != made  # decides the file alone


def test_a_run_belongs_to_its_pictures_and_tells_what_it_left_out(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "broken\n.png").write_text("no picture")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff.png")).write_bytes((data / "0.png").read_bytes())
    recipe = replace(KINDS[0], steps=1)
    tune(recipe, Source(None, str(data)), tmp_path / "run")
    told = (tmp_path / "run" / "left-out.txt").read_text().splitlines()
    assert ["broken\\n.png" in told[0], "\\udcff.png" in told[1], len(told)] == [True, True, 2]
    assert "2 pictures are left out" in caplog.text
    belongs = (tmp_path / "run" / "subject.json").read_text()

    replace_file = os.replace

    def killed(draft: Path, path: Path) -> None:
        if Path(path).name == "subject.json":
            raise KeyboardInterrupt(str(path))
        replace_file(draft, path)

    with monkeypatch.context() as patch:  # while it notes again what the run belongs to
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt, match="subject"):
            tune(recipe, Source(None, str(data)), tmp_path / "run")
    assert (tmp_path / "run" / "subject.json").read_text() == belongs
    (data / "0.txt").write_text("other words")
    with pytest.raises(TrainingError, match="other pictures"):
        tune(replace(recipe, steps=2), Source(None, str(data)), tmp_path / "run")


def test_deep_and_transparent_pictures_are_read_as_everywhere_else(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((32, 32), 32768, np.uint16))
    deep.save(tmp_path / "a.png")
    assert abs(int(open_dataset(str(tmp_path), (32, 32)).picture(0)[0, 0, 0]) - 127) <= 1
