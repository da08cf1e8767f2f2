"""The server with the real engine and the embedded model: the bytes that Pipeline.generate gives."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

import darkroom
from darkroom.serve.messages import Message

from .conftest import ROOT, Running


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pictures_have_the_bytes_that_one_call_gives(serve: Callable[..., Running]) -> None:
    server = serve(real=True, max_body=2**22)
    picture = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 4}
    asked: list[dict[str, Any]] = [
        {"prompt": "a large fox on a yellow background", "seed": 1, **small},
        {"prompt": "a small owl", "seed": 2, "sampler": "dpmpp_2m", "schedule": "karras", **small},
        {"prompt": "a <lora:sepia:1> fox", "seed": 3, **small},
        {"prompt": "a cat", "seed": 4, "guidance_scale": 1, **small},
        {
            "prompt": "a dog",
            "seed": 5,
            "strength": 0.6,
            "steps": 6,
            "image": base64.b64encode(buffer.getvalue()).decode(),
        },
    ]
    adapters = server.client.get("/api/adapters").json()
    assert [(one["name"], one["fits"]) for one in adapters["loras"]] == [("sepia", True)]
    assert [(one["name"], one["fits"]) for one in adapters["embeddings"]] == [("blue-heart", True)]
    (model,) = server.client.get("/api/server").json()["models"]
    assert {"fox", "owl", "yellow"} <= {*model["words"]}  # it was taught these and no others
    assert len(model["examples"]) == 3
    jobs = [server.post(**fields)["id"] for fields in asked]
    pipe = darkroom.load(None, device="cpu")
    for fields, id in zip(asked, jobs, strict=True):
        ended = server.ended(id, 120)
        assert ended["state"] == "finished", ended
        data = server.client.get(f"/api/images/{ended['images'][0]['id']}/file").content
        given = {**fields, "image": picture} if "image" in fields else fields
        alone = pipe.generate(**given)
        assert np.array_equal(pixels(data), np.asarray(alone.images[0])), fields["prompt"]
        # What admission fills in without torch is what the engine fills in.
        recipe = server.client.get(f"/api/images/{ended['images'][0]['id']}").json()["recipe"]
        assert int(recipe.pop("seed")) == fields["seed"]
        expected = json.loads(json.dumps(alone.requests[0].to_dict()))
        assert {k: v for k, v in recipe.items() if k != "schema"} == {k: v for k, v in expected.items() if k != "seed"}


def test_a_long_picture_goes_on_where_a_killed_server_left_it(serve: Callable[..., Running]) -> None:
    fields: dict[str, Any] = {"prompt": "a large fox", "seed": 9, "width": 64, "height": 64, "steps": 40}
    server = serve(real=True, snapshot_every=0.05)
    job = server.post(**fields)["id"]
    kept = server.until(lambda: list((server.data / "snapshots").glob(f"{job}-0")), 120)
    assert kept
    server.kill()
    server = serve(real=True, snapshot_every=0.05)
    begun = server.until(lambda: server.job(job)["step"], 60)
    assert begun > 0
    ended = server.ended(job, 120)
    data = server.client.get(f"/api/images/{ended['images'][0]['id']}/file").content
    alone = darkroom.load(None, device="cpu").generate(**fields).images[0]
    assert np.array_equal(pixels(data), np.asarray(alone))
    assert not list((server.data / "snapshots").iterdir())


def test_an_end_in_order_loses_no_step(serve: Callable[..., Running]) -> None:
    server = serve(real=True)
    job = server.post(prompt="a small owl", seed=2, width=64, height=64, steps=300)["id"]
    server.until(lambda: server.job(job)["step"] > 5, 60)
    assert server.stop() == 0
    assert list((server.data / "snapshots").glob(f"{job}-0"))
    server = serve(real=True)
    assert server.until(lambda: server.job(job)["step"], 60) >= 5
    assert server.client.delete(f"/api/jobs/{job}").json()["state"] == "cancelled"


def test_an_engine_ends_when_its_server_is_gone_with_something_unread() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "darkroom.serve.engine_process", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    theirs.close()
    fields = {"device": "cpu", "dtype": "auto", "snapshot_every": 5.0}
    ours.sendall(Message("start", fields).packed())
    try:
        assert ours.recv(1, socket.MSG_PEEK)  # it has said that it is ready, which nobody reads
        ours.close()
        assert process.wait(30) == 0
    finally:
        process.kill()


UNENCODABLE = """
from darkroom.serve import engine_process
def encoded(*_):
    raise MemoryError("no room for a file")
engine_process.encoded = encoded
engine_process.main()
"""


def test_a_picture_whose_file_cannot_be_made_fails_with_the_reason(serve: Callable[..., Running]) -> None:
    server = serve(real=True, engine_command=[sys.executable, "-c", UNENCODABLE])
    ended = server.ended(server.post(prompt="a large fox", width=64, height=64, steps=1)["id"], 120)
    assert ended["state"] == "failed"
    assert "no room for a file" in ended["error"]
