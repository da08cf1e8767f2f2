"""Class pictures for prior preservation (Ruiz et al. 2022, arXiv 2208.12242, sec. 3.2), drawn by the model itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image

from ..errors import TrainingError
from ..files import whole_file
from ..pipeline import Pipeline
from .background import interruptible
from .kinds import Report
from .loop import Stopped, step_seed

NOTE = "drawn.json"  # in the folder: of which model and prompt the pictures are


def class_folder(output: Path) -> Path:
    """Where a run keeps the class pictures that were drawn for it."""
    return output / "class"


def draw_class(pipe: Pipeline, prompt: str, count: int, seed: int, folder: Path, report: Report) -> None:
    """Draw what is missing of `count` pictures of a class into a folder, each with its own seed; killed, it goes on.

    Raises TrainingError where the folder holds pictures of another class or model; Stopped after SIGINT or SIGTERM.
    """
    made_of = json.dumps({"prompt": prompt, "model": pipe.model_hash, "seed": seed}) + "\n"
    note = folder / NOTE
    if note.is_file():
        if note.read_bytes() != made_of.encode():
            raise TrainingError(
                f"{folder} holds class pictures of another prompt, model or seed; delete it, or use another folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as draft:
            draft.write_text(made_of, encoding="utf-8")
    with interruptible() as asked:
        for i in range(count):
            path = folder / f"{i:05d}.png"
            if path.is_file():
                continue
            if asked():
                raise Stopped(f"stopped after {i} of {count} class pictures in {folder}; the same command goes on")
            report(f"drawing class pictures, {i + 1} of {count}", None, 0)
            drawn = pipe.generate(prompt, seed=_seed(seed, i)).images[0]
            assert isinstance(drawn, Image.Image)
            with whole_file(path, TrainingError) as draft:
                drawn.save(draft, "PNG")


def _seed(seed: int, i: int) -> int:
    """A seed for class picture i that no sample sheet and no other class picture has."""
    return int(hashlib.sha256(f"class {step_seed(seed, i)}".encode()).hexdigest()[:8], 16)
