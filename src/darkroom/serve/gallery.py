"""The gallery: finished pictures, newest first, searched, pinned, rated, deleted with half a minute to think again."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image
from sqlalchemy import Connection, Row, select, tuple_, update

from .keys import Owner
from .tables import FINISHED, jobs, pictures

THUMB = 256  # pixels of the longest side
MOST = 200  # a page
MAX_TAGS, MAX_TAG = 32, 64


def shown(row: Row[Any]) -> dict[str, Any]:
    """A picture as the gallery lists it. Seeds are texts: 2^64 doesn't fit into a JavaScript number."""
    recipe = json.loads(row.recipe) if row.recipe else {}
    return {
        "id": row.id,
        "job": row.job,
        "index": row.number,
        "seed": row.seed,
        "width": row.width,
        "height": row.height,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "warnings": json.loads(row.warnings or "[]"),
        "prompt": recipe.get("prompt", "") if isinstance(recipe.get("prompt", ""), str) else "",
        "model": recipe.get("model"),
        "created": row.created,
        "pinned": row.pinned,
        "rating": row.rating,
        "tags": json.loads(row.tags) if row.tags else [],
        "gone": row.file is None,
        "file": f"/api/images/{row.id}/file",
        "thumb": f"/api/images/{row.id}/thumb",
    }


def page(
    connection: Connection,
    owner: Owner,
    *,
    q: str = "",
    model: str | None = None,
    before: str | None = None,
    limit: int = 50,
    pinned: bool | None = None,
    tag: str | None = None,
) -> list[Row[Any]]:
    """Finished pictures of a key, newest first.

    q: words that the recipe's text must hold, in any case; before: the last id of the page before.
    """
    wanted = select(pictures).where(pictures.c.state == FINISHED, pictures.c.deleted.is_(None))
    if owner.reach is not None:
        wanted = wanted.where(pictures.c.key == owner.reach)
    for word in q.split()[:16]:
        wanted = wanted.where(pictures.c.infotext.icontains(word, autoescape=True))
    if model is not None:
        wanted = wanted.join(jobs, jobs.c.id == pictures.c.job).where(jobs.c.model == model)
    if pinned is not None:
        wanted = wanted.where(pictures.c.pinned.is_(pinned))
    if tag is not None:
        wanted = wanted.where(pictures.c.tags.contains(json.dumps(tag), autoescape=True))
    if before is not None:
        last = connection.execute(select(pictures.c.created, pictures.c.id).where(pictures.c.id == before)).first()
        if last is not None:
            wanted = wanted.where(tuple_(pictures.c.created, pictures.c.id) < tuple_(last.created, last.id))
    return list(connection.execute(wanted.order_by(pictures.c.created.desc(), pictures.c.id.desc()).limit(limit)))


def change(connection: Connection, id: str, values: Mapping[str, Any]) -> None:
    """Pin, rate or tag a picture."""
    connection.execute(update(pictures).where(pictures.c.id == id).values(**values))


def delete(connection: Connection, id: str, undo: bool = False) -> None:
    """Take a picture out of the gallery, or back: its file goes half a minute later."""
    connection.execute(update(pictures).where(pictures.c.id == id).values(deleted=None if undo else time.time()))


def thumbnail(data: bytes) -> bytes:
    """A small WebP of a picture."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
