"""What a user of `aaa1111` does."""

import asyncio
import os

from aaa1111 import AAA1111
from aaa1111.types import IMG2IMG, TXT2IMG, ExtrasSingleImage
from PIL import Image

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
who = {} if KEY == "none" else {"username": "anybody", "password": KEY}
api = AAA1111(base_url=SERVER, **who)

drawn = api.txt2img(TXT2IMG(prompt="a fox", seed=7, n_iter=2, steps=4, width=64, height=64))
assert [image.size for image in drawn.images] == [(64, 64)] * 2
assert drawn.info["all_seeds"] == [7, 8]
picture = Image.new("RGB", (64, 64), "red")
changed = api.img2img(IMG2IMG(prompt="a fox", init_images=[picture], steps=4, width=64, height=64, resize_mode=1))
assert changed.images[0].size == (64, 64)
assert api.extra_single_image(
    ExtrasSingleImage(image=picture, upscaler_1="Lanczos", upscaling_resize=3)
).image.size == (
    192,
    192,
)
assert api.png_info(drawn.images[0]).info.startswith("a fox\nSteps: 4")
assert api.progress().progress == 0
options = api.get_options()
api.set_options(**options)
api.set_options(samples_format="webp")
assert api.txt2img(TXT2IMG(prompt="a fox", steps=4, width=64, height=64)).images[0].format == "WEBP"
api.set_options(samples_format="png")
assert api.sd_models()[0].title == options["sd_model_checkpoint"]
assert api.loras()[0].name == "sepia"
assert api.embeddings().loaded.keys() == {"blue-heart"}
for act in (api.interrupt, api.skip, api.refresh_checkpoints, api.refresh_loras, api.refresh_lycos):
    act()
api.unload_checkpoint()
api.reload_checkpoint()
for listed in (
    *(api.cmd_flags, api.samplers, api.upscalers, api.latent_upscale_modes, api.sd_vae, api.hypernetworks, api.lycos),
    *(api.face_restorers, api.realesrgan_models, api.prompt_styles, api.memory, api.scripts, api.script_info),
):
    listed()


async def later() -> None:
    assert (await api.aprogress(skip_current_image=True)).current_image is None
    assert (await api.atxt2img({"prompt": "a fox", "steps": 4, "width": 64, "height": 64})).images


asyncio.run(later())
