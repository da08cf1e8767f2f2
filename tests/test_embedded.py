"""The shipped model: small enough, an ordinary diffusers folder, and good for something."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import darkroom
from darkroom import hints
from darkroom.embedded import MODEL
from darkroom.evaluate.judge import psnr, reconstruct, scenes_of, score
from darkroom.toy.objects import OBJECTS
from darkroom.toy.scenes import draw_scene, render_scene


@pytest.fixture(scope="module")
def pipe():
    return darkroom.load()


def test_it_is_under_forty_megabytes():
    assert sum(f.stat().st_size for f in MODEL.parent.rglob("*") if f.is_file()) < 40e6


def test_its_card_lists_its_words_and_its_scores():
    card = json.loads((MODEL.parent / "card.json").read_text())
    assert set(card["objects"]) == set(OBJECTS)
    assert len(card["objects"]) >= 100
    assert len(card["backgrounds"]) == 10
    assert card["scores"]["pictures_a_category"] >= 100


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_diffusers_opens_it_and_draws_the_same_picture(pipe, guidance):
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    prompt = "a small castle on a green background"
    (expected,) = theirs(
        prompt, num_inference_steps=5, guidance_scale=guidance, output_type="np",
        generator=torch.Generator("cpu").manual_seed(3),
    ).images  # fmt: skip
    found = pipe.generate(prompt, steps=5, guidance_scale=guidance, seed=3, output="pt").images[0]
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_its_autoencoder_keeps_scenes(pipe):
    pictures = [render_scene(draw_scene(5, i)) for i in range(12)]
    assert psnr(pictures, reconstruct(pipe.autoencoder, pictures)) > 27


def test_it_draws_what_the_caption_says_far_more_often_than_by_chance(pipe):
    scenes = scenes_of("single", False, 12)
    pictures = [np.asarray(p) for p in pipe.generate([s.caption for s in scenes], seed=1).images]
    assert score(pictures, scenes).background == 1.0
    assert score(pictures, scenes).right >= 0.5
    assert score(pictures, [*scenes[1:], scenes[0]]).right <= 0.1


def test_it_knows_who_stands_where(pipe):
    scenes = scenes_of("relation", True, 12)  # held out: never trained on
    pictures = [np.asarray(p) for p in pipe.generate([s.caption for s in scenes], seed=1).images]
    found = score(pictures, scenes)
    assert found.right >= 0.5
    assert found.layout == found.objects  # what has both objects has them in their places


def test_diffusers_draws_the_same_with_what_comes_with_it(pipe):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    names = "controlnet-edges", "lora/sepia.safetensors", "word/blue-heart.safetensors"
    edges, sepia, word = (MODEL.parent / name for name in names)
    theirs = StableDiffusionControlNetPipeline.from_pretrained(
        MODEL, safety_checker=None, controlnet=ControlNetModel.from_pretrained(edges).float()
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(sepia.parent, weight_name=sepia.name)
    theirs.load_textual_inversion(str(word))
    hint = hints.make("canny", Image.fromarray(render_scene(draw_scene(5, 1))))
    prompt = "a small <blue-heart> on a white background"
    (expected,) = theirs(
        prompt, image=hint, num_inference_steps=4, guidance_scale=2.0, output_type="np",
        generator=torch.Generator("cpu").manual_seed(3),
    ).images  # fmt: skip
    found = pipe.generate(
        prompt, steps=4, guidance_scale=2.0, seed=3, output="pt", controls=[darkroom.Control("embedded:edges", hint)],
        loras=[darkroom.Lora("embedded:sepia")], embeddings=["embedded:blue-heart"],
    ).images[0]  # fmt: skip
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_its_controlnet_keeps_edges(pipe):
    scenes = [draw_scene(991, i, "single", None) for i in range(6)]
    shown = [hints.make("canny", Image.fromarray(render_scene(scene))) for scene in scenes]
    kept = {}
    for scale in (0.0, 1.0):
        near = []
        for scene, hint in zip(scenes, shown, strict=True):
            (drawn,) = pipe.generate(
                scene.caption, seed=1, controls=[darkroom.Control("embedded:edges", hint, scale)]
            ).images
            found = hints.make("canny", drawn).convert("L").filter(ImageFilter.MaxFilter(3))
            wanted = np.asarray(hint.convert("L")) > 0
            near.append((wanted & (np.asarray(found) > 0)).sum() / wanted.sum())
        kept[scale] = np.mean(near)
    assert kept[1.0] > 0.7 > 0.5 > kept[0.0]
