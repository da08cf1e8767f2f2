"""A1111's dialect over real HTTP, against the fake engine: what its clients call, and whose jobs they reach."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from darkroom.serve.keys import add_key

from .conftest import Running

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 4}
Start = Callable[..., Running]


def text(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(given: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(given)))


def drawn(server: Running, path: str = "txt2img", client: Any = None, **fields: Any) -> Any:
    answer = (client or server.client).post(f"/sdapi/v1/{path}", json=SMALL | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


class Later:
    """A request in a thread of its own."""

    def __init__(self, server: Running, client: Any = None, **fields: Any) -> None:
        self.answer: Any = None
        self._client = httpx.Client(base_url=server.url, timeout=60, auth=client)
        self._thread = threading.Thread(target=self._run, args=(fields,), daemon=True)
        self._thread.start()

    def _run(self, fields: dict[str, Any]) -> None:
        self.answer = self._client.post("/sdapi/v1/txt2img", json=SMALL | fields)

    def wait(self) -> Any:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer


def test_an_answer_has_pictures_parameters_and_a_json_text(fake: Running) -> None:
    answer = drawn(fake, prompt="a fox", seed=7, batch_size=2, n_iter=2, sampler_name="DPM++ 2M", restore_faces=True)
    assert [opened(image).size for image in answer["images"]] == [(64, 64)] * 4
    assert answer["parameters"]["prompt"] == "a fox"
    assert answer["parameters"]["cfg_scale"] == 7.0
    assert answer["parameters"]["ignored"] == {"restore_faces": "faces are not restored"}
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert info["index_of_first_image"] == 0
    assert len(info["infotexts"]) == 4
    assert info["infotexts"][1].startswith(
        "a fox\nSteps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 8"
    )
    assert opened(answer["images"][1]).info["parameters"] == info["infotexts"][1]
    assert (info["sd_model_name"], info["sampler_name"], info["clip_skip"]) == ("darkroom-embedded", "DPM++ 2M", 1)
    assert drawn(fake, prompt="a fox", send_images=False)["images"] == []
    alone = drawn(fake, prompt="a fox", seed=8, sampler_name="DPM++ 2M")
    assert opened(alone["images"][0]).tobytes() == opened(answer["images"][1]).tobytes()


def test_variations_count_their_own_seed(fake: Running) -> None:
    info = json.loads(drawn(fake, seed=7, subseed=20, subseed_strength=0.1, batch_size=2)["info"])
    assert (info["all_seeds"], info["all_subseeds"], info["subseed_strength"]) == ([7, 7], [20, 21], 0.1)


def test_hints_follow_the_pictures(fake: Running) -> None:
    unit = {"image": text(Image.new("RGB", (64, 64), "red")), "model": "edges", "module": "canny"}
    answer = drawn(fake, batch_size=2, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert len(answer["images"]) == 3
    assert len(json.loads(answer["info"])["all_seeds"]) == 2
    assert not np.asarray(opened(answer["images"][2])).any()  # no edge in a red picture
    assert unit["image"] not in json.dumps(answer["parameters"])


def test_a_picture_comes_back_only_where_it_is_asked_for(fake: Running) -> None:
    picture = text(Image.new("RGB", (64, 64), "red"))
    assert drawn(fake, "img2img", init_images=[picture])["parameters"]["init_images"] is None
    again = drawn(fake, "img2img", init_images=[picture], include_init_images=True)
    assert again["parameters"]["init_images"] == [picture]


@pytest.mark.parametrize(
    ("path", "fields", "status", "detail"),
    [
        ("txt2img", {"sampler_name": "nothing"}, 400, "Sampler not found"),
        ("img2img", {}, 404, "Init image not found"),
        ("img2img", {"init_images": ["%%%"]}, 422, "base64"),
        ("img2img", {"init_images": ["http://127.0.0.1/x.png"]}, 422, "address"),
        ("img2img", {"init_images": ["input:" + "0" * 64]}, 422, "input"),
        ("txt2img", {"script_name": "x/y/z plot"}, 422, "not found"),
        ("txt2img", {"steps": "many"}, 422, "steps"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "nothing"}}, 422, "there is no model"),
        ("txt2img", {"prompt": "a fox, fail"}, 500, "NaN"),
    ],
)
def test_errors_have_a1111s_form(fake: Running, path: str, fields: Any, status: int, detail: str) -> None:
    answer = fake.client.post(f"/sdapi/v1/{path}", json=SMALL | fields)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told.keys() == {"error", "detail", "body", "errors"}
    assert detail in told["detail"]


def test_bodies_that_are_none(fake: Running) -> None:
    for body in (b"", b"[]", b'{"seed": NaN}', b"[" * 100_000):
        answer = fake.client.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json().keys()) == (422, {"error", "detail", "body", "errors"})
    assert fake.client.post("/sdapi/v1/interrogate", json={}).status_code == 404
    assert fake.client.get("/sdapi/v1/txt2img").status_code == 405


def test_lists(fake: Running) -> None:
    def told(name: str) -> Any:
        answer = fake.client.get(name if name.startswith("/") else f"/sdapi/v1/{name}")
        assert answer.status_code == 200, name
        return answer.json()

    assert {"name": "Euler a", "aliases": ["k_euler_a", "euler_a"], "options": {}} in told("samplers")
    assert {"DPM++ 2M": {"scheduler": "karras"}}.items() <= {
        one["name"]: one["options"] for one in told("samplers")
    }.items()
    assert next(one["name"] for one in told("schedulers")) == "automatic"
    assert "Karras" in [one["label"] for one in told("schedulers")]
    assert [one["name"] for one in told("upscalers")] == ["None", "Lanczos", "Nearest"]
    assert told("sd-models")[0]["model_name"] == "darkroom-embedded"
    assert told("sd-models")[0]["title"] == told("options")["sd_model_checkpoint"]
    assert [one["name"] for one in told("loras")] == ["sepia"]
    assert list(told("embeddings")["loaded"]) == ["blue-heart"]
    assert told("memory")["ram"]["total"] > 0
    assert told("cmd-flags")["api"] is True
    assert told("scripts")["txt2img"] == ["controlnet"]
    for empty in ("prompt-styles", "hypernetworks", "face-restorers", "realesrgan-models", "extensions", "sd-vae"):
        assert told(empty) == []
    assert told("/controlnet/model_list") == {"model_list": ["edges"]}
    assert told("/controlnet/module_list")["module_detail"]["canny"]["sliders"][1]["name"] == "Low Threshold"
    for action in ("refresh-checkpoints", "refresh-loras", "refresh-embeddings", "refresh-vae", "unload-checkpoint"):
        assert fake.client.post(f"/sdapi/v1/{action}").status_code == 200


def test_extras_and_recipes(fake: Running) -> None:
    picture = text(Image.new("RGB", (32, 16), "red"))

    def large(**fields: Any) -> Any:
        return fake.client.post("/sdapi/v1/extra-single-image", json={"image": picture} | fields).json()

    assert opened(large(upscaler_1="Lanczos", upscaling_resize=3)["image"]).size == (96, 48)
    assert opened(large()["image"]).size == (32, 16)  # upscaler "None"
    other = large(upscaler_1="R-ESRGAN 4x+", gfpgan_visibility=1)
    assert opened(other["image"]).size == (64, 32)
    assert "Lanczos" in other["html_info"]
    assert "gfpgan" in other["html_info"]
    answer = drawn(fake, prompt="a fox", seed=5)
    told = fake.client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
    assert told["info"] == json.loads(answer["info"])["infotexts"][0]
    assert json.loads(told["items"]["darkroom"])["seed"] == 5
    nothing = fake.client.post("/sdapi/v1/png-info", json={"image": picture}).json()
    assert nothing == {"info": "", "items": {}}


# --- options


def test_open_webui_posts_all_options_back(fake: Running) -> None:
    """It asks with an empty `authorization` where it has no password, and changes one value of the whole."""
    headers = {"authorization": ""}
    options = fake.client.get("/sdapi/v1/options", headers=headers).json()
    assert len(options) > 40
    title = fake.client.get("/sdapi/v1/sd-models", headers=headers).json()[0]["title"]
    options["sd_model_checkpoint"] = title
    assert fake.client.post("/sdapi/v1/options", json=options, headers=headers).status_code == 200
    body = {"prompt": "a fox", "batch_size": 1, "width": 64, "height": 64, "steps": 4, "negative_prompt": "fog"}
    assert fake.client.post("/sdapi/v1/txt2img", json=body, headers=headers).status_code == 200


def test_options_that_nobody_may_change_are_named(fake: Running) -> None:
    def refused(**options: Any) -> str:
        answer = fake.client.post("/sdapi/v1/options", json=options)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["detail"])

    sentence = refused(jpeg_quality=10, eta_ddim=0.0, nothing=1)
    assert "jpeg_quality" in sentence
    assert "nothing" in sentence
    assert "eta_ddim" not in sentence  # it is so already
    assert "there is no model" in refused(sd_model_checkpoint="nothing")
    assert "VAE" in refused(sd_vae="nothing")
    assert "1 to 12" in refused(CLIP_stop_at_last_layers=99)
    assert "png" in refused(samples_format="bmp")


def test_pictures_in_the_format_that_is_preferred(serve: Start) -> None:
    server = serve()
    for name, format in (("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")):
        server.client.post("/sdapi/v1/options", json={"samples_format": name})
        answer = drawn(server, prompt="a fox", seed=5)
        assert opened(answer["images"][0]).format == format
        told = server.client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
        assert told["info"] == json.loads(answer["info"])["infotexts"][0]


def test_jobs_that_wait_keep_their_model(serve: Start, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").write_bytes(b"x")
    (tmp_path / "models" / "VAE").mkdir()
    (tmp_path / "models" / "VAE" / "soft.safetensors").write_bytes(b"x")
    server = serve(models=str(tmp_path / "models"))
    titles = {one["model_name"]: one["title"] for one in server.client.get("/sdapi/v1/sd-models").json()}
    assert titles.keys() == {"one", "two"}
    waiting = Later(server, prompt="a fox, slow", steps=40)
    server.until(lambda: server.client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1)
    server.client.post("/sdapi/v1/options", json={"sd_model_checkpoint": titles["two"]})
    assert json.loads(drawn(server)["info"])["sd_model_name"] == "two"
    assert json.loads(waiting.wait().json()["info"])["sd_model_name"] == "one"
    override = {"override_settings": {"sd_model_checkpoint": "one.safetensors"}}
    assert json.loads(drawn(server, **override)["info"])["sd_model_name"] == "one"
    title = server.client.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    assert title.startswith("two [")  # its hash is known once it was loaded
    answer = drawn(server, override_settings={"sd_vae": "soft.safetensors", "sd_model_checkpoint": "one"})
    info = json.loads(answer["info"])
    assert (info["sd_model_name"], info["sd_vae_name"]) == ("one", "soft")
    assert answer["parameters"]["ignored"] == {}
    assert [one["model_name"] for one in server.client.get("/sdapi/v1/sd-vae").json()] == ["soft"]
    by_hash = {"override_settings": {"sd_model_checkpoint": title.split("[")[1][:-1]}}
    assert json.loads(drawn(server, **by_hash)["info"])["sd_model_name"] == "two"
    (folder / "two.safetensors").unlink()  # which was preferred
    server.client.post("/sdapi/v1/refresh-checkpoints")
    assert server.client.get("/sdapi/v1/options").json()["sd_model_checkpoint"].startswith("one")
    assert json.loads(drawn(server)["info"])["sd_model_name"] == "one"


# --- progress


def test_progress_of_a_task_by_its_name(serve: Start) -> None:
    server = serve(environment={"FAKE_TICK": "0.05"})
    task = "task(txt2img-ABCDEFG)"
    later = Later(server, prompt="a fox", steps=40, force_task_id=task, batch_size=2)

    def told(name: str = task, seen: int = -1) -> Any:
        return server.client.post("/internal/progress", json={"id_task": name, "id_live_preview": seen}).json()

    first = server.until(lambda: (found := told())["active"] and found["live_preview"] and found)
    assert 0 < first["progress"] < 1
    assert first["live_preview"].startswith("data:image/jpeg;base64,")
    assert told(seen=first["id_live_preview"] + 10**6)["live_preview"]
    assert told("another") | {"textinfo": None} == {
        "active": False, "queued": False, "paused": False, "completed": False, "progress": None, "eta": None,
        "live_preview": None, "id_live_preview": -1, "textinfo": None,
    }  # fmt: skip
    taken = server.client.post("/sdapi/v1/txt2img", json=SMALL | {"force_task_id": task})
    assert (taken.status_code, taken.json()["error"]) == (409, "Conflict")
    state = server.client.get("/sdapi/v1/progress").json()
    assert state["current_image"]
    assert (state["state"]["job"], state["state"]["job_count"], state["state"]["sampling_steps"]) == (task, 2, 40)
    skipped = server.client.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
    assert skipped["current_image"] is None
    assert later.wait().status_code == 200
    assert told()["completed"] is True
    assert server.client.get("/sdapi/v1/progress").json()["progress"] == 0
    drawn(server, force_task_id=task)  # it is free again


def test_interrupt_and_skip_end_the_callers_own(serve: Start, tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys", name, {}, admin=name == "root") for name in ("ann", "bob", "root")}
    server = serve(keys=str(tmp_path / "keys"))
    clients = {name: httpx.Client(base_url=server.url, auth=("anybody", key), timeout=60) for name, key in keys.items()}
    jobs = {
        name: Later(server, ("anybody", keys[name]), prompt="a fox, slow", steps=100, batch_size=2)
        for name in ("ann", "bob")
    }

    def running(name: str) -> bool:
        return bool(clients[name].get("/sdapi/v1/progress").json()["progress"] > 0)

    server.until(lambda: running("ann") and running("bob"))
    assert clients["root"].get("/sdapi/v1/progress").json()["state"]["job_count"] == 0  # who sees all has none
    assert clients["root"].post("/sdapi/v1/interrupt").json() == {}
    assert running("ann")
    assert clients["ann"].post("/sdapi/v1/interrupt").json() == {}
    ended = jobs["ann"].wait()
    assert ended.status_code == 200
    assert ended.json()["images"] == []
    assert json.loads(ended.json()["info"])["all_seeds"] == []
    assert running("bob")
    assert clients["bob"].post("/sdapi/v1/skip").json() is None
    assert jobs["bob"].wait().status_code == 200
    assert clients["bob"].get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}
    for client in clients.values():
        client.close()


def test_a_key_is_the_password_and_an_empty_one_is_none(serve: Start, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "ann", {}, admin=False)
    server = serve(keys=str(tmp_path / "keys"))
    for headers in ({}, {"authorization": ""}, {"authorization": "Basic eDp5"}):
        answer = server.client.get("/sdapi/v1/options", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert answer.json().keys() == {"error", "detail", "body", "errors"}
    assert httpx.get(f"{server.url}/sdapi/v1/options", auth=("anybody", key)).status_code == 200
    other = add_key(tmp_path / "keys", "bob", {}, admin=False)
    httpx.post(f"{server.url}/sdapi/v1/options", auth=("x", key), json={"CLIP_stop_at_last_layers": 2})
    told = [
        httpx.get(f"{server.url}/sdapi/v1/options", auth=("x", one)).json()["CLIP_stop_at_last_layers"]
        for one in (key, other)
    ]
    assert told == [2, 1]


def test_what_nonebots_plugin_sends(fake: Running) -> None:
    """Its own environment needs Redis and a browser; this is what its `AIDRAW` posts with its defaults."""
    body = {
        "prompt": "a fox", "seed": 12, "steps": 4, "cfg_scale": 7, "width": 64, "height": 64, "negative_prompt": "fog",
        "sampler_name": "Euler a", "denoising_strength": 0.7, "save_images": True, "alwayson_scripts": {},
        "script_args": [], "script_name": "", "override_settings": {"sd_model_checkpoint": None}, "n_iter": 1,
        "override_settings_restore_afterwards": True, "batch_size": 1, "scheduler": "Automatic", "styles": None,
        "enable_hr": "true", "hr_scale": 1.5, "hr_upscaler": "R-ESRGAN 4x+ Anime6B", "hr_second_pass_steps": 3,
    }  # fmt: skip
    answer = drawn(fake, **body)
    assert answer["parameters"]["ignored"].keys() == {"hr_upscaler"}
    assert "Model: darkroom-embedded," in answer["info"]  # which it looks for with a regular expression
    assert drawn(fake, "img2img", **body | {"init_images": ["data:image/jpeg;base64," + answer["images"][0]]})["images"]


def test_what_is_not_masked_stays_byte_for_byte(serve: Start) -> None:
    """With the real engine and the embedded model, over the whole picture and around the mask alone."""
    server = serve(real=True)
    picture = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 40, 40))
    outside = np.asarray(mask) == 0
    for masked, inverted in ((True, 0), (False, 1)):
        answer = drawn(
            server, "img2img", prompt="a fox", init_images=[text(picture)], mask=text(mask), steps=2, seed=3,
            inpaint_full_res=masked, inpainting_mask_invert=inverted, inpainting_fill=1,
        )  # fmt: skip
        same = (np.asarray(opened(answer["images"][0])) == np.asarray(picture)).all(axis=2)
        known = ~outside if inverted else outside
        assert same[known].all()
        assert not same[~known].all()
