"""What the stages minimise, and that a few steps minimise it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darkroom.data.scenes import draw_scene, render_scene
from darkroom.training.autoencoder import AutoencoderRecipe, AutoencoderStage, network
from darkroom.training.finish import scene_tokenizer
from darkroom.training.latents import encode_scenes, normalise, pictures_of
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


@pytest.fixture(scope="module")
def crops() -> AutoencoderStage:
    return AutoencoderStage(AUTOENCODER, network(AUTOENCODER))


def test_crops_first_and_whole_pictures_at_the_end(crops: AutoencoderStage) -> None:
    first, last = crops.batch(0, Share()), crops.batch(8, Share())
    assert (first.shape, last.shape) == ((8, 3, 64, 64), (2, 3, 128, 128))
    for batch in (first, last):
        assert batch.dtype == torch.float32
        assert -1 <= batch.min() < batch.max() <= 1
    assert (first.flatten(2).std(dim=2).mean(dim=1) > 0.01).all()  # every crop meets an object
    assert torch.equal(first, crops.batch(0, Share()))
    assert not torch.equal(first, crops.batch(1, Share()))


def test_shares_of_a_batch_make_up_the_whole(crops: AutoencoderStage) -> None:
    for step in (3, 9):
        whole, halves = crops.batch(step, Share()), [crops.batch(step, Share(rank, 2)) for rank in (0, 1)]
        assert torch.equal(whole, torch.stack(halves, dim=1).flatten(0, 1))


def test_the_autoencoder_s_loss_by_hand(crops: AutoencoderStage) -> None:
    pictures = crops.batch(2, Share())[:4]
    torch.manual_seed(5)
    loss, figures = crops.loss(pictures, 2, Share())
    torch.manual_seed(5)
    mean, logvar = crops.autoencoder.encode(pictures).chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    answer = crops.autoencoder.decode(mean + posterior.stddev * torch.randn(mean.shape))
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    kl = torch.distributions.kl_divergence(posterior, prior).sum(dim=(1, 2, 3)).mean()
    expected = F.mse_loss(answer, pictures) + 0.1 * (answer - pictures).abs().mean() + 1e-6 * kl
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(figures["kl"], kl.detach())
    psnr = 10 * torch.log10(4 / F.mse_loss(answer.clamp(-1, 1), pictures))
    torch.testing.assert_close(figures["psnr"], psnr.detach())


class OneBatch(AutoencoderStage):
    """Sees the same crops at every step: a random batch is easier or harder than another by half."""

    def batch(self, step: int, share: Share) -> torch.Tensor:
        return super().batch(0, share)


def test_a_few_steps_improve_an_autoencoder(tmp_path: Path) -> None:
    recipe = dataclasses.replace(AUTOENCODER, steps=15, whole_from=1.0, batch_size=4)
    train(OneBatch(recipe, network(recipe)), tmp_path)
    curve = losses(tmp_path)
    assert curve[-1] < 0.65 * curve[0]


def test_collages_may_hold_other_emoji() -> None:
    recipe = dataclasses.replace(AUTOENCODER, collages=1.0)
    ours, theirs = (
        AutoencoderStage(recipe, network(recipe), others).batch(0, Share())
        for others in ([], [np.ones((96, 96, 4), np.float32)] * 500)
    )
    assert (theirs == 1).float().mean() > 2 * (ours == 1).float().mean()  # white squares everywhere


def test_normalised_latents_decode_as_before() -> None:
    torch.manual_seed(0)
    net = network(dataclasses.replace(AUTOENCODER, groups=2))
    with torch.no_grad():
        net.quant.weight.mul_(7)  # type: ignore[union-attr]
        net.quant.bias.add_(3)  # type: ignore[union-attr, operator]
    pictures = pictures_of(draw_scene(1, i) for i in range(6))
    with torch.no_grad():
        before, moments = net(pictures), net.encode(pictures)
        normalise(net, pictures, rows=4)
        after, new = net(pictures), net.encode(pictures)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    mean, logvar = new.chunk(2, dim=1)
    assert mean.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(mean.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    # The posterior's deviation shrinks with its mean's.
    ratio = moments.chunk(2, dim=1)[0].std(dim=(0, 2, 3)).log()
    expected = moments.chunk(2, dim=1)[1] - 2 * ratio[:, None, None]
    torch.testing.assert_close(logvar, expected, rtol=1e-3, atol=1e-3)
    assert (net.config.scaling_factor, net.config.shift_factor) == (1.0, 0.0)


def test_normalising_needs_the_convolutions_it_changes() -> None:
    net = network(AUTOENCODER)
    net.quant = None
    with pytest.raises(ValueError, match="quant"):
        normalise(net, torch.zeros(1, 3, 64, 64))


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


def test_the_decoder_goes_on_alone_once_the_latents_are_final() -> None:
    recipe = AutoencoderRecipe(steps=10, batch_size=4, lr=1e-3, widths=(8, 8, 8, 8), crop=64, decoder_from=0.5)
    autoencoder = network(recipe)
    stage = AutoencoderStage(recipe, autoencoder)
    for step, encoder_learns in ((4, True), (5, False)):
        autoencoder.zero_grad(set_to_none=True)
        stage.loss(stage.batch(step, Share()), step, Share())[0].backward()
        for name, p in autoencoder.named_parameters():
            if name.startswith(("encoder.", "quant.")):
                assert (p.grad is not None) == encoder_learns, name
            else:
                assert p.grad is not None, name
