"""Grids of jobs: a request with every combination of some values, one job a cell, and the labelled sheet of them.

A sweep is a row that names its jobs; how far it is, and its sheet, come from theirs whenever they are asked for. So it
needs no care of its own when a server ends in the middle.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from PIL import Image
from sqlalchemy import Connection, Row, select
from starlette.requests import Request
from starlette.responses import Response

from .. import request as requests
from ..errors import RequestError
from ..formats.picture import dump_recipe, encoded, load_recipe
from ..sweeps.axes import LETTERS, parse_axis
from ..sweeps.sweep import Sweep
from . import queue, views
from .answers import Json, Refused
from .bodies import owner_of, server_of
from .data import Data
from .jobs import Priced, Wanted, body_schema, priced, read_wanted
from .keys import Owner
from .own import job_body
from .server import Brought, Server
from .tables import CANCELLED, FAILED, FINISHED, LIVE, QUEUED, RUNNING, clock, jobs, pictures, sweeps

MOST = 400  # cells
LISTED = 200  # sweeps of one answer

router = APIRouter(prefix="/api/sweeps")


def _schema() -> dict[str, Any]:
    job = body_schema()
    axes = {
        "type": "array",
        "items": {},
        "minItems": 1,
        "maxItems": len(LETTERS),
        "description": 'What varies along x, y, z: "steps=10,20,30", or {"steps": [10, 20, 30]}.',
    }
    own = {name: one for name, one in job["properties"].items() if name not in ("n", "num_images")}
    return {"type": "object", "required": ["prompt", "axes"], "properties": own | {"axes": axes}}


_TAKES = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema()}}}}


# --- taking in


@router.post("", status_code=202, openapi_extra=_TAKES, response_model=views.Sweep)
async def new_sweep(request: Request) -> Response:
    """Take a grid in: a job's fields, and `axes`, one to three; one job a cell, all of them or none."""
    server, owner = server_of(request), owner_of(request)
    values, decode = await job_body(request)
    given = values.pop("axes", None)
    if not isinstance(given, list) or not 1 <= len(given) <= len(LETTERS):
        raise Refused(422, 'axes must be a list of one to three, such as ["steps=10,20", "seed=1,2"]', field="axes")
    wanted = await server.in_pool(read_wanted, values, decode)
    if wanted.n != 1:
        raise Refused(422, "a sweep draws one picture a cell; leave n out, and vary the seed", field="n")
    sweep = await server.in_pool(_planned, wanted.request, given)
    brought = await server.bring(owner, wanted)
    cells = await server.in_pool(_priced, sweep, wanted, brought, server)
    new = [server.new_job(owner, "own", job, brought) for job in cells]
    limits = server.limits(owner)

    def write(connection: Connection) -> tuple[str, list[str]]:
        now = clock(connection)
        brought.write(connection, owner.name, now)
        ids = [queue.admit(connection, one, limits, now) for one in new]
        id = queue.new_id(now)
        base = dump_recipe(sweep.base.to_dict())
        row = {"id": id, "key": owner.name, "created": now, "request": base, "axes": json.dumps(given)}
        connection.execute(sweeps.insert().values(**row, jobs=json.dumps(ids)))
        return id, ids

    id, ids = await server.take_in(write)
    for job in ids:
        server.hub.changed(job, owner.name)
    return Json(await _view(server, owner, id), 202, {"Location": f"/api/sweeps/{id}"})


def _planned(base: requests.Request, given: list[Any]) -> Sweep:
    """All cells, checked. Raises RequestError."""
    sweep = Sweep.plan(base, [parse_axis(letter, one) for letter, one in zip(LETTERS, given, strict=False)])
    if len(sweep.cells) > MOST:
        raise RequestError(
            f"the axes make {len(sweep.cells):,} cells, and a sweep may have {MOST} here; give fewer values"
        )
    return sweep


def _priced(sweep: Sweep, wanted: Wanted, brought: Brought, server: Server) -> list[Priced]:
    """The job of every cell. Raises RequestError, naming the cell, and for a sheet that would be too large."""
    found = []
    for cell in sweep.cells:
        asked = replace(wanted, request=cell.request, pictures={})
        try:
            found.append(priced(asked, brought.description, brought.sizes, server.index))
        except RequestError as error:
            raise RequestError(f"the cell {cell.words} can't be drawn: {error}") from error
        sweep.requests[cell.place] = found[-1].request
    sweep.layout()
    return found


# --- looking


async def _row(request: Request, id: str) -> Row[Any]:
    owner = owner_of(request)
    wanted = select(sweeps).where(sweeps.c.id == id)
    if owner.reach is not None:
        wanted = wanted.where(sweeps.c.key == owner.reach)
    row = await server_of(request).store.read(lambda c: c.execute(wanted).first())
    if row is None:
        raise Refused(404, "there is no such sweep")
    return row


def _states(connection: Connection, ids: list[str]) -> dict[str, Row[Any]]:
    """The jobs of a sweep that are still there, each with its one picture."""
    columns: list[Any] = [jobs.c.id, jobs.c.state, jobs.c.error, pictures.c.id.label("picture"), pictures.c.deleted]
    columns += [pictures.c.seed, pictures.c.width, pictures.c.height, pictures.c.file, pictures.c.recipe]
    wanted = select(*columns).join(pictures, pictures.c.job == jobs.c.id).where(jobs.c.id.in_(ids))
    return {row.id: row for row in connection.execute(wanted)}


def _told(row: Row[Any], found: Mapping[str, Row[Any]]) -> dict[str, Any]:
    """A sweep as it is: `{id, state, created, prompt, axes, cells, finished, n}`, a cell with its job and picture."""
    sweep, ids = _plan_of(row), json.loads(row.jobs)
    cells = []
    for cell, id in zip(sweep.cells, ids, strict=True):
        job = found.get(id)
        drawn = job is not None and job.state == FINISHED and job.deleted is None
        cells.append(
            {
                "x": cell.place[0],
                "y": cell.place[1],
                "z": cell.place[2],
                "words": cell.words,
                "job": id,
                "state": CANCELLED if job is None else job.state,
                "error": None if job is None else job.error,
                "image": {"id": job.picture, "seed": job.seed, "width": job.width, "height": job.height}
                if drawn and job is not None
                else None,
            }
        )
    states = {cell["state"] for cell in cells}
    if states & {*LIVE}:
        state = QUEUED if states == {QUEUED} else RUNNING
    else:
        state = next(state for state in (CANCELLED, FAILED, FINISHED) if state in states)
    return {
        "id": row.id,
        "state": state,
        "created": row.created,
        "prompt": sweep.base.prompt,
        "axes": [
            {"name": axis.name, "labels": [axis.label(i) for i in range(len(axis.values))]} for axis in sweep.axes
        ],
        "cells": cells,
        "finished": sum(cell["image"] is not None for cell in cells),
        "n": len(cells),
    }


def _plan_of(row: Row[Any]) -> Sweep:
    """A sweep as it was planned."""
    return _planned(requests.Request.from_dict(load_recipe(row.request)), json.loads(row.axes))


async def _view(server: Server, owner: Owner, id: str) -> dict[str, Any] | None:
    def read(connection: Connection) -> dict[str, Any] | None:
        row = connection.execute(select(sweeps).where(sweeps.c.id == id)).first()
        return None if row is None else _told(row, _states(connection, json.loads(row.jobs)))

    return await server.store.read(read)


@router.get("", response_model=views.Sweeps)
async def list_sweeps(request: Request, limit: int = 50) -> Response:
    """The caller's sweeps, newest first, without their cells."""
    if not 1 <= limit <= LISTED:
        raise Refused(422, f"limit must be from 1 to {LISTED}", field="limit")
    owner = owner_of(request)
    wanted = select(sweeps).order_by(sweeps.c.id.desc()).limit(limit)
    if owner.reach is not None:
        wanted = wanted.where(sweeps.c.key == owner.reach)

    def read(connection: Connection) -> list[dict[str, Any]]:
        rows = connection.execute(wanted).all()
        found = [_told(row, _states(connection, json.loads(row.jobs))) for row in rows]
        return [{name: value for name, value in one.items() if name != "cells"} for one in found]

    return Json({"sweeps": await server_of(request).store.read(read)})


@router.get("/{id}", response_model=views.Sweep)
async def one_sweep(request: Request, id: str) -> Response:
    """A sweep's present state, with every cell's job and picture."""
    row = await _row(request, id)
    return Json(await _view(server_of(request), owner_of(request), row.id))


@router.delete("/{id}", response_model=views.Sweep)
async def cancel_sweep(request: Request, id: str) -> Response:
    """End all of a sweep's jobs; what is drawn already stays."""
    server, owner, row = server_of(request), owner_of(request), await _row(request, id)
    await asyncio.gather(*(server.cancel(owner, job) for job in json.loads(row.jobs)))
    return Json(await _view(server, owner, row.id))


@router.get("/{id}/sheet")
async def sheet(request: Request, id: str, download: bool = False) -> Response:
    """The labelled sheet as PNG, with what its cells share in its metadata. Cells without a picture are gray."""
    server, row = server_of(request), await _row(request, id)
    found = await server.store.read(lambda c: _states(c, json.loads(row.jobs)))
    drawn = [one.picture for one in found.values() if one.state == FINISHED and one.file and one.deleted is None]
    tag = f'"{hashlib.sha256(json.dumps([row.id, *sorted(drawn)]).encode()).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    data = await server.in_pool(_sheet, row, found, server.data)
    how = "attachment" if download else "inline"
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    headers["Content-Disposition"] = f'{how}; filename="{row.id}.png"'
    return Response(data, media_type="image/png", headers=headers)


def _sheet(row: Row[Any], found: Mapping[str, Row[Any]], data: Data) -> bytes:
    """A sweep's sheet, as PNG. Raises RequestError where it would be too large."""
    sweep = _plan_of(row)
    for cell, id in zip(sweep.cells, json.loads(row.jobs), strict=True):
        job = found.get(id)
        if job is None or job.state != FINISHED or job.file is None or job.deleted is not None:
            continue
        file = data.picture(job.file)
        if file is None:
            continue
        with Image.open(io.BytesIO(file), formats=("PNG",)) as opened:
            sweep.images[cell.place] = opened.convert("RGB")
        sweep.requests[cell.place] = requests.Request.from_dict(load_recipe(job.recipe))
    return encoded(sweep.image, "PNG", sweep.recipe())
