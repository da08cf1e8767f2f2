"""OpenAI's dialect over real HTTP, against the fake engine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from PIL import Image

from darkroom.formats.picture import read_metadata
from darkroom.serve.answers import refusal
from darkroom.serve.keys import add_key, remove_key
from darkroom.serve.openai_fields import OURS, REFUSED, Fields
from darkroom.settings import settings

from .conftest import Running, httpx

TWO = ("generations", "edits")


def png(size: tuple[int, int] = (64, 64), colour: tuple[int, ...] = (200, 30, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def hole(size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (8, 8, 24, 24)) -> bytes:
    """A mask: opaque, transparent in a box."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def generate(server: Running, path: str = "/v1/images/generations", **fields: Any) -> Any:
    answer = server.client.post(path, json={"prompt": "a fox", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Running, status: int = 400, **fields: Any) -> dict[str, Any]:
    answer = server.client.post("/v1/images/generations", json={"prompt": "a fox", **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error  # type: ignore[no-any-return]


def edit(server: Running, files: Any = None, what: str = "edits", **fields: Any) -> Any:
    files = files or [("image", ("a.png", png(), "image/png"))]
    answer = server.client.post(f"/v1/images/{what}", data={"prompt": "a fox", **fields}, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()


def newest(server: Running) -> dict[str, Any]:
    """The newest job's request, as it was admitted."""
    jobs = server.client.get("/api/jobs", params={"state": "queued,running,finished,failed", "limit": 1}).json()["jobs"]
    return jobs[0]["request"]  # type: ignore[no-any-return]


def rows(server: Running) -> int:
    with sqlite3.connect(server.data / "darkroom.sqlite") as connection:
        return int(connection.execute("select count(*) from jobs").fetchone()[0])


def events(server: Running, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    found, kind = [], ""
    with server.client.stream(
        "POST", "/v1/images/generations", json={"prompt": "a fox", "stream": True, **fields}
    ) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
    return found


# --- pictures


@pytest.mark.parametrize("path", ["/v1/images/generations", "/images/generations"])
def test_a_picture_with_everything_that_clients_read(fake: Running, path: str) -> None:
    answer = generate(fake, path, seed=7)
    assert set(answer) == {"created", "data", "background", "output_format", "quality", "size", "usage"}
    assert abs(answer["created"] - time.time()) < 60
    assert (answer["size"], answer["output_format"], answer["background"]) == ("64x64", "png", "opaque")
    assert answer["quality"] == "medium"
    assert answer["usage"] == {
        "input_tokens": 2,  # "a fox"
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        "output_tokens": 16,  # (64 / 16)^2
        "total_tokens": 18,
    }
    (picture,) = answer["data"]
    assert picture["seed"] == "7"
    assert picture["revised_prompt"] == "a fox"
    assert opened(picture["b64_json"]).size == (64, 64)


def test_picture_i_is_the_one_of_seed_and_i(fake: Running) -> None:
    two = generate(fake, seed=41, n=2)["data"]
    assert [one["seed"] for one in two] == ["41", "42"]
    assert two[1] == generate(fake, seed=42)["data"][0]
    assert two[0]["b64_json"] != two[1]["b64_json"]


def test_two_equal_requests_are_two(fake: Running) -> None:
    before = rows(fake)
    one, other = generate(fake), generate(fake)
    assert rows(fake) == before + 2
    assert one["data"][0]["seed"] != other["data"][0]["seed"]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_picture_comes_in_each_format_with_its_recipe(fake: Running, tmp_path: Any, format: str) -> None:
    for more in ({}, {"output_compression": 100 if format == "png" else 40}):
        answer = generate(fake, seed=5, output_format=format, **more)
        data = base64.b64decode(answer["data"][0]["b64_json"])
        path = tmp_path / f"a.{format}"
        path.write_bytes(data)
        found = read_metadata(path)
        assert (found.format.lower(), found.recipe["seed"]) == (format, 5)
        assert answer["output_format"] == format
    if format == "webp":  # without loss where nothing else is asked
        plain = opened(generate(fake, seed=5, output_format=format)["data"][0]["b64_json"]).convert("RGB")
        assert plain.tobytes() == opened(generate(fake, seed=5)["data"][0]["b64_json"]).tobytes()


def test_a_recipe_too_long_for_a_jpeg_stays_in_the_gallery(fake: Running) -> None:
    answer = generate(fake, prompt="fox " * 7_500, output_format="jpeg")
    assert opened(answer["data"][0]["b64_json"]).format == "JPEG"


def test_qualities_are_steps(fake: Running) -> None:
    for quality, steps in (("low", 2), ("medium", 4), ("auto", 4), ("standard", 4), ("high", 6), ("hd", 6), ("max", 8)):
        generate(fake, quality=quality)
        assert newest(fake)["steps"] == steps, quality
    generate(fake, quality="low", steps=9)
    assert newest(fake)["steps"] == 9


def test_our_fields_stand_beside_theirs_and_others_are_passed_over(fake: Running) -> None:
    generate(
        fake,
        seed="18446744073709551615",
        num_inference_steps=3,
        true_cfg_scale=2,
        negative_prompt="blur",
        sampler="dpmpp_2m",
        schedule="karras",
        clip_skip=2,
        style="vivid",
        moderation="low",
        complexity="high",
        user="me",
        background="auto",
        something={"else": [1]},
        n=None,
    )
    asked = newest(fake)
    assert asked["seed"] == 2**64 - 1
    assert (asked["steps"], asked["guidance_scale"], asked["negative_prompt"]) == (3, 2, "blur")
    assert (asked["sampler"], asked["schedule"], asked["clip_skip"]) == ("dpmpp_2m", "karras", 2)
    assert generate(fake, user="me", safety_identifier="you")["safety_identifier"] == "you"


def test_models_by_name_and_openais_names_for_the_default_one(fake: Running) -> None:
    models = fake.client.get("/v1/models").json()
    assert models == fake.client.get("/models").json()
    (model,) = models["data"]
    assert set(model) == {"id", "object", "created", "owned_by"}
    assert fake.client.get(f"/v1/models/{model['id']}").json() == model
    for name in (model["id"], "dall-e-3", "gpt-image-2.5-flare", "chatgpt-image-latest", None, ""):
        generate(fake, model=name)
    error = refused(fake, 404, model="flux-dev")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert fake.client.get("/v1/models/flux").json()["error"]["code"] == "model_not_found"


# --- addresses


def test_an_address_needs_no_key_and_ends_with_it(serve: Callable[..., Running], tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    key = add_key(keys, "ann", {}, admin=False)
    server = serve(keys=str(keys), public_url="https://pictures.example")
    path = "/v1/images/generations"
    bare = server.client.post(path, json={"prompt": "a fox"})
    assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
    asked = {"prompt": "a fox", "model": "dall-e-2", "size": "1024x1024", "output_format": "webp"}
    answer = server.client.post(path, json=asked, headers={"authorization": f"Bearer {key}"}).json()
    url = urlsplit(answer["data"][0]["url"])
    assert set(answer["data"][0]) == {"url", "revised_prompt", "seed"}
    assert answer["data"][0]["url"].startswith("https://pictures.example/v1/files/images/")
    found = server.client.get(f"{url.path}?{url.query}")
    assert found.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(found.content)).size == (1024, 1024)
    for wrong in (
        url.query.replace("1024x1024", "1024x1025"),
        url.query.replace("expires=1", "expires=2"),
        url.query[:-1],
        "",
        "&".join(part for part in url.query.split("&") if not part.startswith("expires")),
    ):
        assert server.client.get(f"{url.path}?{wrong}").status_code == 404
    remove_key(keys, "ann")
    assert server.client.get(f"{url.path}?{url.query}").status_code == 404


def test_an_address_is_what_dall_e_gives_and_others_where_asked(fake: Running) -> None:
    assert "url" in generate(fake, model="dall-e-3")["data"][0]
    assert "url" in generate(fake, response_format="url")["data"][0]
    assert "b64_json" in generate(fake, model="dall-e-3", response_format="b64_json")["data"][0]
    assert "b64_json" in generate(fake, model="gpt-image-1.5")["data"][0]


# --- sizes


def test_a_size_far_beyond_the_model_is_drawn_small_and_enlarged(fake: Running) -> None:
    for size, drawn in (("96x64", None), ("128x64", None), ("1024x1024", (64, 64)), ("1536x1024", (80, 56))):
        answer = fake.client.post("/v1/images/generations", json={"prompt": "a fox", "size": size, "seed": 3})
        told = answer.json()
        assert opened(told["data"][0]["b64_json"]).size == tuple(int(side) for side in size.split("x"))
        assert told["size"] == size
        assert answer.headers.get("x-darkroom-drawn-size") == (f"{drawn[0]}x{drawn[1]}" if drawn else None)
        asked = newest(fake)
        assert (asked["width"], asked["height"]) == (drawn or tuple(int(side) for side in size.split("x")))
    generate(fake, size="1024x1024", hires={"scale": 2, "strength": 0.5})  # who asks for a second pass has it
    assert newest(fake)["width"] == 1024


# --- edits


def test_an_edit_without_a_mask_begins_with_the_picture(fake: Running) -> None:
    picture = png((96, 64))
    for name in ("image", "image[]"):
        answer = edit(fake, [(name, ("a.png", picture, "image/png"))], seed="4", sampler="euler", strength="0.5")
        assert answer["size"] == "96x64"
        asked = newest(fake)
        assert (asked["seed"], asked["strength"], asked["sampler"]) == (4, 0.5, "euler")
        assert answer["usage"]["input_tokens_details"] == {"text_tokens": 2, "image_tokens": 24}
    edit(fake, input_fidelity="high")
    assert newest(fake)["strength"] == pytest.approx(0.75 * 0.7)
    edit(fake, size="64x96", quality="")
    assert (newest(fake)["width"], newest(fake)["height"]) == (64, 96)
    assert edit(fake, [("image", ("a.png", png((512, 512)), "image/png"))])["size"] == "512x512"
    assert newest(fake)["width"] == 64


def test_a_mask_is_turned_round(fake: Running) -> None:
    files = [("image", ("a.png", png(), "image/png")), ("mask", ("m.png", hole(), "image/png"))]
    answer = edit(fake, files, seed=1)
    assert newest(fake)["strength"] == 1  # what was there does not show through
    # The same job in our own dialect, where white is what is drawn anew.
    white = Image.new("L", (64, 64))
    white.paste(255, (8, 8, 24, 24))
    buffer = io.BytesIO()
    white.save(buffer, "PNG")
    own = {
        "prompt": "a fox",
        "seed": 1,
        "strength": 1,
        "image": base64.b64encode(png()).decode(),
        "mask": base64.b64encode(buffer.getvalue()).decode(),
    }
    image = fake.ended(fake.post(**own)["id"])["images"][0]
    assert hashlib.sha256(base64.b64decode(answer["data"][0]["b64_json"])).hexdigest() == image["sha256"]
    large = [
        ("image", ("a.png", png((512, 256)), "image/png")),
        ("mask", ("m.png", hole((512, 256)), "image/png")),
    ]
    assert edit(fake, large)["size"] == "512x256"
    assert newest(fake)["only_masked"] is True


def test_edits_in_json_and_variations(fake: Running) -> None:
    text = base64.b64encode(png()).decode()
    body = {"prompt": "a fox", "seed": 4, "image": [f"data:image/png;base64,{text}"]}
    answer = fake.client.post("/v1/images/edits", json=body)
    assert answer.json()["data"] == edit(fake, seed=4)["data"]
    files = [("image", ("a.png", png(), "image/png"))]
    answer = fake.client.post("/v1/images/variations", data={"n": "2"}, files=files)
    assert len(answer.json()["data"]) == 2
    assert newest(fake)["prompt"] == ""


def test_a_form_that_comes_in_pieces(fake: Running) -> None:
    plain = fake.client.build_request(
        "POST",
        "/v1/images/edits",
        data={"prompt": "a fox", "seed": "4"},
        files={"image": ("a.png", png(), "image/png")},
    )
    body, kind = plain.read(), plain.headers["content-type"]
    pieces = (body[i : i + 100] for i in range(0, len(body), 100))
    answer = fake.client.post("/v1/images/edits", content=pieces, headers={"content-type": kind})
    assert answer.json()["data"] == edit(fake, seed=4)["data"]


def test_wrong_pictures_are_refused_by_name(fake: Running) -> None:
    def told(files: list[Any], **fields: Any) -> tuple[Any, str]:
        answer = fake.client.post("/v1/images/edits", data={"prompt": "a fox", **fields}, files=files)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]["param"], answer.json()["error"]["message"]

    image, other = ("image", ("a.png", png(), "image/png")), ("image", ("b.png", png((8, 8)), "image/png"))
    assert told([("mask", ("m.png", hole(), "image/png"))])[0] == "image"
    assert told([image, other])[0] == "image"
    assert told([("image[]", image[1]), ("image[]", other[1])])[0] == "image"
    assert told([image, ("mask", ("m.png", png(), "image/png"))])[0] == "mask"
    assert told([image, ("mask", ("m.png", hole((32, 32), (0, 0, 8, 8)), "image/png"))])[0] == "mask"
    assert told([image, ("mask", ("m.png", png(colour=(0, 0, 0, 1)), "image/png"))])[0] == "mask"
    assert told([image, ("markup", ("m.png", hole(), "image/png"))])[0] == "markup"
    assert "PNG" in told([("image", ("a.png", b"GIF89a...", "image/gif"))])[1]
    assert told([image, ("mask", ("a.png", b"\x89PNG\r\n\x1a\n....", "image/png"))])[0] == "mask"
    body = {"prompt": "a fox", "image": "https://example.org/a.png"}
    error = fake.client.post("/v1/images/edits", json=body).json()["error"]
    assert (error["param"], "address" in error["message"]) == ("image", True)


# --- refusals


def test_what_is_wrong_is_told_with_its_field(fake: Running) -> None:
    for name, value in (
        ("n", 0), ("n", 11), ("n", "many"), ("n", True), ("size", "big"), ("size", 512), ("size", "512x99999"),
        ("quality", "best"), ("background", "transparent"), ("response_format", "jpg"), ("output_format", "gif"),
        ("output_format", "svg"), ("output_compression", 101), ("partial_images", 4), ("stream", "perhaps"),
        ("frame_count", 2), ("svg", {"model": "x"}), ("steps", 0), ("seed", 2**64), ("guidance_scale", -1),
        ("prompt", 3), ("prompt", "x" * 32_001), ("hires", {"scale": 99}), ("model", 4), ("input_fidelity", "max"),
    ):  # fmt: skip
        error = refused(fake, **{name: value})
        assert (error["param"], error["type"]) == (name, "invalid_request_error"), (name, value, error)
    assert refused(fake, prompt=None)["param"] == "prompt"
    assert refused(fake, output_compression=50)["param"] == "output_compression"  # of PNG
    assert "LoRA" in refused(fake, loras=["nothing"])["message"]
    for name, value in (("sampler", "eular"), ("schedule", "kerras"), ("strength", 0.5)):
        assert refused(fake, **{name: value})["param"] == name
    generate(fake, schedule="Automatic")
    answer = fake.client.post("/v1/images/generations", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert fake.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"


ODD: list[Any] = [
    None, True, -1, 0, 3, 1.5, 1e308, 2**70, "", "3", "auto", "64x64", "high", "true", "\ud800", "a" * 40_000, [],
    ["a"], [[[]]], {}, {"name": "a"}, {"scale": 2}, "[1", "[1]", "input:" + "0" * 64, base64.b64encode(png()).decode(),
]  # fmt: skip
NAMES = [*settings(Fields), *OURS, *REFUSED, "loras", "image", "mask", "num_inference_steps"]


@settings_of_hypothesis(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(["generations", "edits"]), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD)))
def test_odd_values_are_refused_or_drawn_and_break_nothing(fake: Running, what: str, body: dict[str, Any]) -> None:
    sent = json.dumps({"prompt": "a fox", "size": "8x8", **body})
    answer = fake.client.post(f"/v1/images/{what}", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (body, answer.text)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_limits_in_openais_words(serve: Callable[..., Running]) -> None:
    server = serve(max_jobs=1, max_body=100_000)
    job = server.post(prompt="a fox, slow", steps=1000)
    answer = server.client.post("/v1/images/generations", json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    server.client.delete(f"/api/jobs/{job['id']}")
    answer = server.client.post("/v1/images/generations", json={"prompt": "a" * 100_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "content_too_large")


def test_a_picture_that_fails_is_not_asked_for_again(fake: Running) -> None:
    answer = fake.client.post("/v1/images/generations", json={"prompt": "a fox, fail"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
    assert "NaN" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_disk_and_a_stop_in_openais_words() -> None:
    full = refusal("/v1/images/edits", 507, "no room")
    assert (full.status_code, full.headers["x-should-retry"]) == (503, "false")
    assert json.loads(full.body)["error"]["code"] == "insufficient_storage"


def test_who_waits_while_the_server_stops_gets_the_picture_from_the_next(serve: Callable[..., Running]) -> None:
    first, asked = serve(), {"prompt": "a fox, slow", "steps": 100, "size": "64x64"}
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(httpx.post(f"{first.url}/v1/images/generations", json=asked, timeout=60))
    )
    waiting.start()
    first.until(lambda: rows(first) == 1)
    assert first.stop() == 0
    waiting.join(20)
    assert (found[0].status_code, found[0].headers["retry-after"]) == (503, "5")
    second = serve()
    headers = {"x-stainless-retry-count": "1"}
    answer = second.client.post("/v1/images/generations", json=asked, headers=headers)
    assert answer.status_code == 200
    assert rows(second) == 1


# --- streams


def test_a_stream_ends_with_each_picture_whole(fake: Running) -> None:
    found = events(fake, prompt="a fox, slow", steps=40, n=2, partial_images=3, seed=11, size="512x512")
    kinds = [kind for kind, _ in found]
    assert kinds[-1] == "image_generation.completed"
    assert kinds.count("image_generation.completed") == 2
    partial = [data for kind, data in found if kind == "image_generation.partial_image"]
    # Two pictures of at most three each; which is which isn't told, so their numbers come twice.
    assert sorted(data["partial_image_index"] for data in partial) == [0, 0, 1, 1, 2, 2]
    shared = {"type", "b64_json", "created_at", "size", "background", "output_format", "quality"}
    for kind, data in found:
        more = "usage" if kind.endswith("completed") else "partial_image_index"
        assert set(data) == shared | {more}
        assert (data["type"], data["size"]) == (kind, "512x512")
        assert opened(data["b64_json"]).size == (512, 512)
        assert opened(data["b64_json"]).format == "PNG"
    whole = {data["b64_json"] for kind, data in found if kind.endswith("completed")}
    same = generate(fake, prompt="a fox, slow", steps=40, n=2, seed=11, size="512x512")
    assert whole == {one["b64_json"] for one in same["data"]}
    assert found[-1][1]["usage"]["output_tokens"] == 1024


def test_a_stream_without_partial_pictures_is_the_picture(fake: Running) -> None:
    assert [kind for kind, _ in events(fake)] == ["image_generation.completed"]
    with fake.client.stream(
        "POST",
        "/images/edits",
        data={"prompt": "a fox", "stream": "true"},
        files={"image": ("a.png", png(), "image/png")},
    ) as answer:
        assert b"event: image_edit.completed" in answer.read()


def test_what_goes_wrong_after_the_first_byte_is_an_event(fake: Running) -> None:
    found = events(fake, prompt="a fox, fail")
    assert [kind for kind, _ in found] == ["error"]
    assert found[0][1]["error"]["code"] == "generation_failed"
    answer = fake.client.post("/v1/images/generations", json={"prompt": "a fox", "stream": True, "n": 0})
    assert answer.status_code == 400


# --- repeats


def test_an_idempotency_key_stands_for_one_job(fake: Running) -> None:
    before, headers = rows(fake), {"idempotency-key": "k-1"}
    path = "/v1/images/generations"
    one = fake.client.post(path, json={"prompt": "a fox"}, headers=headers).json()
    other = fake.client.post(path, json={"prompt": "a fox"}, headers=headers).json()
    assert one["data"] == other["data"]
    assert rows(fake) == before + 1
    answer = fake.client.post(path, json={"prompt": "an owl"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert answer.headers["x-should-retry"] == "false"
    assert fake.client.post(path, json={"prompt": "a"}, headers={"idempotency-key": "k" * 256}).status_code == 400


def test_a_repeat_takes_up_what_nobody_waits_for(fake: Running) -> None:
    path, repeat = "/v1/images/edits", {"x-stainless-retry-count": "1"}

    def files(name: str = "a.png") -> Any:
        return [("image", (name, png((72, 72)), "image/png"))]

    before = rows(fake)
    first = edit(fake, files(), prompt="a fox repeated")
    again = fake.client.post(path, data={"prompt": "a fox repeated"}, files=files(), headers=repeat)
    assert again.json()["data"] == first["data"]
    assert rows(fake) == before + 1
    for changed in ({"prompt": "another"}, {"prompt": "a fox repeated", "n": "2"}):
        fake.client.post(path, data=changed, files=files(), headers=repeat)
    assert rows(fake) == before + 3
    edit(fake, files(), prompt="a fox repeated")  # the same once more, not a repeat
    assert rows(fake) == before + 4


def test_a_repeat_leaves_alone_what_another_waits_for(fake: Running) -> None:
    before = rows(fake)
    asked = {"prompt": "a fox, slow", "steps": 200, "stream": True}
    with fake.client.stream("POST", "/v1/images/generations", json=asked) as waiting:
        assert waiting.status_code == 200
        repeat = {"x-stainless-retry-count": "2"}
        with fake.client.stream("POST", "/v1/images/generations", json=asked, headers=repeat) as other:
            assert other.headers["x-darkroom-job"] != waiting.headers["x-darkroom-job"]
    assert rows(fake) == before + 2


def test_the_job_goes_on_when_its_client_goes(serve: Callable[..., Running]) -> None:
    for cancel, state in ((False, "finished"), (True, "cancelled")):
        server = serve(data=f"data-{cancel}", cancel_when_client_goes=cancel)
        for stream in (False, True):
            asked = {"prompt": f"a fox {stream}, slow", "steps": 50, "stream": stream}
            with pytest.raises(Exception, match="timed out"):
                server.client.post("/v1/images/generations", json=asked, timeout=0.3)
            (job,) = server.client.get("/api/jobs", params={"state": "queued,running"}).json()["jobs"]
            assert server.ended(job["id"])["state"] == state


# --- with the real engine


def test_real_pictures_are_those_of_their_seeds_and_edits_keep_what_is_not_masked(
    serve: Callable[..., Running],
) -> None:
    server = serve(real=True)
    small = {"steps": 2, "size": "32x32"}
    two = generate(server, n=2, seed=6, **small)["data"]
    assert two[1]["b64_json"] == generate(server, seed=7, **small)["data"][0]["b64_json"]
    picture = base64.b64decode(two[0]["b64_json"])
    box = (8, 8, 24, 24)
    files = [("image", ("a.png", picture, "image/png")), ("mask", ("m.png", hole((32, 32), box), "image/png"))]
    edited = np.asarray(opened(edit(server, files, seed=1, steps=2)["data"][0]["b64_json"])).astype(int)
    changes = np.abs(edited - np.asarray(Image.open(io.BytesIO(picture)))).max(axis=2)
    assert changes[8:24, 8:24].any()
    changes[8:24, 8:24] = 0
    assert not changes.any()
