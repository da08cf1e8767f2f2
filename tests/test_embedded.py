"""The shipped model: small enough, an ordinary diffusers folder, and good for something."""

import json

import numpy as np
import pytest
import torch

import darkroom
from darkroom.data.objects import OBJECTS
from darkroom.data.scenes import draw_scene, render_scene
from darkroom.embedded import MODEL
from darkroom.evaluate.scenes import psnr, reconstruct, scenes_of, score


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
