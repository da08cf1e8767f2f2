"""A text encoder by one command.

RUN/step-*.pt, log.jsonl    the run (loop.py)
RUN/tokenizer/              what the captions are read with
RUN/lessons.txt             a hash of the pictures and captions it belongs to
RUN/clip/                   the result, which transformers opens as a CLIPModel
RUN/scores.json             how well pictures and captions find each other (built-in scenes that training never saw)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..data.buckets import Cut
from ..data.dataset import Lessons, open_lessons
from ..errors import TrainingError
from ..formats.clip import save_clip
from ..models.clip import Clip
from ..prompts.tokenizer import Tokenizer
from . import state
from .ema import result
from .finish import scene_tokenizer
from .kinds import Report, Subject, tell_left_out
from .loop import check_done, train
from .parallel import launch
from .recipes import check
from .retrieval import score_scenes
from .text_encoder import TextEncoderRecipe, TextEncoderStage, captions_of, network
from .vocabulary import learn_tokenizer

FOLDER = "clip"
SCORES = "scores.json"
_TOKENIZER, _LESSONS = "tokenizer", "lessons.txt"
TESTED = 500  # built-in scenes that training never saw, for the scores


def recipe(preset: str = "cpu") -> TextEncoderRecipe:
    """Two CPU cores, an hour; or one large GPU."""
    if preset == "gpu":
        return TextEncoderRecipe(
            steps=20_000, batch_size=1024, lr=5e-4, optimizer="adamw", weight_decay=0.1, image_width=384,
            image_layers=8, text_width=384, text_layers=6, heads=6, projection=256, scenes=400_000, device="cuda",
        )  # fmt: skip
    return TextEncoderRecipe(steps=4000, batch_size=128, lr=1e-3, optimizer="adamw", weight_decay=0.1, warmup=100)


def run_text_encoder(
    recipe: TextEncoderRecipe, subject: Subject, output: Path, workers: int = 1, report: Report = lambda *_: None
) -> Path:
    """Train a text encoder with an image encoder, or go on with it; returns the folder that transformers opens.

    Raises TrainingError, CheckpointError; Stopped when SIGINT or SIGTERM came.
    """
    check(recipe, workers)
    lessons = _lessons(recipe, subject)
    _begin(recipe, subject, lessons, output)
    clip = _network(recipe, output)
    report("text encoder", output, recipe.steps)
    if state.steps_done(output) < recipe.steps:
        launch(_work, workers, recipe, subject, output)
    check_done(output, recipe)
    clip.load_state_dict(result(output, recipe)["ema"]["clip"])
    clip.eval().requires_grad_(False)
    tokenizer = Tokenizer.from_folder(output / _TOKENIZER)
    made = save_clip(
        output / FOLDER,
        text_encoder=clip.text.state_dict(),
        text_encoder_config=clip.text.config,
        image_encoder=clip.image.state_dict(),
        image_encoder_config=clip.image.config,
        logit_scale=float(clip.logit_scale),
        tokenizer=tokenizer,
    )
    if subject.data is None:
        report("scoring", None, 0)
        scores = score_scenes(clip, tokenizer, TESTED, recipe.seed)
        (output / SCORES).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return made


def _work(recipe: TextEncoderRecipe, subject: Subject, output: Path) -> None:
    tokenizer = Tokenizer.from_folder(output / _TOKENIZER)
    clip = network(recipe, tokenizer).to(recipe.device)
    train(TextEncoderStage(recipe, clip, tokenizer, _lessons(recipe, subject)), output)


def _lessons(recipe: TextEncoderRecipe, subject: Subject) -> Lessons:
    cut = Cut(crop=recipe.cut, flip=recipe.flip, variants=0, seed=recipe.seed)
    size = (recipe.size, recipe.size)
    found = open_lessons(
        subject.data, size, cut, caption=recipe.caption, scenes=recipe.scenes, seed=recipe.seed
    )  # fmt: skip
    told = {caption.strip() for caption in found.captions}
    if len(told) < 2:
        raise TrainingError(
            f"all {len(found)} pictures have the caption {next(iter(told))[:60]!r}; it takes different ones to "
            "learn from"
        )
    return found


def _begin(recipe: TextEncoderRecipe, subject: Subject, lessons: Lessons, run: Path) -> None:
    """Write down what a run begins with. Raises TrainingError where it began with something else."""
    note, folder = run / _LESSONS, run / _TOKENIZER
    if state.steps_done(run):
        if not note.is_file() or note.read_text(encoding="utf-8").strip() != lessons.key:
            raise TrainingError(
                f"{run} was trained on other pictures or captions, or they have changed; use another folder"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    if recipe.tokenizer:
        tokenizer = Tokenizer.from_folder(recipe.tokenizer)
    elif subject.data is None:
        tokenizer = scene_tokenizer()
    else:
        around = [recipe.prefix, *recipe.template.replace("{}", " ").split("|")]
        tokenizer = learn_tokenizer([*lessons.captions, *around], recipe.vocabulary, recipe.tokens)
    if tokenizer.max_length != recipe.tokens:
        tokenizer = Tokenizer(
            tokenizer.vocab, tokenizer.merges, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token, unk_token=tokenizer.unk_token, max_length=recipe.tokens,
        )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder)
    note.write_text(lessons.key + "\n", encoding="utf-8")
    tell_left_out(run, lessons.left_out)


def _network(recipe: TextEncoderRecipe, run: Path) -> Clip:
    """The untrained network. Raises TrainingError for a recipe that none can have."""
    captions_of(recipe)
    try:
        return network(recipe, Tokenizer.from_folder(run / _TOKENIZER))
    except ValueError as error:
        raise TrainingError(f"the recipe's networks can't be built: {error}") from None
