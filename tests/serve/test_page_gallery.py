"""A large gallery: 5,000 pictures here, 50,000 with `make soak`. Times are printed (-s): machines differ."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import create_engine

from darkroom.serve.tables import jobs, pictures

from .browser import Opened, until
from .conftest import Running

NEEDLE = 1234


def filled(data: Path, count: int) -> None:
    """Rows as `count` finished pictures leave them, each in a job of its own; the file is one for all."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    (data / "images" / "old").mkdir(parents=True)
    (data / "images" / "old" / "one.png").write_bytes(buffer.getvalue())
    engine = create_engine(f"sqlite:///{data / 'darkroom.sqlite'}")
    now = time.time()
    with engine.begin() as connection:
        made, rows = [], []
        for i in range(count):
            created, id = now - count + i, f"{i:011x}0000{i:012x}"
            prompt = f"an owl number {i}" + (", needle" if i == NEEDLE else "")
            recipe = {"schema": 1, "prompt": prompt, "seed": i, "steps": 4, "sampler": "euler", "model": "any"}
            base = {"key": "", "state": "finished", "created": created}
            made.append(base | {"id": id, "dialect": "own", "rank": created, "finished": created, "version": "0",
                                "request": "{}", "model": "any", "cost": 1.0, "seconds": 1.0, "n": 1})  # fmt: skip
            rows.append(base | {"id": f"{id}-0", "job": id, "number": 0, "seed": str(i), "claim": 1, "deaths": 0,
                                "step": 0, "steps": 4, "file": "images/old/one.png", "bytes": len(buffer.getvalue()),
                                "width": 64, "height": 64, "pinned": i % 100 == 0, "recipe": json.dumps(recipe),
                                "sha256": hashlib.sha256(id.encode()).hexdigest(), "warnings": "[]",
                                "infotext": f"{prompt}\nSteps: 4, Sampler: Euler, Seed: {i}, Size: 64x64"})  # fmt: skip
        connection.execute(jobs.insert(), made)
        connection.execute(pictures.insert(), rows)
    engine.dispose()


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_a_large_gallery_is_quick(serve: Callable[..., Running], browse: Opened, count: int) -> None:
    first = serve()
    first.stop()
    filled(first.data, count)
    server = serve()

    def took(**query: str) -> float:
        began = time.monotonic()
        answer = server.client.get("/api/images", params=query)
        assert answer.status_code == 200
        return round(1000 * (time.monotonic() - began), 1)

    # Keyset paging: the last page costs what the first does.
    middle = server.client.get("/api/images", params={"limit": "1", "q": "needle"}).json()["images"][0]["id"]
    told = {"first page": took(), "a page far down": took(before=middle), "search": took(q="needle owl"),
            "pinned": took(pinned="true"), "search without a hit": took(q="zebra")}  # fmt: skip
    began = time.monotonic()
    page = browse(server, "/#gallery", ".cells li")
    told["gallery opened"] = round(1000 * (time.monotonic() - began), 1)
    scrolled = page.evaluate(
        """async (goal) => {
            let longest = 0, most = 0, seen = 0, before = performance.now()
            const frame = () => new Promise(requestAnimationFrame)
            for (let i = 0; i < 40000 && seen < goal; i++) {
                scrollBy(0, 4 * innerHeight)
                await frame()
                const now = performance.now()
                longest = Math.max(longest, now - before)
                before = now
                const cells = [...document.querySelectorAll('.cells li')]
                most = Math.max(most, cells.length)
                seen = Math.max(seen, ...cells.map((one) => Number(one.getAttribute('aria-posinset'))))
            }
            return { longest: Math.round(longest), most, seen }
        }""",
        count,
    )
    assert scrolled["seen"] == count
    assert scrolled["most"] < 200  # only what is near is there
    page.evaluate("scrollTo(0, 0)")
    began = time.monotonic()
    page.fill("#search", "needle")
    until(page, "document.querySelectorAll('.cells li').length === 1")
    told["search in the page, with 200 ms to wait for more letters"] = round(1000 * (time.monotonic() - began), 1)
    page.click(".cells button")
    page.wait_for_selector(f"dialog.viewer >> text=an owl number {NEEDLE}, needle")
    print(count, told, scrolled)
