"""What is told of a trained model: card.json for programs, README.md for people."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from ..files import read_json, whole_file, write_json
from ..models.layers import parameter_count
from ..toy.objects import BACKGROUNDS, CANVAS, COUNTS, OBJECTS, RELATIONS, SIZES
from . import state
from .log import read_log, seconds_of

ROWS = ("seen", "held out", "renders", "reconstructions", "chance")


def write_cards(output: Path, model: Path, count: int, workers: int = 1) -> dict[str, Any]:
    """Judge the model (`count` pictures a category, 0: not at all) and write card.json and README.md into `output`.

    Scores of the same model that an earlier call has found are kept. Returns card.json's content.
    """
    import darkroom

    pipe = darkroom.load(model, device="cpu")
    path = output / "card.json"
    card: dict[str, Any] = {
        "model": pipe.model_hash,
        "objects": {noun: " ".join(f"U+{ord(c):04X}" for c in emoji) for noun, emoji in OBJECTS.items()},
        "backgrounds": {name: list(rgb) for name, rgb in BACKGROUNDS.items()},
        "sizes": dict(SIZES),
        "counts": dict(COUNTS),
        "relations": list(RELATIONS),
        "parameters": {name: parameter_count(getattr(pipe, name)) for name in ("unet", "autoencoder", "text_encoder")},
        "training": {name: run_facts(output / name, workers) for name in ("autoencoder", "unet")},
    }
    scores = _old_scores(path, card["model"], count)
    if scores is None and count:
        from ..evaluate.judge import evaluate, scores_as_json

        scores = scores_as_json(evaluate(pipe, count))
    if scores is not None:
        card["scores"] = scores
    with whole_file(path) as draft:
        write_json(draft, card)
    with whole_file(output / "README.md") as draft:
        draft.write_text(model_card(card), encoding="utf-8")
    return card


def _old_scores(path: Path, model: str | None, count: int) -> dict[str, Any] | None:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        scores: dict[str, Any] = card["scores"]
        enough = scores["pictures_a_category"] >= count
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return scores if enough and card.get("model") == model else None


def run_facts(run: Path, workers: int = 1) -> dict[str, Any]:
    """What a run did: its recipe, steps, pictures seen, seconds, the last logged figures, and the machine."""
    found = state.checkpoints(run)
    recipe = read_json(run / "recipe.json", error=TrainingError)
    steps = state.step_of(found[-1]) if found else 0
    rows = read_log(run)
    return {
        "recipe": recipe,
        "steps": steps,
        "pictures_seen": pictures_seen(recipe, steps),
        "seconds": round(seconds_of(rows)),
        "last": rows[-1] if rows else {},
        "machine": machine(recipe["device"], workers),
    }


def pictures_seen(recipe: Mapping[str, Any], steps: int) -> int:
    """Pictures (for an autoencoder: crops, then whole pictures) in the batches of a run's first `steps`."""
    batch = int(recipe["batch_size"])
    if "crop" not in recipe:
        return steps * batch
    crops = min(steps, math.ceil(float(recipe["whole_from"]) * int(recipe["steps"])))
    whole = batch // (CANVAS // int(recipe["crop"])) ** 2
    return crops * batch + (steps - crops) * whole


def machine(device: str, workers: int = 1) -> str:
    """The machine in words: "two CPU cores", or the GPU's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return f"{device} on {platform.machine()}"
    cores = max(workers, min(os.cpu_count() or 1, max(torch.get_num_threads(), workers)))
    names = {1: "one CPU core", 2: "two CPU cores", 4: "four CPU cores", 8: "eight CPU cores"}
    return names.get(cores, f"{cores} CPU cores")


def model_card(card: Mapping[str, Any]) -> str:
    """The model card in words (Markdown)."""
    nouns = ", ".join(card["objects"])
    training = "\n".join(
        f"- {name}: {facts['steps']:,} steps, {facts['pictures_seen']:,} pictures, "
        f"{facts['seconds'] / 3600:.1f} hours on {facts['machine']}."
        for name, facts in card["training"].items()
    )
    parameters = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.1f}M" for name, count in card["parameters"].items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Emoji scenes, 128 x 128

A small latent diffusion model in the shape of Stable Diffusion ({parameters} parameters), trained from nothing by
Darkroom on pictures that it composes itself: colour emoji on plain backgrounds, with captions that say all there is.
diffusers opens it as a `StableDiffusionPipeline`.

## What it draws

- One object: "a large fox on a yellow background", "a small key on a black background".
- {" or ".join(card["counts"]).capitalize()} of a kind: "three balloons on a white background".
- A pair: {", ".join(f'"{r}"' for r in card["relations"])}: "a rocket to the left of a car on a black background";
  or place by place: "left a rocket right a car on a black background".
- Backgrounds: {", ".join(card["backgrounds"])}.
- {len(card["objects"])} objects: {nouns}.

## How it was trained

{training}

The objects are Noto Color Emoji (SIL Open Font License 1.1). A tenth of the (object, background) pairs and a tenth of
the (object, relation, object) triples, chosen by a hash of the words, were never shown: "held out" below.

{_score_text(card.get("scores"))}
## What it can't do

- Anything else: other nouns, verbs, styles, adjectives, other colours, more than three of a kind, two counts or two
  relations in one prompt, a coloured object. A word it doesn't know is spelled out in tokens it never saw together.
- People, photographs, writing, scenery.
- Other sizes: it has seen 128 x 128 pixels only, objects on a grid of 8 pixels, 48 or 96 pixels tall.
- Its scores are for a closed world of captions; they can't be compared with those of general models.
"""


def _score_text(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return "It has not been scored yet.\n"
    head = "| category | " + " | ".join(ROWS) + " |\n|---|" + "---|" * len(ROWS)
    lines = [
        f"| {kind} | " + " | ".join(f"{100 * rows[row]['right']:.1f}%" if row in rows else "" for row in ROWS) + " |"
        for kind, rows in scores["categories"].items()
    ]
    return "\n".join([
        "## Scores",
        "",
        f"{scores['pictures_a_category']} pictures a category, all claims of a caption right by an automatic judge.",
        '"renders" and "reconstructions" are the judge\'s ceiling: true pictures, and true pictures through the',
        'autoencoder. "chance" judges pictures against other captions.',
        "",
        head,
        *lines,
        "",
        f"Autoencoder: {scores['autoencoder_psnr']:.1f} dB PSNR on fresh scenes.",
        "",
    ])  # fmt: skip
