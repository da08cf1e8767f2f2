"""What a user of `sd-backend-client` does."""

import contextlib
import os
import time

from PIL import Image
from sd_backend_client.api.a1111_webservice import A1111Webservice
from sd_backend_client.api.detect import connect_to_backend
from sd_backend_client.api.shared_data.api_datatypes import DiffusionUpscalingParams
from sd_backend_client.api.shared_data.controlnet.controlnet_preprocessor import PreprocessorParams
from sd_backend_client.api.shared_data.controlnet.controlnet_unit import ControlNetUnit
from sd_backend_client.api.shared_data.diffusion_params import DiffusionParams
from sd_backend_client.api.shared_data.generation_handle import GenerationStatus
from sd_backend_client.errors import GenerationError, ServerError

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
SMALL = {"width": 64, "height": 64, "steps": 4}
api = connect_to_backend(SERVER, None if KEY == "none" else lambda: ("anybody", KEY))
assert isinstance(api, A1111Webservice)

told = api.get_capabilities()
assert told.controlnet
assert told.scheduler
assert not told.interrogate
assert not told.ultimate_upscale
assert [one.name for one in api.list_checkpoints()] == ["darkroom-embedded"]
assert [one.name for one in api.list_loras()] == ["sepia"]
assert "euler_ancestral" in [one.name for one in api.list_samplers()]
assert "karras" in [one.name for one in api.list_schedulers()]
assert [one.name for one in api.list_upscalers()] == ["Lanczos", "Nearest"]
assert api.list_vaes() == []
assert api.list_hypernetworks() == []
assert "canny" in [one.name for one in api.get_controlnet_preprocessors()]
assert "All" in api.get_controlnet_type_categories()
assert api.get_controlnet_settings()["control_net_unit_count"] > 0

params = DiffusionParams(prompt="a fox", negative_prompt="fog", seed=7, batch_size=2, **SMALL)
shares = []
handle = api.submit_txt2img(params)
result = handle.wait(60, on_progress=lambda progress: shares.append(progress.progress), poll_interval=0.02)
assert result.seeds == [7, 8]
assert [image.size for image in result.images] == [(64, 64)] * 2
assert handle.poll().status is GenerationStatus.FINISHED

picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 0)
mask.paste(255, (16, 16, 48, 48))
given = DiffusionParams(prompt="a fox", seed=7, init_images=[picture], denoising_strength=0.6, **SMALL)
assert len(api.submit_img2img(given).wait(60).images) == 1
given.mask = mask
assert len(api.submit_inpaint(given).wait(60).images) == 1

unit = ControlNetUnit(model=api.list_controlnet_models()[0], image=picture)
canny = next(one for one in api.get_controlnet_preprocessors() if one.name == "canny")
unit.preprocessor = PreprocessorParams(typedef=canny, parameter_values={"threshold_a": 50, "control_mode": "Balanced"})
steered = api.submit_txt2img(DiffusionParams(prompt="a fox", seed=1, controlnet_units=[unit], **SMALL)).wait(60)
assert len(steered.images) == 1
assert len(steered.control_maps) == 1
assert api.submit_preprocessor_preview(picture, canny).wait(60).images
assert api.submit_upscale(picture, 96, 96, DiffusionUpscalingParams()).wait(60).images[0].size == (96, 96)

slow = api.submit_txt2img(DiffusionParams(prompt="a fox, slow", width=64, height=64, steps=1000))
while slow.poll().preview is None:
    time.sleep(0.05)
assert 0 < (slow.poll().progress or 0) < 1
assert slow.cancel()
with contextlib.suppress(GenerationError):
    slow.wait(60)
assert slow.poll().status is GenerationStatus.CANCELLED
assert api.progress_check().state.job_count == 0

api.set_config({"CLIP_stop_at_last_layers": 2})
assert api.get_config()["CLIP_stop_at_last_layers"] == 2
api.set_config({"CLIP_stop_at_last_layers": 1})
status = 200
try:
    api.txt2img(DiffusionParams(prompt="a fox", sampler="nothing", **SMALL))
except ServerError as error:
    status = error.status_code
assert status == 400
