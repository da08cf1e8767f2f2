"""LoRAs of a request: by file, by name, in a recipe, on the command line of a recipe that is drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import darkroom
from darkroom.adapters import init_lora
from darkroom.engine import Inputs
from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.infotext import to_infotext
from darkroom.formats.lora_save import save_lora
from darkroom.pipeline import Pipeline
from darkroom.request import Request

OPTIONS = {"steps": 2, "seed": 3, "output": "pt"}


@pytest.fixture
def folder(tiny_pipe: Pipeline, tmp_path: Path) -> Iterator[Path]:
    """Two LoRAs, "ink" and "gold", in the pipeline's folder."""
    for seed, name in enumerate(("ink", "gold")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lora = init_lora(tiny_pipe.unet, 2)
            for up in lora.up:
                torch.nn.init.normal_(up, std=0.3)
        save_lora(tmp_path / f"{name}.safetensors", lora.adapter(), tiny_pipe.loras.networks, "kohya")
    tiny_pipe.loras.folder = tmp_path
    yield tmp_path
    tiny_pipe.loras.folder = None


def test_by_file_by_name_and_merged(tiny_pipe: Pipeline, folder: Path) -> None:
    plain = tiny_pipe.generate("a fox", **OPTIONS).images  # type: ignore[arg-type]
    given = tiny_pipe.generate("a fox", loras=[darkroom.Lora(folder / "ink.safetensors", 0.5)], **OPTIONS)  # type: ignore[arg-type]
    named = tiny_pipe.generate("a <lora:ink:0.5>fox", **OPTIONS)  # type: ignore[arg-type]
    assert torch.equal(given.images, named.images)  # type: ignore[arg-type]
    assert not torch.allclose(given.images, plain, atol=1e-3)  # type: ignore[arg-type]
    assert named.requests[0].prompt == "a <lora:ink:0.5>fox"
    (used,) = named.requests[0].loras
    assert (used.name, used.scale, used.text_scale, len(used.hash)) == ("ink", 0.5, 0.5, 12)
    assert f'Lora hashes: "ink: {used.hash}"' in to_infotext(named.requests[0].to_dict())
    assert Request.from_dict(named.requests[0].to_dict()) == named.requests[0]
    tiny_pipe.merge_loras(darkroom.Lora(folder / "ink.safetensors", 0.5))
    try:
        merged = tiny_pipe.generate("a fox", **OPTIONS)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError):
            tiny_pipe.merge_loras("none.safetensors")
        assert len(tiny_pipe.merged_loras) == 1
    finally:
        tiny_pipe.unmerge_loras()
    torch.testing.assert_close(merged.images, given.images, rtol=0, atol=1e-3)
    assert merged.requests[0].loras == (used,)
    assert torch.equal(tiny_pipe.generate("a fox", **OPTIONS).images, plain)  # type: ignore[arg-type]


def test_recipes_are_drawn_again(tiny_pipe: Pipeline, folder: Path) -> None:
    first = tiny_pipe.generate("a fox <lora:gold:0.7>", loras=[folder / "ink.safetensors"], **OPTIONS)  # type: ignore[arg-type]
    assert [used.name for used in first.requests[0].loras] == ["ink", "gold"]
    again = tiny_pipe.draw(first.requests, output="pt")
    assert torch.equal(first.images, again.images)  # type: ignore[arg-type]
    # without the folder, the files themselves, in any order; the recipe's strengths hold
    tiny_pipe.loras.folder = None
    both = Inputs(loras=tuple(tiny_pipe.loras.get(folder / f"{name}.safetensors") for name in ("gold", "ink")))
    again = tiny_pipe.draw(first.requests, [both], output="pt")
    assert torch.equal(first.images, again.images)  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match=r"this recipe used the LoRA 'ink' \(hash .{12}\) at 1; give that file again"
    ):
        tiny_pipe.draw(first.requests)
    tiny_pipe.loras.folder = folder
    (folder / "gold.safetensors").replace(folder / "ink.safetensors")
    with pytest.raises(RequestError, match=r"another file of that name \(hash"):
        tiny_pipe.draw(first.requests)


def test_a_second_pass_has_the_loras_of_the_prompt(tiny_pipe: Pipeline, folder: Path) -> None:
    options = {**OPTIONS, "hires": darkroom.Hires(1.5, 0.7)}
    named = tiny_pipe.generate("a <lora:ink:0.5>fox", **options)  # type: ignore[arg-type]
    given = tiny_pipe.generate("a fox", loras=[darkroom.Lora(folder / "ink.safetensors", 0.5)], **options)  # type: ignore[arg-type]
    assert torch.equal(named.images, given.images)  # type: ignore[arg-type]
    assert torch.equal(named.images, tiny_pipe.draw(named.requests, output="pt").images)  # type: ignore[arg-type]


def test_what_can_not_be(tiny_pipe: Pipeline, folder: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'gold'"):
        tiny_pipe.generate("<lora:golt:1>")
    for loras in (3, [3], {"ink": 1}):
        with pytest.raises(RequestError, match="loras is"):
            tiny_pipe.generate("a", loras=loras)  # type: ignore[arg-type]
    for scale in (float("nan"), 1000.0, "1"):
        with pytest.raises(RequestError, match="a LoRA's scale is"):
            darkroom.Lora("a", scale)  # type: ignore[arg-type]
    for path in ("", "a\0b", None):
        with pytest.raises(RequestError, match="a LoRA's path is"):
            darkroom.Lora(path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"none\.safetensors' can't be read"):
        tiny_pipe.generate("a", loras="none.safetensors")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="each must have name, hash"):
        Request.from_dict({"prompt": "a", "loras": [{"name": "x"}]})
