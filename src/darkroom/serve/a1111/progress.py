"""How far the caller's jobs are, and ending them: never another's."""

from __future__ import annotations

import base64
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...formats.infotext import whole
from .. import queue
from ..answers import Json, Refused
from ..bodies import json_body, owner_of, server_of
from ..keys import Owner
from ..server import Server
from ..tables import LIVE, QUEUED, RUNNING

router = APIRouter()

LOOKING = 5.0  # seconds after a question about progress in which previews are made


async def _oldest(server: Server, owner: Owner) -> dict[str, Any] | None:
    """The key's oldest job that runs, else that waits: what A1111's questions without a name are about."""
    id = await server.store.read(lambda c: queue.oldest_of(c, owner.name))
    return None if id is None else await server.view(owner, id)


def _share(view: dict[str, Any]) -> float:
    return min(1.0, view["step"] / max(view["steps"], 1)) if view["state"] == RUNNING else 0.0


@router.get("/sdapi/v1/progress")
async def progress(request: Request, skip_current_image: bool = False) -> Response:
    """How far the caller's oldest job is; all zero where it has none."""
    server, owner = server_of(request), owner_of(request)
    view = await _oldest(server, owner)
    state: dict[str, Any] = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": ""}
    state |= {"job_count": 0, "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
    told: dict[str, Any] = {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None}
    told["textinfo"] = None
    if view is None:
        return Json(told)
    server.hub.look(owner.name, 0.0 if skip_current_image else LOOKING)
    live = server.hub.live.get(view["id"])
    state |= {
        "job": view["alias"] or view["id"],
        "job_count": view["n"],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(view["created"])),
        "job_no": len(view["images"]),
        "sampling_step": max((step for step, _ in live.steps.values()), default=0) if live else 0,
        "sampling_steps": view["steps"] // view["n"],
    }
    told["progress"] = _share(view)
    told["eta_relative"] = view["seconds"] * (1 - _share(view))
    told["textinfo"] = None if view["state"] == RUNNING else "Queued..."
    if live is not None and live.preview is not None and not skip_current_image:
        told["current_image"] = base64.b64encode(live.preview).decode("ascii")
    return Json(told)


@router.post("/internal/progress")
async def internal_progress(request: Request) -> Response:
    """How far a job of the caller's is, by the id that it was sent with."""
    server, owner, body = server_of(request), owner_of(request), await json_body(request)
    task, seen = body.get("id_task"), whole(body.get("id_live_preview", -1))
    if (task is not None and not isinstance(task, str)) or seen is None:
        raise Refused(422, "id_task must be a text, and id_live_preview a whole number")
    view = await server.view(owner, task) if task else None
    state = None if view is None else view["state"]
    told: dict[str, Any] = {"active": state == RUNNING, "queued": state == QUEUED, "paused": False}
    told |= {"completed": state is not None and state not in LIVE, "progress": None, "eta": None}
    told |= {"live_preview": None, "id_live_preview": -1, "textinfo": "Queued..." if state == QUEUED else "Waiting..."}
    if view is None or state != RUNNING:
        return Json(told)
    told |= {"progress": _share(view), "eta": view["seconds"] * (1 - _share(view)), "textinfo": None}
    told["id_live_preview"] = seen
    if body.get("live_preview", True):
        server.hub.look(owner.name, LOOKING)
        live = server.hub.live.get(view["id"])
        if live is not None and live.preview is not None and live.preview_count != seen:
            told["live_preview"] = f"data:image/jpeg;base64,{base64.b64encode(live.preview).decode('ascii')}"
            told["id_live_preview"] = live.preview_count
    return Json(told)


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> Response:
    """The caller's jobs that wait, oldest first."""
    server, owner = server_of(request), owner_of(request)
    waiting = await server.store.read(lambda c: queue.listed(c, owner.name, (QUEUED,), 1000, {}))
    tasks = [view["alias"] or view["id"] for view in reversed(waiting)]
    return Json({"size": len(tasks), "tasks": tasks})


@router.post("/sdapi/v1/interrupt")
async def interrupt(request: Request) -> Response:
    """End the caller's oldest job; what of it is finished is its answer."""
    await _end(request)
    return Json({})


@router.post("/sdapi/v1/skip")
async def skip(request: Request) -> Response:
    """End the pictures of the caller's oldest job that are being drawn; those that wait are drawn."""
    await _end(request, waiting=False)
    return Json(None)


async def _end(request: Request, waiting: bool = True) -> None:
    server, owner = server_of(request), owner_of(request)
    view = await _oldest(server, owner)
    if view is not None:
        await server.cancel(owner, view["id"], waiting=waiting)
