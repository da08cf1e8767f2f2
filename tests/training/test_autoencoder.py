"""What an autoencoder's training minimises, what it learns from, and what comes out of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from darkroom.errors import TrainingError
from darkroom.toy.scenes import draw_scene, render_scene
from darkroom.training.autoencoder import AutoencoderRecipe, AutoencoderStage, SceneCrops, finished, network, open_crops
from darkroom.training.kinds import Source
from darkroom.training.latents import stacked
from darkroom.training.loop import train
from darkroom.training.parallel import Rank
from darkroom.training.run import run as run_autoencoder
from darkroom.training.scaling import fold, measure, tell

AUTOENCODER = AutoencoderRecipe(
    steps=10, batch_size=8, lr=0.01, warmup=2, widths=(8, 8, 16, 16), log_every=1, precision="float32", whole_from=0.8
)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def crops() -> AutoencoderStage:
    return AutoencoderStage(AUTOENCODER, network(AUTOENCODER), SceneCrops(AUTOENCODER))


def test_crops_first_and_whole_pictures_at_the_end(crops: AutoencoderStage) -> None:
    first, last = crops.batch(0, Rank()), crops.batch(8, Rank())
    assert (first.shape, last.shape) == ((8, 3, 64, 64), (2, 3, 128, 128))
    for batch in (first, last):
        assert batch.dtype == torch.float32
        assert -1 <= batch.min() < batch.max() <= 1
    assert (first.flatten(2).std(dim=2).mean(dim=1) > 0.01).all()  # every crop meets an object
    assert torch.equal(first, crops.batch(0, Rank()))
    assert not torch.equal(first, crops.batch(1, Rank()))


def test_shares_of_a_batch_make_up_the_whole(crops: AutoencoderStage) -> None:
    for step in (3, 9):
        whole, halves = crops.batch(step, Rank()), [crops.batch(step, Rank(rank, 2)) for rank in (0, 1)]
        assert torch.equal(whole, torch.stack(halves, dim=1).flatten(0, 1))


def test_the_autoencoder_s_loss_by_hand(crops: AutoencoderStage) -> None:
    pictures = crops.batch(2, Rank())[:4]
    torch.manual_seed(5)
    loss, figures = crops.loss(pictures, 2, Rank())
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

    def batch(self, step: int, rank: Rank) -> torch.Tensor:
        return super().batch(0, rank)


def test_a_few_steps_improve_an_autoencoder(tmp_path: Path) -> None:
    recipe = dataclasses.replace(AUTOENCODER, steps=15, whole_from=1.0, batch_size=4)
    train(OneBatch(recipe, network(recipe), SceneCrops(recipe)), tmp_path)
    curve = losses(tmp_path)
    assert curve[-1] < 0.65 * curve[0]


def test_collages_may_hold_other_emoji() -> None:
    recipe = dataclasses.replace(AUTOENCODER, collages=1.0)
    crops = SceneCrops(recipe)
    ours = crops.batch(0, Rank())
    crops.others = [np.ones((96, 96, 4), np.float32)] * 500
    theirs = crops.batch(0, Rank())
    assert (theirs == 1).float().mean() > 2 * (ours == 1).float().mean()  # white squares everywhere


def test_the_decoder_goes_on_alone_once_the_latents_are_final() -> None:
    recipe = AutoencoderRecipe(steps=10, batch_size=4, lr=1e-3, widths=(8, 8, 8, 8), crop=64, decoder_from=0.5)
    autoencoder = network(recipe)
    stage = AutoencoderStage(recipe, autoencoder, SceneCrops(recipe))
    for step, encoder_learns in ((4, True), (5, False)):
        autoencoder.zero_grad(set_to_none=True)
        stage.loss(stage.batch(step, Rank()), step, Rank())[0].backward()
        for name, p in autoencoder.named_parameters():
            if name.startswith(("encoder.", "quant.")):
                assert (p.grad is not None) == encoder_learns, name
            else:
                assert p.grad is not None, name


def test_folded_latents_decode_as_before() -> None:
    torch.manual_seed(0)
    net = network(dataclasses.replace(AUTOENCODER, groups=2))
    with torch.no_grad():
        net.quant.weight.mul_(7)  # type: ignore[union-attr]
        net.quant.bias.add_(3)  # type: ignore[union-attr, operator]
    pictures = [render_scene(draw_scene(1, i)) for i in range(4)]
    batch = stacked(pictures)
    with torch.no_grad():
        before, moments = net(batch), net.encode(batch)
        fold(net, measure(net, pictures))
        after, new = net(batch), net.encode(batch)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    mean, logvar = new.chunk(2, dim=1)
    assert mean.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(mean.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-2, atol=1e-2)
    # The posterior's deviation shrinks with its mean's.
    ratio = moments.chunk(2, dim=1)[0].std(dim=(0, 2, 3)).log()
    expected = moments.chunk(2, dim=1)[1] - 2 * ratio[:, None, None]
    torch.testing.assert_close(logvar, expected, rtol=1e-2, atol=1e-2)
    assert (net.config.scaling_factor, net.config.shift_factor) == (1.0, 0.0)


def test_a_factor_is_that_of_all_values_together() -> None:
    net = network(AUTOENCODER)
    pictures = [render_scene(draw_scene(1, i)) for i in range(3)]
    with torch.no_grad():
        latents = net.encode(stacked(pictures)).chunk(2, dim=1)[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tell(net, measure(net, pictures))
    assert net.config.scaling_factor == pytest.approx(1 / float(latents.std(correction=0)), rel=1e-3)
    assert float(net.scale(latents).std(correction=0)) == pytest.approx(1, rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_latents_that_say_nothing_can_not_be_scaled() -> None:
    net = network(AUTOENCODER)
    net.quant = None
    picture = render_scene(draw_scene(1, 1))
    with pytest.raises(TrainingError, match="scaling=factor"):
        fold(net, measure(net, [picture]))
    with pytest.raises(TrainingError, match="there are none"):
        measure(net, [])
    net.encoder.conv_out.weight.data.zero_()
    with pytest.raises(TrainingError, match="latent channel 0 is the same everywhere"):
        measure(net, [picture])


TINY = AutoencoderRecipe(
    steps=2, batch_size=4, lr=1e-3, widths=(4, 8, 8), groups=4, size=64, crop=32, whole_from=0.5, warmup=1,
    precision="float32", log_every=1, latent_channels=3, optimizer="adamw",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many kinds: wide, high, gray, with alpha, of 16 bits of CMYK, and too small ones."""
    place = tmp_path_factory.mktemp("pictures")
    whole = Image.fromarray(render_scene(draw_scene(0, 0)))
    whole.resize((160, 90)).save(place / "wide.png")
    whole.resize((70, 130)).convert("L").save(place / "gray.png")
    whole.resize((100, 100)).convert("RGBA").save(place / "alpha.png")
    whole.resize((90, 90)).convert("CMYK").save(place / "cmyk.jpg")
    whole.resize((40, 48)).save(place / "just.png")
    whole.resize((20, 300)).save(place / "thin.png")
    return place


def test_crops_of_one_s_own_pictures(folder: Path) -> None:
    crops = open_crops(TINY, str(folder))
    assert [(path.name, why) for path, why in crops.dataset.left_out] == [
        ("thin.png", "20x300 pixels hold no crop of 32")
    ]
    assert len(crops.dataset) == 5
    sizes = {w * h for w, h in crops.dataset.sizes}
    assert all(w % 4 == h % 4 == 0 and min(w, h) >= 32 for w, h in crops.dataset.sizes)
    assert max(sizes) <= 64 * 64
    first = crops.batch(0, Rank())
    assert first.shape == (4, 3, 32, 32)
    assert torch.equal(first, crops.batch(0, Rank()))
    halves = [crops.batch(0, Rank(rank, 2)) for rank in (0, 1)]
    assert torch.equal(first, torch.stack(halves, dim=1).flatten(0, 1))
    whole = crops.batch(1, Rank())
    assert len(whole) == 1
    assert (whole.shape[3], whole.shape[2]) in set(crops.dataset.sizes)
    assert all(min(p.shape[:2]) >= 32 for p in crops.some(10))
    with pytest.raises(TrainingError, match="no picture holds a crop of 256 pixels"):
        open_crops(dataclasses.replace(TINY, crop=256, size=256), str(folder))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    recipe = dataclasses.replace(TINY, scaling="factor", perceptual=0.1)
    assert run_autoencoder(recipe, Source(data=str(folder)), run) == run / "vae"
    return run


def test_diffusers_opens_it_and_reconstructs_the_same(trained: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(trained / "vae")
    ours = finished(trained)
    assert (ours.config.downscale, ours.config.latent_channels) == (4, 3)
    assert theirs.config.scaling_factor == ours.config.scaling_factor != 1
    picture = stacked([render_scene(draw_scene(5, 1))])
    with torch.no_grad():
        expected = theirs.encode(picture).latent_dist
        mean, logvar = ours.encode(picture).chunk(2, dim=1)
        torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logvar, expected.logvar, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(picture), theirs(picture).sample, rtol=1e-4, atol=1e-5)


def test_a_run_belongs_to_its_pictures(trained: Path, folder: Path, tmp_path: Path) -> None:
    assert "thin.png" in (trained / "left-out.txt").read_text()
    longer = dataclasses.replace(TINY, scaling="factor", perceptual=0.1, steps=4)
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    with pytest.raises(TrainingError, match="other pictures"):
        run_autoencoder(longer, Source(data=str(tmp_path)), trained)
    with pytest.raises(TrainingError, match="another autoencoder"):
        run_autoencoder(longer, Source(data=str(folder), model=str(trained)), trained)


def test_a_decoder_alone_goes_on_from_another_s_file(trained: Path, folder: Path, tmp_path: Path) -> None:
    """Its latents are the same to the last bit, so that U-Nets of the old one go on working."""
    recipe = dataclasses.replace(TINY, decoder_from=0.0, scaling="kept", lr=1e-2, whole_from=1.0)
    run_autoencoder(recipe, Source(data=str(folder), model=str(trained / "vae")), tmp_path)
    before, after = finished(trained), finished(tmp_path)
    assert after.config == before.config
    assert json.loads((tmp_path / "recipe.json").read_text())["widths"] == [4, 8, 8]
    for name, value in after.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]) == name.startswith(("encoder.", "quant.")), name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder_from": 0.0}, "the encoder would never learn"),
        ({"scaling": "kept"}, "nothing is there to keep"),
        ({"scaling": "halved"}, "'folded', 'factor' or 'kept'"),
        ({"l1": 0.0, "l2": 0.0}, "l1, l2 and perceptual are all 0"),
        ({"crop": 30}, "crop is 30; it must be a multiple of 4 for 3 widths"),
        ({"crop": 128}, "crop is 128, more than the size of 64"),
        ({"batch_size": 2}, "which makes 0 whole pictures of 64 pixels a side"),
        ({"adversarial": 0.5, "crop": 16, "batch_size": 16}, "with 3 discriminator_layers it must be 24 or more"),
        ({"adversarial": 0.5, "adversarial_from": 1.0}, "never plays"),
        ({"adversarial": 0.5, "sharding": "fsdp"}, "set sharding=none"),
        ({"perceptual": 0.5, "features": "vgg.pth", "crop": 16, "batch_size": 16}, "LPIPS compares pictures of 32"),
        ({"adversarial": -1.0}, "adversarial is -1.0; it must be 0 or more"),
        ({"l2": float("nan")}, "l2 is nan"),
        ({"widths": ()}, "between 1 and 8 widths"),
        ({}, "size is 64; the built-in scenes have 128 pixels"),
    ],
)
def test_recipes_that_can_not_be_are_refused(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run_autoencoder(dataclasses.replace(TINY, **changes), Source(), tmp_path)  # type: ignore[arg-type]


def test_a_decoder_alone_can_not_change_its_latents(trained: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, decoder_from=0.0)
    with pytest.raises(TrainingError, match="set scaling=kept"):
        run_autoencoder(recipe, Source(model=str(trained)), tmp_path)
