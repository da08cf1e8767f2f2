"""Every kind that can be trained has a recipe for each preset and a runner that are there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from darkroom.training.kinds import KINDS, PRESETS
from darkroom.training.recipe import LoopConfig, check, override, parts


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
