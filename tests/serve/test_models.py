"""Several models on one server: found by name, loaded when needed, let go when others need the room."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkroom.errors import RequestError
from darkroom.serve.models import EMBEDDED, ModelIndex

from .conftest import Running


def folder(tmp_path: Path) -> Path:
    """A1111's folders, ComfyUI's beside them, and a diffusers folder; the files are empty."""
    models = tmp_path / "models"
    for name in (
        "Stable-diffusion/anything.safetensors",
        "Stable-diffusion/sub/deliberate.ckpt",
        "checkpoints/comfy.safetensors",
        "Lora/ink.safetensors",
        "loras/paint.safetensors",
        "VAE/mse.pt",
        "embeddings/easy.pt",
        "ControlNet/canny.safetensors",
        "flat.safetensors",
        "diffusers/folder/model_index.json",
        "diffusers/folder/unet/diffusion_pytorch_model.safetensors",
        "Stable-diffusion/notes.txt",
        "Stable-diffusion/.hidden.safetensors",
    ):
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1_000_000)
    return models


def test_models_are_found_by_the_folders_of_all_tools(tmp_path: Path) -> None:
    index = ModelIndex(folder(tmp_path))
    assert set(index.found["model"]) == {"anything", "deliberate", "comfy", "flat", "folder"}
    assert set(index.found["lora"]) == {"ink", "paint"}
    assert set(index.found["vae"]) == {"mse"}
    assert set(index.found["embedding"]) == {"easy"}
    assert set(index.found["controlnet"]) == {"canny"}
    for name in ("deliberate", "DELIBERATE.ckpt", "deliberate.ckpt [0123456789]", "sub/deliberate.ckpt"):
        assert index.get("model", name).path.endswith("deliberate.ckpt")
    for name in ("/etc/passwd", "deliberat", "", "a\0b", ".."):
        with pytest.raises(RequestError):
            index.get("model", name)
    before = index.get("model", "flat").fingerprint
    (tmp_path / "models/flat.safetensors").write_bytes(b"y" * 2000)
    index.scan()
    assert index.get("model", "flat").fingerprint != before


def test_without_a_folder_there_is_the_embedded_model_and_what_comes_with_it() -> None:
    index = ModelIndex()
    assert index.default_model.name == EMBEDDED
    assert "sepia" in index.found["lora"]
    assert "edges" in index.found["controlnet"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no folder"):
        ModelIndex(tmp_path / "nothing")


def loaded(server: Running) -> list[str]:
    return [name for engine in server.client.get("/api/server").json()["engines"] for name in engine["models"]]


def test_models_that_don_t_fit_together_take_turns_and_all_jobs_are_drawn(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    """The fake engine's models take a megabyte each, and there is room for one."""
    server = serve(models=str(folder(tmp_path)), model_memory=1.5e6)
    began = time.monotonic()
    jobs = [server.post(prompt="a fox", model=name, seed=i)["id"] for i in range(4) for name in ("anything", "comfy")]
    seen: set[int] = set()

    def done() -> bool:
        seen.add(len(loaded(server)))
        return all(server.job(id)["state"] == "finished" for id in jobs)

    server.until(done, 90)
    assert max(seen) <= 1
    assert time.monotonic() - began < 90
    by_model = {server.job(id)["model"] for id in jobs}
    assert by_model == {"anything", "comfy"}


def test_models_that_fit_stay_together(serve: Callable[..., Running], tmp_path: Path) -> None:
    server = serve(models=str(folder(tmp_path)), model_memory=1e9)
    for name in ("anything", "comfy", "flat"):
        assert server.ended(server.post(prompt="a fox", model=name)["id"])["state"] == "finished"
    assert {"anything", "comfy", "flat"} <= set(loaded(server))


def test_a_model_that_can_t_fit_alone_is_refused_with_the_sizes(serve: Callable[..., Running], tmp_path: Path) -> None:
    models = folder(tmp_path)
    with open(models / "huge.safetensors", "wb") as file:
        file.truncate(5_000_000_000)
    server = serve(models=str(models), model_memory=2e9)
    answer = server.client.post("/api/jobs", json={"prompt": "a fox", "model": "huge"})
    assert answer.status_code == 422
    assert "5.0 GB" in answer.json()["detail"]
    assert "2.0" in answer.json()["detail"]


def test_a_broken_model_fails_its_jobs_with_the_reason_and_no_others(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    models = folder(tmp_path)
    (models / "zbroken.safetensors").write_bytes(b"x")
    server = serve(models=str(models), model_memory=1e9)
    answer = server.client.post("/api/jobs", json={"prompt": "a fox", "model": "zbroken"})
    assert answer.status_code == 422
    assert "the file is broken" in answer.json()["detail"]
    assert server.ended(server.post(prompt="a fox")["id"])["state"] == "finished"


def test_a_model_that_went_away_fails_the_jobs_that_wait_for_it(serve: Callable[..., Running], tmp_path: Path) -> None:
    models = folder(tmp_path)
    server = serve(models=str(models), model_memory=1e9)
    fields: dict[str, Any] = {"prompt": "a fox", "model": "comfy"}
    server.ended(server.post(**fields)["id"])
    server.stop()
    server = serve(models=str(models), model_memory=1e9)  # its description is known, it is not loaded
    (models / "checkpoints/comfy.safetensors").unlink()
    answer = server.client.post("/api/jobs", json=fields)
    if answer.status_code == 202:
        ended = server.ended(answer.json()["id"])
        assert ended["state"] in ("failed", "finished")
    assert server.ended(server.post(prompt="a fox", model="flat")["id"])["state"] == "finished"


@pytest.mark.soak
def test_twenty_switches_between_two_models_leak_nothing(serve: Callable[..., Running], tmp_path: Path) -> None:
    """With the real engine; memory is what the engine holds after each switch."""
    import shutil

    from darkroom.embedded import MODEL

    models = tmp_path / "models"
    for name in ("one", "two"):
        shutil.copytree(MODEL, models / name)
    server = serve(real=True, models=str(models), model_memory=60e6)
    memory = []
    for i in range(20):
        fields: dict[str, Any] = {
            "prompt": "a fox",
            "width": 64,
            "height": 64,
            "steps": 2,
            "model": ("one", "two")[i % 2],
        }
        assert server.ended(server.post(**fields)["id"], 300)["state"] == "finished"
        rollup = Path(f"/proc/{server.engines()[0]}/smaps_rollup").read_text()
        memory.append(int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))))
    assert max(memory[10:]) < 1.03 * max(memory[1:4]), memory


def test_adapters_are_told_with_what_they_are_for(serve: Callable[..., Running], tmp_path: Path) -> None:
    models = folder(tmp_path)
    for name in ("Lora/ink-xl.safetensors", "Lora/broken.safetensors", "embeddings/easy-xl.pt"):
        (models / name).write_bytes(b"x")
    server = serve(models=str(models))
    told = server.client.get("/api/adapters").json()
    assert told["reading"] == 0
    loras = {one["name"]: one for one in told["loras"]}
    assert loras["ink"]["fits"] is True
    assert loras["ink"]["words"] == ["ink style"]
    assert loras["ink"]["use"] == "<lora:ink:1>"
    assert loras["ink-xl"]["fits"] is False
    assert loras["ink-xl"]["why"] == (
        "it is made for SDXL (text width 2048); this model is Stable Diffusion 1.x (text width 768)"
    )
    assert (loras["broken"]["fits"], loras["broken"]["why"]) == (False, "broken is broken")
    words = {one["name"]: one["fits"] for one in told["embeddings"]}
    assert words == {"easy": True, "easy-xl": False}
    # A model that was never loaded is not known, and so isn't what fits it.
    other = server.client.get("/api/adapters", params={"model": "deliberate"}).json()
    assert {one["name"]: one["fits"] for one in other["loras"]}["ink"] is None
    assert server.client.get("/api/adapters", params={"model": "nothing"}).status_code == 422
    server.stop()  # what was told is kept: it isn't asked again
    again = serve(models=str(models), environment={"FAKE_ADAPTERS": "no"})
    assert again.client.get("/api/adapters").json()["loras"] == told["loras"]
