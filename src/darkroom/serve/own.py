"""Darkroom's own dialect: jobs, their events, the gallery, and what a page needs to know."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter
from PIL import Image
from sqlalchemy import select
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..diffusion import SPACINGS
from ..errors import RequestError
from ..formats.picture import load_recipe
from ..hints import HINTS, make
from ..request import MAX_IMAGES, MAX_PIXELS, MAX_PROMPT, MAX_SIDE, MAX_STEPS
from ..samplers import entries
from . import gallery, queue, views
from .a1111.fields import read_styles
from .answers import Json, Refused
from .bodies import event, event_stream, file_bytes, form_body, json_body, owner_of, parse, server_of
from .data import DataError
from .events import CHANGED, PREVIEW
from .jobs import body_schema, read_wanted, usual_settings
from .keys import Owner
from .models import ModelIndex
from .server import Server
from .tables import CANCELLED, FAILED, FINISHED, LIVE, QUEUED, RUNNING, jobs
from .uploads import from_text, read_picture

router = APIRouter(prefix="/api")

Decode = Callable[[str, Any], bytes | str]
STATES = (QUEUED, RUNNING, FINISHED, FAILED, CANCELLED)
SESSION_DAYS = 30
MAX_PREFERENCES = 64 * 1024  # bytes


def _missing(what: str = "job") -> Refused:
    return Refused(404, f"there is no such {what}")


# --- jobs


def _takes(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_OBJECT: dict[str, Any] = {"type": "object"}


async def job_body(request: Request) -> tuple[dict[str, Any], Decode]:
    """A job's JSON, and what makes pictures of the texts in it; of a form, the files are named in it by their roles."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        form = await form_body(request)
        text = form.get("request")
        if text is None:
            raise Refused(422, "the form has no part named request; send the job's JSON there", field="request")
        try:
            values = parse(await file_bytes(text))
        except (ValueError, RecursionError):
            raise Refused(422, "the part named request is not valid JSON", field="request") from None
        if not isinstance(values, dict):
            raise Refused(422, "the part named request is no JSON object", field="request")
        files = {name: await file_bytes(part) for name, part in form.multi_items() if isinstance(part, UploadFile)}
        for role in files.keys() - {"request"}:
            values.setdefault(role, f"part:{role}")
    else:
        values, files = await json_body(request), {}

    def decode(name: str, given: Any) -> bytes | str:
        part = given.removeprefix("part:") if isinstance(given, str) and given.startswith("part:") else None
        return files[part] if part in files else from_text(name, given)

    return values, decode


@router.post("/jobs", status_code=202, openapi_extra=_takes(body_schema()), response_model=views.Job)
async def new_job(request: Request) -> Response:
    """Take a job in: the arguments of `Pipeline.generate` as JSON, or a form of `request` and files by their roles."""
    server, owner = server_of(request), owner_of(request)
    values, decode = await job_body(request)
    wanted = await server.in_pool(read_wanted, values, decode)
    id = await server.submit(owner, "own", wanted)
    request.scope["state"]["job"] = id
    return Json(await server.view(owner, id), 202, {"Location": f"/api/jobs/{id}"})


@router.get("/jobs", response_model=views.Jobs)
async def list_jobs(request: Request, state: str = "queued,running", limit: int = 100) -> Response:
    """The caller's jobs in some states, newest first."""
    states = [word for word in state.split(",") if word]
    for word in states:
        if word not in STATES:
            raise Refused(422, f"there is no state {word[:30]!r}; there are {', '.join(STATES)}", field="state")
    if not 1 <= limit <= 1000:
        raise Refused(422, "limit must be from 1 to 1000", field="limit")
    return Json({"jobs": await server_of(request).views(owner_of(request), states, limit)})


@router.get("/jobs/{id}", response_model=views.Job)
async def one_job(request: Request, id: str) -> Response:
    """A job's present state."""
    view = await server_of(request).view(owner_of(request), id)
    if view is None:
        raise _missing()
    return Json(view)


@router.delete("/jobs/{id}", response_model=views.Job)
async def cancel_job(request: Request, id: str) -> Response:
    """End a job; its finished pictures stay."""
    server, owner = server_of(request), owner_of(request)
    if not await server.cancel(owner, id):
        raise _missing()
    return Json(await server.view(owner, id))


@router.delete("/jobs", response_model=views.Cancelled)
async def cancel_jobs(request: Request, state: str) -> Response:
    """End all of the caller's jobs in a state: queued or running."""
    server, owner = server_of(request), owner_of(request)
    if state not in LIVE:
        raise Refused(422, f"only jobs that are {' or '.join(LIVE)} can be ended", field="state")
    wanted = select(jobs.c.id).where(jobs.c.key == owner.name, jobs.c.state == state)
    ids = (await server.store.read(lambda c: c.execute(wanted).scalars().all()))[:10_000]
    for id in ids:
        await server.cancel(owner, id)
    return Json({"cancelled": len(ids)})


@router.post("/jobs/{id}/rerun", status_code=202, openapi_extra=_takes(_OBJECT), response_model=views.Job)
async def rerun_job(request: Request, id: str) -> Response:
    """A job once more, with `changes` to its request (a new seed: null)."""
    server, owner = server_of(request), owner_of(request)
    body = await json_body(request) if await request.body() else {}
    changes = body.get("changes", {})
    if not isinstance(changes, dict) or set(body) - {"changes"}:
        raise Refused(422, "give an object of changes to the request", field="changes")
    row = await server.store.read(lambda c: queue.find(c, id, owner.reach))
    if row is None:
        raise _missing()
    document = json.loads(row.request)
    roles = await server.store.read(lambda c: queue.inputs_of(c, row.id))
    values: dict[str, Any] = load_recipe(json.dumps(document["request"])) or dict(document["request"])
    values.pop("schema", None)
    controls = [control | {"image": f"input:{roles[f'control.{i}']}"} for i, control in enumerate(document["controls"])]
    values |= {"controls": controls, "loras": document["loras"], "upscale": document["upscale"], "n": document["n"]}
    values |= {role: f"input:{sha}" for role, sha in roles.items() if not role.startswith("control.")}
    values |= {"model": row.model} | changes
    wanted = await server.in_pool(read_wanted, values, from_text)
    made = await server.submit(owner, "own", wanted)
    return Json(await server.view(owner, made), 202, {"Location": f"/api/jobs/{made}"})


# --- events


@router.get("/jobs/{id}/events")
async def job_events(request: Request, id: str) -> Response:
    """A job's present state as it changes, to its end."""
    server, owner = server_of(request), owner_of(request)
    view = await server.view(owner, id)
    if view is None:
        raise _missing()
    return event_stream(_events(server, owner, view["id"]))


@router.get("/events")
async def all_events(request: Request) -> Response:
    """The present state of all of the caller's live jobs, and of each that changes."""
    return event_stream(_events(server_of(request), owner_of(request), None))


async def _events(server: Server, owner: Owner, job: str | None) -> AsyncIterator[bytes]:
    told: dict[str, tuple[Any, ...]] = {}
    with server.hub.watching(owner.reach, job) as watcher:
        server.dispatcher.wake()  # who watches is told to engines
        known = [await server.view(owner, job)] if job is not None else await server.views(owner, LIVE)
        for view in reversed([view for view in known if view is not None]):
            yield _told(server, view, told)
        if job is None:
            yield event("live", {"jobs": [view["id"] for view in known if view is not None]})
        elif known[0] is None or known[0]["state"] not in LIVE:
            return
        while not server.closing.is_set():
            news = await server.news(watcher)
            if news is None:
                for id in [id for id, state in told.items() if state[0] == QUEUED]:  # positions move by themselves
                    if (view := await server.view(owner, id)) is not None and _mark(view) != told[id]:
                        yield _told(server, view, told)
                continue
            id, kinds = news
            live = server.hub.live.get(id)
            if PREVIEW in kinds and live is not None and live.preview is not None:
                picture = base64.b64encode(live.preview).decode("ascii")
                yield event("preview", {"id": id, "index": live.preview_index, "preview": picture})
            if kinds == {PREVIEW}:
                continue
            view = await server.view(owner, id)
            if view is None or (CHANGED not in kinds and _mark(view) == told.get(id)):
                continue
            yield _told(server, view, told)
            if view["state"] not in LIVE:
                told.pop(id, None)
                server.hub.live.pop(id, None)
                if job is not None:
                    return


def _mark(view: dict[str, Any]) -> tuple[Any, ...]:
    return view["state"], view["position"], view["step"], len(view["images"])


def _told(server: Server, view: dict[str, Any], told: dict[str, tuple[Any, ...]]) -> bytes:
    told[view["id"]] = _mark(view)
    return event("progress" if view["state"] == RUNNING else view["state"], view)


# --- inputs


@router.put("/inputs/{sha256}", response_model=views.Input)
async def put_input(request: Request, sha256: str) -> Response:
    """Send a picture ahead, under the SHA-256 of its bytes; jobs name it as input:SHA256."""
    server, owner = server_of(request), owner_of(request)
    body = await request.body()
    upload = await server.receive("the picture", body)
    if upload.sha256 != sha256.casefold():
        raise Refused(422, f"the SHA-256 of what was sent is {upload.sha256}", field="sha256")
    await server.keep_input(owner, upload)
    return Json({"sha256": upload.sha256, "width": upload.width, "height": upload.height})


@router.api_route("/inputs/{sha256}", methods=["GET", "HEAD"])
async def get_input(request: Request, sha256: str) -> Response:
    """A picture that was sent, as a PNG of its pixels; 404 where it is not (or no longer) here."""
    server, sha = server_of(request), sha256.casefold()
    try:
        await server.input_size(owner_of(request), sha)
        png = await server.in_pool(server.data.input, sha)
    except (RequestError, DataError):
        raise _missing("input") from None
    headers = {"ETag": f'"{sha}"', "Cache-Control": "private, max-age=3600"}
    return Response(png, media_type="image/png", headers=headers)


# --- the gallery


@router.get("/images", response_model=views.Pictures)
async def list_images(
    request: Request,
    q: str = "",
    model: str | None = None,
    before: str | None = None,
    limit: int = 50,
    pinned: bool | None = None,
    tag: str | None = None,
) -> Response:
    """The caller's finished pictures, newest first; `before` is the last id of the page before."""
    if not 1 <= limit <= gallery.MOST:
        raise Refused(422, f"limit must be from 1 to {gallery.MOST}", field="limit")
    server, owner = server_of(request), owner_of(request)
    rows = await server.store.read(
        lambda c: gallery.page(c, owner, q=q, model=model, before=before, limit=limit, pinned=pinned, tag=tag)
    )
    images = await server.in_pool(lambda: [gallery.shown(row) for row in rows])
    return Json({"images": images, "next": rows[-1].id if len(rows) == limit else None})


async def _row(request: Request, id: str) -> Any:
    row = await server_of(request).picture_row(owner_of(request), id)
    if row is None:
        raise _missing("picture")
    return row


@router.get("/images/{id}", response_model=views.PictureInfo)
async def one_image(request: Request, id: str) -> Response:
    """A picture with its recipe, as Darkroom's JSON and as A1111's text."""
    row = await _row(request, id)
    recipe = json.loads(row.recipe) if row.recipe else {}
    recipe = {k: str(v) if k in ("seed", "variation_seed") and v is not None else v for k, v in recipe.items()}
    return Json(gallery.shown(row) | {"recipe": recipe, "infotext": row.infotext})


@router.get("/images/{id}/file")
async def image_file(request: Request, id: str, download: bool = False) -> Response:
    """A picture's PNG file, with its recipe in it; 410 where it was let go."""
    row = await _row(request, id)
    return await picture_answer(request, row, "attachment" if download else "inline")


async def picture_answer(request: Request, row: Any, how: str = "inline") -> Response:
    """A finished picture's file as an answer."""
    data = None if row.file is None or row.deleted else await server_of(request).file(row.file)
    if data is None:
        raise Refused(410, "this picture's file is gone; its recipe is still here")
    tag = f'"{row.sha256}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    headers = {
        "ETag": tag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'{how}; filename="{row.id}.png"',
    }
    return Response(data, media_type="image/png", headers=headers)


@router.get("/images/{id}/thumb")
async def image_thumb(request: Request, id: str) -> Response:
    """A picture small, as WebP."""
    server, row = server_of(request), await _row(request, id)
    tag = f'"{row.sha256}-t"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    path = server.data.thumb_path(row.id)
    small = await server.in_pool(lambda: path.read_bytes() if path.exists() else None)
    if small is None:
        data = None if row.file is None else await server.file(row.file)
        if data is None:
            raise Refused(410, "this picture's file is gone; its recipe is still here")
        small = await server.in_pool(gallery.thumbnail, data)
        await server.in_pool(server.data.keep_thumb, row.id, small)
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(small, media_type="image/webp", headers=headers)


@router.patch("/images/{id}", openapi_extra=_takes(_OBJECT), response_model=views.Picture)
async def change_image(request: Request, id: str) -> Response:
    """Pin, rate (0 to 5) or tag a picture; `deleted: false` brings one back."""
    server, row, body = server_of(request), await _row(request, id), await json_body(request)
    values: dict[str, Any] = {}
    for name, given in body.items():
        if name == "pinned" and isinstance(given, bool):
            values["pinned"] = given
        elif name == "rating" and (given is None or (type(given) is int and 0 <= given <= 5)):
            values["rating"] = given
        elif name == "tags" and _are_tags(given):
            values["tags"] = json.dumps(given)
        elif name == "deleted" and given is False:
            await server.store.write(lambda c: gallery.delete(c, row.id, undo=True))
        else:
            raise Refused(
                422, "a picture has pinned (true, false), rating (0 to 5, null), tags (short texts)", field=name[:60]
            )
    if values:
        await server.store.write(lambda c: gallery.change(c, row.id, values))
    return Json(gallery.shown(await _row(request, id)))


def _are_tags(given: Any) -> bool:
    plain = isinstance(given, list) and len(given) <= gallery.MAX_TAGS
    return plain and all(isinstance(tag, str) and 0 < len(tag) <= gallery.MAX_TAG for tag in given)


@router.delete("/images/{id}", response_model=views.Deleted)
async def delete_image(request: Request, id: str) -> Response:
    """Take a picture out of the gallery; for 30 s PATCH {"deleted": false} brings it back."""
    server, row = server_of(request), await _row(request, id)
    await server.store.write(lambda c: gallery.delete(c, row.id))
    return Json({"id": row.id, "undo_seconds": 30})


@router.post("/images/import", response_model=views.Imported)
async def import_image(request: Request) -> Response:
    """The recipe in a picture that somebody dropped; nothing is kept."""
    body = await request.body()
    return Json(await server_of(request).in_pool(_recipe_of, body))


def _recipe_of(data: bytes) -> dict[str, Any]:
    found = read_picture(data)
    recipe = {k: str(v) if k in ("seed", "variation_seed") and v is not None else v for k, v in found.recipe.items()}
    return {
        "source": found.source,
        "width": found.width,
        "height": found.height,
        "recipe": recipe,
        "ignored": found.ignored,
        "warnings": list(found.warnings),
        "texts": {name: text[:MAX_PROMPT] for name, text in found.texts.items()},
    }


# --- what a page needs to know


@router.get("/server", response_model=views.ServerInfo)
async def server_info(request: Request) -> Response:
    """What the server is and has: models, samplers, schedules, limits."""
    server = server_of(request)
    options = server.options
    owner = owner_of(request)
    return Json(
        {
            "version": __version__,
            "ready": server.dispatcher.ready,
            "bit_exact": server.dispatcher.bit_exact,
            "default_model": server.index.default_model.name,
            "models": [server.dispatcher.told(one) for one in server.index.found["model"].values()],
            "samplers": [{"id": row.id, "label": row.label} for row in entries()],
            "schedules": list(SPACINGS),
            "hints": list(HINTS),
            "settings": usual_settings(),
            "limits": {
                "body": options.max_body,
                "pixels": min(options.max_pixels, MAX_PIXELS),
                "side": MAX_SIDE,
                "steps": MAX_STEPS,
                "prompt": MAX_PROMPT,
                "n": MAX_IMAGES,
                "cost": options.max_cost,
            },
            "styles": await server.in_pool(_styles, server.index),
            "key": owner.name or None,
            "keys_needed": server.keys.needed,
            "queue": await server.store.read(queue.counts),
            "engines": server.dispatcher.all_engines,
        }
    )


def _styles(index: ModelIndex) -> list[dict[str, str]]:
    try:
        found = read_styles(index)
    except RequestError:  # a file that can't be read is no reason to tell nothing else
        return []
    return [{"name": name, "prompt": text, "negative_prompt": other} for name, (text, other) in found.items()]


@router.get("/adapters", response_model=views.Adapters)
async def adapters(request: Request, model: str = "") -> Response:
    """LoRAs, learned words and ControlNets by name, how prompts use them, and which of them fit a model."""
    server = server_of(request)
    found = server.index.get("model", model) if model else server.index.default_model
    return Json(await server.adapters.listed(found))


@router.post("/explain", openapi_extra=_takes(_OBJECT), response_model=views.Explained)
async def explain(request: Request) -> Response:
    """What the model will read of a prompt: tokens, weights, chunks."""
    body = await json_body(request)
    prompt, style, model = body.get("prompt"), body.get("style", "a1111"), body.get("model", "")
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
        raise Refused(422, f"prompt must be a text of at most {MAX_PROMPT:,} characters", field="prompt")
    if not isinstance(style, str) or not isinstance(model, str):
        raise Refused(422, "style and model are texts", field="style")
    answer = await server_of(request).dispatcher.call("explain", model=model, prompt=prompt, style=style)
    return Json(answer["value"])


@router.post("/hints", openapi_extra=_takes(_OBJECT))
async def make_hint(request: Request) -> Response:
    """A ControlNet's hint of a picture: {"kind": "canny", "image": base64}, answered as PNG."""
    server, owner, body = server_of(request), owner_of(request), await json_body(request)
    kind, image = body.get("kind"), from_text("image", body.get("image"))
    if not isinstance(kind, str):
        raise Refused(422, f"kind must be one of {', '.join(HINTS)}", field="kind")
    if isinstance(image, str):
        await server.input_size(owner, image)
        png = await server.in_pool(server.data.input, image)
    else:
        png = (await server.receive("image", image)).png
    return Response(await server.in_pool(hint_of, kind, png), media_type="image/png")


def hint_of(kind: str, picture: bytes) -> bytes:
    """A hint of a picture, as PNG. Raises RequestError for a kind that isn't there."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as opened:
        make(kind, opened).save(buffer, "PNG")
    return buffer.getvalue()


@router.get("/preferences")
async def get_preferences(request: Request) -> Response:
    """The caller's preferences, as they were put."""
    found = await server_of(request).preference(owner_of(request), "page")
    return Json(found or {})


@router.put("/preferences", openapi_extra=_takes(_OBJECT))
async def put_preferences(request: Request) -> Response:
    """Keep the caller's preferences: any JSON object of at most 64 kB."""
    body = await json_body(request)
    if len(json.dumps(body)) > MAX_PREFERENCES:
        raise Refused(413, f"preferences may have {MAX_PREFERENCES:,} bytes")
    await server_of(request).prefer(owner_of(request), {"page": body})
    return Json(body)


# --- a page's session


@router.post("/session", openapi_extra=_takes(_OBJECT))
async def begin_session(request: Request) -> Response:
    """Exchange a key for a cookie, which pictures and events can send."""
    server, body = server_of(request), await json_body(request)
    key = body.get("key")
    owner = server.keys.owner(key) if isinstance(key, str) else None
    if owner is None or not isinstance(key, str):
        await asyncio.sleep(0.2)
        raise Refused(401, "this is no key of the server")
    answer = Json({"key": owner.name})
    answer.set_cookie(
        server.cookie,
        server.signer.session_cookie(owner, key, SESSION_DAYS),
        max_age=SESSION_DAYS * 86400,
        httponly=True,
        samesite="strict",
        secure=(server.options.public_url or "").startswith("https:"),
    )
    return answer


@router.delete("/session")
async def end_session(request: Request) -> Response:
    """Forget the cookie."""
    answer = Json({})
    answer.delete_cookie(server_of(request).cookie)
    return answer
