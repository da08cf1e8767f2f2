"""The long form of a promise: the plain command teaches the embedded model a new object."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import darkroom
from darkroom.evaluate.judge import SEED, Known, NewObject, score
from darkroom.toy.scenes import render_scene

ENOUGH = 0.8  # of the pictures, right in all they should show
SECONDS = 2 * 5 * 60  # five minutes of two cores


def lantern(path: Path) -> Path:
    """A picture of an object that is like none of the built-in ones: a green lantern, lit, with a ring on top."""
    picture = Image.new("RGBA", (96, 96))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((36, 0, 60, 24), outline="#5b3a1e", width=5)
    pen.rectangle((24, 20, 72, 32), fill="#5b3a1e")
    pen.rounded_rectangle((14, 30, 82, 84), 18, fill="#1c8f6f", outline="#0c4a3a", width=4)
    pen.ellipse((30, 38, 66, 76), fill="#ffe27a")
    pen.ellipse((40, 48, 56, 68), fill="#ff8a1c")
    pen.rectangle((22, 82, 74, 95), fill="#5b3a1e")
    picture.save(path)
    return path


@pytest.mark.soak
def test_the_plain_command_teaches_an_object(tmp_path: Path) -> None:
    """Twenty captioned pictures, `darkroom train lora --data pics`: 80% of 50 pictures are right for the judge, within
    five minutes of two cores (processor seconds count: the machine may be busy)."""
    new = NewObject.of("lantern", None, lantern(tmp_path / "lantern.png"))
    data = tmp_path / "pics"
    data.mkdir()
    for i, scene in enumerate(new.samples(20, seed=5)):
        Image.fromarray(render_scene(scene, new.glyphs)).save(data / f"{i:02d}.png")
        (data / f"{i:02d}.txt").write_text(scene.caption)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "train", "lora", "--data", "pics"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = tmp_path / "runs" / "lora-pics"
    assert done.stdout.split() == [str(run / "lora.safetensors")]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    loss = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["loss"]
    scenes, known = new.scenes(50), Known.of(new.glyphs)
    pipe = darkroom.load(device="cpu")
    drawn = pipe.generate([s.caption for s in scenes], seed=SEED, loras=[run / "lora.safetensors"]).images
    found = score([np.asarray(picture) for picture in drawn], scenes, known)
    print(f"{found.right:.0%} right, loss {loss:.3f}, {seconds:.0f} seconds of a core")
    assert found.right >= ENOUGH
    assert seconds <= SECONDS
    assert {"before-after.png", "loss.svg"} <= {path.name for path in run.iterdir()}
