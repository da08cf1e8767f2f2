"""What there is: A1111's lists of models, samplers, upscalers and the rest. What isn't there has an empty list."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ... import __version__
from ...diffusion import TABLE
from ...samplers import entries
from ..answers import Json
from ..bodies import server_of
from ..server import Server
from .asked import LANCZOS, LATENT
from .fields import read_styles
from .options import title_of

router = APIRouter(prefix="/sdapi/v1")

UPSCALERS = ("None", LANCZOS, "Nearest")


def _models(server: Server) -> Any:
    return [
        {
            "title": title_of(server, found),
            "model_name": found.name,
            "hash": (server.dispatcher.descriptions.get(found.fingerprint) or {}).get("hash"),
            "sha256": None,
            "filename": found.name,  # where files lie is nobody's business
            "config": None,
        }
        for found in server.index.found["model"].values()
    ]


def _vaes(server: Server) -> Any:
    return [{"model_name": name, "filename": name} for name in server.index.found["vae"]]


def _loras(server: Server) -> Any:
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in server.index.found["lora"]]


def _embeddings(server: Server) -> Any:
    unread = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return {"loaded": dict.fromkeys(server.index.found["embedding"], unread), "skipped": {}}


def _samplers(server: Server) -> Any:
    return [
        {
            "name": row.label,
            "aliases": list(row.aliases) or [row.id],
            "options": {"scheduler": row.schedule} if row.schedule not in (None, "normal") else {},
        }
        for row in entries()
    ]


def _schedulers(server: Server) -> Any:
    known = [("automatic", "Automatic", ()), *((row.id, row.label or row.id, row.aliases) for row in TABLE)]
    return [
        {"name": id, "label": label, "aliases": list(aliases), "default_rho": -1.0, "need_inner_model": False}
        for id, label, aliases in known
    ]


def _upscalers(server: Server) -> Any:
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 1 if name == "None" else 4}
        for name in (*UPSCALERS, *server.index.found["upscaler"])
    ]


def _styles(server: Server) -> Any:
    styles = read_styles(server.index)
    return [{"name": name, "prompt": text, "negative_prompt": other} for name, (text, other) in styles.items()]


def _memory(server: Server) -> Any:
    size = os.sysconf("SC_PAGE_SIZE")
    total, free = (size * os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV"))
    used = sum(int(seat.link.stats.get("memory") or 0) for seat in server.dispatcher.seats)
    return {"ram": {"free": free, "used": used, "total": total}, "cuda": {"error": "unavailable"}}


def _scripts(server: Server) -> Any:
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


def _script_info(server: Server) -> Any:
    return [{"name": "controlnet", "is_alwayson": True, "is_img2img": image, "args": []} for image in (False, True)]


def _flags(server: Server) -> Any:
    return {
        "api": True,
        "version": f"darkroom {__version__}",
        "listen": server.options.host,
        "port": server.options.port,
        "ckpt": server.index.default_model.name,
    }


def _nothing(server: Server) -> Any:
    return []


async def _scan(server: Server) -> Any:
    await server.in_pool(server.index.scan)


async def _leave(server: Server) -> Any:
    """Models are held and let go as the server's memory allows; nobody takes one from another."""
    return {}


LISTS = {
    "sd-models": _models,
    "sd-vae": _vaes,
    "sd-modules": _vaes,
    "loras": _loras,
    "embeddings": _embeddings,
    "samplers": _samplers,
    "schedulers": _schedulers,
    "upscalers": _upscalers,
    "latent-upscale-modes": lambda server: [{"name": LATENT}],
    "prompt-styles": _styles,
    "memory": _memory,
    "scripts": _scripts,
    "script-info": _script_info,
    "cmd-flags": _flags,
    **dict.fromkeys(("hypernetworks", "face-restorers", "realesrgan-models", "extensions", "lycos"), _nothing),
}
ACTIONS = {
    **{f"refresh-{what}": _scan for what in ("checkpoints", "loras", "embeddings", "vae", "lycos")},
    "unload-checkpoint": _leave,
    "reload-checkpoint": _leave,
}


def _add(name: str) -> None:
    if name in LISTS:

        async def told(request: Request) -> Response:
            return Json(LISTS[name](server_of(request)))

        router.add_api_route(f"/{name}", told, methods=["GET"], name=name)
    else:

        async def done(request: Request) -> Response:
            return Json(await ACTIONS[name](server_of(request)))

        router.add_api_route(f"/{name}", done, methods=["POST"], name=name)


for _name in (*LISTS, *ACTIONS):
    _add(_name)
