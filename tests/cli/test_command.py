"""How commands are declared: panels, other programs' names, --quiet, what a shell is offered, defaults of one's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.cli import config
from darkroom.cli.command import PANELS, Command, built
from darkroom.cli.drawing import options_of
from darkroom.cli.generate import app

Run = Callable[..., Any]  # see conftest.py


@pytest.fixture(autouse=True)
def _no_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Without whatever lies in this machine's own folder of configurations."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config.defaults.cache_clear()
    yield
    config.defaults.cache_clear()


def test_help_has_panels_with_every_option_once(command: Run) -> None:
    out = command("generate", "--help").out
    headings = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert headings == ["Arguments", *PANELS]
    options = [word for line in out.splitlines() if (word := re.match(r"  (?:-\w, )?(--[\w-]+)", line))]
    names = [match[1] for match in options]
    assert len(names) == len(set(names))
    assert {str(option.declared.option) for option in options_of()} <= set(names)
    assert "--negative-prompt" not in out  # taken, and not told of


def test_no_command_has_two_options_of_one_name() -> None:
    made = built("generate", app.commands[0][1])
    assert isinstance(made, Command)
    names = [name for p in made.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")]
    assert len(names) == len(set(names))


def test_their_options_and_underscores(command: Run, model: Path, tmp_path: Path) -> None:
    ours = command("generate", "a fox", "--model", model, "--steps", 2, "--guidance", 3, "--size", "64x32", "--seed", 1,
                   "--negative", "b", "-o", tmp_path / "ours.png", "--json").json  # fmt: skip
    theirs = command("generate", "--prompt", "a fox", "--ckpt", model, "--num_inference_steps", 2, "--cfg-scale", 3,
                     "--width", 64, "--height", 32, "--seed", 1, "--negative_prompt", "b",
                     "-o", tmp_path / "theirs.png", "--json").json  # fmt: skip
    assert ours["images"][0]["recipe"] == theirs["images"][0]["recipe"]
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x", "--enable-hr"], "there is no option --enable-hr: say how many times larger: --hires 2"),
        (["generate", "x", "--width", "64", "--size", "32x32"], "--size is given, and --width too"),
        (["generate", "x", "--quite"], "did you mean --quiet?"),
        (["generate", "x", "--zebra-crossing"], "there is no option --zebra-crossing; see"),
        (["train", "lora", "-o", "x", "--learning-rate", "1"], "no option but a setting: --set lr=VALUE"),
        (["generate", "x", "--seed"], "'--seed' requires an argument; see 'darkroom generate --help'"),
        (["generate", "x", "--mask", "m.png"], "--mask is given without --image"),
        (["generate", "x", "--schedule", "karas"], "there is no schedule 'karas'; did you mean 'karras'?"),
        (["generate", "x", "--model", "nope.safetensors"], "nope.safetensors does not exist"),
        (["train", "lora", "-o", "x", "--set", "tensorboard=true"], "tensorboard isn't installed"),
        (["train", "lora", "-o", "x", "--data", "nowhere"], "--data is 'nowhere', which does not exist"),
        (["train", "lora", "-o", "x", "--set", "learning_rate=fast"], "learning_rate is 'fast'"),
    ],
)
def test_wrong_options_are_said_before_torch_is_imported(
    arguments: list[str], said: str, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    monkeypatch.chdir(tmp_path)
    answer = command(*arguments)
    assert answer.code == 2
    assert said in answer.sentence
    assert not list(tmp_path.iterdir())


def test_that_is_quick() -> None:
    """In a fresh process: torch is not imported for any of those."""
    code = (
        "import sys; from darkroom.cli import run\n"
        "asked = ('--mask m', '--schedule kar', '--image no', '--model no.ckpt', '--control a=b')\n"
        "codes = [run(['generate', 'x', *words.split()]) for words in asked]\n"
        "codes += [run(words.split()) for words in ('upscale no.png', 'train lora -o x --set lr=fast')]\n"
        "sys.exit(codes != [2] * 7 or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_a_slip_in_a_hint_of_a_control(command: Run, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    answer = command("generate", "x", "--control", f"net=cany@{tmp_path / 'x.png'}:0.5")
    assert "there is no hint 'cany'; did you mean 'canny'?" in answer.sentence


def test_quiet_says_errors_alone(command: Run, model: Path, tmp_path: Path) -> None:
    asked = ("generate", "a fox", "--size", "8x8", "--steps", 1, "--model", model, "-o", tmp_path)
    assert "far below" in command(*asked).err
    answer = command(*asked, "--quiet")
    assert (answer.code, answer.err) == (0, "")
    assert answer.paths[0].is_file()
    assert command("generate", "x", "-q", "--mask", "m").sentence


# --- defaults of one's own


def test_what_is_written_down_is_taken(
    command: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(os.environ["XDG_CONFIG_HOME"]) / "darkroom"
    own.mkdir(parents=True)
    (own / "darkroom.toml").write_text(f'device = "cuda:9"\nmodel = "{model.name}"\nlora-dir = "l"\n')
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "darkroom.toml").write_text(f'model = "{model}"\noutput = "out"\n')
    monkeypatch.setenv("DARKROOM_DEVICE", "cpu")
    (picture,) = command("generate", "a fox", "--steps", 1, "--seed", 3).paths  # the device of a file would be none
    assert picture == Path("out/a-fox-3.png")
    assert "[default: out]" in command("generate", "--help").out.replace("\n", " ")
    told = {row["key"]: (row["value"], row["source"]) for row in command("info", "--config", "--json").json["defaults"]}
    assert told["device"] == ("cpu", "DARKROOM_DEVICE")
    assert told["model"] == (str(model), "darkroom.toml")
    assert told["lora_dir"] == (str(own / "l"), str(own / "darkroom.toml"))
    assert told["threads"] == (None, None)
    assert "first comes the command line" in command("info", "--config").out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modell = "x"', "'darkroom.toml' has a key 'modell'; did you mean 'model'?"),
        ("threads = 0", "in 'darkroom.toml' threads is 0; it must be from 1 to 4096"),
        ("model = 3", "in 'darkroom.toml' model is 3; it must be a text"),
        ("model = ", "'darkroom.toml' is not TOML: "),
        ("a = " + "[" * 10_000, "'darkroom.toml' is not TOML"),
        (b"\xff\xfe", "'darkroom.toml' is not UTF-8 text"),
    ],
)
def test_a_bad_file_gets_a_sentence(
    text: str | bytes, said: str, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "darkroom.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for arguments in (["generate", "x"], ["info", "--config"]):
        assert said in command(*arguments).sentence


# --- completion


def test_scripts_of_shells(command: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_DARKROOM_COMPLETE" in command("completion", shell).out
    assert "must be one of bash, zsh, fish" in command("completion", "csh").sentence


def _offered(words: str, cwd: Path) -> list[str]:
    """What bash is offered at the end of `words`."""
    parts = words.split(" ")
    env = os.environ | {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1)}
    code = "import sys; sys.argv = ['darkroom']; from darkroom.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    return ended.stdout.split()


def test_what_a_shell_is_offered(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "one.safetensors").touch()
    (tmp_path / "darkroom.toml").write_text('models = "m"\n')
    assert _offered("darkroom gal", tmp_path) == ["plain,gallery"]
    assert _offered("darkroom generate --samp", tmp_path) == ["plain,--sampler", "plain,--sampler-noise"]
    assert "plain,dpmpp_2m" in _offered("darkroom generate --sampler dpm", tmp_path)
    assert _offered("darkroom generate --schedule kar", tmp_path) == ["plain,karras"]
    assert "plain,m/one.safetensors" in _offered("darkroom generate --model ", tmp_path)
    assert _offered("darkroom train lo", tmp_path) == ["plain,lora"]
    assert _offered("darkroom generate --image x", tmp_path) == ["file,x"]
    assert _offered("darkroom generate --lora-dir x", tmp_path) == ["dir,x"]


def test_in_bash_itself(command: Run, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "darkroom").write_text(f'#!/bin/sh\nexec {sys.executable} -m darkroom "$@"\n')
    (tmp_path / "darkroom").chmod(0o755)
    script = command("completion", "bash").out + (
        "\nCOMP_WORDS=(darkroom generate --sampler eule); COMP_CWORD=3; COMP_LINE='x'\n"
        '_darkroom_completion darkroom; echo "${COMPREPLY[@]}"\n'
    )
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run([bash, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["euler", "euler_ancestral"], ended.stderr
