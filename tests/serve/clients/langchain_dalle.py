"""What a user of LangChain's image tool does."""

import os
import urllib.request

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

tool = DallEAPIWrapper(base_url=os.environ["SERVER"] + "/v1", api_key=os.environ["KEY"])
(address,) = tool.run("a fox").split("\n")  # 1024x1024 of dall-e-2
with urllib.request.urlopen(address) as opened:
    data = opened.read()
assert data.startswith(b"\x89PNG")
assert int.from_bytes(data[16:20], "big") == 1024
several = DallEAPIWrapper(
    base_url=os.environ["SERVER"] + "/v1", api_key=os.environ["KEY"], n=2, size="64x64", model="dall-e-3", quality="hd"
)
assert len(set(several.run("a fox").split("\n"))) == 2
