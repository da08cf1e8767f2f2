"""What is let go of, what never is, and what older servers left."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from darkroom.serve import queue
from darkroom.serve.data import Data
from darkroom.serve.options import ServeOptions
from darkroom.serve.retention import Retention
from darkroom.serve.store import Store
from darkroom.serve.tables import MIGRATIONS, StoreError, inputs, job_inputs, pictures

from .conftest import Running

OLD = Path(__file__).with_name("old")
DAY = 86400.0


def kept(tmp_path: Path, changes: list[dict[str, Any]], **options: Any) -> list[int]:
    """Which of some finished pictures of a megabyte still have their file after retention; by their numbers."""

    async def run() -> list[int]:
        data = Data(tmp_path)
        store = Store(tmp_path)
        new = queue.NewJob(
            key="",
            dialect="own",
            version="0",
            request="{}",
            model="m",
            cost=1,
            seconds=1,
            seeds=list(range(len(changes))),
            steps=1,
            inputs={},
        )
        now = time.time()
        id = await store.write(lambda c: queue.admit(c, new, queue.Limits(cost=100, jobs=10, queue=10), now))
        ids = [f"{id}-{i}" for i in range(len(changes))]
        for claimed in await store.write(lambda c: queue.claim(c, ids, "one", now)):
            name = data.keep_picture(claimed.id, b"x" * 1_000_000)
            told = {"file": name, "bytes": 1_000_000, "recipe": "{}"}
            await store.write(lambda c, p=claimed, t=told: queue.finish(c, p.id, p.claim, now, **t))
            change = {"created": now - claimed.index} | changes[claimed.index]
            await store.write(
                lambda c, i=claimed.id, v=change: c.execute(update(pictures).where(pictures.c.id == i).values(**v))
            )
        await Retention(store, data, ServeOptions(data=tmp_path, **options)).apply()
        rows = await store.read(lambda c: queue.pictures_of(c, id))
        for row in rows:
            assert row.recipe == "{}"  # what a picture was stays
            assert row.file is None or data.picture(row.file) is not None
        assert len(list((tmp_path / "images").rglob("*.png"))) == sum(row.file is not None for row in rows)
        store.close()
        data.close()
        return [row.number for row in rows if row.file is not None]

    return asyncio.run(run())


def test_old_pictures_go_and_pinned_ones_stay(tmp_path: Path) -> None:
    old = {"created": time.time() - 8 * DAY}
    assert kept(tmp_path, [{}, old, old | {"pinned": True}], keep_days=7) == [0, 2]


def test_beyond_a_size_the_oldest_go_first(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {}, {"pinned": True}, {}]  # each a second older than the one before
    assert kept(tmp_path, changes, keep_gb=0.0021) == [0, 2]


def test_deleted_pictures_go_after_half_a_minute(tmp_path: Path) -> None:
    now = time.time()
    assert kept(tmp_path, [{"deleted": now - 60}, {"deleted": now - 5}, {}]) == [1, 2]


def test_inputs_that_nobody_needs_go_after_an_hour(tmp_path: Path) -> None:
    """An unfinished job needs its, and so does a finished one as long as a picture of it is there."""

    async def run() -> set[str]:
        data, store = Data(tmp_path), Store(tmp_path)
        now = time.time()
        row = {"key": "", "bytes": 1, "width": 1, "height": 1}
        for name, age in (("new", 60), ("old", 7200), ("needed", 7200), ("drawn", 7200), ("let-go", 7200)):
            data.keep_input(name, b"x")
            await store.write(
                lambda c, n=name, a=age: c.execute(insert(inputs).values(sha256=n, created=now - a, **row))
            )
        for name, file in (("drawn", "images/a.png"), ("let-go", None), ("needed", None)):
            new = queue.NewJob(
                key="", dialect="own", version="0", request="{}", model="m", cost=1, seconds=1, seeds=[1], steps=1,
                inputs={"image": name},
            )  # fmt: skip
            job = await store.write(lambda c, n=new: queue.admit(c, n, queue.Limits(cost=9, jobs=9, queue=9), now))
            if name != "needed":
                (one,) = await store.write(lambda c, j=job: queue.claim(c, [f"{j}-0"], "one", now))
                told = {"file": file, "bytes": 1, "recipe": "{}"}
                await store.write(lambda c, p=one, t=told: queue.finish(c, p.id, p.claim, now, **t))
        await Retention(store, data, ServeOptions(data=tmp_path)).apply()
        assert len(await store.read(lambda c: c.execute(select(job_inputs.c.sha256)).scalars().all())) == 3
        store.close()
        data.close()
        return {path.stem for path in (tmp_path / "inputs").iterdir()}

    assert asyncio.run(run()) == {"new", "needed", "drawn"}


def test_files_that_no_row_knows_go_at_the_next_start(tmp_path: Path, serve: Callable[..., Running]) -> None:
    server = serve()
    job = server.ended(server.post(prompt="a fox")["id"])
    server.stop()
    [image] = (server.data / "images").rglob("*.png")
    old, young = image.with_name("nobody.png"), image.with_name("young.png")
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    os.utime(image, (time.time() - 7200,) * 2)
    server = serve()
    assert image.exists()
    assert young.exists()
    assert not old.exists()
    image.unlink()
    answer = server.client.get(f"/api/images/{job['images'][0]['id']}/file")
    assert answer.status_code == 410
    assert "recipe" in answer.json()["detail"]
    assert server.client.get(f"/api/images/{job['images'][0]['id']}").json()["recipe"]["prompt"] == "a fox"


@pytest.mark.parametrize("file", sorted(OLD.glob("*.sqlite")), ids=lambda path: path.stem)
def test_a_database_of_every_released_version_is_opened(tmp_path: Path, file: Path) -> None:
    shutil.copy(file, tmp_path / "darkroom.sqlite")
    store = Store(tmp_path)

    async def run() -> list[dict[str, Any]]:
        return await store.read(lambda c: queue.listed(c, None, ["finished", "failed", "queued"], 10, {}))

    shown = asyncio.run(run())
    store.close()
    assert {job["state"] for job in shown} == {"finished", "failed", "queued"}
    assert all(job["request"]["prompt"] for job in shown)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "darkroom.sqlite") as connection:
        connection.execute("UPDATE schema SET version = ?", (len(MIGRATIONS) + 1,))
    with pytest.raises(StoreError, match="newer"):
        Store(tmp_path)
