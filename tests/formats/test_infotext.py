"""A1111 infotext in and out: known lines from other tools, round trips, and hostile input."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from darkroom.formats.infotext import ROWS, SAMPLER_NAMES, SCHEDULE_NAMES, holds_settings, parse_infotext, to_infotext
from darkroom.request import Request

RECIPE = {
    "prompt": "a fox, (yellow:1.2) background",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "guidance_scale": 7.0,
    "seed": 1,
    "width": 512,
    "height": 384,
    "model": "v1-5",
    "model_hash": "6ce0161689",
}


def test_writes_the_form_that_a1111_writes() -> None:
    assert to_infotext(RECIPE) == (
        "a fox, (yellow:1.2) background\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x384, "
        "Model hash: 6ce0161689, Model: v1-5, RNG: CPU"
    )


def test_leaves_out_what_is_missing() -> None:
    assert to_infotext({"prompt": "x", "steps": 3, "sampler": None, "clip_skip": 1}) == "x\nSteps: 3"
    assert to_infotext({"prompt": "", "steps": 3, "clip_skip": 2}) == "Steps: 3, Clip skip: 2"


def test_reads_a_real_line_of_an_old_version() -> None:
    text = (
        "portrait of a woman, <lora:add_detail:0.5>\n"
        "second line: of the prompt\n"
        "Negative prompt: (worst quality:2),\n"
        "lowres\n"
        "Steps: 30, Sampler: DPM++ 2M SDE Karras, CFG scale: 7.5, Seed: 3026378389, Size: 512x768, "
        "Model hash: 879db523c3, Model: dreamshaper_8, Denoising strength: 0.5, Clip skip: 2, "
        'Lora hashes: "add_detail: 7c6bad76eb54, b: 0123456789ab", Version: v1.6.0'
    )
    assert parse_infotext(text) == {
        "prompt": "portrait of a woman, <lora:add_detail:0.5>\nsecond line: of the prompt",
        "negative_prompt": "(worst quality:2),\nlowres",
        "steps": 30,
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "guidance_scale": 7.5,
        "seed": 3026378389,
        "width": 512,
        "height": 768,
        "model_hash": "879db523c3",
        "model": "dreamshaper_8",
        "clip_skip": 2,
        "strength": 0.5,
        "extra": {
            "Lora hashes": "add_detail: 7c6bad76eb54, b: 0123456789ab",
            "Version": "v1.6.0",
        },
    }


# What a request may hold beyond a text alone, and how A1111 writes it.
FIELDS = {
    "strength": (0.4, "Denoising strength: 0.4"),
    "fill": ("noise", "Masked content: latent noise"),
    "only_masked": (True, "Inpaint area: Only masked"),
    "mask_padding": (32, "Masked area padding: 32"),
    "mask_blur": (4, "Mask blur: 4"),
    "image_guidance_scale": (1.5, "Image CFG scale: 1.5"),
    "clip_skip": (2, "Clip skip: 2"),
    "vae": ("ft-mse", "VAE: ft-mse"),
    "vae_hash": ("0123456789", "VAE hash: 0123456789"),
    "embeddings": (["eye:0123456789abcdef", "a:b:fedcba9876543210"], "TI hashes: "),
    "exact_steps": (True, "Exact steps: True"),
    "outpaint": ([8, 0, 16, 0], 'Outpaint: "8, 0, 16, 0"'),
    "image": ("0011223344556677", "Image fingerprint: 0011223344556677"),
    "mask": ("0011223344556677", "Mask fingerprint: 0011223344556677"),
    "depth": ("0011223344556677", "Depth fingerprint: 0011223344556677"),
    "latents": ("0011223344556677", "Noise fingerprint: 0011223344556677"),
    "guidance_projection": (0.5, "CFG projection: 0.5"),
    "pag_scale": (3.0, "PAG scale: 3"),
    "pag_adaptive_scale": (0.1, "PAG adaptive scale: 0.1"),
    "pag_levels": (["mid", "up.0"], 'PAG levels: "mid, up.0"'),
    "threshold": (0.995, "Dynamic threshold: 0.995"),
    "threshold_mimic": (2.0, "Dynamic threshold mimic: 2"),
    "tile": (512, "Tile: 512"),
    "overlap": (64, "Tile overlap: 64"),
    "start": (0.25, "Starts at: 0.25"),
    "stop": (0.8, "Stops at: 0.8"),
    "noise_level": (20, "Noise level: 20"),
    "cache_interval": (3, "Cache interval: 3"),
    "token_merging": (0.5, "Token merging ratio: 0.5"),
    "original_size": ([1024, 768], 'Original size: "1024, 768"'),
    "negative_crop": ([0, 8], 'Negative crop: "0, 8"'),
    "aesthetic_score": (6.5, "Aesthetic score: 6.5"),
    "noise": ("nv", "RNG: NV"),
    "sampler_noise": ("nv", "Sampler RNG: NV"),
    "brownian": (True, "Brownian noise: True"),
    "ensd": (31337, "ENSD: 31337"),
    "eta": (0.5, "Eta: 0.5"),
    "seed_resize": ([512, 768], "Seed resize from: 512x768"),
    "discard_penultimate": (False, "Discard penultimate sigma: False"),
    "sgm_noise_multiplier": (True, "SGM noise multiplier: True"),
    "hires": ({"scale": 2.0, "strength": 0.7, "steps": 10, "upscaler": "latent"}, "Denoising strength: 0.7"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_further_field_is_written_as_a1111_writes_it_and_read_back(field: str) -> None:
    value, pair = FIELDS[field]
    text = to_infotext(RECIPE | {field: value})
    assert f", {pair}" in text
    assert parse_infotext(text) == RECIPE | {"noise": "cpu"} | {field: value}


def test_every_field_of_a_request_has_a_row() -> None:
    """A field that is missing here has no key in its declaration (request.py)."""
    told = {field for row in ROWS for field in row.fields}
    assert {f.name for f in fields(Request)} - {"prompt", "negative_prompt"} == told


def test_what_a_recipe_holds_by_default_is_not_told() -> None:
    """A picture from a text alone has the line that A1111 writes, and nothing else."""
    request = Request(prompt="x", steps=20, sampler="euler", seed=1, width=64, height=64, guidance_scale=7)
    assert to_infotext(request.to_dict()) == (
        "x\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    )
    for field, value in (("fill", "original"), ("only_masked", False), ("exact_steps", False), ("clip_skip", 1)):
        assert to_infotext({"prompt": "x", "steps": 20, field: value}) == "x\nSteps: 20"


def lora(name: str, digits: str, scale: float = 1.0, text_scale: float | None = None) -> dict[str, object]:
    return {"name": name, "hash": digits, "scale": scale, "text_scale": scale if text_scale is None else text_scale}


def test_loras_are_named_in_the_prompt_with_their_hashes() -> None:
    used = [lora("detail", "7c6bad76eb54", 0.8), lora("ink", "0123456789ab", 0.5, 0.25)]
    text = to_infotext(RECIPE | {"prompt": "a fox", "loras": used})
    assert text.startswith("a fox <lora:detail:0.8> <lora:ink:0.25:0.5>\nNegative prompt: blurry\n")
    assert ', Lora hashes: "detail: 7c6bad76eb54, ink: 0123456789ab"' in text
    found = parse_infotext(text)
    assert found["loras"] == used
    tagged = RECIPE | {"prompt": "<lora:detail:0.8> a fox <lora:ink:0.25:0.5>", "loras": used}
    assert parse_infotext(to_infotext(tagged)) == tagged | {"noise": "cpu"}
    plain = RECIPE | {"prompt_style": "plain", "loras": used}
    assert to_infotext(plain).startswith(f"{RECIPE['prompt']}\n")
    odd = RECIPE | {"loras": [lora("a:b, c", "7c6bad76eb54"), "nonsense", {"name": "x"}]}
    assert 'Lora hashes: "a:b, c: 7c6bad76eb54"' in to_infotext(odd)


@pytest.mark.parametrize("value", ["x", "detail", "a: b, c", '"', "detail: 1, ink: 2", ": , :", "\\"])
def test_hashes_that_match_no_lora_of_the_prompt_are_kept_as_text(value: str) -> None:
    line = f'a <lora:other:x> fox\nSteps: 1, Seed: 1, Model: m, Lora hashes: "{value}", TI hashes: "{value}"'
    found = parse_infotext(line)
    assert not found.keys() & {"loras", "embeddings"}


def test_a_second_pass_keeps_its_own_strength() -> None:
    line = "p\nSteps: 20, Seed: 1, Model: m, Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: "
    found = parse_infotext(line + "Latent")
    assert found["hires"] == {"scale": 2.0, "strength": 0.7, "upscaler": "latent"}
    assert not found.keys() & {"strength", "extra"}
    assert to_infotext(found).endswith("0.7, RNG: CPU, Hires upscale: 2, Hires upscaler: Latent")
    other = parse_infotext(line + "Latent (antialiased)")
    assert not other.keys() & {"strength", "hires"}
    assert other["extra"]["Hires upscaler"] == "Latent (antialiased)"
    network = parse_infotext(line + "R-ESRGAN 4x+")
    assert network["hires"] == {"scale": 2.0, "strength": 0.7, "upscaler": "R-ESRGAN 4x+"}
    assert to_infotext(network).endswith("Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+")


def test_what_comes_after_a_picture_is_told() -> None:
    line = "p\nSteps: 20, Seed: 1, Model: m, RNG: CPU, Postprocess upscale by: 4, Postprocess upscaler: 4x-UltraSharp"
    found = parse_infotext(line)
    assert found["enlarge"] == {"scale": 4.0, "upscaler": "4x-UltraSharp"}
    assert to_infotext(found) == line
    for other in (line.replace("4x-UltraSharp", "Lanczos"), line + ", Postprocess upscaler 2: x"):
        assert "enlarge" not in parse_infotext(other)


def test_controls_are_told_as_their_extension_tells_them() -> None:
    used = {"name": "canny", "hash": "0123456789", "hint": "x", "scale": 0.8, "start": 0.0, "stop": 0.5, "guess": False}
    text = to_infotext(RECIPE | {"controls": [used, used | {"hash": None, "guess": True}]})
    assert (
        'ControlNet 0: "Module: none, Model: canny [01234567], Weight: 0.8, Resize Mode: Just Resize, '
        'Guidance Start: 0.0, Guidance End: 0.5, Control Mode: Balanced"'
    ) in text
    assert 'ControlNet 1: "Module: none, Model: canny, ' in text
    assert "controls" not in parse_infotext(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Denoising strength: much", {}),
        ("Mask blur: 4.5", {}),
        ("Masked content: latent nothing", {}),
        ("Inpaint area: Whole picture", {"only_masked": False}),
        ("Inpaint area: here", {}),
        ("Outpaint: 8", {}),
        ('Outpaint: "1, 2, x, 4"', {}),
        ("Exact steps: maybe", {}),
    ],
)
def test_what_makes_no_sense_stays_a_text(written: str, read: dict[str, object]) -> None:
    found = parse_infotext(f"p\nSteps: 20, Seed: 1, Model: m, {written}")
    del found["prompt"], found["negative_prompt"], found["steps"], found["seed"], found["model"]
    assert {key: value for key, value in found.items() if key != "extra"} == read
    assert ("extra" in found) != bool(read)


@pytest.mark.parametrize(
    ("written", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential"),
        ("Sampler: DPM2 a Karras", "dpm_2_ancestral", "karras"),
        ("Sampler: Euler a", "euler_ancestral", None),
        ("Sampler: Euler a, Schedule type: Automatic", "euler_ancestral", "automatic"),
        ("Sampler: Euler, Schedule type: Uniform", "euler", "normal"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "sgm_uniform"),
        ("Sampler: Restart", "Restart", None),
        ("Sampler: Restart, Schedule type: Turbo", "Restart", "Turbo"),
        ("Sampler: Karras", "Karras", None),
        ("Sampler: Restart Karras", "Restart", "karras"),
        ("Sampler: dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("Sampler: k_dpmpp_2s_a_ka", "dpmpp_2s_ancestral", "karras"),
        ("Sampler: dpm++2m karras", "dpmpp_2m", "karras"),
        ("Sampler: dpm++2mv2 karras", "dpm++2mv2", "karras"),
        ("Sampler: Euler A, Scheduler: sgm_uniform", "euler_ancestral", "sgm_uniform"),
        ("Sampler: sample_dpm_2, Schedule type: ", "dpm_2", None),
    ],
)
def test_sampler_names_old_and_new(written: str, sampler: str, schedule: str | None) -> None:
    recipe = parse_infotext(f"p\nSteps: 1, {written}, Seed: 2, Size: 8x8")
    assert (recipe["sampler"], recipe.get("schedule")) == (sampler, schedule)


@pytest.mark.parametrize("id", SAMPLER_NAMES)
@pytest.mark.parametrize("schedule", [None, "automatic", "karras", "normal", "trailing"])
def test_every_sampler_and_schedule_round_trips(id: str, schedule: str | None) -> None:
    recipe = parse_infotext(to_infotext({"prompt": "p", "steps": 1, "seed": 1, "sampler": id, "schedule": schedule}))
    assert (recipe["sampler"], recipe.get("schedule")) == (id, schedule)


def test_every_schedule_has_one_name() -> None:
    assert len(set(SCHEDULE_NAMES.values())) == len(SCHEDULE_NAMES)
    assert len(set(SAMPLER_NAMES.values())) == len(SAMPLER_NAMES)


def test_text_without_parameters_is_a_prompt() -> None:
    assert parse_infotext("") == {"prompt": "", "negative_prompt": ""}
    assert parse_infotext("Steps: 20, and a fox") == {"prompt": "Steps: 20, and a fox", "negative_prompt": ""}
    assert parse_infotext("a\nNegative prompt: b") == {"prompt": "a", "negative_prompt": "b"}


def test_prompt_that_looks_like_parameters_stays_a_prompt() -> None:
    prompt = "a fox\nSteps: 99, Sampler: Euler, CFG scale: 3, Seed: 9"
    assert parse_infotext(to_infotext(RECIPE | {"prompt": prompt}))["prompt"] == prompt
    assert parse_infotext(to_infotext(RECIPE | {"prompt": prompt}))["steps"] == 20


def test_unquoted_json_of_web_sites() -> None:
    line = (
        'Steps: 4, Seed: 5, Size: 8x8, Civitai resources: [{"type":"lora","weight":1,"name":"a, b: c"}], '
        'Hashes: {"model": "abc", "vae": "d"}, Model: m'
    )
    recipe = parse_infotext("p\n" + line)
    assert recipe["model"] == "m"
    assert recipe["extra"]["Civitai resources"] == '[{"type":"lora","weight":1,"name":"a, b: c"}]'
    assert recipe["extra"]["Hashes"] == '{"model": "abc", "vae": "d"}'


@pytest.mark.parametrize("value", ["", "-", "1e", "ten", "1e400", "nan", "inf", "9" * 5000, "٣", "1_0", "0xff"])
def test_numbers_that_make_no_sense_are_kept_as_text(value: str) -> None:
    recipe = parse_infotext(f"p\nSteps: {value}, CFG scale: {value}, Seed: {value}, Size: {value}, Model: m")
    assert not recipe.keys() & {"steps", "guidance_scale", "seed", "width"}
    assert recipe["extra"]["Steps"] == value


BOAT = "a boat\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Model: m"


def test_lines_after_the_settings_are_extras() -> None:
    text = BOAT + "\nTemplate: a {boat|ship}, (x:1.1), (y:1.2), (z:1.3)\nof two lines\nNegative Template: {fog|mist}"
    found = parse_infotext(text)
    assert (found["prompt"], found["negative_prompt"], found["seed"], found["steps"]) == ("a boat", "fog", 5, 20)
    assert found["model"] == "m"
    assert found["extra"] == {
        "Template": "a {boat|ship}, (x:1.1), (y:1.2), (z:1.3)\nof two lines",
        "Negative Template": "{fog|mist}",
    }
    assert parse_infotext(BOAT + "\n\nSeed: 9\nsaid by nobody")["seed"] == 5
    assert parse_infotext(BOAT + "\nby nobody")["extra"] == {"Text": "by nobody"}


def test_a_quoted_value_may_hold_newlines() -> None:
    line = (
        'Steps: 20, ADetailer prompt: "a boat,\nSeed: 9, \\"far\\"\naway", Seed: 5, Size: 64x64, Model: m\nTemplate: t'
    )
    found = parse_infotext("a boat\n" + line)
    assert (found["prompt"], found["seed"], found["width"], found["model"]) == ("a boat", 5, 64, "m")
    assert found["extra"] == {"ADetailer prompt": 'a boat,\nSeed: 9, "far"\naway', "Template": "t"}


def test_carriage_returns_are_line_ends() -> None:
    assert parse_infotext(BOAT.replace("\n", "\r\n") + "\r\n") == parse_infotext(BOAT)


def test_stable_diffusion_cpp() -> None:
    text = (
        "a boat\nNegative prompt: fog\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 5, "
        "Size: 64x64, Model: , RNG: cuda, Sampler: euler discrete, Unet: u.gguf, Version: stable-diffusion.cpp"
    )
    assert parse_infotext(text) == {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "steps": 20,
        "guidance_scale": 7.0,
        "seed": 5,
        "width": 64,
        "height": 64,
        "sampler": "euler",
        "schedule": "normal",
        "noise": "nv",
        "eta": 0.0,
        "extra": {
            "Guidance": "3.500000",
            "Unet": "u.gguf",
            "Version": "stable-diffusion.cpp",
        },
    }
    found = parse_infotext("p\nSteps: 1, Seed: 2, Model: m, Sampler: dpm++2m, Schedule: karras")
    assert (found["sampler"], found["schedule"]) == ("dpmpp_2m", "karras")
    assert "extra" not in found


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (BOAT, True),
        (BOAT + "\nTemplate: x", True),
        ("p\nSteps: 20, Guidance Scale: 7, Seed: 1", True),
        ("", False),
        ("Screenshot", False),
        ("Created with GIMP", False),
        ("Make: Canon, Model: EOS, Size: 3x4", False),
        ("(boat:1.2), (ship:1.3), (lake:1.1), (fog:1.2)", False),
        ("a boat\nNegative prompt: fog", False),
    ],
)
def test_what_is_an_infotext(text: str, holds: bool) -> None:
    assert holds_settings(text) is holds
    if not holds and "Make" not in text:
        assert not parse_infotext(text).keys() - {"prompt", "negative_prompt"}


text = st.text(alphabet=st.characters(), max_size=60)
# The format itself has no room for these: a line that starts the negative prompt.
# And a carriage return before a newline is part of it.
prompts = text.map(lambda t: t.replace("\r", "")).filter(
    lambda t: not any(line.startswith("Negative prompt:") for line in t.split("\n"))
)
names = st.text(alphabet=st.characters(), min_size=1, max_size=30)


@given(
    prompt=prompts,
    negative=prompts,
    model=names,
    steps=st.integers(1, 1000),
    seed=st.integers(0, 2**64 - 1),
    scale=st.floats(0, 100),
    rescale=st.floats(0.001, 1),
    low=st.floats(0, 10),
    high=st.none() | st.floats(11, 20),
)
@example("Steps: 1, Seed: 2, Size: 3x4", "a:b\n", '"quoted", {x: 1}', 1, 0, 7.5, 0.7, 0.0, None)
@example("\x00\u202e\ud800\U0001f98a\n\n ", " \n", "\\", 1, 0, 1e-5, 0.7, 0.5, 14.6)
@settings(max_examples=150)
def test_round_trip(prompt, negative, model, steps, seed, scale, rescale, low, high) -> None:  # type: ignore[no-untyped-def]
    recipe = {
        "prompt": prompt,
        "negative_prompt": negative,
        "model": model,
        "steps": steps,
        "seed": seed,
        "width": 64,
        "height": 48,
        "guidance_scale": scale,
        "guidance_rescale": rescale,
        "guidance_interval": [low, high],
        "prompt_style": "comfy",
    }
    found = parse_infotext(to_infotext(recipe))
    assert found == recipe | {"noise": "cpu"}


@given(st.text(alphabet=st.characters() | st.sampled_from(':,"\\{[\n Stepx1'), max_size=300))
@settings(max_examples=300)
def test_any_text_is_read(text: str) -> None:
    recipe = parse_infotext(text)
    assert isinstance(recipe["prompt"], str)
    assert isinstance(recipe["negative_prompt"], str)


@pytest.mark.parametrize(
    "unit", ["a", "a ", "a: ", 'a: "', 'aa: "x, ', "aa:,", "aa: [1,", 'aa: {"b": [', "\\", "Steps: 1, ", ":", "a-/"]
)
def test_a_megabyte_of_anything_takes_linear_time(unit: str) -> None:
    """Quadratic work on a million characters would take hours, and the suite would show it by hanging."""
    hostile = unit * (1_000_000 // len(unit))
    recipe = parse_infotext(hostile)
    assert len(recipe.get("extra", {})) <= 1000
    parse_infotext('p\nSteps: 1, Seed: 1, Size: 8x8, Model: "' + hostile)
