"""Asks for pictures whose connections break; every one must come all the same."""

import base64
import hashlib
import os

import openai

for i in range(10):
    # A client each, so that every first request has a connection of its own.
    with openai.OpenAI(base_url=os.environ["SERVER"] + "/v1", api_key=os.environ["KEY"]) as client:
        slow = ", slow" if i < 3 else ""
        answer = client.images.generate(prompt=f"fox {i}{slow}", size="64x64", extra_body={"steps": 60})
        print(hashlib.sha256(base64.b64decode(answer.data[0].b64_json)).hexdigest())
