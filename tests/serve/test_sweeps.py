"""Sweeps: a job a cell, all of them or none, one labelled sheet; a restart in the middle loses nothing of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from darkroom.formats.picture import read_metadata
from darkroom.request import Request
from darkroom.serve.keys import add_key
from darkroom.sweeps.axes import parse_axis
from darkroom.sweeps.sweep import Sweep

from .conftest import Running

AXES = ["steps=2,3,4", {"sampler": ["euler", "lms"]}]


def ended(server: Running, id: str) -> Any:
    def look() -> Any:
        found = server.client.get(f"/api/sweeps/{id}").json()
        return found if found["state"] not in ("queued", "running") else None

    return server.until(look)


def picture(server: Running, path: str) -> Image.Image:
    answer = server.client.get(path)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def test_a_sweep_is_drawn_and_laid_out(fake: Running, tmp_path: Path) -> None:
    made = fake.post("/api/sweeps", prompt="an owl", seed=7, axes=AXES)
    assert (made["n"], made["finished"], made["state"]) == (6, 0, "queued")
    assert made["axes"] == [
        {"name": "steps", "labels": ["steps: 2", "steps: 3", "steps: 4"]},
        {"name": "sampler", "labels": ["sampler: euler", "sampler: lms"]},
    ]
    done = ended(fake, made["id"])
    assert (done["state"], done["finished"]) == ("finished", 6)
    assert [(cell["x"], cell["y"]) for cell in done["cells"]] == [(x, y) for y in range(2) for x in range(3)]
    for cell in done["cells"]:
        recipe = fake.client.get(f"/api/images/{cell['image']['id']}").json()["recipe"]
        assert (recipe["steps"], recipe["sampler"]) == (2 + cell["x"], ("euler", "lms")[cell["y"]])
        assert recipe["seed"] == "7"  # every cell's
    # The sheet is the one of `darkroom sweep`, pixel by pixel.
    base = Request.from_dict({"prompt": "an owl", "seed": 7})
    sweep = Sweep.plan(base, [parse_axis("x", AXES[0]), parse_axis("y", AXES[1])])  # type: ignore[arg-type]
    for cell, told in zip(sweep.cells, done["cells"], strict=True):
        sweep.images[cell.place] = picture(fake, f"/api/images/{told['image']['id']}/file")
    answer = fake.client.get(f"/api/sweeps/{made['id']}/sheet")
    assert picture(fake, f"/api/sweeps/{made['id']}/sheet").tobytes() == sweep.image.tobytes()
    (tmp_path / "sheet.png").write_bytes(answer.content)
    told = read_metadata(tmp_path / "sheet.png").recipe
    assert told["sweep"][0] == {"axis": "x", "name": "steps", "values": [2, 3, 4]}
    again = fake.client.get(f"/api/sweeps/{made['id']}/sheet", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    listed = fake.client.get("/api/sweeps").json()["sweeps"]
    assert listed[0]["id"] == made["id"]
    assert "cells" not in listed[0]


def test_a_killed_server_goes_on_with_a_sweep(serve: Callable[..., Running]) -> None:
    server = serve(environment={"FAKE_TICK": "0.05"})
    made = server.post("/api/sweeps", prompt="an owl, slow", axes=["seed=1,2,3", "guidance=2,4"])
    server.until(lambda: server.client.get(f"/api/sweeps/{made['id']}").json()["state"] == "running")
    part = picture(server, f"/api/sweeps/{made['id']}/sheet")  # nothing is there yet
    server.kill()
    again = serve(environment={"FAKE_TICK": "0.001"})
    done = ended(again, made["id"])
    assert (done["state"], done["finished"]) == ("finished", 6)
    assert [cell["job"] for cell in done["cells"]] == [cell["job"] for cell in made["cells"]]
    whole = picture(again, f"/api/sweeps/{made['id']}/sheet")
    assert part.size == whole.size
    assert part.tobytes() != whole.tobytes()
    assert again.client.get("/api/jobs?state=finished").json()["jobs"][0]["n"] == 1


def test_all_cells_are_taken_in_or_none(serve: Callable[..., Running]) -> None:
    server = serve(max_jobs=5, max_cost=0.2)

    def refused(**fields: Any) -> str:
        answer = server.client.post("/api/sweeps", json=fields)
        assert answer.status_code in (422, 429), answer.text
        return str(answer.json()["detail"])

    assert "as many as you may" in refused(prompt="an owl", axes=AXES)
    assert "a job may cost" in refused(prompt="an owl", axes=["steps=10,1000"])
    assert "axes" in refused(prompt="an owl")
    assert "axes" in refused(prompt="an owl", axes=["steps=1"] * 4)
    assert "axis x" in refused(prompt="an owl", axes=["stepz=1,2"])
    assert "axis y" in refused(prompt="an owl", axes=["steps=1,2", 7])
    assert "axis x" in refused(prompt="an owl", axes=[{"steps": ["many"]}])
    assert "400" in refused(prompt="an owl", axes=["seed=1..30", "steps=1..30"])
    assert "one picture a cell" in refused(prompt="an owl", axes=["seed=1,2"], n=2)
    assert "the sheet would be" in refused(prompt="an owl", width=4096, height=4096, axes=["seed=1..9"])
    assert server.client.get("/api/jobs?state=queued,running,finished,failed").json()["jobs"] == []
    assert server.client.get("/api/sweeps").json()["sweeps"] == []
    assert server.client.get("/api/sweeps/nothing").status_code == 404


def test_a_cell_may_fail_and_a_sweep_may_end(serve: Callable[..., Running]) -> None:
    server = serve(environment={"FAKE_TICK": "0.03"})
    made = server.post("/api/sweeps", prompt="an owl, fine", axes=["prompt=fine,fail"])
    done = ended(server, made["id"])
    assert done["state"] == "failed"
    assert [cell["state"] for cell in done["cells"]] == ["finished", "failed"]
    assert "NaN" in done["cells"][1]["error"]
    assert picture(server, f"/api/sweeps/{made['id']}/sheet").getpixel((1, 1)) == (255, 255, 255)
    made = server.post("/api/sweeps", prompt="an owl, slow", axes=["seed=1..4"])
    gone = server.client.delete(f"/api/sweeps/{made['id']}").json()
    assert gone["state"] == "cancelled"
    assert {cell["state"] for cell in gone["cells"]} == {"cancelled"}


def test_a_sweep_of_a_picture_and_of_another_key(serve: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    mina, noah = (add_key(keys, name, {}, admin=False) for name in ("mina", "noah"))
    server = serve(keys=str(keys))
    server.client.headers["Authorization"] = f"Bearer {mina}"
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(buffer, "PNG")
    form = {"request": '{"prompt": "an owl", "axes": ["strength=0.3,0.6"]}'}
    answer = server.client.post("/api/sweeps", data=form, files={"image": ("a.png", buffer.getvalue())})
    assert answer.status_code == 202, answer.text
    done = ended(server, answer.json()["id"])
    assert [cell["image"]["width"] for cell in done["cells"]] == [48, 48]
    assert len([path for path in (server.data / "inputs").rglob("*") if path.is_file()]) == 1
    for method, path in (("GET", ""), ("GET", "/sheet"), ("DELETE", "")):
        told = server.client.request(
            method, f"/api/sweeps/{done['id']}{path}", headers={"Authorization": f"Bearer {noah}"}
        )
        assert told.status_code == 404
    assert len(server.client.get("/api/images").json()["images"]) == 2
