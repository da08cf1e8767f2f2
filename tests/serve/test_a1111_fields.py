"""A1111's fields as jobs: its defaults and meanings, and what of them isn't followed."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.errors import Error
from darkroom.hints import HINTS, canny
from darkroom.request import Hires
from darkroom.serve.a1111.asked import Asked, read, settings_of, with_infotext
from darkroom.serve.a1111.controlnet import MODULES
from darkroom.serve.a1111.fields import DEFAULTS
from darkroom.serve.a1111.pictures import enlarged, fitted, mask_from
from darkroom.serve.answers import Refused
from darkroom.serve.models import ModelIndex

INDEX = ModelIndex()
DESCRIPTION = {"name": "darkroom-embedded", "size": [64, 64], "task": "text"}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def text(picture: Image.Image) -> str:
    return base64.b64encode(png(picture)).decode()


def ramp(width: int, height: int) -> Image.Image:
    """Every pixel another colour."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns * 7 % 256, rows * 5 % 256, (rows + columns) % 256], 2).astype(np.uint8))


def asked(kind: str = "txt2img", preferences: Mapping[str, Any] | None = None, **given: Any) -> Asked:
    ignored: dict[str, str] = {}
    fields = with_infotext(given, ignored)
    settings = settings_of(fields, preferences or {})
    return read(kind, fields, settings, DESCRIPTION, INDEX, 10**7, ignored)


def opened(data: Any) -> Any:
    assert isinstance(data, bytes)
    return np.asarray(Image.open(io.BytesIO(data)))


def fields(**given: Any) -> dict[str, Any]:
    return asked(**given).wanted.request.to_dict()


def test_what_is_not_sent_is_as_a1111_has_it() -> None:
    found = asked(prompt="a fox")
    told = found.wanted.request.to_dict()
    expected = {
        "prompt": "a fox", "steps": 50, "guidance_scale": 7.0, "width": 512, "height": 512, "sampler": "euler",
        "schedule": "normal",
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert found.wanted.request.seed is None
    assert found.wanted.n == 1
    assert found.ignored == {}


@pytest.mark.parametrize(
    ("given", "sampler", "schedule"),
    [
        ({"sampler_name": "Euler a", "scheduler": "automatic"}, "euler_ancestral", "normal"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "dpmpp_2m", "karras"),  # A1111's own for it
        ({"sampler_name": "DPM++ 2M SDE"}, "dpmpp_2m_sde", "exponential"),
        ({"sampler_name": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),  # before 1.9
        ({"sampler_name": "Euler a Exponential"}, "euler_ancestral", "exponential"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "SGM Uniform"}, "dpmpp_2m", "sgm_uniform"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Uniform"}, "dpmpp_2m", "normal"),
        ({"sampler_name": "k_dpmpp_2m", "scheduler": "karras"}, "dpmpp_2m", "karras"),
        ({"sampler_name": "DDIM", "scheduler": "Karras"}, "ddim", "leading"),  # has no other there
        ({"sampler_index": "Heun"}, "heun", "normal"),
        ({"sampler_name": None, "sampler_index": "Euler"}, "euler", "normal"),
        ({"sampler_name": "LCM"}, "lcm", None),
    ],
)
def test_samplers_and_schedules(given: dict[str, Any], sampler: str, schedule: str | None) -> None:
    request = asked(**given).wanted.request
    assert (request.sampler, request.schedule) == (sampler, schedule)


@pytest.mark.parametrize("name", ["nothing", "DPM fast", "Restart"])
def test_a_sampler_that_is_not_here(name: str) -> None:
    with pytest.raises(Refused, match="Sampler not found") as wrong:
        asked(sampler_name=name)
    assert wrong.value.status == 400


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seed": 5, "batch_size": 2, "n_iter": 3}, {"seed": 5}),
        ({"subseed": 9, "subseed_strength": 0.25}, {"variation_seed": 9, "variation_strength": 0.25}),
        ({"subseed": 9, "subseed_strength": -1}, {"variation_seed": None, "variation_strength": None}),
        ({"seed_resize_from_w": 48, "seed_resize_from_h": 32}, {"seed_resize": [48, 32]}),
        ({"sampler_name": "Euler a", "eta": 0.5}, {"eta": 0.5}),
        ({"sampler_name": "Euler a", "eta": 1.0}, {"eta": None}),  # as it is
        ({"sampler_name": "DDIM", "eta": 1.0}, {"eta": 1.0}),
        ({"sampler_name": "DPM++ 2M", "eta": 0.5}, {"eta": None}),  # which has none
        (
            {"steps": "20", "cfg_scale": "5.5", "enable_hr": "false"},
            {"steps": 20, "guidance_scale": 5.5, "hires": None},
        ),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1}}, {"clip_skip": 0}),
        ({"preferences": {"CLIP_stop_at_last_layers": 3}}, {"clip_skip": 3}),
        (
            {"preferences": {"CLIP_stop_at_last_layers": 3}, "override_settings": {"CLIP_stop_at_last_layers": 2}},
            {"clip_skip": 2},
        ),
        ({"override_settings": {"randn_source": "NV", "eta_noise_seed_delta": 31337}}, {"noise": "nv", "ensd": 31337}),
        ({"override_settings": {"randn_source": "GPU"}}, {"noise": "nv"}),
        ({"override_settings": {"sd_model_checkpoint": None}}, {"noise": "cpu"}),
    ],
)
def test_a_picture(given: dict[str, Any], expected: dict[str, Any]) -> None:
    told = fields(**given)
    assert {name: told.get(name) for name in expected} == expected


def test_pictures_are_counted_over_batches() -> None:
    assert asked(batch_size=2, n_iter=3).wanted.n == 6
    with pytest.raises(Error, match="batch_size x n_iter"):
        asked(batch_size=100, n_iter=100)


@pytest.mark.parametrize(
    ("given", "hires"),
    [
        ({}, Hires(scale=2.0, strength=0.75, upscaler="latent")),
        (
            {"hr_scale": 1.5, "denoising_strength": 0.4, "hr_second_pass_steps": 7, "hr_upscaler": "Lanczos"},
            Hires(scale=1.5, strength=0.4, steps=7, upscaler="lanczos"),
        ),
        ({"hr_resize_x": 96}, Hires(scale=1.5, strength=0.75)),
        ({"hr_resize_y": 128, "hr_scale": 9}, Hires(scale=2.0, strength=0.75)),
        ({"hr_resize_x": 96, "hr_resize_y": 96}, Hires(scale=1.5, strength=0.75)),
    ],
)
def test_a_second_pass(given: dict[str, Any], hires: Hires) -> None:
    found = asked(enable_hr=True, width=64, height=64, **given)
    assert found.wanted.request.hires == hires
    assert found.ignored == {}
    assert asked(width=64, height=64, **given).wanted.request.hires is None


def test_what_is_not_followed_is_named() -> None:
    found = asked(
        restore_faces=True, tiling=True, s_churn=0.5, refiner_checkpoint="other", foo=[1], styles=["ink"],
        override_settings={"face_restoration_model": "GFPGAN"}, enable_hr=True, hr_prompt="another",
        hr_upscaler="R-ESRGAN 4x+", hr_sampler_name="DDIM", hr_resize_x=1024, hr_resize_y=600,
        alwayson_scripts={"ADetailer": {"args": [True]}, "controlNet": {"args": []}},
    )  # fmt: skip
    assert found.ignored.keys() == {
        "restore_faces", "tiling", "s_churn", "refiner_checkpoint", "foo", "styles: ink", "hr_prompt", "hr_upscaler",
        "override_settings: face_restoration_model", "alwayson_scripts: ADetailer", "hr_sampler_name",
        "hr_resize_x, hr_resize_y",
    }  # fmt: skip
    assert "Lanczos" in found.ignored["hr_upscaler"]
    assert found.wanted.request.hires is not None
    assert found.wanted.request.hires.upscaler == "lanczos"


def test_what_says_nothing_is_not_named() -> None:
    """All that webuiapi fills in by itself."""
    found = asked(
        restore_faces=False, tiling=False, eta=1.0, styles=[], s_churn=0, s_tmax=0, s_tmin=0, s_noise=1,
        hr_checkpoint_name=None, hr_upscaler="Latent", firstphase_width=0, script_args=[], seed_resize_from_h=0,
        sampler_index="Euler a", sampler_name="Euler a", scheduler="automatic", do_not_save_grid=False,
        denoising_strength=0.7, hr_scale=2, save_images=False, override_settings_restore_afterwards=True,
    )  # fmt: skip
    assert found.ignored == {}


def test_an_infotext_fills_in_what_is_not_sent() -> None:
    line = (
        "a boat\nNegative prompt: fog\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3, Seed: 77, "
        "Size: 96x64, Clip skip: 2, Tiling: True, Version: v1.10.1"
    )
    found = asked(infotext=line, steps=9, prompt="a fox")
    told = found.wanted.request.to_dict()
    expected = {
        "prompt": "a fox", "negative_prompt": "fog", "steps": 9, "sampler": "dpmpp_2m", "schedule": "karras",
        "guidance_scale": 3.0, "seed": 77, "width": 96, "height": 64, "clip_skip": 2, "noise": "nv",
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert found.ignored.keys() == {"infotext: Tiling"}


def test_styles_go_around_a_prompt_or_come_behind_it(tmp_path: Path) -> None:
    """As A1111 merges them: `{prompt}` is replaced, else a comma joins."""
    (tmp_path / "styles.csv").write_text(
        'name,prompt,negative_prompt\nink,"{prompt}, in ink",colour\nold,"an old picture, worn",\n', "utf-8-sig"
    )
    index = ModelIndex(tmp_path)
    ignored: dict[str, str] = {}
    given = {"prompt": "a fox ", "negative_prompt": "fog", "styles": ["ink", "old", "nothing"]}
    request = read("txt2img", given, {}, DESCRIPTION, index, 1, ignored).wanted.request
    assert request.prompt == "a fox , in ink, an old picture, worn"
    assert request.negative_prompt == "fog, colour"
    assert ignored.keys() == {"styles: nothing"}


# --- a picture, and its mask


def test_a_picture_to_change() -> None:
    found = asked("img2img", init_images=[text(ramp(32, 32))], denoising_strength=0.5, width=64, height=48)
    request = found.wanted.request
    assert (request.strength, request.width, request.height, request.fill) == (0.5, 64, 48, None)
    assert np.array_equal(opened(found.wanted.pictures["image"]), np.asarray(ramp(32, 32)))
    assert asked("img2img", init_images=[text(ramp(8, 8))]).wanted.request.strength == 0.75
    assert asked("img2img", init_images=["data:image/png;base64," + text(ramp(8, 8))]).wanted.pictures


@pytest.mark.parametrize("given", [{}, {"init_images": None}, {"init_images": []}])
def test_no_picture(given: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="Init image not found") as wrong:
        asked("img2img", prompt="a fox", **given)
    assert wrong.value.status == 404


def test_less_than_one_step_is_one_as_there() -> None:
    strength = asked(
        "img2img", init_images=[text(ramp(8, 8))], steps=20, denoising_strength=0.01
    ).wanted.request.strength
    assert strength is not None
    assert int(20 * strength) == 1
    kept = asked("img2img", init_images=[text(ramp(8, 8))], steps=20, denoising_strength=0).wanted.request.strength
    assert kept == 0


def test_a_mask_has_a1111s_meanings() -> None:
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (4, 4, 8, 8))
    usual = asked("img2img", init_images=[text(ramp(16, 16))], mask=text(mask))
    request = usual.wanted.request
    assert (request.fill, request.only_masked, request.mask_padding, request.mask_blur) == ("fill", True, 0, 4)
    assert (request.width, request.height) == (None, None)  # the picture's own
    assert usual.ignored.keys() == {"width, height"}
    assert np.array_equal(opened(usual.wanted.pictures["mask"]), np.asarray(mask))  # white is drawn anew
    other = asked(
        "img2img", init_images=[text(ramp(16, 16))], mask=text(mask), inpainting_mask_invert=1, inpainting_fill=1,
        inpaint_full_res=False, mask_blur=2, width=32, height=32,
    )  # fmt: skip
    request = other.wanted.request
    assert (request.fill, request.only_masked, request.mask_padding, request.mask_blur) == ("original", None, None, 2)
    assert (request.width, request.height) == (32, 32)
    assert np.array_equal(opened(other.wanted.pictures["mask"]), 255 - np.asarray(mask))
    assert other.ignored == {}
    for fill, ours in ((2, "noise"), (3, "noise")):
        found = asked("img2img", init_images=[text(ramp(16, 16))], mask=text(mask), inpainting_fill=fill)
        assert found.wanted.request.fill == ours


def test_a_mask_with_transparency_is_its_opaque_part() -> None:
    picture = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    assert np.asarray(mask_from(png(picture), False, 100)).tolist() == [[0, 255, 0, 0]]
    assert np.asarray(mask_from(png(Image.new("RGBA", (1, 1), (255, 255, 255, 255))), True, 100)).tolist() == [[0]]


def test_resize_modes() -> None:
    """By A1111's own arithmetic: 8x4 into 4x4: cropped, 8x4 is as high, and columns 2 to 5 stay; filled, it becomes
    4x2 in rows 1 and 2, whose edges go on."""
    wide = ramp(8, 4)
    assert np.array_equal(np.asarray(fitted(wide, "crop", (4, 4))), np.asarray(wide)[:, 2:6])
    padded = np.asarray(fitted(wide, "pad", (4, 4)))
    small = np.asarray(wide.resize((4, 2), Image.Resampling.LANCZOS))
    assert np.array_equal(padded[1:3], small)
    assert np.array_equal(padded[0], small[0])
    assert np.array_equal(padded[3], small[1])
    assert fitted(wide, "stretch", (4, 4)).size == (4, 4)
    gray = np.asarray(fitted(Image.new("L", (8, 4), 7), "pad", (4, 4), "median"))
    assert (gray == 7).all()
    found = asked("img2img", init_images=[text(wide)], resize_mode=1, width=4 * 8, height=4 * 8)
    assert opened(found.wanted.pictures["image"]).shape == (32, 32, 3)


def test_extras() -> None:
    picture = ramp(8, 4)
    assert enlarged(picture, "None", 0, 2.0, (1, 1), True) is picture
    assert enlarged(picture, "Lanczos", 0, 2.5, (1, 1), True).size == (20, 10)
    assert enlarged(picture, "Lanczos", 1, 2.0, (16, 16), True).size == (16, 16)
    assert enlarged(picture, "Lanczos", 1, 2.0, (16, 16), False).size == (32, 16)
    doubled = np.asarray(enlarged(picture, "Nearest", 0, 2.0, (1, 1), True))
    assert np.array_equal(doubled, np.asarray(picture).repeat(2, 0).repeat(2, 1))
    with pytest.raises(Error, match="would be"):
        enlarged(picture, "Lanczos", 0, 64_000.0, (1, 1), True)


# --- ControlNet


def steered(kind: str = "txt2img", **unit: Any) -> Asked:
    script = {"args": [unit]}
    more: dict[str, Any] = {"init_images": [text(ramp(64, 64))]} if kind == "img2img" else {}
    return asked(kind, width=64, height=64, alwayson_scripts={"ControlNet": script}, **more)


def test_a_unit_is_a_control() -> None:
    found = steered(
        image=text(ramp(64, 64)), model="edges [0123abcd]", weight=0.8, guidance_start=0.1, guidance_end=0.9,
        control_mode="ControlNet is more important", module="none", processor_res=512, pixel_perfect=True,
    )  # fmt: skip
    (control,) = found.wanted.controls
    assert (control.net, control.scale, control.start, control.stop, control.guess) == ("edges", 0.8, 0.1, 0.9, True)
    assert np.array_equal(opened(found.wanted.pictures["control.0"]), np.asarray(ramp(64, 64)))
    assert found.hints == (found.wanted.pictures["control.0"],)
    assert found.ignored == {}


def test_a_units_hint_has_its_thresholds_and_its_size() -> None:
    blocks = Image.new("RGB", (64, 64), "black")
    blocks.paste((120, 120, 120), (16, 16, 48, 48))
    found = steered(image=text(blocks), model="edges", module="canny", pixel_perfect=True)
    assert np.array_equal(opened(found.hints[0]), np.asarray(canny(blocks, 100, 200, sigma=0)))
    lower = steered(
        image=text(ramp(64, 64)), model="edges", module="canny", threshold_a=5, threshold_b=9, pixel_perfect=True
    )
    assert np.array_equal(opened(lower.hints[0]), np.asarray(canny(ramp(64, 64), 5, 9, sigma=0)))
    assert opened(steered(image=text(blocks), model="edges", module="canny", processor_res=128).hints[0]).shape == (
        64,
        64,
        3,
    )


def test_units_that_say_less() -> None:
    assert steered("img2img", model="edges").wanted.controls  # the picture to change is the unit's, too
    assert steered(enabled=False, model="edges").wanted.controls == ()
    assert steered(input_image={"image": text(ramp(8, 8)), "mask": None}, model="edges").wanted.controls
    assert "ControlNet 0: module" in steered(image=text(ramp(8, 8)), module="canny").ignored
    assert "ControlNet 0: control_mode" in steered(image=text(ramp(8, 8)), model="edges", control_mode=1).ignored
    softer = steered(image=text(ramp(64, 64)), model="edges", module="softedge_hed")
    assert "soft-edges" in softer.ignored["ControlNet 0: module"]
    with pytest.raises(Refused, match="no input image"):
        steered(model="edges")
    with pytest.raises(Refused, match="Module 'dw_openpose_full' not available"):
        steered(image=text(ramp(8, 8)), model="edges", module="dw_openpose_full")
    with pytest.raises(Error, match="ControlNet 'nothing'"):
        steered(image=text(ramp(8, 8)), model="nothing")


def test_every_module_has_a_hint() -> None:
    assert {one.hint for one in MODULES} == set(HINTS)


@pytest.mark.parametrize(
    "given",
    [
        {"steps": "many"}, {"steps": 10**9}, {"width": 1.5}, {"prompt": 3}, {"seed": "x"}, {"cfg_scale": []},
        {"enable_hr": "perhaps"}, {"styles": [1]}, {"override_settings": []}, {"alwayson_scripts": []},
        {"alwayson_scripts": {"controlnet": {"args": "x"}}}, {"alwayson_scripts": {"controlnet": {"args": [[]]}}},
        {"script_name": "x/y/z plot"}, {"scheduler": "nothing"}, {"scheduler": 3}, {"batch_size": 0},
        {"denoising_strength": 7, "enable_hr": True}, {"override_settings": {"CLIP_stop_at_last_layers": "x"}},
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(given: dict[str, Any]) -> None:
    with pytest.raises((Refused, Error)) as wrong:
        asked(**given)
    assert getattr(wrong.value, "status", 422) == 422
    assert "\n" not in str(wrong.value)


_NAMES = sorted({*DEFAULTS["txt2img"], *DEFAULTS["img2img"], "nothing"})
_PICTURE = text(ramp(8, 8))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a fox", "Euler a", "automatic", "ControlNet", "edges", "canny", _PICTURE, "1", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ControlNet", "args", "image", "model", "module", "sd_vae", "weight", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["txt2img", "img2img"]), given=st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=8)
)
def test_any_json_is_a_job_or_a_sentence(kind: str, given: dict[str, Any]) -> None:
    with contextlib.suppress(Refused, Error):
        asked(kind, **{**given, "prompt": given.get("prompt", "")})
