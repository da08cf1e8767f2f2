"""What an infotext means by what it doesn't say: schedules, and whose noise, by who wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from darkroom.diffusion import has_torchsde, spacing_name
from darkroom.formats.foreign import Found, recognise
from darkroom.samplers import entries

A1111 = "v1.10.1"
FORGE = "f2.0.1v1.10.1-previous-665-gae278f79"


def read(line: str, version: str | None = None) -> Found:
    text = f"a boat\nSteps: 20, CFG scale: 7, Seed: 12, Size: 64x64, {line}"
    found = recognise({"parameters": text if version is None else f"{text}, Version: {version}"})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("line", "version", "schedule"),
    [
        # before 1.9 a schedule was in the sampler's name, or evenly spaced timesteps
        ("Sampler: DPM++ 2M", "v1.8.0", "normal"),
        ("Sampler: DPM++ 2M Karras", "v1.8.0", "karras"),
        ("Sampler: Euler a", None, "normal"),
        ("Sampler: DPM2", None, "normal"),
        # since then there is always one, and "Automatic" is the sampler's own
        ("Sampler: Euler, Schedule type: Automatic", A1111, "normal"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", A1111, "karras"),
        ("Sampler: DPM++ 2S a, Schedule type: Automatic", FORGE, "karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", FORGE, "exponential"),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic", A1111, "exponential"),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", A1111, "normal"),
        ("Sampler: DPM++ 2M, Schedule type: SGM Uniform", A1111, "sgm_uniform"),
        ("Sampler: Euler, Schedule type: DDIM", A1111, "ddim_uniform"),
        ("Sampler: Euler, Schedule type: Beta", A1111, "beta"),
        # over timesteps: whatever is asked
        ("Sampler: DDIM", None, "leading"),
        ("Sampler: DDIM, Schedule type: Karras", A1111, "leading"),
        ("Sampler: PLMS, Schedule type: Automatic", A1111, "leading"),
        ("Sampler: LCM, Schedule type: Automatic", A1111, "automatic"),
        # others who write the form
        ("Sampler: euler_a, RNG: cuda", "stable-diffusion.cpp", "normal"),
        ("Sampler: dpm++2m karras, RNG: cuda", "stable-diffusion.cpp", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic, RNG: CPU", "darkroom 0.1.0", "automatic"),
    ],
)
def test_the_schedule(line: str, version: str | None, schedule: str) -> None:
    recipe = read(line, version).recipe
    assert recipe["schedule"] == schedule
    if schedule != "automatic":
        assert spacing_name(schedule) == schedule


@pytest.mark.parametrize(
    ("line", "version", "eta"),
    [
        ("Sampler: Euler a, Eta: 0.5", A1111, 0.5),
        ("Sampler: DDIM, Eta: 1", FORGE, 1.0),
        ("Sampler: Euler, Eta: 0.5", A1111, None),  # which draws nothing
        ("Sampler: euler_a, Eta: 0.000000", "stable-diffusion.cpp", None),  # written with every picture
    ],
)
def test_the_share_of_noise(line: str, version: str, eta: float | None) -> None:
    found = read(line, version)
    assert found.recipe.get("eta") == eta
    assert "Eta" not in found.ignored


@pytest.mark.parametrize(
    ("line", "version", "noise"),
    [
        ("Sampler: Euler", None, "nv"),
        ("Sampler: Euler", A1111, "nv"),
        ("Sampler: Euler", FORGE, "nv"),
        ("Sampler: Euler, RNG: NV", A1111, "nv"),
        ("Sampler: Euler, RNG: CPU", A1111, "cpu"),
        ("Sampler: Euler, RNG: cuda", "stable-diffusion.cpp", "nv"),
        ("Sampler: Euler, RNG: cpu", "stable-diffusion.cpp", "cpu"),
        ("Sampler: Euler", "ComfyUI", None),  # torch's on a processor
    ],
)
def test_whose_noise(line: str, version: str | None, noise: str | None) -> None:
    found = read(line, version)
    assert found.recipe.get("noise") == noise
    assert (found.ignored, found.warnings) == ({}, [])


def test_noise_that_is_nobodys_is_told() -> None:
    found = read("Sampler: Euler, RNG: std_default", "stable-diffusion.cpp")
    assert (found.recipe.get("noise"), found.ignored) == (None, {"RNG": "std_default"})
    (sentence,) = read("Sampler: Euler, App: SD.Next", "a1b2c3d").warnings
    assert sentence.startswith("it doesn't say whose random numbers it was drawn with")


def test_eta_noise_seed_delta_and_seed_resize_are_read() -> None:
    recipe = read("Sampler: Euler a, ENSD: 31337, Seed resize from: 512x768", A1111).recipe
    assert (recipe["ensd"], recipe["seed_resize"]) == (31337, [512, 768])
    for nothing in ("-1x-1", "0x0"):
        found = read(f"Sampler: Euler a, Seed resize from: {nothing}", A1111)
        assert "seed_resize" not in found.recipe
        assert found.ignored == {}


@pytest.mark.parametrize("there", [True, False])
def test_brownian_noise_is_drawn_or_told(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.formats.foreign.webui.has_torchsde", lambda: there)
    for sampler in ("DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"):
        found = read(f"Sampler: {sampler} Karras", "v1.8.0")
        assert found.recipe.get("brownian") is (True if there else None)
        assert set(found.ignored) == (set() if there else {"Brownian noise"})
    assert "brownian" not in read("Sampler: DPM++ 2S a Karras", "v1.8.0").recipe


def test_what_a1111_does_otherwise_is_told() -> None:
    assert read("Sampler: Euler, Schedule type: KL Optimal", A1111).ignored == {"Schedule type": "KL Optimal"}
    assert read("Sampler: Euler, Schedule type: Align Your Steps", A1111).ignored
    assert read("Sampler: UniPC", A1111).warnings
    text = "a boat\nSteps: 30, CFG scale: 7, Seed: 12, Size: 64x64, Sampler: DDIM, Version: v1.10.1"
    found = recognise({"parameters": text})
    assert found is not None
    assert found.warnings == ["A1111 takes 31 steps where its ddim is asked for 30"]
    assert "other steps of a given picture" in read("Sampler: DDIM, Denoising strength: 0.5", A1111).warnings[0]
    (sentence,) = read("Sampler: Euler, Denoising strength: 0.5, RNG: CPU", A1111).warnings
    assert sentence.startswith("A1111 gives a given picture the seed's first noise")


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 49, 150])
@pytest.mark.parametrize("strength", [0.0, 0.29, 0.5, 0.57, 0.75, 1.0])
def test_as_many_steps_of_a_picture_as_a1111_takes(steps: int, strength: float) -> None:
    text = (
        f"a boat\nSteps: {steps}, Sampler: Euler, CFG scale: 7, Seed: 12, Size: 64x64, Denoising strength: {strength}"
    )
    found = recognise({"parameters": text})
    assert found is not None
    assert int(steps * found.recipe["strength"]) == int(min(strength, 0.999) * steps) + 1
    assert found.warnings == []
    found = recognise({"parameters": f"{text}, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, RNG: CPU"})
    assert found is not None
    assert int(10 * found.recipe["hires"]["strength"]) == int(min(strength, 0.999) * 10) + 1
    assert "strength" not in found.recipe
    assert found.warnings == []


@pytest.mark.parametrize(
    ("prompt", "warned"),
    [
        ("a [boat:ship:5]", "one step later"),
        ("a [boat:0.5]", "one step later"),
        ("a [boat|ship] x", "one step later"),
        ("(a BREAK b)", "between brackets"),
        ("a [b BREAK c]", "between brackets"),
        ("a BREAK b (c)", ""),
        ("a [boat], (ship:1.2)", ""),
        (r"a \(b BREAK c\)", ""),
    ],
)
def test_what_a1111_reads_otherwise_in_a_prompt_is_told(prompt: str, warned: str) -> None:
    text = f"{prompt}\nSteps: 20, CFG scale: 7, Seed: 12, Size: 64x64, Sampler: Euler a, Version: {A1111}"
    found = recognise({"parameters": text})
    assert found is not None
    assert len(found.warnings) == bool(warned)
    assert warned in "".join(found.warnings)


def comfy(sampler: str, scheduler: str) -> Found:
    def node(kind: str, **inputs: object) -> dict[str, object]:
        return {"class_type": kind, "inputs": inputs}

    ends: dict[str, Any] = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    graph = {
        "3": node("KSampler", seed=5, steps=20, cfg=7, sampler_name=sampler, scheduler=scheduler, denoise=1, **ends),
        "4": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node("CLIPTextEncode", text="a boat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="fog", clip=["4", 1]),
    }
    found = recognise({"prompt": json.dumps(graph)})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        ("normal", "normal"),
        ("karras", "karras"),
        ("exponential", "exponential"),
        ("sgm_uniform", "sgm_uniform"),
        ("simple", "simple"),
        ("ddim_uniform", "ddim_uniform"),
        ("beta", "beta_timesteps"),
        ("linear_quadratic", "linear_quadratic"),
        ("kl_optimal", "kl_optimal"),
    ],
)
def test_every_schedule_of_comfyuis_is_followed(scheduler: str, schedule: str) -> None:
    found = comfy("euler", scheduler)
    assert found.recipe["schedule"] == schedule == spacing_name(schedule)
    assert found.recipe["sgm_noise_multiplier"] is True
    assert (found.ignored, found.warnings) == ({}, [])


def test_comfyuis_samplers_draw_where_they_run() -> None:
    drawing = {row.id: comfy(row.id, "karras") for row in entries()}
    gpu = [id for id, found in drawing.items() if found.recipe.get("sampler_noise") == "nv"]
    assert gpu == ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "ddpm", "sa_solver", "tcd", "lcm"]
    paths = [id for id, found in drawing.items() if "brownian" in found.recipe or "Brownian noise" in found.ignored]
    assert paths == ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"]
    assert comfy("dpmpp_sde_gpu", "karras").recipe["sampler_noise"] == "nv"
    assert comfy("dpmpp_sde", "karras").recipe.get("brownian") is (True if has_torchsde() else None)
    discarding = {id: found.recipe.get("discard_penultimate") for id, found in drawing.items()}
    assert discarding["dpmpp_3m_sde"] is False
    assert discarding["uni_pc"] is True
    assert discarding["dpm_2"] is None  # as A1111
