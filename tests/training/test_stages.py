"""What the stages minimise, and that a few steps minimise it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.data.scenes import draw_scene, render_scene
from darkroom.training.autoencoder import AutoencoderRecipe, network
from darkroom.training.finish import scene_tokenizer
from darkroom.training.latents import encode_scenes, pictures_of
from darkroom.training.loop import train
from darkroom.training.parallel import Share
from darkroom.training.unet import UNetRecipe, UNetStage, networks, token_table

AUTOENCODER = AutoencoderRecipe(
    steps=10, batch_size=8, lr=0.01, warmup=2, widths=(8, 8, 16, 16), log_every=1, precision="float32", whole_from=0.8
)
UNET = UNetRecipe(
    steps=40, batch_size=16, lr=0.01, warmup=2, log_every=1, precision="float32", widths=(16, 32),
    attention_levels=(False, True), groups=8, heads=2, text_width=32, text_layers=1, cooldown=0.2,
)  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_encoded_scenes_are_the_encoder_s_means() -> None:
    net = network(AUTOENCODER)
    net.config = dataclasses.replace(net.config, scaling_factor=0.5)
    parts = list(encode_scenes(net, seed=4, start=10, count=5, rows=2))
    assert [p.shape[0] for p in parts] == [2, 2, 1]
    assert parts[0].dtype == torch.float16
    assert render_scene(draw_scene(4, 12)).shape == (128, 128, 3)
    with torch.no_grad():
        expected = 0.5 * net.encode(pictures_of([draw_scene(4, 12)])).chunk(2, dim=1)[0]
    difference = (parts[1][0].float() - expected[0]).abs().max() / expected.abs().max()
    assert difference < 0.05  # encoded in bfloat16, kept in float16


@pytest.fixture(scope="module")
def stage() -> UNetStage:
    tokenizer = scene_tokenizer()
    latents = torch.randn(24, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    stage = UNetStage(UNET, *networks(UNET, tokenizer), tokenizer, latents)
    with torch.no_grad():
        for p in stage.unet.parameters():  # away from the zeros that training begins with
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return stage


def test_every_word_of_a_caption_is_one_token() -> None:
    tokenizer = scene_tokenizer()
    for i in range(200):
        caption = draw_scene(0, i).caption
        assert len(tokenizer.encode(caption)) == len(caption.split())
    assert token_table(tokenizer, ["a fox", "a car", "a fox"]).shape == (3, 77)


def test_captions_go_with_their_latents(stage: UNetStage) -> None:
    left_out = 0
    for step in range(30):
        latents, ids = stage.batch(step, Share())
        assert (latents.shape, ids.shape) == ((16, 4, 8, 8), (16, 77))
        for row, words in zip(latents, ids, strict=True):
            i = int((stage.latents.float() == row).flatten(1).all(dim=1).nonzero())
            caption = stage.tokenizer.padded(draw_scene(UNET.seed, i).caption)
            left_out += words.tolist() != caption
            assert words.tolist() in (caption, stage.tokenizer.padded(""))
    assert 0.05 < left_out / (30 * 16) < 0.16
    halves = [stage.batch(3, Share(rank, 2)) for rank in (0, 1)]
    for whole, a, b in zip(stage.batch(3, Share()), *halves, strict=True):
        assert torch.equal(whole, torch.stack([a, b], dim=1).flatten(0, 1))


def test_the_u_net_s_loss_is_v_prediction_weighted_by_cut_off_snr(stage: UNetStage) -> None:
    """By the papers' formulas: x_t = alpha x0 + sigma noise, v = alpha noise - sigma x0."""
    x0, ids = stage.batch(7, Share())
    torch.manual_seed(11)
    loss, figures = stage.loss((x0, ids), 7, Share())
    torch.manual_seed(11)
    noise, spread = torch.randn(16, 4, 8, 8), (torch.arange(16) + torch.rand(())) / 16
    t = (1000 * spread).long()
    products = torch.from_numpy(np.asarray(stage.schedule.alphas_cumprod))[t].float().view(-1, 1, 1, 1)
    alpha, sigma = products.sqrt(), (1 - products).sqrt()
    with torch.no_grad():
        answer = stage.unet(alpha * x0 + sigma * noise, t.float(), stage.text_encoder(ids))
    error = (answer - (alpha * noise - sigma * x0)).square().mean(dim=(1, 2, 3))
    snr = (products / (1 - products)).flatten()
    expected = ((snr + 1).clamp(max=5) / (snr + 1) * error).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(figures["error"], error.mean(), rtol=1e-3, atol=1e-5)


def test_shares_of_the_loss_average_to_the_whole(stage: UNetStage) -> None:
    values = []
    for share in (Share(), Share(0, 2), Share(1, 2)):
        torch.manual_seed(3)
        with torch.no_grad():
            values.append(float(stage.loss(stage.batch(5, share), 5, share)[0]))
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-4)


def test_a_few_steps_improve_a_u_net(tmp_path: Path) -> None:
    """Two latents to learn by heart, told apart by their captions."""
    tokenizer = scene_tokenizer()
    latents = torch.stack([torch.full((4, 8, 8), -1.0), torch.full((4, 8, 8), 1.0)]).half()
    recipe = dataclasses.replace(UNET, steps=20)
    train(UNetStage(recipe, *networks(recipe, tokenizer), tokenizer, latents), tmp_path)
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


def test_a_fresh_u_net_says_nothing() -> None:
    unet, _ = networks(UNET, scene_tokenizer())
    with torch.no_grad():
        assert unet(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 32)).abs().max() == 0


def test_the_same_recipe_begins_with_the_same_weights() -> None:
    one, other = (networks(UNET, scene_tokenizer())[1].state_dict() for _ in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    moved = networks(dataclasses.replace(UNET, seed=1), scene_tokenizer())[1].state_dict()
    assert not torch.equal(one["token_embedding.weight"], moved["token_embedding.weight"])
