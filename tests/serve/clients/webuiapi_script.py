"""What a user of `webuiapi` does."""

import asyncio
import os
from urllib.parse import urlsplit

import webuiapi
from PIL import Image

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
SMALL = {"width": 64, "height": 64, "steps": 4}
where = urlsplit(SERVER)
who = {} if KEY == "none" else {"username": "anybody", "password": KEY}
api = webuiapi.WebUIApi(host=where.hostname, port=where.port, **who)

first = api.txt2img(prompt="a fox", negative_prompt="fog", seed=7, batch_size=2, cfg_scale=5, **SMALL)
assert [image.size for image in first.images] == [(64, 64)] * 2
assert first.info["all_seeds"] == [7, 8], first.info
assert first.info["sampler_name"] == "Euler a"
assert "Negative prompt: fog" in first.info["infotexts"][1]
assert first.parameters["ignored"] == {}, first.parameters["ignored"]
assert api.txt2img(prompt="a fox", negative_prompt="fog", seed=8, cfg_scale=5, **SMALL).image.tobytes() == (
    first.images[1].tobytes()
)
large = api.txt2img(
    prompt="a fox", seed=1, enable_hr=True, hr_scale=2, hr_upscaler=webuiapi.HiResUpscaler.Latent, **SMALL
)
assert "Hires upscale: 2" in large.info["infotexts"][0]

picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 0)
mask.paste(255, (16, 16, 48, 48))
changed = api.img2img(images=[picture], prompt="a fox", seed=1, denoising_strength=0.6, **SMALL)
assert changed.info["denoising_strength"] == 0.6
api.img2img(images=[picture], mask_image=mask, inpainting_fill=1, inpaint_full_res=False, prompt="a fox", **SMALL)

unit = webuiapi.ControlNetUnit(image=picture, module="canny", model=api.controlnet_model_list()[0], weight=0.8)
steered = api.txt2img(prompt="a fox", seed=1, controlnet_units=[unit], **SMALL)
assert len(steered.images) == 2, "the hint comes after the picture"
assert len(steered.info["all_seeds"]) == 1
assert api.controlnet_detect([picture], module="canny").info == "Success"
assert "canny" in api.controlnet_module_list()
assert api.controlnet_version() == 3

twice = api.extra_single_image(picture, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
assert twice.image.size == (96, 96)
assert [image.size for image in api.extra_batch_images([picture], upscaler_1="Lanczos").images] == [(128, 128)]
told = api.png_info(first.image)
assert told.info.startswith("a fox\nNegative prompt: fog\nSteps: 4"), told.info

title = api.util_get_current_model()
assert title in api.util_get_model_names()
options = api.get_options()
api.set_options(options)
api.set_options({"CLIP_stop_at_last_layers": 2})
assert api.get_options()["CLIP_stop_at_last_layers"] == 2
assert api.txt2img(prompt="a fox", **SMALL).info["clip_skip"] == 2
api.set_options({"CLIP_stop_at_last_layers": 1})
api.util_set_model(title)
assert "Euler a" in api.util_get_sampler_names()
assert "automatic" in api.util_get_scheduler_names()
assert api.get_progress()["progress"] == 0
api.util_wait_for_ready()
assert api.interrupt() == {}
api.skip()
api.refresh_checkpoints()
for listed in (
    *(api.get_cmd_flags, api.get_sd_vae, api.get_upscalers, api.get_latent_upscale_modes, api.get_loras),
    *(api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles),
    *(api.get_scripts, api.get_embeddings, api.get_memory),
):
    assert isinstance(listed(), list | dict)


async def later() -> None:
    drawn = await api.txt2img(prompt="a fox", seed=7, use_async=True, **SMALL)
    assert drawn.info["all_seeds"] == [7]


asyncio.run(later())
for wrong, status in (({"sampler_name": "nothing"}, 400), ({"script_name": "nothing"}, 422)):
    told = 200
    try:
        api.txt2img(prompt="a fox", **SMALL, **wrong)
    except RuntimeError as error:
        told = error.args[0]
    assert told == status, wrong
