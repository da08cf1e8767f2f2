"""What lies in a folder: pictures with their recipes, or a training's run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageError, RequestError
from ..formats.picture import Metadata, read_metadata
from ..recipe import recipe_of
from ..request import Request
from ..settings import changed
from .drawing import options_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_MOST = 100_000  # files that are looked at
_INPUTS = ("image", "mask", "depth", "latents", "loras", "controls", "embeddings", "start", "stop")
_RECORDED = ("model_hash", "vae", "vae_hash", "version", "model")


@dataclass(frozen=True, slots=True)
class Found:
    """A picture of a folder, and what it says of itself; or why that can't be read."""

    path: Path
    told: Metadata | None
    fault: str = ""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Its recipe, by our names."""
        return self.told.recipe if self.told is not None else {}


def picture_paths(folder: Path) -> list[Path]:
    """The pictures of a folder and the folders in it, by their endings, in the order of their names."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(place, name) for name in sorted(files) if name.lower().endswith(PICTURES))
        if len(found) > _MOST:
            raise RequestError(f"{str(folder)!r} holds more than {_MOST:,} pictures; name one of the folders in it")
    return found


def read_all(paths: list[Path]) -> Iterator[Found]:
    """What pictures say of themselves."""
    for path in paths:
        try:
            yield Found(path, read_metadata(path))
        except ImageError as error:
            yield Found(path, None, str(error))


def command_of(found: Found) -> str | None:
    """A command that draws a picture again; None where it holds no recipe that can be followed.

    Where the picture was made from others, or the recipe is another tool's, `--recipe` reads it from the file. What is
    pasted into a terminal must hold no control characters: such texts are left to the file.
    """
    if found.told is None:
        return None
    try:
        request = recipe_of(found.told, str(found.path)).request
    except ImageError:
        return None
    words = ["darkroom", "generate", *_options(request)]
    plain = found.told.source == "darkroom" and not any(getattr(request, name) for name in _INPUTS)
    if not plain or not all(word.isprintable() for word in words):
        words = ["darkroom", "generate", "--recipe", str(found.path), *_inputs(request)]
    return shlex.join(words) if all(word.isprintable() for word in words) else None


def _inputs(request: Request) -> list[str]:
    """What a recipe names and can't hold: in capitals, pictures that whoever draws it again must give."""
    words = [
        word for name in ("image", "mask", "depth") if getattr(request, name) for word in (f"--{name}", name.upper())
    ]
    for lora in request.loras:
        if f"<lora:{lora.name}:" not in request.prompt:
            words += ["--lora", f"{lora.name}.safetensors:{lora.scale:g}"]
    for control in request.controls:
        words += ["--control", f"{control.name}=HINT:{control.scale:g}"]
    for used in request.embeddings:
        words += ["--embedding", f"{used.rpartition(':')[0]}.safetensors"]
    return words


def _options(request: Request) -> list[str]:
    """A request as options, its prompt first: what is not as it is anyway."""
    said = changed(request)
    words = [f"--prompt={request.prompt}" if request.prompt.startswith("-") or not request.prompt else request.prompt]
    for option in options_of():
        declared, name = option.declared, str(option.declared.option)
        owner: Any = getattr(request, option.inside) if option.inside else request
        fields = said if option.inside is None else changed(owner) if owner is not None else {}
        if len(option.fields) == 1 and option.fields[0] in ("width", "height") and option.inside is None:
            continue
        if option.inside is not None and owner is not None and option.fields[0] == "scale":
            fields = {**fields, "scale": owner.scale}  # without it the others say nothing
        if not all(field in fields for field in option.fields):
            continue
        values = [fields[field] for field in option.fields]
        if declared.kind.of is bool:
            words += [name] if values[0] else []
            continue
        if len(option.fields) > 1 or declared.kind.count == 1:
            text = "x".join(map(str, values))
        else:
            text = _several(option.fields[0], values[0], str(declared.metavar or declared.kind.metavar))
        words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    if request.model not in (None, "embedded"):
        words += ["--model", str(request.model)]
    return words


def _several(field: str, value: tuple[Any, ...], metavar: str) -> str:
    """A value of several parts, as its option takes it."""
    if metavar == "SIDES":
        return ",".join(f"{side}={n}" for side, n in zip(("left", "top", "right", "bottom"), value, strict=True))
    return ("x" if metavar == "WxH" else ",").join(map(str, value))


# --- runs


# What a run may have made -> how it is used.
_MADE = {
    "lora.safetensors": "generate {prompt} --lora {made}",
    "word.safetensors": "generate {prompt} --embedding {made}",
    "controlnet": "generate {prompt} --control {made}=HINT@PHOTO",
    "vae": "generate {prompt} --vae {made}",
    "model": "generate {prompt} --model {made}",
    "upscaler.safetensors": "upscale PICTURE --upscaler {made}",
}


def is_run(folder: Path) -> bool:
    """Whether a folder is a training's run, or one of several."""
    return any((place / "subject.json").is_file() or (place / "recipe.json").is_file() for place in _runs(folder))


def _runs(folder: Path) -> tuple[Path, ...]:
    return folder, folder / "autoencoder", folder / "unet"


def run_told(folder: Path) -> dict[str, Any]:
    """What a run did, and how its result is used, ready for JSON. Raises TrainingError for one that is broken."""
    from ..errors import TrainingError
    from ..files import read_json
    from ..training.log import read_log, seconds_of

    stages: list[dict[str, Any]] = []
    for place in _runs(folder):
        if not (place / "recipe.json").is_file():
            continue
        recipe = read_json(place / "recipe.json", error=TrainingError)
        rows = read_log(place)
        last = rows[-1] if rows else {}
        losses = [row["loss"] for row in rows if isinstance(row.get("loss"), int | float)]
        stages.append({
            "folder": str(place),
            "step": int(last.get("step", 0)),
            "steps": recipe.get("steps"),
            "seconds": round(seconds_of(rows), 1),
            "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
            "held_out": next((row["validation"] for row in reversed(rows) if "validation" in row), None),
            "recipe": recipe,
        })  # fmt: skip
    made = {name: str(folder / name) for name in _MADE if (folder / name).exists()}
    left = folder / "left-out.txt"
    return {
        "run": str(folder),
        "stages": stages,
        "made": list(made.values()),
        "use": [_use(name, path, stages[-1]["recipe"] if stages else {}) for name, path in made.items()],
        "sheets": sorted(str(path) for path in folder.glob("**/*.png") if "cache" not in path.parts)[-5:],
        "left_out": sum(1 for line in left.read_text("utf-8", "replace").splitlines() if line) if left.is_file() else 0,
    }


def _use(name: str, path: str, recipe: Mapping[str, Any]) -> str:
    """A command that uses what was made."""
    texts = [*(recipe.get("prompts") or ()), recipe.get("caption"), recipe.get("trigger"), recipe.get("word")]
    prompt = next((text for text in texts if isinstance(text, str) and text and text.isprintable()), "PROMPT")
    return f"darkroom {_MADE[name].format(prompt=shlex.quote(prompt), made=shlex.quote(path))}"


def run_lines(told: Mapping[str, Any]) -> list[str]:
    """What `run_told` found, for people."""
    lines = [f"{told['run']}: a training"]
    for stage in told["stages"]:
        recipe, loss = stage["recipe"], stage["loss"]
        done = stage["step"] >= (stage["steps"] or 0)
        lines += [
            f"  {stage['folder']}: step {stage['step']:,} of {stage['steps']:,}"
            + ("" if done else "; the same command goes on with it"),
            f"    {_time(stage['seconds'])}, batches of {recipe.get('batch_size')}, learning rate {recipe.get('lr')}, "
            f"{recipe.get('optimizer')}",
        ]
        if loss:
            held = f", held out {stage['held_out']:.4f}" if stage["held_out"] is not None else ""
            lines.append(f"    loss {loss['first']:.4f} at first, {loss['last']:.4f} at last{held}")
    if not told["stages"]:
        lines.append("  not a step is done yet; the same command goes on with it")
    if told["left_out"]:
        lines.append(f"  {told['left_out']:,} pictures were left out: left-out.txt says why")
    lines += [f"  sheet: {sheet}" for sheet in told["sheets"]]
    lines += [f"  made: {path}" for path in told["made"]]
    lines += [f"  use it: {command}" for command in told["use"]]
    return lines


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
