"""Sheets of pictures that say what a training has learned: on the way, and at its end before and after.

What is drawn at the end is drawn as the user will draw it: a stage says how its result is used (`Use`), and from that
come both the command that is told to the user and the call that draws the sheet.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageDraw

import darkroom

from ..engine.job import Control, Inputs
from ..files import replacing
from ..pipeline import Pipeline
from ..request import Request
from ..settings import settings
from ..sweeps.sheet import contact_sheet
from .kinds import Report

if TYPE_CHECKING:
    from ..names import Hint

NAME = "before-after.png"  # in a run's folder
PICTURES = 4  # in a sheet, where the recipe names no prompts
IMAGE, MASK = "picture.png", "mask.png"  # what stands for the user's own in a command


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How the result of a training is used.

    Attributes:
        model: a model in place of the one that the training began with.
        lora, embedding, control: files and folders to draw with; `hint`: what the ControlNet is shown.
        paints: whether it wants a picture and a mask.
        options: fields of a request that suit it, such as steps.
        begun: whether there is a model without it, to be shown as "before".
        instead: a command, where it isn't something to draw with.
    """

    model: Path | None = None
    lora: Path | None = None
    embedding: Path | None = None
    control: Path | None = None
    hint: str = ""
    paints: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    begun: bool = True
    instead: Sequence[str] = ()

    def command(self, prompt: str, model: str | None) -> str:
        """What to type next; `model` is the one that the training began with (None: the embedded one)."""
        if self.instead:
            return shlex.join(["darkroom", *self.instead])
        words = ["darkroom", "generate", prompt]
        model = near(self.model) or (model if self.begun else None)
        for option, value in (
            ("--model", model), ("--lora", near(self.lora)), ("--embedding", near(self.embedding)),
            ("--control", self.control and f"{near(self.control)}={self.hint}@{IMAGE}"),
            ("--image", IMAGE if self.paints else None), ("--mask", MASK if self.paints else None),
            *((settings(Request)[name].option, value) for name, value in self.options.items()),
        ):  # fmt: skip
            if value is not None and option is not None:
                words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)


def near(path: Path | None) -> str | None:
    """A path as it is typed here: below the folder that one is in, its way from there."""
    if path is None:
        return None
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def spread(texts: Sequence[str], count: int = PICTURES) -> list[str]:
    """`count` of the different texts that aren't empty, from the first to the last of them; all, if there are fewer."""
    known = list(dict.fromkeys(filter(None, texts)))
    return [known[i * len(known) // count] for i in range(count)] if len(known) > count else known


def draw(
    pipe: Pipeline, prompts: Sequence[str], told: Mapping[str, Any], size: tuple[int, int] | None = None
) -> list[Image.Image]:
    """A picture of each prompt, picture i of seed i; `told` are fields of Request and Inputs to go with."""
    known = {field.name for field in fields(Inputs)}
    inputs = Inputs(**{name: value for name, value in told.items() if name in known})
    options: dict[str, Any] = {name: value for name, value in told.items() if name not in known}
    if inputs.image is None and size is not None:
        options |= {"width": size[0], "height": size[1]}
    requests = [Request.from_dict({"prompt": p, "seed": i, **options}) for i, p in enumerate(prompts)]
    images = pipe.draw(requests, [inputs] * len(requests)).images
    return [image for image in images if isinstance(image, Image.Image)]


def labelled(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], title: str = "") -> Image.Image:
    """Rows of pictures by their names, with their prompts above; a single row has no name."""
    cells = {(x, y, 0): picture for y, pictures in enumerate(rows.values()) for x, picture in enumerate(pictures)}
    return contact_sheet(cells, (prompts, tuple(rows) if len(rows) > 1 else (), ()), title)


# --- before and after


def before_and_after(
    use: Use,
    pipe: Pipeline,
    prompts: Sequence[str],
    shown: Image.Image | None,
    recipe: Any,
    output: Path,
    report: Report,
) -> Path | None:
    """Draw the sheet of a finished run: each prompt by the model as it was, and with the result, of the same seeds.

    Args:
        pipe: the model as it was; where there was none, as it is.
        shown: a picture to be painted in, or to make a hint of.

    Returns the file, in `output`; None where nothing is asked for. Raises what drawing raises.
    """
    if not prompts:
        return None
    report("drawing before and after", None, 0)
    rows = dict(_rows(use, pipe, prompts, shown, recipe))
    title = f"{output.name}: {recipe.steps:,} steps; seeds 0 to {len(prompts) - 1}"
    with replacing(output / NAME) as draft:
        labelled(rows, prompts, title).save(draft, "PNG")
    return output / NAME


def _rows(
    use: Use, pipe: Pipeline, prompts: Sequence[str], shown: Image.Image | None, recipe: Any
) -> Iterator[tuple[str, list[Image.Image]]]:
    size: tuple[int, int] | None = (recipe.size, recipe.size) if recipe.size else None
    shared: dict[str, Any] = {}
    if shown is not None:
        yield ("picture", [shown] * len(prompts))
        if use.paints:
            shared = {"image": shown, "mask": middle(shown.size)}
        else:
            size = shown.size
    if use.begun:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the model doesn't know the word yet is what this row shows
            before = draw(pipe, prompts, {**shared, **use.options}, size)
        yield ("before", before)
        pipe = pipe if use.model is None else darkroom.load(use.model, device=recipe.device)
    opened = pipe.inputs(
        loras=[use.lora] if use.lora else (), embeddings=[use.embedding] if use.embedding else (),
        controls=[Control(use.control, shown, hint=cast("Hint", use.hint))] if use.control and shown else (),
    )  # fmt: skip
    brought = {name: getattr(opened, name) for name in ("loras", "embeddings", "controls")}
    yield ("after", draw(pipe, prompts, {**brought, **shared, **use.options}, size))


def middle(size: tuple[int, int]) -> Image.Image:
    """A mask of a box in the middle."""
    width, height = size
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=255)
    return mask
