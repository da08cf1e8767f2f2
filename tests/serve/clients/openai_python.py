"""What a user of `openai` does."""

import asyncio
import base64
import io
import os
import struct
import urllib.request
import zlib

import openai

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
SMALL = {"steps": 4}


def png(width: int, height: int, alpha: bytes = b"\xff") -> bytes:
    """A picture of one colour; alpha: of all pixels, or of each."""
    alpha = alpha * (width * height) if len(alpha) == 1 else alpha
    lines = b"".join(
        b"\0" + b"".join(b"\xc8\x1e\x28" + alpha[y * width + x : y * width + x + 1] for x in range(width))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def plain(image: openai.types.Image) -> bytes:
    assert image.b64_json is not None
    return base64.b64decode(image.b64_json)


def fails(kind: type[openai.APIStatusError], **fields: object) -> openai.APIStatusError:
    try:
        client.images.generate(prompt="a fox", **fields)
    except kind as error:
        return error
    raise AssertionError(f"{fields} did not fail")


client = openai.OpenAI(base_url=f"{SERVER}/v1", api_key=KEY)

models = client.models.list().data
assert client.models.retrieve(models[0].id).owned_by == "darkroom"

answer = client.images.generate(prompt="a fox", model=models[0].id, size="64x64", extra_body=SMALL | {"seed": 7})
assert size(plain(answer.data[0])) == (64, 64)
assert (answer.size, answer.quality, answer.output_format, answer.background) == ("64x64", "medium", "png", "opaque")
assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0

two = client.images.generate(prompt="a fox", n=2, size="64x64", extra_body=SMALL | {"seed": 6}).data
assert plain(two[1]) == plain(answer.data[0])

answer = client.images.generate(
    prompt="a fox",
    model="gpt-image-2.5-flare",
    background="opaque",
    complexity="low",
    moderation="low",
    n=1,
    output_compression=80,
    output_format="jpeg",
    partial_images=0,
    quality="low",
    safety_identifier="somebody",
    size="auto",
    style="vivid",
    user="me",
)
assert plain(answer.data[0]).startswith(b"\xff\xd8\xff")
assert answer.safety_identifier == "somebody"

answer = client.images.generate(prompt="a fox", model="dall-e-3", size="1024x1024", quality="hd")
with urllib.request.urlopen(answer.data[0].url) as opened:
    assert size(opened.read()) == (1024, 1024)

picture = png(64, 64)
answer = client.images.edit(image=io.BytesIO(picture), prompt="a fox", input_fidelity="high", extra_body=SMALL)
assert size(plain(answer.data[0])) == (64, 64)
mask = png(64, 64, b"".join(b"\0" * 32 + b"\xff" * 32 for _ in range(64)))
answer = client.images.edit(
    image=[("a.png", picture, "image/png")], mask=("mask.png", mask), prompt="a fox", n=2, extra_body={"seed": 3}
)
assert len(answer.data) == 2
assert client.images.create_variation(image=("a.png", picture), n=1, size="256x256").data[0].b64_json

kinds = []
slow = {"prompt": "a fox, slow", "size": "64x64", "stream": True, "partial_images": 2, "extra_body": {"steps": 40}}
for event in client.images.generate(**slow):
    kinds.append(event.type)
    assert size(base64.b64decode(event.b64_json)) == (64, 64)
    assert event.size == "64x64"
assert kinds[-1] == "image_generation.completed"
assert kinds.count("image_generation.partial_image") <= 2
last = list(client.images.edit(image=("a.png", picture), prompt="a fox", stream=True, extra_body=SMALL))[-1]
assert (last.type, last.usage.input_tokens_details.image_tokens) == ("image_edit.completed", 16)
try:
    list(client.images.generate(prompt="a fox, fail", stream=True))
except openai.APIError as error:
    code = error.code
else:
    raise AssertionError("it did not fail")
assert code == "generation_failed"

error = fails(openai.BadRequestError, size="huge")
assert (error.param, error.type) == ("size", "invalid_request_error")
assert fails(openai.NotFoundError, model="nothing").code == "model_not_found"
assert fails(openai.BadRequestError, output_format="gif").param == "output_format"
assert fails(openai.BadRequestError, frame_count=3).param == "frame_count"
try:
    client.images.edit(image=("a.png", bytes(10_000_000)), prompt="a fox")
except openai.APIStatusError as error:
    status = error.status_code
assert status == 413  # and not a connection that broke
if KEY != "none":
    client = openai.OpenAI(base_url=f"{SERVER}/v1", api_key="dk-of-nobody")
    assert fails(openai.AuthenticationError).code == "invalid_api_key"


async def several() -> None:
    async with openai.AsyncOpenAI(base_url=SERVER, api_key=KEY) as client:  # an address without /v1
        made = [client.images.generate(prompt=f"fox {i}", size="64x64", extra_body=SMALL) for i in range(4)]
        assert len({plain(answer.data[0]) for answer in await asyncio.gather(*made)}) == 4
        stream = await client.images.generate(prompt="a fox", stream=True, extra_body=SMALL)
        assert [event.type async for event in stream] == ["image_generation.completed"]


asyncio.run(several())
