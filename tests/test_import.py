"""`import darkroom` is light: heavy libraries come on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_brings_no_heavy_library() -> None:
    heavy = ["torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "pydantic", "typer", "tqdm"]
    code = f"import sys, darkroom; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_requests_need_no_torch() -> None:
    code = "import sys, darkroom; darkroom.Request(prompt='a fox', width=512); print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_nothing_of_the_peers_is_imported_with_the_engine() -> None:
    peers = ["diffusers", "transformers", "accelerate", "scipy", "torchsde"]
    code = f"import sys, darkroom; darkroom.Pipeline; print([m for m in {peers} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_pictures_hints_and_recipes_are_read_without_torch() -> None:
    rooms = "images, hints, arguments, samplers, diffusion, prompts.explain, formats.infotext, formats.picture"
    code = f"""
import sys
from importlib import import_module
for room in {rooms!r}.split(", "):
    import_module("darkroom." + room)
print("torch" in sys.modules)
"""
    assert run(code).strip() == "False"


@pytest.mark.parametrize("first", ["enable", "disable"])
def test_first_use_leaves_the_garbage_collector_as_it_was(first: str) -> None:
    code = f"import gc; gc.{first}(); import darkroom; darkroom.Request; print(gc.isenabled())"
    assert run(code).strip() == str(first == "enable")


def test_public_names() -> None:
    import darkroom

    for name in darkroom.__all__:
        assert getattr(darkroom, name) is not None
    assert set(darkroom.__all__) <= set(dir(darkroom))
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        darkroom.Engin  # noqa: B018


def test_samplers_is_a_function_and_a_package() -> None:
    code = (
        "import darkroom; first = darkroom.samplers(); import darkroom.samplers as package;"
        "from darkroom.samplers import names; darkroom.Pipeline;"
        "print(first == darkroom.samplers() == names(), 'euler' in first)"
    )
    assert run(code).split() == ["True", "True"]
