"""`darkroom train`: toy runs from the command line, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]  # see conftest.py

SMALL = ("widths=8,8,16,16", "batch_size=8", "log_every=1", "warmup=1")


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embeded"], "did you mean 'embedded'?"),
        (["unet", "--preset", "tpu"], "--preset is 'tpu'; it must be one of cpu, gpu"),
        (["lora", "--preset", "gpu", "--preset", "cpu"], "the presets gpu and cpu exclude each other"),
        (["unet", "--set", "lrr=1"], "the recipe has no setting 'lrr'; did you mean 'lr'?"),
        (["unet", "--set", "lr=nan"], "lr is 'nan'; it must be a finite number"),
        (["unet", "--set", "lr"], "'lr' is no setting; write key=value"),
        (["unet", "--steps", "0"], "steps is 0; it must be between 1 and 10^9"),
        (["unet", "--steps", "many"], "'many' is not a whole number"),
        (["unet", "--workers", "0"], "--workers is 0"),
        (["embedded", "--steps", "5"], "--set autoencoder.steps=N"),
        (["embedded", "--model", "x"], "embedded starts from nothing"),
        (["embedded", "--set", "unet.heads=7"], "the recipe's networks can't be built"),
        (["autoencoder", "--workers", "3"], "batch_size is 16; 3 workers can't share it evenly"),
        (["unet", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, tmp_path: Path) -> None:
    answer = command("train", *arguments, "-o", tmp_path / "run")
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    answer = command("train", "autoencoder", "-o", tmp_path / "file" / "run")
    assert answer.code == 2
    assert "is not a folder" in answer.sentence


def test_a_recipe_is_shown_whole(command: Command, tmp_path: Path) -> None:
    answer = command("train", "unet", "-o", tmp_path, "--show-recipe", "--steps", 7, *settings("lr=0.5"))
    assert answer.code == 0
    assert answer.err.startswith("darkroom: memory: about ")
    assert (answer.json["steps"], answer.json["lr"], answer.json["device"]) == (7, 0.5, "cpu")
    assert (
        command("train", "embedded", "-o", tmp_path, "--show-recipe", "--preset", "gpu").json["unet"]["device"]
        == "cuda"
    )
    assert list(tmp_path.iterdir()) == []


def test_settings_are_listed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = command("train", "lora", "--settings", "--preset", "style", *settings("rank=16"))
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("Settings of lora")
    for line in ("  rank=16 ", "  train=unet ", "  weight=constant "):
        assert f"\n{line}" in answer.out
    assert max(map(len, answer.out.splitlines())) < 80
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_and_changes_nothing_is_said(command: Command, tmp_path: Path) -> None:
    answer = command("train", "unet", "-o", tmp_path, "--show-recipe", *settings("shift=3"))
    assert answer.err.startswith("darkroom: shift is set and changes nothing: it is for prediction=flow\n")


def test_what_is_set_for_another_setting_is_said(command: Command, tmp_path: Path) -> None:
    given = settings("cooldown=0.3", "schedule=constant", "tensorboard=false")
    answer = command("train", "lora", "-o", tmp_path, "--show-recipe", *given)
    assert answer.code == 0
    assert "cooldown is set and changes nothing: it is for schedule=stable" in answer.err


def test_a_u_net_from_the_command_line(command: Command, model: Path, tmp_path: Path) -> None:
    """On the latents of a given model's autoencoder; then longer; then refused, and not resumed."""
    small = settings(
        "widths=16,32", "attention_levels=false,true", "groups=8", "heads=2", "text_width=32", "scenes=24",
        "batch_size=8", "log_every=1", "compare=0",
    )  # fmt: skip
    arguments = ["train", "unet", "-o", tmp_path, "--model", model, "--workers", 1, *small]
    answer = command(*arguments, "--steps", 2)
    assert answer.code == 0
    assert answer.err.startswith("darkroom: memory: about ")
    assert answer.paths == [tmp_path / "model"]
    assert answer.err.splitlines()[-2:] == [
        f"darkroom: to look at: {tmp_path / 'loss.svg'}",
        f"darkroom: next: darkroom generate '' --model {tmp_path / 'model'}",
    ]
    assert command("info", tmp_path / "model", "--json").code == 0
    assert command(*arguments, "--steps", 3).code == 0
    rows = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]
    newest = tmp_path / "step-000000003.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes(content)
    assert "step-000000003.pt is damaged: " in command(*arguments, "--steps", 4).err
    answer = command(*arguments, "--steps", 4, "--skip-damaged")
    assert answer.code == 0
    assert f"damaged, and left out: {newest}.damaged\ndarkroom: going on from step 2 in {tmp_path}\n" in answer.err
    assert "holds a run already" in command(*arguments, "--steps", 4, "--no-resume").sentence
    assert "was trained with lr=0.003, not 0.1" in command(*arguments, "--steps", 4, "--set", "lr=0.1").err


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "darkroom", "train", "autoencoder", "-o", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(
        [*arguments, *settings(*SMALL, "steps=100000")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    second = subprocess.run([*arguments, *settings(*SMALL)], capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(
        f"darkroom: run {tmp_path} is being written by process {process.pid}; "
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("darkroom: stopped at step ")
    assert err.endswith("; the same command goes on\n")
    (checkpoint,) = tmp_path.glob("step-*.pt")
    stopped = int(checkpoint.stem.removeprefix("step-"))
    process = subprocess.Popen(
        [*arguments, *settings(*SMALL, "steps=100000")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while json.loads(log.read_text().splitlines()[-1])["step"] <= stopped:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("; the same command goes on\n")
    rows = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1))


def test_warnings_of_a_training_are_told_in_a_pipe_too(capsys: pytest.CaptureFixture[str]) -> None:
    from darkroom.cli.progress import Line
    from darkroom.training.kinds import log

    with Line():
        log.warning("%d pictures are left out", 3)
    log.warning("nobody listens any more")
    assert capsys.readouterr().err == "darkroom: 3 pictures are left out\n"


def test_the_progress_line() -> None:
    from darkroom.cli.progress import progress
    from darkroom.training.start import TrainingProgress

    def told(step: int = 0, **figures: float) -> str:
        return progress(TrainingProgress("unet", step, 100, figures=figures))

    assert told() == "unet ..."
    assert progress(TrainingProgress("")) == ""
    assert told(20, loss=0.5, samples_per_second=41.6, left=4800.0) == (
        "unet  step 20 of 100  loss 0.5000  42 samples/s  1:20:00 left"
    )
    more = {"loss": 0.4, "psnr": 31.26, "samples_per_second": 4.25, "utilisation": 0.384, "left": 59.6}
    assert told(30, **more, validation=0.5, skipped=3) == (
        "unet  step 30 of 100  loss 0.4000  held out 0.5000  31.3 dB  4.2 samples/s  38% of the device  3 skipped  "
        "1:00 left"
    )


def test_the_line_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut to the terminal's width, a shorter one covers a longer one, and a warning stands on a line alone."""
    from darkroom.cli import progress
    from darkroom.training.kinds import log
    from darkroom.training.start import TrainingProgress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((12, 24)))
    with progress.Line() as line:
        line.show(TrainingProgress("encoding scenes"))
        log.warning("odd")
        line.show(TrainingProgress("encoding"))
        line.show(TrainingProgress("x"))
    assert terminal.getvalue() == (
        "\rencoding sc\r" + " " * 11 + "\rdarkroom: odd\n\rencoding ..\rx ...      \r     \r"
    )


def test_help_has_the_kinds_and_a_kind_s_settings(command: Command) -> None:
    kinds = command("train", "--help").out
    assert "\n  lora               a LoRA: " in kinds
    assert "rank=" not in kinds
    for arguments in (("lora", "--help"), ("-o", "x", "lora", "-h")):
        told = command("train", *arguments).out
        assert "\n  rank=8 " in told
        assert "\n  --preset NAME" in told


@pytest.mark.parametrize(
    ("kind", "changes", "cores", "processes"),
    [
        ("lora", [], 2, 1), ("lora", ["batch_size=16"], 2, 2), ("lora", ["batch_size=15"], 2, 1), ("unet", [], 2, 2),
        ("unet", ["batch_size=128"], 64, 8), ("unet", ["batch_size=30"], 8, 3), ("unet", [], 1, 1),
        ("embedded", [], 2, 2), ("embedded", ["autoencoder.batch_size=8"], 2, 1),
    ],
)  # fmt: skip
def test_a_process_is_worth_eight_rows(
    kind: str, changes: list[str], cores: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darkroom.training.kinds import KINDS
    from darkroom.training.recipe import override
    from darkroom.training.start import default_workers

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert default_workers(override(KINDS[kind].recipe_of(), changes)) == processes
