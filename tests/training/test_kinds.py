"""Every kind that can be trained has a recipe for each preset and a runner that are there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from darkroom.embedded import MODEL
from darkroom.errors import TrainingError
from darkroom.settings import settings
from darkroom.training.finetune import unet_size
from darkroom.training.kinds import KINDS, PRESETS, default_output
from darkroom.training.lora import OBJECT
from darkroom.training.recipe import LoopConfig, assigned, check, keys, listing, override, parts, unused


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_names_recipes_and_a_runner(name: str) -> None:
    kind = KINDS[name]
    module, _, function = kind.run.partition(":")
    assert callable(getattr(import_module(f"darkroom.training.{module}"), function))
    assert kind.about
    for preset in PRESETS:
        recipe = kind.recipe_of(preset)
        for part in parts(recipe):
            assert isinstance(part, LoopConfig)
            assert part.device == {"cpu": "cpu", "gpu": "cuda"}[preset]
            check(override(part, ["device=cpu"]))


def test_kinds_are_listed_without_torch() -> None:
    code = "import sys, darkroom.training.kinds, darkroom.cli.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- presets


def test_a_small_model_learns_an_object_where_nothing_is_said() -> None:
    """What `test_plain_lora.py`, a long test, proves: the embedded model learns a new object by these numbers."""
    recipe = KINDS["lora"].recipe_of()
    assert {name: getattr(recipe, name) for name in OBJECT} == OBJECT
    assert recipe == KINDS["lora"].recipe_of("object") == KINDS["lora"].recipe_of("cpu", "object", model=str(MODEL))
    assert KINDS["lora"].recipe_of("gpu").device == "cuda"
    style = KINDS["lora"].recipe_of("style")
    assert (style.train, style.text_lr) == ("unet", 0.0)
    assert KINDS["dreambooth-lora"].recipe_of().lr == OBJECT["lr"]


def test_models_of_the_usual_size_keep_the_usual_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.training.finetune.unet_size", lambda model: 860_000_000 if model == "sd" else 0)
    plain = KINDS["lora"].recipe_of(model="sd")
    assert (plain.steps, plain.batch_size, plain.lr, plain.rank, plain.train) == (1000, 4, 1e-4, 4, "unet")
    assert plain == KINDS["lora"].recipe_of("style", model="sd")
    told = KINDS["lora"].recipe_of("object", model="sd")
    assert (told.lr, told.train, told.text_lr) == (1e-4, "both", 5e-5)
    assert KINDS["dreambooth"].recipe_of(model="sd").lr == 5e-6
    assert KINDS["textual-inversion"].recipe_of(model="sd").vectors == 1


def test_the_size_of_a_model_is_that_of_its_u_net() -> None:
    assert unet_size() == unet_size(str(MODEL)) == 11_008_132


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        (("cpu", "gpu"), "the presets cpu and gpu exclude each other"),
        (("style", "object"), "the presets style and object exclude each other"),
        (("tpu",), "preset is 'tpu'; it must be one of cpu, gpu, object, style"),
    ],
)
def test_presets_that_can_t_be(presets: tuple[str, ...], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        KINDS["lora"].recipe_of(*presets)


@pytest.mark.parametrize(
    ("kind", "data", "place"),
    [
        ("lora", "my/pics/", "runs/lora-pics"), ("unet", None, "runs/unet"), ("lora", "s/a-{000..015}.tar",
        "runs/lora-a-000..015-.tar"), ("lora", "..", "runs/lora"), ("lora", "über uns", "runs/lora-über-uns"),
    ],
)  # fmt: skip
def test_where_a_run_lives(kind: str, data: str | None, place: str) -> None:
    assert default_output(kind, data) == Path(place)


# --- settings


@pytest.mark.parametrize("name", KINDS)
def test_a_listing_has_every_setting_once_as_it_is_set(name: str) -> None:
    recipe = KINDS[name].recipe_of()
    found = listing(recipe)
    assert sorted(each.name for each in found) == sorted(keys(recipe))
    assert all(each.help and each.heading for each in found)
    assert override(recipe, [f"{each.name}={each.written}" for each in found]) == recipe


@pytest.mark.parametrize("name", KINDS)
def test_what_settings_need_is_there(name: str) -> None:
    for part in parts(KINDS[name].recipe_of()):
        declared = settings(part)
        for setting in declared.values():
            assert {need for need, *_ in setting.extra.get("beside", ())} <= declared.keys()


@pytest.mark.parametrize(
    ("kind", "assignments", "said"),
    [
        ("lora", ["gamma=3"], ["gamma is set and changes nothing: it is for weight=min-snr|snr-plus-one"]),
        ("lora", ["gamma=3", "weight=min-snr"], []),
        ("lora", ["variants=2"], ["variants is set and changes nothing: it is for cut=random or flip"]),
        ("lora", ["variants=2", "flip=true"], []),
        ("lora", ["conv_rank=2", "targets=attention,linear"], ["conv_rank is set and changes nothing: it is for"]),
        ("lora", ["conv_rank=2", "targets=attention,*.conv1"], []),
        ("autoencoder", ["discriminator_lr=0.1", "discriminator_lr=0.2"], ["discriminator_lr is set and changes"]),
        ("embedded", ["autoencoder.cycles=2"], ["autoencoder.cycles is set and changes nothing: it is for schedule="]),
        ("unet", ["lr=0.1", "steps=3"], []),
    ],
)
def test_settings_that_change_nothing_are_told(kind: str, assignments: list[str], said: list[str]) -> None:
    found = unused(override(KINDS[kind].recipe_of(), assignments), assigned(assignments))
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [("lora", "scenes", True), ("lora", "flip", False), ("autoencoder", "collages", True), ("unet", "scenes", True)],
)
def test_settings_of_other_pictures_are_told(kind: str, name: str, data: bool) -> None:
    (sentence,) = unused(KINDS[kind].recipe_of(), [name], data)
    wanted = "the built-in scenes" if data else "one's own pictures (--data)"
    assert sentence == f"{name} is set and changes nothing: it is for {wanted}"
    assert unused(KINDS[kind].recipe_of(), [name], not data) == []
