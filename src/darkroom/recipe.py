"""Recipes from files: a picture's, whoever wrote it, or JSON, as a request and what of it isn't followed.

recipe = darkroom.read_recipe("theirs.png")
result = pipe.draw([recipe])
result.warnings  # begins with recipe.warnings
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ImageError, RequestError, visible
from .formats.picture import Metadata, load_json, read_metadata
from .request import Request

_MAX_JSON = 64 * 2**20  # bytes
_MOST_SENTENCES = 5  # of what could not be told for sure


@dataclass(frozen=True)
class Recipe:
    """How a picture was made, to be made again.

    Attributes:
        request: what is followed of it.
        source: who wrote it: "darkroom", "a1111", "comfyui", ...
        unfollowed: what it asks beyond that and changes the picture: the other tool's names -> values.
        warnings: one sentence for what isn't followed, and one for each thing that could not be told for sure.
    """

    request: Request
    source: str = "darkroom"
    unfollowed: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def read_recipe(path: str | Path, *, strict: bool = False) -> Recipe:
    """The recipe in a picture, or in a JSON file of a request's fields.

    strict: refuse one that can't be followed in full. Raises ImageError for a picture that can't be read or holds no
    recipe, RequestError for JSON that is none, and with `strict`.
    """
    name = str(path)
    if Path(path).suffix.lower() == ".json":
        return Recipe(_from_json(name))
    return recipe_of(read_metadata(path), name, strict=strict)


def recipe_of(found: Metadata, image: str, *, strict: bool = False) -> Recipe:
    """The recipe in what was read from a picture called `image`. Raises as `read_recipe` does."""
    request = _request(found, image)
    if strict and (found.ignored or found.warnings):
        asked = ", ".join(one for one in (found.not_followed, *found.warnings) if one)
        raise RequestError(
            f"the recipe in {image!r} can't be followed in full: {visible(asked)}; or leave out --strict"
        )
    said = [f"of the recipe in {image!r} this is not followed: {found.not_followed}"] if found.ignored else []
    said += [f"the recipe in {image!r}: {sentence}" for sentence in found.warnings[:_MOST_SENTENCES]]
    return Recipe(request, str(found.source), dict(found.ignored), tuple(said))


def _request(found: Metadata, image: str) -> Request:
    if found.source is not None and "prompt" not in found.recipe and found.warnings:
        raise ImageError(
            f"the recipe in {image!r} can't be followed: {visible(found.warnings[0])}; give a prompt and the settings "
            "that 'darkroom info' tells"
        )
    if found.source is None or "prompt" not in found.recipe:
        raise ImageError(f"{image!r} holds no recipe, so it can't be drawn again")
    if "sweep" in found.recipe:
        raise ImageError(f"{image!r} is a sheet of several pictures: take one of them instead")
    fields = Request.__dataclass_fields__
    values: dict[str, Any] = {key: value for key, value in found.recipe.items() if key in fields}
    if found.source == "darkroom":
        unknown = sorted(found.recipe.keys() - fields.keys() - {"schema"})
        if unknown:
            raise ImageError(
                f"the recipe of {image!r} holds {visible(unknown[0][:40])!r}, which this version doesn't know; "
                "use a newer one"
            )
    else:  # another tool's recipe may leave these out; its picture has them
        values.setdefault("width", found.width)
        values.setdefault("height", found.height)
    try:
        return Request.from_dict(values)
    except RequestError as error:
        raise ImageError(f"the recipe of {image!r} can't be followed: {error}") from error


def _from_json(file: str) -> Request:
    try:
        if (size := os.stat(file).st_size) > _MAX_JSON:
            raise RequestError(f"{file!r} has {size} bytes, which is more than any recipe")
        values = load_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"can't read a recipe from {file!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Request.from_dict(values)
    except RequestError as error:
        raise RequestError(f"the recipe in {file!r} can't be followed: {error}") from error
