"""A1111's options: what the server says of itself, and what a caller may prefer. Nobody changes another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...errors import RequestError, shown
from ...formats.infotext import whole
from ...request import MAX_CLIP_SKIP
from ..answers import Json, Refused
from ..bodies import json_body, owner_of, server_of
from ..keys import Owner
from ..models import Found
from ..server import Server

router = APIRouter(prefix="/sdapi/v1")

PREFIX = "a1111."  # of the names under which preferences are kept
FORMATS = ("png", "jpg", "webp")
OWN_VAE = ("Automatic", "None")  # the model's own
# What a caller may change, and its usual value; sd_model_checkpoint's is the server's default model.
CHANGEABLE: Mapping[str, Any] = {
    "sd_model_checkpoint": None,
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "randn_source": "CPU",
    "samples_format": "png",
    "send_seed": True,
}
# What is so, under A1111's names.
FIXED: Mapping[str, Any] = {
    "samples_save": True, "samples_filename_pattern": "", "grid_save": False, "return_grid": False,
    "enable_pnginfo": True, "save_txt": False, "jpeg_quality": 95, "send_size": True, "sd_checkpoints_limit": 1,
    "sd_checkpoint_cache": 0, "sd_unet": "Automatic", "sd_hypernetwork": "None", "emphasis": "Original",
    "enable_batch_seeds": True, "comma_padding_backtrack": 20, "upcast_attn": False, "tiling": False,
    "eta_noise_seed_delta": 0, "eta_ddim": 0.0, "eta_ancestral": 1.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0,
    "s_noise": 1.0, "s_min_uncond": 0.0, "token_merging_ratio": 0.0, "always_discard_next_to_last_sigma": False,
    "sgm_noise_multiplier": False, "img2img_fix_steps": False, "img2img_color_correction": False,
    "initial_noise_multiplier": 1.0, "inpainting_mask_weight": 1.0, "face_restoration": False,
    "face_restoration_model": None, "upscaler_for_img2img": None, "live_previews_enable": True,
    "show_progress_every_n_steps": 1, "show_progress_type": "Approx cheap", "live_previews_image_format": "jpeg",
}  # fmt: skip
# Settings that a request may override and that are followed.
FOLLOWED = (
    *CHANGEABLE,
    "eta_noise_seed_delta",
    "token_merging_ratio",
    "always_discard_next_to_last_sigma",
    "sgm_noise_multiplier",
)


async def preferred(server: Server, owner: Owner) -> dict[str, Any]:
    """What a key prefers, by A1111's names; without a model or a VAE that isn't there any more."""
    kept = await server.preferences(owner)
    mine = {name.removeprefix(PREFIX): value for name, value in kept.items() if name.startswith(PREFIX)}
    here = {"sd_model_checkpoint": server.index.found["model"], "sd_vae": (*OWN_VAE, *server.index.found["vae"])}
    return {name: value for name, value in mine.items() if name not in here or value in here[name]}


def find_model(server: Server, name: str | None) -> Found:
    """A model by its title, name, file or hash; None: the default one. Raises RequestError."""
    if name is None:
        return server.index.default_model
    try:
        return server.index.get("model", name)
    except RequestError:
        for found in server.index.found["model"].values():
            known = (server.dispatcher.descriptions.get(found.fingerprint) or {}).get("hash") or ""
            if len(name) >= 8 and known.startswith(name.casefold()[:10]):
                return found
        raise


def title_of(server: Server, found: Found) -> str:
    """A model's title: its name, and its hash once that is known."""
    known = (server.dispatcher.descriptions.get(found.fingerprint) or {}).get("hash")
    return f"{found.name} [{known[:10]}]" if known else found.name


def model_of(server: Server, settings: Mapping[str, Any]) -> Found:
    """The model that settings name, with the autoencoder that they name. Raises Refused (422) and RequestError."""
    model, vae = settings.get("sd_model_checkpoint"), settings.get("sd_vae")
    for name in (model, vae):
        if name is not None and not isinstance(name, str):
            raise Refused(422, f"a model's or VAE's name is {shown(name)}; give a text", field="override_settings")
    found = find_model(server, model or None)
    return found if vae in (None, "", *OWN_VAE) else found.with_vae(server.index.get("vae", vae))


async def current(server: Server, owner: Owner) -> dict[str, Any]:
    """All options as they are for a key."""
    mine = await preferred(server, owner)
    found = find_model(server, mine.get("sd_model_checkpoint"))
    title = title_of(server, found)
    known = (server.dispatcher.descriptions.get(found.fingerprint) or {}).get("hash")
    return {**FIXED, **CHANGEABLE, **mine, "sd_model_checkpoint": title, "sd_checkpoint_hash": known}


@router.get("/options")
async def get_options(request: Request) -> Response:
    """About forty names that clients look for; the caller's own values where it changed them."""
    return Json(await current(server_of(request), owner_of(request)))


@router.post("/options")
async def set_options(request: Request) -> Response:
    """Change what the caller prefers. Values that are as they were are passed over: clients post the whole back."""
    server, owner, body = server_of(request), owner_of(request), await json_body(request)
    now = await current(server, owner)
    changed = {name: value for name, value in body.items() if name not in now or value != now[name]}
    others = sorted(name for name in changed if name not in CHANGEABLE)
    if others:
        raise Refused(400, f"these options can't be changed here: {', '.join(map(shown, others[:10]))}")
    kept = {f"{PREFIX}{name}": _checked(server, name, value) for name, value in changed.items()}
    await server.prefer(owner, kept)
    return Json(None)


def _checked(server: Server, name: str, value: Any) -> Any:
    """An option's value as it is kept; None: the usual one. Raises Refused (400)."""
    if value is None:
        return None
    if name == "CLIP_stop_at_last_layers":
        layers = whole(value)
        if layers is None or not 1 <= layers <= MAX_CLIP_SKIP:
            raise Refused(400, f"{name} is {shown(value)}; give a whole number from 1 to {MAX_CLIP_SKIP}", field=name)
        return layers
    if name == "send_seed":
        if not isinstance(value, bool):
            raise Refused(400, f"{name} is {shown(value)}; give true or false", field=name)
        return value
    if not isinstance(value, str):
        raise Refused(400, f"{name} is {shown(value)}; give a text", field=name)
    try:
        if name == "sd_model_checkpoint":
            return find_model(server, value).name
        if name == "sd_vae":
            return value if value in OWN_VAE else server.index.get("vae", value).name
    except RequestError as error:
        raise Refused(400, str(error), field=name) from None
    known = {"samples_format": (*FORMATS, "jpeg"), "randn_source": ("CPU", "GPU", "NV")}[name]
    if value not in known:
        raise Refused(400, f"{name} is {shown(value)}; there are {', '.join(known)}", field=name)
    return value
