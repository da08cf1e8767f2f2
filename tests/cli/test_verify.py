"""`darkroom verify`: the same picture again, or the reason why not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.cli.verify import compare
from darkroom.formats.picture import read_metadata, write_picture

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture
def drawn(command: Command, model: Path, tmp_path: Path) -> Callable[[str], Path]:
    def draw(name: str) -> Path:
        path = tmp_path / name
        assert command("generate", "a fox", "--seed", 1, "--steps", 2, "--model", model, "-o", path).code == 0
        return path

    return draw


def edited(path: Path, change: Callable[[np.ndarray], np.ndarray], **recipe: object) -> Path:
    """The same file with other pixels, and perhaps another recipe."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    picture = Image.fromarray(np.clip(change(pixels), 0, 255).astype(np.uint8))
    return write_picture(picture, path, {**read_metadata(path).recipe, **recipe}, overwrite=True)


def test_identical(command: Command, model: Path, drawn: Callable[[str], Path]) -> None:
    for name in ("a.png", "a.webp"):
        answer = command("verify", drawn(name), "--model", model)
        assert (answer.code, answer.out, answer.err) == (0, "identical\n", "")
    found = command("verify", drawn("b.png"), "--model", model, "--json").json
    assert (found["identical"], found["within_tolerance"], found["max_difference"]) == (True, True, 0)
    assert found["recipe"]["prompt"] == "a fox"


def test_each_of_several_pictures_is_drawn_again_alone(command: Command, model: Path, tmp_path: Path) -> None:
    out = command("generate", "a fox", "a car", "-n", 2, "--steps", 2, "--model", model, "-o", tmp_path / "out")
    for path in out.paths:
        assert command("verify", path, "--model", model).out == "identical\n"


def test_tolerance(command: Command, model: Path, drawn: Callable[[str], Path]) -> None:
    path = edited(drawn("a.png"), lambda pixels: np.where(pixels > 128, pixels - 2, pixels + 2))
    answer = command("verify", path, "--model", model)
    assert answer.code == 0
    assert answer.out.startswith("the same within the tolerance of 2: max difference 2 of 255, mean 2.0000")
    answer = command("verify", path, "--model", model, "--tolerance", 1)
    assert answer.code == 1
    assert answer.out.startswith("different: max difference 2 of 255")
    found = command("verify", path, "--model", model, "--tolerance", 1, "--json")
    assert (found.code, found.json["within_tolerance"], found.json["identical"]) == (1, False, False)


def test_another_seed_and_another_size_differ(command: Command, model: Path, drawn: Callable[[str], Path]) -> None:
    path = edited(drawn("a.png"), lambda pixels: pixels, seed=2)
    assert command("verify", path, "--model", model).code == 1
    path = edited(path, lambda pixels: pixels, width=72)
    answer = command("verify", path, "--model", model)
    assert (answer.code, answer.out) == (1, "different: the picture is 64x64 and its recipe gives 72x64\n")


def test_jpeg_says_that_it_is_lossy(command: Command, model: Path, drawn: Callable[[str], Path]) -> None:
    path = drawn("a.jpg")
    assert command("verify", path, "--model", model, "--tolerance", 255).code == 0
    answer = command("verify", path, "--model", model, "--tolerance", 0)
    assert (answer.code, "JPEG keeps no exact pixels" in answer.out) == (1, True)


def test_another_model_is_told(command: Command, model: Path, drawn: Callable[[str], Path]) -> None:
    path = edited(drawn("a.png"), lambda pixels: pixels, model_hash="0123456789")
    answer = command("verify", path, "--model", model)
    assert answer.code == 0
    assert "with the hash 0123456789; this one is 'tiny' with the hash " in answer.sentence


def test_a_recipe_of_a1111_is_followed(command: Command, model: Path, tiny_pipe: Any, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters", "a fox\nSteps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 4, RNG: CPU"
    )
    picture = tiny_pipe.generate(
        "a fox", steps=2, sampler="euler_ancestral", schedule="karras", guidance_scale=7, seed=4
    )
    picture.images[0].save(tmp_path / "a.png", pnginfo=info)
    assert (
        command("verify", tmp_path / "a.png", "--model", model).out == "drawn by A1111 with tiny: redrawn, identical\n"
    )


A1111 = "a fox\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 4, Size: 64x64, {}Version: v1.10.1"


@pytest.fixture
def theirs(tiny_pipe: Any, tmp_path: Path) -> Callable[..., Path]:
    """A picture as A1111 would have drawn it: a GPU's noise, even timesteps; half precision stands for its rounding."""
    from PIL.PngImagePlugin import PngInfo

    result = tiny_pipe.generate(
        "a fox", steps=2, sampler="euler_ancestral", schedule="normal", guidance_scale=7, seed=4, noise="nv"
    )

    def write(pairs: str = "", change: int = 0) -> Path:
        info = PngInfo()
        info.add_text("parameters", A1111.format(pairs))
        pixels = np.asarray(result.images[0]).astype(np.int16)
        pixels[::2] += np.where(pixels[::2] > 128, -change, change).astype(np.int16)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "theirs.png", pnginfo=info)
        return tmp_path / "theirs.png"

    return write


def test_anyones_picture_is_redrawn_and_compared(command: Command, model: Path, theirs: Callable[..., Path]) -> None:
    answer = command("verify", theirs(), "--model", model)
    assert (answer.code, answer.out, answer.err) == (0, "drawn by A1111 with tiny: redrawn, identical\n", "")
    near = theirs("Model: tiny, ", change=3)  # half of the pixels by 3: 10 log10(255^2 / 4.5) = 41.6 dB
    answer = command("verify", near, "--model", model)
    assert (answer.code, answer.out) == (0, "drawn by A1111 with tiny: redrawn, 42 dB\n")
    found = command("verify", near, "--model", model, "--json")
    assert (found.code, found.json["source"], found.json["identical"]) == (0, "a1111", False)
    assert found.json["psnr"] == pytest.approx(41.6, abs=0.05)
    assert command("verify", near, "--model", model, "--tolerance", 2).code == 1  # who says one is taken at the word
    far = command("verify", theirs(change=100), "--model", model)
    assert (far.code, far.out) == (1, "drawn by A1111 with tiny: redrawn as another picture, 11 dB\n")
    said = command("verify", theirs("FreeU: True, "), "--model", model)
    assert "this is not followed: FreeU: True" in said.err


def test_the_model_is_found_by_its_hash(
    command: Command, model: Path, tiny_pipe: Any, theirs: Callable[..., Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    (models / "v1-5.safetensors").write_bytes(b"of the name alone")
    file = tiny_pipe.save(models / "sub" / "other name.safetensors")
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    answer = command("verify", theirs(f"Model hash: {digits}, Model: v1-5, "), "--models", models)
    assert (answer.code, answer.out, answer.err) == (0, "drawn by A1111 with v1-5: redrawn, identical\n", "")
    answer = command("verify", theirs("Model hash: 0123456789, Model: v1-5, "), "--models", models)
    assert (answer.code, answer.out) == (2, "")
    assert "with the model 'v1-5' (hash 0123456789), which is not in" in answer.sentence
    answer = command("verify", theirs("Model hash: 0123456789, Model: v1-5, "))
    assert "say with --model where that is" in answer.sentence
    assert "not a folder" in command("verify", theirs("Model: m, "), "--models", tmp_path / "none").sentence


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"prompt": "x", "seed": 1, "model": "evil/repository"}, "say with --model where that is"),
        ({"prompt": "x", "seed": 1, "model": "/etc/passwd"}, "say with --model where that is"),
        ({"prompt": "x", "seed": 1, "model": "\x1b[2J"}, r"\x1b[2J"),
        ({"prompt": "x", "seed": 1}, "a model it doesn't name"),
        ({"prompt": "x", "seed": 1, "model": ["embedded"]}, "it must be a text"),
        ({"prompt": "x", "model": "embedded"}, "has no seed"),
        ({"seed": 1, "model": "embedded"}, "holds no recipe"),
        ({"prompt": 7, "seed": 1, "model": "embedded"}, "can't be followed: prompt is 7"),
        ({"prompt": "x", "seed": "1", "model": "embedded"}, "can't be followed: seed is '1'"),
        ({"prompt": "x", "seed": 1, "steps": 1e9, "model": "embedded"}, "can't be followed: steps is"),
        ({"prompt": "x", "seed": 1, "width": 10**9, "model": "embedded"}, "can't be followed: width is"),
        ({"prompt": "x", "seed": 1, "future": 1, "model": "embedded"}, "'future', which this version doesn't know"),
    ],
)
def test_recipes_that_cannot_be_followed(recipe: dict[str, Any], said: str, command: Command, tmp_path: Path) -> None:
    path = write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", recipe)
    answer = command("verify", path)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence


def test_what_is_no_picture_with_a_recipe(command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text").write_text("hello")
    assert "holds no recipe" in command("verify", tmp_path / "plain.png").sentence
    assert "is not a PNG, JPEG or WebP picture" in command("verify", tmp_path / "text").sentence
    assert "there is no picture" in command("verify", tmp_path / "none").sentence
    assert "--tolerance is 999" in command("verify", tmp_path / "plain.png", "--tolerance", 999).sentence
    assert sorted(os.listdir(tmp_path)) == ["plain.png", "text"]


def test_compare_counts_pixels() -> None:
    a = Image.new("RGB", (4, 4), (10, 20, 30))
    b = a.copy()
    b.putpixel((1, 2), (10, 24, 29))
    psnr = pytest.approx(10 * np.log10(255**2 * 48 / 17))
    assert compare(a, b) == {"max_difference": 4, "mean_difference": 5 / 48, "different_pixels": 1 / 16, "psnr": psnr}
    assert compare(a, a)["psnr"] is None


# Pictures made from other pictures -----------------------------------------------------------------------------------


@pytest.fixture
def redrawn(tiny_pipe: Any, tmp_path: Path) -> Path:
    """A picture made from another one and a mask, in an empty folder; both lie beside it."""
    rng = np.random.default_rng(0)
    for name in ("photo", "other"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")
    result = tiny_pipe.generate("a fox", image=tmp_path / "photo.png", mask=tmp_path / "mask.png", steps=3, seed=1)
    return write_picture(result.images[0], tmp_path / "a.png", result.requests[0].to_dict())


def test_a_picture_made_from_pictures_needs_the_same_again(command: Command, model: Path, redrawn: Path) -> None:
    def verify(**given: str) -> Any:
        options = [part for name, file in given.items() for part in (f"--{name}", redrawn.parent / file)]
        return command("verify", redrawn, "--model", model, *options)

    assert verify(image="photo.png", mask="mask.png").out == "identical\n"
    for given, said in (
        ({}, "this recipe was made with an image that was given"),
        ({"image": "photo.png"}, "this recipe was made with a mask that was given"),
        ({"image": "other.png", "mask": "mask.png"}, "the recipe was made with another image (fingerprint"),
        ({"image": "photo.png", "mask": "all.png"}, "the recipe was made with another mask (fingerprint"),
        ({"image": "none.png", "mask": "mask.png"}, "none.png', which does not exist"),
    ):
        answer = verify(**given)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.sentence


def test_info_tells_what_a_picture_was_made_from(command: Command, redrawn: Path) -> None:
    out = command("info", redrawn).out
    assert "\n  strength " in out
    assert "\n  mask blur " in out
    assert "\n  image " in out
