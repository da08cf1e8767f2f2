"""OpenAI's images API: generations, edits and variations, whole or as streams of events; models; signed addresses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from ..errors import Error, ImageError, RequestError
from ..settings import changed
from .answers import Json, Refused, refusal
from .bodies import event, event_stream, file_bytes, form_body, gone, json_body, owner_of, server_of
from .events import CHANGED, PREVIEW
from .keys import Owner
from .models import Found
from .openai_fields import (
    QUALITIES,
    Asked,
    Delivery,
    Fields,
    field_in,
    find_model,
    make_job,
    read_fields,
    read_mask,
)
from .server import Server
from .tables import CANCELLED, FINISHED, LIVE
from .uploads import Upload, from_text

router = APIRouter()
files = APIRouter(prefix="/v1/files")

ADDRESS_SECONDS = 3600
MAX_IDEMPOTENCY = 255  # characters of an Idempotency-Key
PATCH = 16  # pixels: so large a square is counted as a token
NO_REPEAT = {"x-should-retry": "false"}  # it would end the same way
_WORDS = re.compile(r"\w+|[^\w\s]")


@router.post("/images/generations")
async def generations(request: Request) -> Response:
    """Pictures from a text."""
    return await _images(request, "generations")


@router.post("/images/edits")
async def edits(request: Request) -> Response:
    """Pictures from a picture and a text; with a mask only where it is transparent."""
    return await _images(request, "edits")


@router.post("/images/variations")
async def variations(request: Request) -> Response:
    """Pictures like a picture."""
    return await _images(request, "variations")


@router.get("/models")
async def list_models(request: Request) -> Response:
    """The models that there are, the default one first."""
    found = server_of(request).index.found["model"].values()
    return Json({"object": "list", "data": [_model(one) for one in found]})


@router.get("/models/{id:path}")
async def one_model(request: Request, id: str) -> Response:
    """A model."""
    found = server_of(request).index.found["model"].get(id)
    if found is None:
        raise Refused(404, f"there is no model {id[:60]!r} here", field="model", code="model_not_found")
    return Json(_model(found))


def _model(found: Found) -> dict[str, Any]:
    return {"id": found.name, "object": "model", "created": found.modified // 10**9, "owned_by": "darkroom"}


# --- pictures


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that was taken in, with what its answers need."""

    server: Server
    owner: Owner
    path: str
    base: str  # of addresses
    kind: str  # of events
    fields: Fields
    asked: Asked
    job: str
    inputs: tuple[Upload, ...]

    @property
    def told(self) -> dict[str, Any]:
        """What all answers say of their pictures."""
        known = {
            "background": "opaque",
            "output_format": self.fields.output_format,
            "quality": QUALITIES[self.fields.quality][0],
        }
        name = self.fields.safety_identifier or self.fields.user
        return known | ({"safety_identifier": name} if name else {})

    def size(self, image: Mapping[str, Any]) -> tuple[int, int]:
        """Of a finished picture, as it is delivered."""
        return self.asked.delivery.size or (image["width"], image["height"])

    def usage(self, *sizes: tuple[int, int]) -> dict[str, Any]:
        """Tokens, as clients count them: words of the prompt, and squares of the pictures."""
        words = len(_WORDS.findall(self.asked.wanted.request.prompt))
        seen = sum(_tokens(one.width, one.height) for one in self.inputs)
        made = sum(_tokens(*size) for size in sizes)
        return {
            "input_tokens": words + seen,
            "input_tokens_details": {"text_tokens": words, "image_tokens": seen},
            "output_tokens": made,
            "total_tokens": words + seen + made,
        }


def _tokens(width: int, height: int) -> int:
    return -(-width // PATCH) * -(-height // PATCH)


async def _images(request: Request, what: str) -> Response:
    call = await _take_in(request, what)
    headers = {"X-Darkroom-Job": call.job}
    if call.asked.delivery.size is not None:
        drawn = call.asked.wanted.request
        headers["X-Darkroom-Drawn-Size"] = f"{drawn.width}x{drawn.height}"
    if call.fields.stream:
        answer = event_stream(_events(call))
        answer.headers.update(headers)
        return answer
    view = await call.server.wait(call.owner, call.job, gone(request))
    if (fault := _fault(view)) is not None:
        raise fault
    data = await asyncio.gather(*(_datum(call, image) for image in view["images"]))
    width, height = call.size(view["images"][0])
    usage = call.usage(*(call.size(image) for image in view["images"]))
    body = {"created": int(view["created"]), "data": data, **call.told, "size": f"{width}x{height}", "usage": usage}
    return await call.server.in_pool(lambda: Json(body, headers=headers))


async def _take_in(request: Request, what: str) -> _Call:
    """Read a request and admit its job, or find the one that was admitted for it before. What is wrong in it is told
    with the field that the sentence names.
    """
    try:
        return await _admitted(request, what)
    except (RequestError, ImageError) as error:
        raise Refused(422, str(error), field=field_in(str(error))) from None


async def _admitted(request: Request, what: str) -> _Call:
    server, owner, state = server_of(request), owner_of(request), request.scope["state"]
    values, sent = await _body(request)
    fields, own = read_fields(values, what != "variations")
    model = find_model(server.index, fields.model)
    pictures = {} if what == "generations" else await _pictures(server, owner, sent)
    description = await server.dispatcher.describe(model)
    asked = make_job(fields, own, pictures, model, description)
    idempotency = request.headers.get("idempotency-key")
    if idempotency is not None and not 0 < len(idempotency) <= MAX_IDEMPOTENCY:
        raise Refused(422, f"an Idempotency-Key has 1 to {MAX_IDEMPOTENCY} characters", field="Idempotency-Key")
    same = [what, changed(fields), own, {name: upload.sha256 for name, upload in pictures.items()}]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True, default=asdict).encode()).hexdigest()
    job = await server.submit(
        owner,
        "openai",
        asked.wanted,
        idempotency=idempotency,
        digest=digest,
        repeat=request.headers.get("x-stainless-retry-count", "").lstrip("0").isdecimal(),
        waits=state,
    )
    state["job"] = job
    return _Call(
        server=server,
        owner=owner,
        path=request.url.path,
        base=(server.options.public_url or str(request.base_url)).rstrip("/"),
        kind="image_generation" if what == "generations" else "image_edit",
        fields=fields,
        asked=asked,
        job=job,
        inputs=tuple(pictures[role] for role in pictures if role == "image"),
    )


async def _body(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes | str]]]:
    """Fields, and pictures by name: files of a form, or texts of JSON."""
    sent: dict[str, list[bytes | str]] = {}
    if not request.headers.get("content-type", "").startswith("multipart/"):
        values = await json_body(request)
        for name in ("image", "mask"):
            if (given := values.pop(name, None)) is not None:
                sent[name] = [from_text(name, one) for one in (given if isinstance(given, list) else [given])]
        return values, sent
    values = {}
    for name, part in (await form_body(request)).multi_items():
        plain = name.removesuffix("[]")
        if isinstance(part, UploadFile):
            sent.setdefault(plain, []).append(await file_bytes(part))
        elif plain != name:
            values.setdefault(plain, []).append(part)
        else:
            values[name] = part
    if "markup" in sent:
        values["markup"] = "a file"
    return values, sent


async def _pictures(server: Server, owner: Owner, sent: Mapping[str, list[bytes | str]]) -> dict[str, Upload]:
    """The picture and its mask, received. Raises Refused."""
    given = {name: sent.get(name, []) for name in ("image", "mask")}
    if not given["image"]:
        raise Refused(422, "there is no image; send the picture to begin with", field="image")
    found: dict[str, Upload] = {}
    for name, ones in given.items():
        if len(ones) > 1:
            raise Refused(422, f"{len(ones)} pictures are sent as {name}; one is edited at a time", field=name)
        for one in ones:
            if isinstance(one, str):
                await server.input_size(owner, one)
                one = await server.in_pool(server.data.input, one)
            if name == "mask":
                size = (found["image"].width, found["image"].height)
                found[name] = await server.in_pool(read_mask, one, size, server.options.max_pixels)
                await server.in_pool(server.data.keep_input, found[name].sha256, found[name].png)
            else:
                found[name] = await server.receive(name, one)
    return found


def _fault(view: Mapping[str, Any]) -> Refused | None:
    """Why a job that has ended has not all of its pictures."""
    if view["state"] == FINISHED:
        return None
    if view["state"] == CANCELLED:
        return Refused(500, "the job was cancelled", code="cancelled", headers=NO_REPEAT)
    return Refused(500, view["error"], code="generation_failed", headers=NO_REPEAT)


async def _datum(call: _Call, image: Mapping[str, Any]) -> dict[str, Any]:
    told = {"revised_prompt": call.asked.wanted.request.prompt, "seed": image["seed"]}
    if call.fields.by_url:
        return {"url": _address(call, image["id"])} | told
    return {"b64_json": await _text(call, image)} | told


async def _text(call: _Call, image: Mapping[str, Any]) -> str:
    """A finished picture as it is wanted, in base64."""
    row = await call.server.picture_row(call.owner, image["id"])
    png = None if row is None or row.file is None or row.deleted else await call.server.file(row.file)
    if png is None:
        raise Refused(410, "this picture's file is gone", headers=NO_REPEAT)
    return await call.server.in_pool(
        lambda: base64.b64encode(call.asked.delivery.make(png, row.recipe or "")).decode("ascii")
    )


# --- streams


@dataclass
class _Told:
    """What a stream has told of a job so far."""

    finished: set[int] = field(default_factory=set)
    partial: Counter[int] = field(default_factory=Counter)  # how many of each picture
    part: dict[int, int] = field(default_factory=dict)  # which part of its way the last one showed
    seen: dict[int, bytes] = field(default_factory=dict)  # the last preview


async def _events(call: _Call) -> AsyncIterator[bytes]:
    """A job's partial pictures, and each finished one as soon as it is; at the end an error where there is one."""
    server, told, ended = call.server, _Told(), False
    try:
        wanted = (CHANGED, PREVIEW) if call.fields.partial_images else (CHANGED,)
        with server.hub.watching(call.owner.reach, call.job, wanted) as watcher:
            server.dispatcher.wake()  # who watches is told to engines
            kinds = {CHANGED}
            while not ended:
                if PREVIEW in kinds:
                    async for partial in _partial(call, told):
                        yield partial
                if CHANGED in kinds:
                    view = await server.view(call.owner, call.job)
                    assert view is not None
                    for image in view["images"]:
                        if image["index"] not in told.finished:
                            told.finished.add(image["index"])
                            yield await _completed(call, image)
                    ended = view["state"] not in LIVE
                    if ended and (fault := _fault(view)) is not None:
                        raise fault
                if not ended:
                    if server.closing.is_set():
                        raise Refused(503, "the server is stopping; try again in a moment")
                    news = await server.news(watcher)
                    kinds = {CHANGED} if news is None else news[1]
    except (Error, Refused) as error:
        ended = True
        status, more = (error.status, error.told) if isinstance(error, Refused) else (500, {})
        yield b"event: error\ndata: " + bytes(refusal(call.path, status, str(error), **more).body) + b"\n\n"
    finally:
        if not ended:  # the client has gone
            await server.left_alone(call.owner, call.job)


async def _partial(call: _Call, told: _Told) -> AsyncIterator[bytes]:
    """New previews, where a picture has come to the next of `partial_images` + 1 parts of its way."""
    live, most = call.server.hub.live.get(call.job), call.fields.partial_images
    for index, jpeg in list(live.previews.items()) if live is not None else ():
        assert live is not None
        step, steps = live.steps.get(index, (0, 1))
        part = step * (most + 1) // max(steps, 1)
        if jpeg is told.seen.get(index) or not told.part.get(index, 0) < part <= most or index in told.finished:
            continue
        told.seen[index], told.part[index] = jpeg, part
        yield await _picture_event(
            call,
            "partial_image",
            call.asked.size,
            await call.server.in_pool(call.asked.delivery.sketch, jpeg, call.asked.size),
            partial_image_index=told.partial[index],
        )
        told.partial[index] += 1


async def _completed(call: _Call, image: Mapping[str, Any]) -> bytes:
    size = call.size(image)
    return await _picture_event(call, "completed", size, await _text(call, image), usage=call.usage(size))


async def _picture_event(call: _Call, kind: str, size: tuple[int, int], picture: bytes | str, **more: Any) -> bytes:
    def make() -> bytes:
        data = picture if isinstance(picture, str) else base64.b64encode(picture).decode("ascii")
        name = f"{call.kind}.{kind}"
        told = {"type": name, "b64_json": data, "created_at": int(time.time()), "size": f"{size[0]}x{size[1]}"}
        return event(name, told | call.told | more)

    return await call.server.in_pool(make)


# --- addresses of pictures


def _address(call: _Call, picture: str) -> str:
    """Where a picture is to be had for an hour, by anybody, as it is wanted."""
    delivery = call.asked.delivery
    wanted = {"expires": str(int(time.time()) + ADDRESS_SECONDS), "format": delivery.format}
    if delivery.compression is not None:
        wanted["compression"] = str(delivery.compression)
    if delivery.size is not None:
        wanted["size"] = f"{delivery.size[0]}x{delivery.size[1]}"
    signature = call.server.signer.address(call.server.keys, call.owner.name, *_words(picture, wanted))
    return f"{call.base}/v1/files/images/{picture}?{urlencode(wanted | {'signature': signature})}"


def _words(picture: str, wanted: Mapping[str, str]) -> list[str]:
    return [picture, *(f"{name}={value}" for name, value in sorted(wanted.items()))]


@files.get("/images/{id}")
async def image_file(request: Request, id: str) -> Response:
    """A picture by its signed address, which needs no key and ends after an hour."""
    server, given = server_of(request), dict(request.query_params)
    signature, row = given.pop("signature", ""), await server.picture_row(None, id)
    if row is None or not server.signer.addressed(signature, server.keys, row.key, *_words(id, given)):
        raise Refused(404, "there is no such picture, or its address is not signed for it")
    if int(given["expires"]) < time.time():
        raise Refused(410, "this address has ended; ask for the picture again")
    png = None if row.file is None or row.deleted else await server.file(row.file)
    if png is None:
        raise Refused(410, "this picture's file is gone")
    size = given.get("size", "").split("x")
    delivery = Delivery(
        given["format"],
        int(given["compression"]) if "compression" in given else None,
        (int(size[0]), int(size[1])) if len(size) == 2 else None,
    )
    data = await server.in_pool(delivery.make, png, row.recipe or "")
    headers = {
        "Cache-Control": f"private, max-age={ADDRESS_SECONDS}, immutable",
        "Content-Disposition": f'inline; filename="{row.id}.{delivery.format}"',
    }
    return Response(data, media_type=f"image/{delivery.format}", headers=headers)
