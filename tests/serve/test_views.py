"""What routes answer is what `/openapi.json` and the page's types say of it."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")
from PIL import Image

from darkroom.serve import views

from .conftest import ROOT, Running


def test_the_page_s_types_are_those_of_the_server() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "page_types.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}, timeout=120)
    assert done.returncode == 0, done.stderr


def test_answers_are_what_is_told_of_them(serve: Callable[..., Running]) -> None:
    server = serve()
    client = server.client

    def check(view: type[views.BaseModel], answer: Any) -> Any:
        assert answer.status_code < 300, answer.text
        view.model_validate_json(answer.content, strict=True)  # no field more, none less, none of another type
        return answer.json()

    job = check(views.Job, client.post("/api/jobs", json={"prompt": "an owl <lora:sepia:1>", "n": 2}))
    server.ended(job["id"])
    check(views.Job, client.get(f"/api/jobs/{job['id']}"))
    fields = {"prompt": "an owl, fail", "upscale": 2, "loras": ["sepia"], "image": _picture()}
    check(views.Job, client.post("/api/jobs", json=fields | {"controls": [{"net": "edges", "image": _picture()}]}))
    check(views.Jobs, client.get("/api/jobs?state=finished,failed,queued,running"))
    check(views.Job, client.post(f"/api/jobs/{job['id']}/rerun"))
    check(views.Job, client.delete(f"/api/jobs/{job['id']}"))
    check(views.Cancelled, client.delete("/api/jobs?state=queued"))
    images = check(views.Pictures, client.get("/api/images?limit=1"))["images"]
    check(views.PictureInfo, client.get(f"/api/images/{images[0]['id']}"))
    check(views.Picture, client.patch(f"/api/images/{images[0]['id']}", json={"pinned": True, "tags": ["a"]}))
    data = client.get(f"/api/images/{images[0]['id']}/file").content
    check(views.Imported, client.post("/api/images/import", content=data))
    check(views.Deleted, client.delete(f"/api/images/{images[0]['id']}"))
    check(views.ServerInfo, client.get("/api/server"))
    check(views.Adapters, client.get("/api/adapters"))
    check(views.Explained, client.post("/api/explain", json={"prompt": "an owl"}))
    sweep = check(views.Sweep, client.post("/api/sweeps", json={"prompt": "an owl", "axes": ["steps=1,2"]}))
    check(views.Sweeps, client.get("/api/sweeps"))
    check(views.Sweep, client.delete(f"/api/sweeps/{sweep['id']}"))
    check(views.Sweep, client.get(f"/api/sweeps/{sweep['id']}"))


def _picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
