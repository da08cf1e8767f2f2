"""txt2img and img2img: a job is taken in, waited for, and answered in A1111's form."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from ... import __version__
from ...errors import ImageError
from ...formats.picture import encoded, load_recipe
from ...formats.sampler_names import SAMPLER_NAMES
from .. import queue
from ..answers import Json, Refused
from ..bodies import gone, json_body, owner_of, server_of
from ..models import WITH
from ..tables import FAILED, FINISHED
from .asked import Asked, read, settings_of, with_infotext
from .options import model_of, preferred

router = APIRouter(prefix="/sdapi/v1")

MAX_TASK = 300  # characters of a task's id


@router.post("/txt2img")
async def txt2img(request: Request) -> Response:
    """Pictures from a text."""
    return await _draw(request, "txt2img")


@router.post("/img2img")
async def img2img(request: Request) -> Response:
    """Pictures from a picture; with a mask, only part of it is drawn anew."""
    return await _draw(request, "img2img")


async def _draw(request: Request, kind: str) -> Response:
    server, owner = server_of(request), owner_of(request)
    ignored: dict[str, str] = {}
    given = with_infotext(await json_body(request), ignored)
    task = given.get("force_task_id")
    if task is not None and (not isinstance(task, str) or len(task) > MAX_TASK):
        raise Refused(422, f"force_task_id must be a text of at most {MAX_TASK} characters", field="force_task_id")
    settings = settings_of(given, await preferred(server, owner))
    found = model_of(server, settings)
    description = {**await server.dispatcher.describe(found), "name": found.name}
    asked = await server.in_pool(
        read, kind, given, settings, description, server.index, server.options.max_pixels, ignored
    )
    id = await server.submit(owner, "a1111", asked.wanted, alias=task or None)
    request.scope["state"]["job"] = id
    view = await server.wait(owner, id, gone(request))
    if view["state"] == FAILED:
        raise Refused(500, view["error"])
    rows = [row for row in await server.store.read(lambda c: queue.pictures_of(c, id)) if row.state == FINISHED]
    files = [await server.file(row.file) or b"" for row in rows if row.file is not None]
    return await server.in_pool(_answer, asked, view, rows, files, description)


def _answer(
    asked: Asked, view: Mapping[str, Any], rows: Sequence[Any], files: Sequence[bytes], description: Mapping[str, Any]
) -> Response:
    """Pictures, then hints of ControlNets; the request again, with what wasn't followed; a JSON text of the rest."""
    images = []
    if asked.fields.flag("send_images"):
        images = [
            base64.b64encode(part).decode("ascii") for part in (*(_as(f, asked.format) for f in files), *asked.hints)
        ]
    return Json(
        {
            "images": images,
            "parameters": {**_echo(asked), "ignored": asked.ignored},
            "info": json.dumps(_info(asked, view, rows, description)),
        }
    )


def _as(data: bytes, format: str) -> bytes:
    """A finished picture's PNG file in the format asked for, with its recipe."""
    if format == "png":
        return data
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        recipe = load_recipe(picture.text.get("darkroom", ""))  # type: ignore[attr-defined]  # of a PNG file
        try:
            return encoded(picture, "WEBP" if format == "webp" else "JPEG", recipe)
        except ImageError:  # a recipe that a JPEG has no room for
            return data


def _echo(asked: Asked) -> dict[str, Any]:
    """The fields that a request had, without its pictures unless it asks for them."""
    f = asked.fields
    echo = {name: f[name] for name in f.usual}
    echo["alwayson_scripts"] = {name: {} for name in f.object("alwayson_scripts")}
    if f.kind == "img2img" and not f.flag("include_init_images"):
        echo |= {"init_images": None, "mask": None}
    return echo


def _info(asked: Asked, view: Mapping[str, Any], rows: Sequence[Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """A1111's `info`: what the pictures were drawn with. It lists as many seeds as there are pictures."""
    f = asked.fields
    recipes = [load_recipe(row.recipe or "") for row in rows]
    seeds = [
        int(row.seed) if not asked.wanted.request.variation_strength else recipe["seed"]
        for row, recipe in zip(rows, recipes, strict=True)
    ]
    subseeds = [recipe.get("variation_seed", -1) for recipe in recipes]
    request = view["request"]
    prompts, negative = [request["prompt"]] * len(rows), [request.get("negative_prompt", "")] * len(rows)
    model, _, vae = description["name"].partition(WITH)
    return {
        "prompt": request["prompt"],
        "all_prompts": prompts,
        "negative_prompt": request.get("negative_prompt", ""),
        "all_negative_prompts": negative,
        "seed": seeds[0] if seeds else int(request["seed"]),
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else -1,
        "all_subseeds": subseeds,
        "subseed_strength": request.get("variation_strength") or 0.0,
        "width": rows[0].width if rows else f.whole("width"),
        "height": rows[0].height if rows else f.whole("height"),
        "sampler_name": SAMPLER_NAMES.get(request["sampler"], request["sampler"]),
        "cfg_scale": request["guidance_scale"],
        "steps": request["steps"],
        "batch_size": f.whole("batch_size"),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": (description.get("hash") or "")[:10],
        "sd_vae_name": vae or None,
        "sd_vae_hash": None,
        "seed_resize_from_w": f.whole("seed_resize_from_w"),
        "seed_resize_from_h": f.whole("seed_resize_from_h"),
        "denoising_strength": f.number("denoising_strength")
        if "image" in asked.wanted.pictures or request.get("hires")
        else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [row.infotext or "" for row in rows],
        "styles": f.texts("styles"),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(view["created"])),
        "clip_skip": max(request.get("clip_skip", 0), 1),
        "is_using_inpainting_conditioning": False,
        "version": f"darkroom {__version__}",
    }
