"""`darkroom generate`: files and their recipes, every wrong option, interruption."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from darkroom.formats.picture import read_metadata

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture
def generate(command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`darkroom generate ... --model TINY --steps 2` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command("generate", *arguments, "--model", model, "--steps", 2)


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the options must be said before a model is loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    import darkroom.loading

    monkeypatch.setattr(darkroom.loading, "load", load)
    monkeypatch.setattr(darkroom, "load", load)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


# Pictures ------------------------------------------------------------------------------------------------------------


def test_prints_the_paths_of_pictures_with_their_recipes(generate: Command, model: Path) -> None:
    answer = generate("a red fox", "blue car!", "-n", 2, "--seed", 7, "-o", "new/out", "--negative", "small")
    assert (answer.code, answer.err) == (0, "")
    assert [str(path) for path in answer.paths] == [
        "new/out/a-red-fox-7.png",
        "new/out/a-red-fox-8.png",
        "new/out/blue-car-9.png",
        "new/out/blue-car-10.png",
    ]
    assert sorted(os.listdir("new/out")) == sorted(path.name for path in answer.paths)
    recipe = read_metadata(answer.paths[3]).recipe
    assert (recipe["prompt"], recipe["seed"], recipe["steps"], recipe["negative_prompt"]) == (
        "blue car!",
        10,
        2,
        "small",
    )
    assert (recipe["width"], recipe["height"], recipe["model"]) == (64, 64, "tiny")


def test_draws_what_the_library_draws(generate: Command, model: Path, tiny_pipe: Any) -> None:
    path = generate("a fox", "-n", 2, "--seed", 3, "--sampler", "euler", "--guidance", 3, "--size", "72x48").paths[1]
    result = tiny_pipe.generate("a fox", steps=2, seed=4, sampler="euler", guidance_scale=3.0, width=72, height=48)
    assert pixels(path) == result.images[0].tobytes()


def test_every_option_reaches_the_recipe(generate: Command) -> None:
    options = ["--sampler", "DPM++ 2M Karras", "--guidance", "2.5", "--size", "40x24", "--clip-skip", "2"]
    options += ["--prompt-style", "comfy", "--guidance-rescale", "0.5", "--device", "cpu", "--dtype", "bfloat16"]
    options += ["--threads", "1", "--seed", "5"]
    (image,) = generate("a fox", *options, "--json").json["images"]
    expected = {
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance_scale": 2.5,
        "width": 40,
        "height": 24,
        "clip_skip": 2,
        "seed": 5,
        "prompt_style": "comfy",
        "guidance_rescale": 0.5,
    }
    assert expected.items() <= image["recipe"].items()
    assert read_metadata(image["path"]).recipe == {"schema": 1} | image["recipe"]


def test_a_drawn_seed_is_reported_and_used(generate: Command) -> None:
    (first,) = generate("a fox", "--json").json["images"]
    (second,) = generate("a fox", "--json", "--seed", first["recipe"]["seed"]).json["images"]
    assert first["path"] != second["path"]
    assert pixels(first["path"]) == pixels(second["path"])


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.webp"])
def test_into_one_file(name: str, generate: Command) -> None:
    assert generate("a fox", "-o", name).out == f"{name}\n"
    assert read_metadata(name).recipe["prompt"] == "a fox"
    before = Path(name).read_bytes()
    refused = generate("a car", "-o", name)
    assert refused.code == 2
    assert "exists already" in refused.sentence
    assert Path(name).read_bytes() == before
    assert generate("a car", "-o", name, "--overwrite").code == 0
    assert read_metadata(name).recipe["prompt"] == "a car"


def test_a_folder_keeps_what_it_has_unless_told(generate: Command) -> None:
    names = [generate("a fox", "--seed", 1, *more).out for more in ([], [], ["--overwrite"])]
    assert names == ["a-fox-1.png\n", "a-fox-1-2.png\n", "a-fox-1.png\n"]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "\x00",
        "a\nb\r\nc",
        "\u202eevil",
        "\ud800 lone \udcff",
        "🦊" * 50,
        "Steps: 1, Seed: 2, Size: 3x4",
        "<|endoftext|>",
    ],
)
def test_any_prompt_comes_back(prompt: str, generate: Command) -> None:
    path = generate(prompt, "-o", "a.png").paths[0]
    assert read_metadata(path).recipe["prompt"] == prompt


def test_prompts_from_files_and_stdin(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompts.txt").write_bytes("\ufeffa fox\r\n\n  a 狐 car \n".encode())
    answer = generate("a photo", "--prompts", "prompts.txt", "--seed", 1, "--json")
    assert [image["recipe"]["prompt"] for image in answer.json["images"]] == ["a photo", "a fox", "a 狐 car"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo")))
    assert [path.name for path in generate("-", "--seed", 1).paths] == ["one-1.png", "two-2.png"]


# Another picture's recipe --------------------------------------------------------------------------------------------


def test_a_recipe_is_drawn_again_with_changes(command: Command, generate: Command, model: Path) -> None:
    first = generate("a red fox", "--sampler", "lms", "--guidance", 2, "--negative", "car", "--seed", 5, "-o", "a.png")
    assert first.code == 0

    def again(*options: object) -> Any:
        return command("generate", *options, "--recipe", "a.png", "--model", model, "--json").json["images"]

    (same,) = again("-o", "b.png")
    assert pixels(Path("b.png")) == pixels(Path("a.png"))
    assert same["recipe"] == {k: v for k, v in read_metadata("a.png").recipe.items() if k != "schema"}
    changed = again("a blue car", "--sampler", "euler", "-n", 2, "--size", "40x32", "-o", "out")
    told = [(c["recipe"]["prompt"], c["recipe"]["seed"], c["recipe"]["width"], c["recipe"]["steps"]) for c in changed]
    assert told == [("a blue car", 5, 40, 2), ("a blue car", 6, 40, 2)]
    assert (changed[0]["recipe"]["sampler"], changed[0]["recipe"]["negative_prompt"]) == ("euler", "car")
    Path("r.json").write_text(json.dumps(same["recipe"]))
    command("generate", "--recipe", "r.json", "--model", model, "-o", "c.png")
    assert pixels(Path("c.png")) == pixels(Path("a.png"))


def written(file: str, text: str, key: str = "parameters") -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    Image.new("RGB", (64, 64)).save(file, pnginfo=info)


def test_what_a_recipe_asks_and_is_not_followed_is_said_or_refused(generate: Command) -> None:
    line = "a fox\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, "
    asks = "RNG: NV, Tiling: True, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+"
    written("theirs.png", line + asks)
    answer = generate("--recipe", "theirs.png")
    assert answer.code == 0
    assert answer.err.splitlines() == [
        "darkroom: of the recipe in 'theirs.png' this is not followed: Tiling: True",
        "darkroom: the second pass is enlarged by Lanczos, not by the upscaler 'R-ESRGAN 4x+', which is not here; "
        "give its file by --upscaler",
    ]
    refused = generate("--recipe", "theirs.png", "--strict")
    assert (refused.code, refused.out) == (2, "")
    assert "can't be followed in full: Tiling: True; or leave out --strict" in refused.sentence
    written("enlarged.png", line + asks.replace("Tiling: True, ", ""))
    refused = generate("--recipe", "enlarged.png", "--strict")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no upscaler 'R-ESRGAN 4x+' here; give its file" in refused.sentence
    written("plain.png", line + "RNG: CPU, Model: tiny")
    answer = generate("--recipe", "plain.png", "--strict")
    assert (answer.code, answer.err) == (0, "")


def test_a_sampler_of_comfyuis_with_its_device(generate: Command) -> None:
    graph = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                **{"seed": 5, "steps": 2, "cfg": 6.5, "sampler_name": "dpmpp_sde_gpu", "scheduler": "normal"},
                **{"denoise": 1, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
            },
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat on a lake"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog"}},
    }
    written("comfy.png", json.dumps(graph), "prompt")
    (image,) = generate("--recipe", "comfy.png", "--json").json["images"]
    assert (image["recipe"]["sampler"], image["recipe"]["schedule"]) == ("dpmpp_sde", "normal")
    graph["6"]["inputs"]["text"] = ["8", 0]  # type: ignore[index]
    graph["8"] = {"class_type": "Oracle", "inputs": {"image": ["9", 0]}}
    written("comfy.png", json.dumps(graph), "prompt")
    answer = generate("--recipe", "comfy.png")
    assert answer.code == 2
    assert "'Oracle'" in answer.sentence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.png", "there is no picture 'none.png'"),
        ("none.json", "can't read a recipe from 'none.json'"),
        ("list.json", "can't be followed: a request is []"),
        ("key.json", "a request has no field 'stepz'; did you mean 'steps'?"),
        ("text", "is not a PNG, JPEG or WebP picture"),
        ("plain.png", "holds no recipe"),
    ],
)
def test_what_holds_no_recipe(name: str, said: str, generate: Command) -> None:
    Path("list.json").write_text("[]")
    Path("key.json").write_text('{"prompt": "a", "stepz": 1}')
    Path("text").write_text("hello")
    Image.new("RGB", (8, 8)).save("plain.png")
    answer = generate("--recipe", name)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence


# Wrong options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no prompt was given"),
        (["x", "--steps", "0"], "--steps is 0; it must be from 1"),
        (["x", "--steps", "-1"], "--steps is -1"),
        (["x", "--steps", ""], "'' is not a whole number"),
        (["x", "--steps", "2.5"], "'2.5' is not a whole number"),
        (["x", "--steps", "9" * 5000], "is not a whole number"),
        (["x", "--guidance", "nan"], "--guidance is nan"),
        (["x", "--guidance", "inf"], "--guidance is inf"),
        (["x", "--guidance", "1e400"], "--guidance is inf"),
        (["x", "--guidance", "-1"], "--guidance is -1.0"),
        (["x", "--guidance", "much"], "'much' is not a number"),
        (["x", "--guidance-rescale", "2"], "--guidance-rescale is 2.0"),
        (["x", "--seed", "-2"], "--seed is -2"),
        (["x", "--seed", str(2**64)], "--seed is 18446744073709551616"),
        (["x", "--seed", "1e3"], "'1e3' is not a whole number"),
        (["x", "-n", "0"], "-n is 0"),
        (["x", "-n", "99999999"], "-n is 99999999"),
        (["x", "--size", "512"], "--size is '512'; give width and height in pixels, such as 512x512"),
        (["x", "--size", "0x0"], "--size: width is 0"),
        (["x", "--size", "-8x8"], "--size is '-8x8'"),
        (["x", "--size", "99999999x8"], "--size: width is 99999999"),
        (["x", "--size", "8192x8192"], "ask for"),
        (["x", "--clip-skip", "-1"], "--clip-skip is -1"),
        (["x", "--prompt-style", "a1112"], "--prompt-style is 'a1112'; it must be one of a1111, comfy, plain"),
        (["x", "--sampler", "eulr"], "did you mean 'euler'?"),
        (["x", "--schedule", "karas"], "did you mean 'karras'?"),
        (["x", "--threads", "0"], "--threads is 0"),
        (["x" * 32_001], "prompt has 32,001 characters"),
        (["x", "--negative", "x" * 32_001], "--negative has 32,001 characters"),
        (["x", "--prompts", "missing.txt"], "can't read prompts from 'missing.txt': no such file"),
        (["--prompts", "."], "it is not a file"),
        (["--prompts", "empty.txt"], "'empty.txt' holds no prompts"),
        (["--prompts", "latin.txt"], "'latin.txt' is not UTF-8 text (byte 1)"),
        (["x", "-o", "a.gif"], "pictures are written as .png, .jpg or .webp"),
        (["x", "-o", "empty.txt"], "is not a folder"),
        (["x", "-o", "empty.txt/sub"], "is not a folder"),
        (["x", "-o", ""], "'' can't be a file's name"),
        (["x", "-o", "missing/a.png"], "there is no folder 'missing'"),
        (["x", "-o", "nul\0"], "can't be a file's name"),
        (["x", "-n", "2", "-o", "a.png"], "2 pictures don't fit into one file 'a.png'"),
        (["x", "y", "-o", "a.png"], "2 pictures don't fit into one file 'a.png'"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(
    arguments: list[str], said: str, command: Command, unloadable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_bytes(b"\n \n")
    Path("latin.txt").write_bytes("füchse".encode("latin-1"))
    answer = command("generate", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert sorted(os.listdir()) == ["empty.txt", "latin.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--model", ""], "does not exist"),
        (["--model", "file"], "file"),
        (["--device", "cuda:99"], "--device is 'cuda:99'"),
        (["--device", "toaster"], "--device is 'toaster'"),
        (["--dtype", "float8"], "--dtype is 'float8'"),
        (["--dtype", "float16", "--device", "cpu"], "float16"),
    ],
)
def test_models_that_cannot_be_loaded(
    options: list[str], said: str, command: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a model")
    answer = command("generate", "x", "-o", "out", *options)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert os.listdir() == ["file"]


def test_a_folder_that_cannot_be_written(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    for output in ("locked", "locked/sub", "locked/a.png"):
        assert "can't write into the folder" in generate("x", "-o", output).sentence
    assert os.listdir("locked") == []


def test_a_disk_that_fills_up_keeps_what_is_written(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 2:  # a file and its folder
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    answer = generate("a fox", "-n", 3, "--seed", 1, "-o", "out", "--json")
    assert answer.code == 2
    assert "no space left on device" in answer.sentence
    assert [image["path"] for image in answer.json["images"]] == ["out/a-fox-1.png"]
    assert os.listdir("out") == ["a-fox-1.png"]


def test_ctrl_c_while_a_file_is_written_waits_for_it(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the JSON answer is whole, and tells of that file."""
    fsync = os.fsync

    def interrupted(handle: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    answer = generate("a fox", "-n", 3, "--seed", 1, "-o", "out", "--json")
    assert answer.code == 130
    assert answer.sentence == "interrupted; 1 of 3 pictures are written"
    assert [image["path"] for image in answer.json["images"]] == ["out/a-fox-1.png"]
    assert os.listdir("out") == ["a-fox-1.png"]


# In a process of its own ---------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_finished_pictures_and_nothing_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["a fox", "-n", "1000", "--seed", "1", "--steps", "30", "--model", str(model), "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "darkroom", "generate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not list(out.glob("*.png")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    written = sorted(out.iterdir())
    assert 1 <= len(written) < 1000
    assert stderr.decode() == f"darkroom: interrupted; {len(written)} of 1000 pictures are written\n"
    assert sorted(stdout.decode().splitlines()) == [str(path) for path in written]
    for path in written:
        assert len(pixels(path)) == 64 * 64 * 3
        assert read_metadata(path).recipe["prompt"] == "a fox"


def test_a_terminal_sees_progress(model: Path, tmp_path: Path) -> None:
    """stderr is a terminal here and stdout a pipe, which holds the path and nothing else."""
    ours, theirs = pty.openpty()
    arguments = ["generate", "a fox", "--seed", "1", "--steps", "3", "--model", str(model), "-o", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "darkroom", *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end of a terminal is closed
        pass
    os.close(ours)
    assert process.stdout is not None
    assert process.stdout.read().decode() == f"{tmp_path / 'a-fox-1.png'}\n"
    process.stdout.close()
    assert process.wait() == 0
    assert b"loading " + os.fsencode(model) in shown
    assert b"encoding the prompt" in shown
    assert b"3/3" in shown
