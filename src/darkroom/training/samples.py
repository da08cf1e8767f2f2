"""Sheets of samples: what a training can draw so far, always from the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..engine.job import Inputs
from ..request import Request

if TYPE_CHECKING:
    from .stage import PictureStage

PICTURES = 4  # in a sheet, where the recipe names no prompts


@torch.no_grad()
def draw_sheet(stage: PictureStage) -> Image.Image:
    """The pictures of a stage's prompts, side by side; picture i has seed i. Afterwards all networks are as before."""
    learning = [module for module in stage.modules.values() if module.training]
    for module in learning:
        module.eval()
    try:
        with stage.drawing() as told:
            pictures = _drawn(stage, told)
    finally:
        for module in learning:
            module.train()
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width
    return sheet


def _drawn(stage: PictureStage, told: Mapping[str, Any]) -> list[Image.Image]:
    known = {field.name for field in fields(Inputs)}
    inputs = Inputs(**{name: value for name, value in told.items() if name in known})
    options: dict[str, Any] = {name: value for name, value in told.items() if name not in known}
    if inputs.image is None:
        width, height = stage.pipe.size if not stage.config.size else (stage.config.size,) * 2
        options |= {"width": width, "height": height}
    prompts = list(stage.config.prompts or dict.fromkeys(filter(None, stage.lessons.captions)))
    prompts = prompts if stage.config.prompts else prompts[:PICTURES]
    requests = [Request.from_dict({"prompt": p, "seed": i, **options}) for i, p in enumerate(prompts or [""])]
    images = stage.pipe.draw(requests, [inputs] * len(requests)).images
    return [image for image in images if isinstance(image, Image.Image)]
