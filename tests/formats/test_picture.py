"""Pictures that carry their recipe: exact round trips, other tools' files, hostile files, atomic writes."""

from __future__ import annotations

import json
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.errors import ImageError
from darkroom.formats.picture import MAX_PIXELS, load_recipe, read_metadata, write_into, write_picture, write_png

RECIPE = {
    "prompt": "a fox",
    "steps": 3,
    "seed": 1,
    "width": 8,
    "height": 6,
    "guidance_scale": 7.5,
    "guidance_interval": [0.5, None],
    "model_hash": "0123456789",
    "version": "0.1.0",
}


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_with(tmp_path: Path, *chunks: tuple[bytes, bytes], after: bool = False) -> Path:
    """A small PNG file with raw chunks, before or after its pixels."""
    buffer = BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    plain = buffer.getvalue()
    at = plain.index(b"IEND" if after else b"IDAT") - 4
    raw = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path = tmp_path / "foreign.png"
    path.write_bytes(plain[:at] + b"".join(raw) + plain[at:])
    return path


def text_chunk(key: str, value: object) -> tuple[bytes, bytes]:
    text = value if isinstance(value, str) else json.dumps(value)
    return b"tEXt", key.encode() + b"\0" + text.encode("latin-1")


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_recipe_and_pixels_come_back(name: str, picture: Image.Image, tmp_path: Path) -> None:
    path = write_picture(picture, tmp_path / name, RECIPE)
    found = read_metadata(path)
    assert found.source == "darkroom"
    assert found.recipe == {"schema": 1, **RECIPE}
    assert (found.width, found.height) == (8, 6)
    assert found.texts["parameters"].startswith("a fox\nSteps: 3, CFG scale: 7.5, Seed: 1, Size: 8x6")
    if not name.lower().startswith("a.j"):
        with Image.open(path) as image:
            assert image.convert("RGB").tobytes() == picture.tobytes()


def test_pillow_and_a1111_find_the_parameters_where_they_look(picture: Image.Image, tmp_path: Path) -> None:
    with Image.open(write_png(picture, tmp_path / "a.png", RECIPE)) as image:
        assert image.info["parameters"].startswith("a fox\nSteps: 3")
        assert json.loads(image.info["darkroom"])["prompt"] == "a fox"
    with Image.open(write_picture(picture, tmp_path / "a.jpg", RECIPE | {"prompt": "ein Füchslein"})) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"UNICODE\0")
        assert comment[8:].decode("utf-16-be").startswith("ein Füchslein\nSteps: 3")


any_text = st.text(alphabet=st.characters(), max_size=80)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    prompt=any_text, negative=any_text, model=any_text, other=plain, name=st.sampled_from(["a.png", "a.webp", "a.jpg"])
)
@example("\x00a\x00", "\u202eevil\u200f", "\ud800", None, "a.png")
@example("\ud83e\udd8a", "\U0001f98a", "\udc80\ud800\udc80", None, "a.jpg")
@example("Negative prompt: x\nSteps: 1, Seed: 2, Size: 3x4", "a\r\nb\x85\u2028c", "", [float("inf")], "a.png")
@settings(max_examples=120)
def test_every_text_round_trips(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, negative: str, model: str, other: Any, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    recipe = RECIPE | {"prompt": prompt, "negative_prompt": negative, "model": model, "other": other}
    write_picture(Image.new("RGB", (8, 6)), path, recipe, overwrite=True)
    assert read_metadata(path).recipe == {"schema": 1, **recipe}


def test_a_prompt_of_the_largest_size(picture: Image.Image, tmp_path: Path) -> None:
    recipe = RECIPE | {"prompt": "\U0001f98a" * 32_000}
    for name in ("a.png", "a.webp"):
        assert read_metadata(write_picture(picture, tmp_path / name, recipe)).recipe["prompt"] == recipe["prompt"]
    with pytest.raises(ImageError, match="room for 65527: write a PNG or a WebP"):
        write_picture(picture, tmp_path / "a.jpg", recipe)
    assert not (tmp_path / "a.jpg").exists()


# Writing -------------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_asked(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(ImageError, match="exists already"):
        write_png(picture, path, RECIPE)
    assert path.read_bytes() == b"mine"
    write_png(picture, path, RECIPE, overwrite=True)
    assert read_metadata(path).source == "darkroom"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_dangling_link_is_an_existing_file(picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="exists already"):
        write_png(picture, tmp_path / "a.png", RECIPE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_name_taken_while_writing_is_not_overwritten(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    monkeypatch.setattr(os, "fsync", lambda _: path.write_bytes(b"theirs"))
    with pytest.raises(ImageError, match="exists already"):
        write_png(picture, path, RECIPE)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_file_system_without_links(picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    write_png(picture, tmp_path / "a.png", RECIPE)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    error: BaseException, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((ImageError, KeyboardInterrupt), match=r"no space left|^$"):
        write_png(picture, tmp_path / "a.png", RECIPE)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, reason in [
        (tmp_path / "missing" / "a.png", "no such file"),
        (tmp_path / "file" / "a.png", "not a directory"),
        (tmp_path / "folder.png", "exists already"),
        (tmp_path / ("x" * 300 + ".png"), "too long"),
        (tmp_path / "nul\0.png", "null"),
        (tmp_path / "a.gif", "must end in .png"),
        (tmp_path / "none", "must end in .png"),
    ]:
        with pytest.raises(ImageError, match=reason):
            write_picture(picture, path, RECIPE)
    with pytest.raises(ImageError, match="directory"):
        write_picture(picture, tmp_path / "folder.png", RECIPE, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_recipe_that_is_not_plain_is_refused(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="can't be written as JSON"):
        write_png(picture, tmp_path / "a.png", {"prompt": "x", "thing": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A large fox, (yellow:1.2) background", "a-large-fox-yellow-1-2-background-1"),
        ("../../etc/passwd\0\n", "etc-passwd-1"),
        ("狐 🦊", "狐-1"),
        ("큰 여우, Café à Zürich", "큰-여우-café-à-zürich-1"),
        ("हिन्दी में", "हिन्दी-में-1"),
        ("cafe\u0301", "café-1"),
        ("🦊", "picture-1"),
        ("여" * 100, "여" * 50 + "-1"),
        ("\ud800 \u202egnp", "gnp-1"),
        ("", "picture-1"),
        ("x" * 10_000, "x" * 60 + "-1"),
    ],
)
def test_names_in_a_folder_are_safe_and_free(prompt: str, stem: str, picture: Image.Image, tmp_path: Path) -> None:
    recipe = RECIPE | {"prompt": prompt}
    names = [write_into(tmp_path, picture, recipe).name for _ in range(3)]
    assert names == [f"{stem}.png", f"{stem}-2.png", f"{stem}-3.png"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


# A1111, ComfyUI, InvokeAI -------------------------------------------------------------------------------------------


def test_a1111_in_latin_utf8_compressed_and_after_the_pixels(tmp_path: Path) -> None:
    line = "\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x6"
    for prompt, kind, data in [
        ("füchs", b"tEXt", ("füchs" + line).encode("latin-1")),
        ("狐", b"iTXt", b"\0\0\0\0" + ("狐" + line).encode()),
        ("狐", b"iTXt", b"\1\0\0\0" + zlib.compress(("狐" + line).encode())),
        ("fox", b"zTXt", b"\0" + zlib.compress(("fox" + line).encode())),
    ]:
        for after in (False, True):
            found = read_metadata(png_with(tmp_path, (kind, b"parameters\0" + data), after=after))
            assert found.source == "a1111"
            assert found.recipe["prompt"] == prompt
            assert (found.recipe["seed"], found.recipe["sampler"]) == (5, "euler_ancestral")


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "狐\nSteps: 2, Seed: 5, Size: 8x6".encode("utf-16-be"),
        b"UNICODE\0" + "狐\nSteps: 2, Seed: 5, Size: 8x6".encode("utf-16-le"),
        b"UNICODE\0" + "狐\nSteps: 2, Seed: 5, Size: 8x6".encode("utf-16"),
        b"ASCII\0\0\0" + "狐\nSteps: 2, Seed: 5, Size: 8x6".encode(),
        b"\0\0\0\0\0\0\0\0" + "狐\nSteps: 2, Seed: 5, Size: 8x6".encode(),
        "狐\nSteps: 2, Seed: 5, Size: 8x6".encode(),
    ],
)
def test_user_comment_in_its_many_encodings(comment: bytes, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
    found = read_metadata(tmp_path / f"a.{suffix}")
    assert found.source == "a1111"
    assert (found.recipe["prompt"], found.recipe["seed"]) == ("狐", 5)


COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0], "clip": ["4", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "styles\\ink.v2.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.5,
            "model": ["11", 0],
            "clip": ["4", 1],
        },
    },
    "11": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "gold.safetensors", "model": ["4", 0]}},
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "text, watermark"}},
}
COMFY_RECIPE = {
    "prompt": "a bottle",
    "negative_prompt": "text, watermark",
    "steps": 20,
    "guidance_scale": 8.0,
    "sampler": "dpmpp_2m",
    "sgm_noise_multiplier": True,
    "schedule": "karras",
    "seed": 156680208700286,
    "model": "v1-5.safetensors",
    "width": 512,
    "height": 768,
    "loras": [
        {"name": "gold", "hash": "", "scale": 1.0, "text_scale": 1.0},
        {"name": "ink.v2", "hash": "", "scale": 0.8, "text_scale": 0.5},
    ],
}


def test_comfyui_graph(tmp_path: Path) -> None:
    found = read_metadata(png_with(tmp_path, text_chunk("prompt", COMFY), text_chunk("workflow", {})))
    assert (found.source, found.recipe) == ("comfyui", COMFY_RECIPE)


def test_comfyui_second_pass_and_nodes_in_between(tmp_path: Path) -> None:
    """The first sampler counts, listed last here; a ControlNet node passes both texts on."""
    graph: dict[str, Any] = {
        "20": {
            "class_type": "KSampler",
            "inputs": COMFY["3"]["inputs"] | {"seed": 9, "steps": 5, "latent_image": ["21", 0]},  # type: ignore[operator]
        },
        "21": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024, "height": 1536}},
        "30": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {"positive": ["6", 0], "negative": ["7", 0], "strength": 1.0},
        },
    }
    graph |= COMFY
    inputs = COMFY["3"]["inputs"] | {"positive": ["30", 0], "negative": ["30", 1]}  # type: ignore[operator]
    graph["3"] = {"class_type": "KSampler", "inputs": inputs}
    found = read_metadata(png_with(tmp_path, text_chunk("prompt", graph)))
    assert found.recipe == COMFY_RECIPE


@pytest.mark.parametrize(("denoise", "strength"), [(1, None), (1.0, None), (0.55, 0.55), (0, None), ("no", None)])
def test_comfyui_denoise_is_strength_with_exactly_its_steps(tmp_path: Path, denoise: Any, strength: Any) -> None:
    inputs = COMFY["3"]["inputs"] | {"denoise": denoise}  # type: ignore[operator]
    graph = COMFY | {"3": {"class_type": "KSampler", "inputs": inputs}}
    recipe = read_metadata(png_with(tmp_path, text_chunk("prompt", graph))).recipe
    assert recipe.get("strength") == strength
    assert recipe.get("exact_steps") == (None if strength is None else True)


def test_comfyui_custom_sampler(tmp_path: Path) -> None:
    graph = {
        "1": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["2", 0],
                "guider": ["3", 0],
                "sampler": ["4", 0],
                "sigmas": ["5", 0],
                "latent_image": ["6", 0],
            },
        },
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "3": {
            "class_type": "CFGGuider",
            "inputs": {"cfg": 3.5, "positive": ["7", 0], "negative": ["8", 0], "model": ["9", 0]},
        },
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 12, "model": ["9", 0]}},
        "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 32}},
        "7": {
            "class_type": "ConditioningCombine",
            "inputs": {"conditioning_1": ["71", 0], "conditioning_2": ["72", 0]},
        },
        "71": {"class_type": "CLIPTextEncode", "inputs": {"text": "one"}},
        "72": {"class_type": "CLIPTextEncode", "inputs": {"text": "two"}},
        "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
        "9": {"class_type": "UNETLoader", "inputs": {"unet_name": "m.safetensors"}},
    }
    assert read_metadata(png_with(tmp_path, text_chunk("prompt", graph))).recipe == {
        "prompt": "one\ntwo",
        "negative_prompt": "bad",
        "steps": 12,
        "guidance_scale": 3.5,
        "sampler": "euler",
        "sgm_noise_multiplier": True,
        "schedule": "simple",
        "seed": 7,
        "model": "m.safetensors",
        "width": 64,
        "height": 32,
    }


def test_comfyui_workflow_alone_and_in_webp(tmp_path: Path) -> None:
    workflow = {
        "nodes": [
            {
                "id": 3,
                "type": "KSampler",
                "widgets_values": [156680208700286, "randomize", 20, 8, "dpmpp_2m", "karras", 1],
                "inputs": [
                    {"name": "model", "link": 1},
                    {"name": "positive", "link": 4},
                    {"name": "negative", "link": 6},
                    {"name": "latent_image", "link": 2},
                ],
            },
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["v1-5.safetensors"]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {
                "id": 6,
                "type": "CLIPTextEncode",
                "widgets_values": ["a bottle"],
                "inputs": [{"name": "clip", "link": 3}],
            },
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text, watermark"], "inputs": []},
            {
                "id": 10,
                "type": "LoraLoader",
                "widgets_values": ["ink.v2.safetensors", 0.8, 0.5],
                "inputs": [{"name": "model", "link": 5}],
            },
            {
                "id": 11,
                "type": "LoraLoaderModelOnly",
                "widgets_values": ["gold.safetensors", 1],
                "inputs": [{"name": "model", "link": 7}],
            },
        ],
        "links": [
            [1, 10, 0, 3, 0, "M"],
            [5, 11, 0, 10, 0, "M"],
            [7, 4, 0, 11, 0, "M"],
            [4, 6, 0, 3, 1, "C"],
            [6, 7, 0, 3, 2, "C"],
            [2, 5, 0, 3, 3, "L"],
        ],
    }
    assert read_metadata(png_with(tmp_path, text_chunk("workflow", workflow))).recipe == COMFY_RECIPE
    exif = Image.Exif()
    exif[0x010F] = "workflow:" + json.dumps(workflow)
    exif[0x0110] = "prompt:" + json.dumps(COMFY)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp", exif=exif)
    found = read_metadata(tmp_path / "a.webp")
    assert (found.source, found.recipe) == ("comfyui", COMFY_RECIPE)


def test_comfyui_graph_that_bites_its_tail(tmp_path: Path) -> None:
    node = {
        "class_type": "KSampler",
        "inputs": {k: ["1", 0] for k in ("positive", "negative", "model", "latent_image")},
    }
    graph = {"1": node | {"inputs": node["inputs"] | {"seed": ["1", 0], "text": ["1", 0]}}}  # type: ignore[operator]
    assert read_metadata(png_with(tmp_path, text_chunk("prompt", graph))).source == "comfyui"


def test_comfyui_graph_of_many_samplers_is_walked_in_bounded_time(tmp_path: Path) -> None:
    links = {f"in{i}": [str(i), 0] for i in range(300)}
    graph = {
        str(i): {"class_type": "KSampler", "inputs": {"positive": ["0", 0], "latent_image": [str(i), 0], **links}}
        for i in range(300)
    }
    assert read_metadata(png_with(tmp_path, text_chunk("prompt", graph))).source == "comfyui"


def test_invokeai_three_generations(tmp_path: Path) -> None:
    new = {
        "positive_prompt": "a fox",
        "negative_prompt": "bad",
        "steps": 30,
        "cfg_scale": 7.5,
        "cfg_rescale_multiplier": 0,
        "scheduler": "dpmpp_2m_k",
        "seed": 4,
        "width": 512,
        "height": 640,
        "model": {"name": "Deliberate", "hash": "blake3:ab"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.7}, {"lora": {"model_name": "old"}, "weight": 1}, {}, None],
        "strength": 0.6,
        "init_image": "a.png",
    }
    found = read_metadata(png_with(tmp_path, text_chunk("invokeai_metadata", new)))
    assert found.source == "invokeai"
    assert found.recipe == {
        "prompt": "a fox",
        "negative_prompt": "bad",
        "steps": 30,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.0,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "seed": 4,
        "width": 512,
        "height": 640,
        "model": "Deliberate",
        "model_hash": "blake3:ab",
        "loras": [
            {"name": "ink", "hash": "", "scale": 0.7, "text_scale": 0.7},
            {"name": "old", "hash": "", "scale": 1.0, "text_scale": 1.0},
        ],
        "strength": 0.6,
    }
    middle = {
        "model_weights": "stable-diffusion-1.4",
        "image": {
            "prompt": [{"prompt": "a fox [bad, ugly]", "weight": 1}],
            "steps": 50,
            "cfg_scale": 7.5,
            "seed": 3,
            "sampler": "k_euler_a",
            "width": 512,
            "height": 512,
        },
    }
    dream = '"a fox [bad, ugly]" -s 50 -S 3 -W 512 -H512 -C7.5 -A k_euler_a'
    old = {
        "prompt": "a fox",
        "negative_prompt": "bad, ugly",
        "steps": 50,
        "guidance_scale": 7.5,
        "sampler": "euler_ancestral",
        "seed": 3,
        "width": 512,
        "height": 512,
    }
    found = read_metadata(png_with(tmp_path, text_chunk("sd-metadata", middle), text_chunk("Dream", dream)))
    assert (found.source, found.recipe) == ("invokeai", old | {"model": "stable-diffusion-1.4"})
    found = read_metadata(png_with(tmp_path, text_chunk("Dream", dream)))
    assert (found.source, found.recipe) == ("invokeai", old)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["1", "2", "text"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("1", "2", "class_type", "inputs", "positive", "latent_image", "guider", "text", "model", "seed"),
                    *(
                        "image",
                        "prompt",
                        "positive_prompt",
                        "scheduler",
                        "nodes",
                        "links",
                        "id",
                        "type",
                        "name",
                        "link",
                    ),
                    *("widgets_values", "schema", "$parts", "$float", "sampler", "steps", "KSampler"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(value=json_values, key=st.sampled_from(["prompt", "workflow", "invokeai_metadata", "sd-metadata", "darkroom"]))
@example([[[[]]]], "prompt")
@settings(max_examples=300)
def test_any_json_is_inert(tmp_path_factory: pytest.TempPathFactory, value: Any, key: str) -> None:
    found = read_metadata(
        png_with(tmp_path_factory.getbasetemp(), text_chunk(key, [value] if isinstance(value, str) else value))
    )
    assert isinstance(found.recipe, dict)


@given(st.text(alphabet=st.sampled_from('"[] -sSACWH0x\\a\n'), max_size=100))
@settings(max_examples=200)
def test_any_dream_is_inert(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    read_metadata(png_with(tmp_path_factory.getbasetemp(), text_chunk("Dream", '"' + text)))


# Hostile files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"schema":' + "1" * 5000 + "}", "[]", '{"a":1}', '"x"', "null"])
def test_broken_json_falls_back_to_infotext(text: str, tmp_path: Path) -> None:
    assert load_recipe(text) == {}
    parameters = text_chunk("parameters", "p\nSteps: 1, Seed: 2, Size: 8x8")
    found = read_metadata(png_with(tmp_path, text_chunk("darkroom", text), parameters))
    assert (found.source, found.recipe["seed"]) == ("a1111", 2)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.ppm")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [
        ("text", "not a PNG, JPEG or WebP"),
        ("empty", "not a PNG, JPEG or WebP"),
        ("a.ppm", "not a PNG, JPEG or WebP picture, nor one in GIF, BMP, TIFF or AVIF"),
        ("missing", "there is no picture"),
        (".", "is a folder"),
        ("pipe", "is not a file"),
        ("text/a.png", "not a directory"),
        ("nul\0", "null"),
        ("x" * 300, "too long"),
    ]:
        with pytest.raises(ImageError, match=reason):
            read_metadata(tmp_path / name)


def test_absurd_sizes_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    def png(width: int, height: int) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 40

    def webp(kind: bytes, data: bytes) -> bytes:
        return b"RIFF" + struct.pack("<I", 4 + 8 + len(data)) + b"WEBP" + kind + struct.pack("<I", len(data)) + data

    side = 16383
    jpeg = BytesIO()
    Image.new("L", (8, 8)).save(jpeg, "JPEG")
    start = jpeg.getvalue().index(b"\xff\xc0") + 5
    for data in [
        png(100_000, 100_000),
        png(2**31 - 1, 2**31 - 1),
        png(MAX_PIXELS + 1, 1),
        webp(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2),
        webp(b"VP8L", b"\x2f" + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + b"\0" * 20),
        webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", side, side) + b"\0" * 20),
        jpeg.getvalue()[:start] + struct.pack(">HH", 60_000, 60_000) + jpeg.getvalue()[start + 4 :],
    ]:
        (tmp_path / "big").write_bytes(data)
        with pytest.raises(ImageError, match="at most"):
            read_metadata(tmp_path / "big")


def test_a_bomb_in_a_text_chunk_is_passed_over(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(50 * 2**20), 9)
    for kind, head in [(b"zTXt", b"darkroom\0\0"), (b"iTXt", b"darkroom\0\1\0\0\0")]:
        parameters = text_chunk("parameters", "p\nSteps: 1, Seed: 2, Size: 8x8")
        found = read_metadata(png_with(tmp_path, (kind, head + bomb), parameters, after=True))
        assert found.source == "a1111"
        with pytest.raises(ImageError):  # before the pixels, Pillow itself refuses the file
            read_metadata(png_with(tmp_path, (kind, head + bomb), parameters))


def test_a_picture_cut_short_keeps_its_recipe(picture: Image.Image, tmp_path: Path) -> None:
    path = write_png(picture.resize((200, 200)), tmp_path / "a.png", RECIPE)
    path.write_bytes(path.read_bytes()[:-5000])
    assert read_metadata(path).recipe["prompt"] == "a fox"


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\0\0\0\0WEBPVP8X"])
)
@settings(max_examples=300)
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(magic + data)
    try:
        read_metadata(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.data())
@settings(max_examples=300)
def test_damaged_pictures(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A good file with bytes changed, removed or doubled: a recipe or an ImageError, nothing else."""
    folder = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["good.png", "good.jpg", "good.webp"]))
    path = write_picture(Image.new("RGB", (16, 16)), folder / name, RECIPE, overwrite=True)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "double"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 50))]
        else:
            content[at:at] = content[at : at + 50]
        if not content:
            break
    path.write_bytes(content)
    try:
        read_metadata(path)
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017
