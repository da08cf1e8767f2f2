"""What a user of LiteLLM does."""

import base64
import io
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # what models of others cost, it would fetch from the internet

import litellm

where = {"api_base": os.environ["SERVER"] + "/v1", "api_key": os.environ["KEY"]}

answer = litellm.image_generation(model="openai/gpt-image-1.5", prompt="a fox", size="64x64", n=2, **where)
pictures = [base64.b64decode(one["b64_json"]) for one in answer.data]
assert len(set(pictures)) == 2
assert pictures[0].startswith(b"\x89PNG")
assert litellm.image_generation(model="openai/dall-e-3", prompt="a fox", **where).data[0]["url"]

sent = io.BytesIO(pictures[0])
sent.name = "a.png"
answer = litellm.image_edit(model="openai/gpt-image-1.5", image=sent, prompt="an owl", **where)
assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")

try:
    litellm.image_generation(model="openai/nothing", prompt="a fox", **where)
except (litellm.exceptions.APIError, litellm.exceptions.NotFoundError) as error:
    said = str(error)
else:
    raise AssertionError("it did not fail")
assert "nothing" in said
