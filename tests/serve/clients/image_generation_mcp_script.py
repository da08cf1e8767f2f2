"""What `image-generation-mcp` does; it knows no credentials, so $SERVER has them in its address."""

import asyncio
import os
from urllib.parse import urlsplit

from image_generation_mcp.providers.sd_webui import SdWebuiImageProvider
from image_generation_mcp.providers.types import InputImage

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
address = SERVER if KEY == "none" else urlsplit(SERVER)._replace(netloc=f"any:{KEY}@{urlsplit(SERVER).netloc}").geturl()


async def main() -> None:
    provider = SdWebuiImageProvider(address)
    told = await provider.discover_capabilities()
    assert not told.degraded
    model = told.models[0].model_id
    assert model.startswith("darkroom-embedded")
    shares = []
    drawn = await provider.generate(
        "a fox", negative_prompt="fog", model=model, progress_callback=lambda share, words: shares.append(share)
    )
    assert drawn.provider_metadata["seed"] >= 0
    assert shares
    changed = await provider.generate(
        "a fox", reference_images=[InputImage(data=drawn.image_data, content_type="image/png")], strength=0.5
    )
    assert changed.provider_metadata["edited"]
    assert changed.provider_metadata["model"] == "darkroom-embedded"
    await provider.aclose()


asyncio.run(main())
