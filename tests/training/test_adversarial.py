"""The losses of an autoencoder and its discriminator by hand, and that each moves its own side only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from darkroom.training.autoencoder import AutoencoderRecipe, AutoencoderStage, SceneCrops, network
from darkroom.training.loop import train
from darkroom.training.parallel import Rank
from darkroom.training.perceptual import adaptive_weight, discriminator_loss, generator_loss

RECIPE = AutoencoderRecipe(
    steps=10, batch_size=2, lr=1e-3, widths=(4, 8, 8), crop=32, whole_from=1.0, precision="float32", log_every=1,
    groups=4, adversarial=0.5, adversarial_from=0.5, discriminator_width=8, discriminator_layers=2, collages=0.0,
)  # fmt: skip


def test_the_hinge_losses_by_hand() -> None:
    real, made = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)
    assert float(discriminator_loss(real, made)) == pytest.approx(0.5 * (0.5 / 2 + 2 / 2))
    assert float(generator_loss(made)) == pytest.approx(1.0)
    assert discriminator_loss(real.bfloat16(), made.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("small", "expected"), [(1.0, 14 / (3 + 1e-4)), (1e-9, 1e4), (0.0, 1e4)])
def test_the_adaptive_weight_by_hand(small: float, expected: float) -> None:
    """|(6, 0, ...)| over |3 small|, with the constant of taming-transformers' code, and its limits."""
    last = torch.tensor([[1.0, 2.0]], requires_grad=True)
    reconstruction = (torch.tensor([[14.0, 0.0]]) * last).sum()
    deception = small * (torch.tensor([[0.0, 3.0]]) * last).sum()
    weight = adaptive_weight(reconstruction, deception, last)
    assert float(weight) == pytest.approx(expected)
    assert not weight.requires_grad
    (reconstruction + deception).backward()  # both are still there to go back through
    assert last.grad is not None


def stage(**changes: object) -> AutoencoderStage:
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    return AutoencoderStage(recipe, network(recipe), SceneCrops(recipe))


def test_each_side_learns_from_its_own_loss() -> None:
    """The total's gradients are those of the two losses apart, as the papers write them."""
    game = stage()
    assert game.discriminator is not None
    pictures = game.batch(5, Rank())
    torch.manual_seed(3)
    loss, figures = game.loss(pictures, 5, Rank())
    loss.backward()
    ours = {n: p.grad.clone() for m in (game.autoencoder, game.discriminator) for n, p in m.named_parameters()}
    for m in (game.autoencoder, game.discriminator):
        m.zero_grad()
    torch.manual_seed(3)
    mean, logvar = game.autoencoder.encode(pictures).chunk(2, dim=1)
    y = game.autoencoder.decode(mean + (0.5 * logvar).exp() * torch.randn(mean.shape))
    plain = (y - pictures).square().mean() + 0.1 * (y - pictures).abs().mean()
    against = -game.discriminator(y).mean()
    last = game.autoencoder.decoder.conv_out.weight
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (plain, against)]
    weight = norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(figures["weight"], weight.detach())
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    parameters = dict(game.autoencoder.named_parameters())
    wanted = torch.autograd.grad(plain + 1e-6 * kl + 0.5 * weight.detach() * against, parameters.values())
    for name, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    judged = 0.5 * (
        (1 - game.discriminator(pictures)).relu().mean() + (1 + game.discriminator(y.detach())).relu().mean()
    )
    parameters = dict(game.discriminator.named_parameters())
    for name, gradient in zip(parameters, torch.autograd.grad(judged, parameters.values()), strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_nothing_of_it_counts_before_its_start() -> None:
    game, alone = stage(), stage(adversarial=0.0)
    losses = []
    for one in (game, alone):
        torch.manual_seed(1)
        loss, _ = one.loss(one.batch(4, Rank()), 4, Rank())
        loss.backward()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])
    assert game.discriminator is not None
    assert all(p.grad is None for p in game.discriminator.parameters())
    assert alone.discriminators == {}


def test_a_resumed_game_equals_an_uninterrupted_one_in_bfloat16(tmp_path: Path) -> None:
    changes = {"steps": 4, "precision": "bfloat16", "adversarial_from": 0.25, "warmup": 0}
    train(stage(**changes), tmp_path / "straight")
    train(stage(**changes), tmp_path / "parts", until=2)
    train(stage(**changes), tmp_path / "parts")
    one, other = (torch.load(tmp_path / n / "step-000000004.pt", weights_only=True) for n in ("straight", "parts"))
    for part in ("modules", "ema"):
        for name, value in one[part]["autoencoder"].items():
            assert torch.equal(value, other[part]["autoencoder"][name]), name
    for name, value in one["opponents"]["modules"]["discriminator"].items():
        assert torch.equal(value, other["opponents"]["modules"]["discriminator"][name]), name
        assert value.isfinite().all()
    fresh = stage(**changes).discriminator
    assert fresh is not None
    assert not torch.equal(one["opponents"]["modules"]["discriminator"]["net.0.weight"], fresh.net[0].weight)
    assert one["skipped"] == 0


def test_held_out_pictures_are_judged_without_the_discriminator() -> None:
    game, plain = stage(held_out=3), stage(adversarial=0.0)
    batches = game.validation()
    assert [tuple(b.shape) for b in batches] == [(1, 3, 128, 128)] * 3
    with torch.no_grad():
        torch.manual_seed(0)
        loss, figures = game.loss(batches[0], 9, Rank())
        torch.manual_seed(0)
        alone, _ = plain.loss(batches[0], 9, Rank())
    assert torch.equal(loss, alone)
    assert "discriminator" not in figures
    sheet = game.sheet()
    assert sheet.size == (3 * 128, 256)
