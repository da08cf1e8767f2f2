"""Darkroom's own dialect, over real HTTP against the fake engine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from typing import Any

from PIL import Image

from .conftest import Running


def png(width: int = 16, height: int = 16, colour: tuple[int, ...] = (200, 30, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_job_is_drawn_and_lies_in_the_gallery(fake: Running) -> None:
    answer = fake.client.post("/api/jobs", json={"prompt": "a fox", "seed": 7, "n": 2})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/api/jobs/{job['id']}"
    assert job["request"]["steps"] == 4  # the model's own, written down when it was taken in
    ended = fake.ended(job["id"])
    assert ended["state"] == "finished"
    assert [image["seed"] for image in ended["images"]] == ["7", "8"]
    image = fake.client.get(f"/api/images/{ended['images'][1]['id']}").json()
    assert image["recipe"]["seed"] == "8"
    assert "Seed: 8" in image["infotext"]
    file = fake.client.get(image["file"])
    assert hashlib.sha256(file.content).hexdigest() == image["sha256"]
    assert Image.open(io.BytesIO(file.content)).size == (64, 64)
    thumb = fake.client.get(image["thumb"])
    assert thumb.headers["content-type"] == "image/webp"
    assert fake.client.get(image["thumb"], headers={"if-none-match": thumb.headers["etag"]}).status_code == 304


def test_events_tell_the_present_state_and_end_with_the_job(fake: Running) -> None:
    job = fake.post(prompt="a fox, slow", steps=60)
    kinds, last = [], {}
    with fake.client.stream("GET", f"/api/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kinds.append(line[7:])
            elif line.startswith("data: "):
                last = json.loads(line[6:])
    assert kinds[-1] == "finished"
    assert last["images"]
    assert "progress" in kinds
    assert "preview" in kinds
    with fake.client.stream("GET", f"/api/jobs/{job['id']}/events") as answer:  # who comes late learns the end
        assert [line for line in answer.iter_lines() if line.startswith("event: ")] == ["event: finished"]


def test_a_picture_sent_ahead_is_the_same_as_one_sent_along(fake: Running) -> None:
    data = png()
    sha = hashlib.sha256(data).hexdigest()
    put = fake.client.put(f"/api/inputs/{sha}", content=data)
    assert put.json() == {"sha256": sha, "width": 16, "height": 16}
    request: dict[str, Any] = {"prompt": "a fox", "seed": 3, "strength": 0.5}
    jobs = [fake.post(image=given, **request) for given in (f"input:{sha}", text(data))]
    form = {"request": (None, json.dumps(request), "application/json"), "image": ("a.png", data, "image/png")}
    jobs.append(fake.client.post("/api/jobs", files=form).json())
    hashes = {fake.ended(job["id"])["images"][0]["sha256"] for job in jobs}
    assert len(hashes) == 1
    assert {json.dumps(fake.job(job["id"])["inputs"]) for job in jobs} == {json.dumps({"image": sha})}
    back = fake.client.get(f"/api/inputs/{sha}")
    assert Image.open(io.BytesIO(back.content)).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert fake.client.head(f"/api/inputs/{sha}").status_code == 200
    for nothing in ("0" * 64, "..%2F..%2Flock"):
        assert fake.client.get(f"/api/inputs/{nothing}").status_code == 404
    other = fake.post(image=text(png(colour=(0, 0, 0))), **request)
    assert fake.ended(other["id"])["images"][0]["sha256"] not in hashes


def test_a_job_is_cancelled_at_once_and_its_finished_pictures_stay(fake: Running) -> None:
    job = fake.post(prompt="a fox, slow", steps=100, n=3)
    fake.until(lambda: fake.job(job["id"])["state"] == "running")
    ended = fake.client.delete(f"/api/jobs/{job['id']}").json()
    assert ended["state"] == "cancelled"
    assert fake.client.delete("/api/jobs/nothing").status_code == 404


def test_a_seed_may_come_as_the_text_that_it_is_told_as(fake: Running) -> None:
    most = str(2**64 - 1)
    ended = fake.ended(fake.post(prompt="a fox", seed=most)["id"])
    assert ended["images"][0]["seed"] == most
    number = fake.ended(fake.post(prompt="a fox", seed=2**64 - 1)["id"])
    assert number["images"][0]["sha256"] == ended["images"][0]["sha256"]
    for wrong in (str(2**64), "seven", "1e3", ""):
        assert fake.client.post("/api/jobs", json={"prompt": "a fox", "seed": wrong}).status_code == 422


def test_a_rerun_changes_what_is_asked_and_nothing_else(fake: Running) -> None:
    job = fake.post(prompt="a fox", seed=5)
    first = fake.ended(job["id"])["images"][0]["sha256"]
    same = fake.client.post(f"/api/jobs/{job['id']}/rerun").json()
    assert fake.ended(same["id"])["images"][0]["sha256"] == first
    other = fake.post(f"/api/jobs/{job['id']}/rerun", changes={"seed": 6})
    assert fake.ended(other["id"])["images"][0]["sha256"] != first
    assert other["request"]["prompt"] == "a fox"


def test_the_gallery_is_searched_paged_pinned_and_undone(serve: Any) -> None:
    server = serve()
    for prompt in ("여우가 걷는다", "a 100% fox", "an owl"):
        server.ended(server.post(prompt=prompt, seed=1)["id"])

    def found(**query: Any) -> list[str]:
        return [image["prompt"] for image in server.client.get("/api/images", params=query).json()["images"]]

    assert found() == ["an owl", "a 100% fox", "여우가 걷는다"]
    assert found(q="여우") == ["여우가 걷는다"]
    assert found(q="100% FOX") == ["a 100% fox"]
    assert found(q="1_0") == []
    page = server.client.get("/api/images", params={"limit": 2}).json()
    assert [image["prompt"] for image in page["images"]] == ["an owl", "a 100% fox"]
    assert found(before=page["next"], limit=2) == ["여우가 걷는다"]
    id = page["images"][0]["id"]
    assert (
        server.client.patch(f"/api/images/{id}", json={"pinned": True, "rating": 4, "tags": ["bird"]}).json()["rating"]
        == 4
    )
    assert found(pinned=True) == found(tag="bird") == ["an owl"]
    assert server.client.delete(f"/api/images/{id}").json()["undo_seconds"] == 30
    assert "an owl" not in found()
    assert server.client.patch(f"/api/images/{id}", json={"deleted": False}).status_code == 200
    assert "an owl" in found()
    assert server.client.patch(f"/api/images/{id}", json={"rating": 9}).status_code == 422


def test_what_is_wrong_is_said_at_once_with_the_field(fake: Running) -> None:
    def refused(**fields: Any) -> str:
        answer = fake.client.post("/api/jobs", json=fields)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.json()["detail"]

    assert "prompt" in refused(prompt=3)
    assert "sampler" in refused(prompt="a", sampler="eular")
    assert "euler" in refused(prompt="a", sampler="eular")
    assert "no image" in refused(prompt="a", strength=0.4)
    assert "address" in refused(prompt="a", image="http://127.0.0.1/x.png")
    assert "base64" in refused(prompt="a", image="%%%")
    assert "model" in refused(prompt="a", model="../../etc/passwd")
    assert "LoRA" in refused(prompt="a", loras=["nothing"])
    assert "LoRA" in refused(prompt="a <lora:nothing:1>")
    assert "weight" in refused(prompt="a", negative_prompt="(blur:2000)")
    assert "input" in refused(prompt="a", image="input:" + "0" * 64)
    assert "cost" in refused(prompt="a", width=4096, height=4096, steps=1000)
    for body in (b"[1]", b"{", b'{"prompt": NaN}', b"[" * 100_000, b""):
        answer = fake.client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, answer.text


def test_a_prompt_with_half_a_character_comes_back_as_it_was(fake: Running) -> None:
    body = b'{"prompt": "a \\ud83d fox \\u0000", "seed": 1}'
    answer = fake.client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 202, answer.text
    ended = fake.ended(answer.json()["id"])
    assert ended["state"] == "finished", ended
    assert ended["request"]["prompt"] == "a \ud83d fox \0"


def test_what_the_server_is_it_tells(fake: Running) -> None:
    info = fake.client.get("/api/server").json()
    assert info["ready"] is True
    assert info["bit_exact"] is True
    assert info["models"][0]["size"] == [64, 64]
    assert {"id": "euler", "label": "Euler"} in info["samplers"]
    assert "karras" in info["schedules"]
    assert info["settings"]["clip_skip"] == 0
    assert info["settings"]["sampler"] is None
    assert not {"prompt", "model", "model_hash", "image"} & info["settings"].keys()
    assert fake.client.get("/healthz").text == "ok\n"
    assert b"darkroom_jobs{" in fake.client.get("/metrics").content
    told = fake.post("/api/explain", prompt="a fox")["parts"][0]["texts"][0]["chunks"][0]
    assert [token["text"] for token in told] == ["a", "fox"]


def test_the_recipe_in_a_dropped_picture_is_read_and_nothing_is_kept(fake: Running) -> None:
    job = fake.ended(fake.post(prompt="a fox", seed=2**64 - 1)["id"])
    data = fake.client.get(f"/api/images/{job['images'][0]['id']}/file").content
    found = fake.client.post("/api/images/import", content=data).json()
    assert found["source"] == "darkroom"
    assert found["recipe"]["seed"] == str(2**64 - 1)
    assert fake.client.post("/api/images/import", content=b"nothing").status_code == 422


def test_a_hint_is_made_of_a_picture(fake: Running) -> None:
    answer = fake.client.post("/api/hints", json={"kind": "canny", "image": text(png(32, 24))})
    assert Image.open(io.BytesIO(answer.content)).size == (32, 24)
    assert fake.client.post("/api/hints", json={"kind": "cany", "image": text(png())}).status_code == 422


def test_the_web_process_needs_no_torch() -> None:
    code = "import sys, darkroom.serve.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_prompts_are_logged_only_where_that_is_asked_for(serve: Any) -> None:
    for asked in (False, True):
        server = serve(f"data{asked:d}", log_prompts=asked)
        server.ended(server.post(prompt="a secret fox")["id"])
        assert ("secret" in server.told()) == asked
        server.stop()
