"""The denoiser against diffusers' own predicted x0, row by row, and what it hands to the network."""

import pytest
import torch
from torch import nn

from darkroom.diffusion.condition import Batch, Condition, collate, group_key
from darkroom.diffusion.denoiser import Denoiser
from darkroom.diffusion.scalings import Epsilon
from darkroom.diffusion.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers and numpy 2
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Network(nn.Module):
    """A small network of everything a U-Net is told; remembers its last arguments."""

    def __init__(self, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.text = nn.Linear(6, 4)

    def forward(self, x, timesteps, text, class_labels=None, **extra):
        self.seen = {"x": x, "timesteps": timesteps, "text": text, "class_labels": class_labels, **extra}
        y = self.conv(x) + self.text(text.mean(1))[:, :, None, None]
        return y * (1 + timesteps.to(x.dtype) / 1000)[:, None, None, None]


@pytest.fixture
def conditions():
    generator = torch.Generator().manual_seed(1)
    return [Condition(torch.randn(5, 6, generator=generator)) for _ in range(3)]


def latents(seed=2, rows=3):
    return torch.randn(rows, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_it_is_diffusers_predicted_original_sample(prediction, t, conditions):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = {**SD, "prediction_type": prediction, "clip_sample": False}
    theirs, schedule, network = DDIMScheduler(**config), Schedule.from_config(config), Network()
    theirs.set_timesteps(1000)
    z = latents()  # in the variance-preserving coordinate
    text = torch.stack([c.text for c in conditions])
    with torch.no_grad():
        expected = theirs.step(network(z, torch.full((3,), t), text), t, z).pred_original_sample
        x = z / theirs.alphas_cumprod[t].sqrt()
        denoised = Denoiser(network, schedule)(x, schedule.t_to_sigma(t), conditions)
    torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_at_the_top(prediction, conditions):
    """diffusers' DDIM has no signal at all at t = 999, we clamp: they differ by what is left, sigma^-1 of the noise."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = {**SD, "prediction_type": prediction, "clip_sample": False, "rescale_betas_zero_snr": True}
    theirs, schedule, network = DDIMScheduler(**config), Schedule.from_config(config), Network()
    theirs.set_timesteps(1000)
    z = latents()
    text = torch.stack([c.text for c in conditions])
    with torch.no_grad():
        expected = theirs.step(network(z, torch.full((3,), 999), text), 999, z).pred_original_sample
        x = z * (1 + schedule.sigma_max**2) ** 0.5
        denoised = Denoiser(network, schedule)(x, schedule.sigma_max, conditions)
    torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=4 / schedule.sigma_max)


def test_flow_is_the_straight_line_back(conditions):
    network, schedule = Network(), Schedule.flow()
    s, z = 0.8, latents()
    text = torch.stack([c.text for c in conditions])
    with torch.no_grad():
        expected = z - s * network(z, torch.full((3,), 800.0), text)
        denoised = Denoiser(network, schedule)(z / (1 - s), s / (1 - s), conditions)
    torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=1e-5)


def test_every_row_has_its_own_level(conditions):
    denoise = Denoiser(Network(), Schedule.from_config(SD))
    x, levels = latents() * 5, [0.0292, 1.7, 14.6]
    with torch.no_grad():
        together = denoise(x, levels, conditions)
        alone = [denoise(x[i : i + 1], levels[i], conditions[i : i + 1]) for i in range(3)]
        as_tensor = denoise(x, torch.tensor(levels), conditions)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_tensor, together, rtol=1e-5, atol=1e-4)


def test_at_no_noise_it_is_the_identity_for_epsilon(conditions):
    x = latents()
    with torch.no_grad():
        assert torch.equal(Denoiser(Network(), Schedule.from_config(SD))(x, 0.0, conditions), x)


def test_what_the_network_is_told(conditions):
    network, schedule = Network(), Schedule.from_config(SD)
    denoise = Denoiser(network, schedule)
    x = latents()
    denoise.raw(x, [schedule.t_to_sigma(t) for t in (0, 17, 999)], conditions)
    assert network.seen["timesteps"].tolist() == [0, 17, 999]
    assert network.seen["class_labels"] is None
    torch.testing.assert_close(network.seen["x"][2], x[2] / (1 + schedule.sigma_max**2) ** 0.5)
    denoise.raw(x, 1.0, conditions, t=[3.0, 4.5, 5.0], down_residuals=(x,))
    assert network.seen["timesteps"].tolist() == [3.0, 4.5, 5.0]
    assert network.seen["down_residuals"] == (x,)


def test_extra_channels_follow_the_latent_unscaled():
    network = Network(channels=9)
    masks = torch.rand(2, 5, 8, 6)
    rows = [Condition(torch.ones(5, 6), channels=m, class_label=20 + i) for i, m in enumerate(masks)]
    Denoiser(network, Schedule.from_config(SD)).raw(latents(rows=2), 10.0, rows)
    assert torch.equal(network.seen["x"][:, 4:], masks)
    assert network.seen["class_labels"].tolist() == [20, 21]


def test_half_precision_networks_get_halves_and_answer_in_float32(conditions):
    network = Network().bfloat16()
    x = latents() * 14.6
    with torch.no_grad():
        denoised = Denoiser(network, Schedule.from_config(SD))(x, 14.6, conditions)
    assert denoised.dtype == torch.float32
    assert network.seen["x"].dtype == network.seen["text"].dtype == torch.bfloat16
    assert network.seen["timesteps"].dtype == torch.float32  # 999 is not a bfloat16
    with torch.no_grad():
        full = Denoiser(Network(), Schedule.from_config(SD))(x, 14.6, conditions)
    assert (denoised - full).abs().mean() < 0.02 * full.abs().mean()


def test_training_takes_a_batch_with_gradients():
    network, schedule = Network(), Schedule.from_config({**SD, "prediction_type": "v_prediction"})
    denoise = Denoiser(network, schedule)
    text = torch.randn(3, 5, 6, requires_grad=True)
    sigma = schedule.t_to_sigma(torch.tensor([1, 500, 999]))
    x0, noise = latents(3), latents(4)
    column = sigma[:, None, None, None]
    loss = (denoise.raw(x0 + column * noise, sigma, Batch(text)) - denoise.scaling.target(x0, noise, column)).square()
    loss.mean().backward()
    assert network.seen["timesteps"].tolist() == [1, 500, 999]
    assert text.grad.abs().sum() > 0
    assert network.conv.weight.grad.abs().sum() > 0


def test_a_perfect_network_gives_the_picture_back(conditions):
    """raw == target  <=>  denoised == x0."""
    schedule = Schedule.from_config({**SD, "prediction_type": "v_prediction"})
    denoise = Denoiser(Network(), schedule)
    x0, noise, sigma = latents(3), latents(4), 2.0
    denoise.unet = Oracle(denoise.scaling.target(x0, noise, sigma))
    assert torch.equal(denoise.raw(x0 + sigma * noise, sigma, conditions), denoise.unet.answer)
    torch.testing.assert_close(denoise(x0 + sigma * noise, sigma, conditions), x0, rtol=0, atol=1e-6)


class Oracle(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.zeros(()))

    def forward(self, x, timesteps, text, class_labels=None):
        return self.answer


def test_a_real_u_net_with_a_guidance_input():
    """LCM's networks are told the guidance scale; the embedding is diffusers' get_guidance_scale_embedding."""
    from darkroom.models.config import UNetConfig
    from darkroom.models.unet import UNet

    config = UNetConfig(
        block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        attention_levels=(True, False),
        only_cross_attention=(False, False),
        transformer_layers=(1, 1),
        heads=(2, 2),
        cross_attention_dim=6,
        norm_num_groups=4,
        time_cond_proj_dim=8,
    )
    torch.manual_seed(0)
    denoise = Denoiser(UNet(config), Schedule.from_config({"_class_name": "LCMScheduler"}))
    x, text = latents(rows=1), torch.randn(5, 6)
    # sin, then cos, of 1000 (w - 1) 10000^(-i/3), i = 0..3
    angles = 7.5 * 1000 * torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4])
    embedding = torch.cat([angles.sin(), angles.cos()])[None]
    with torch.no_grad():
        told = denoise(x, 3.0, [Condition(text, guidance_scale=8.5)])
        torch.testing.assert_close(told, denoise(x, 3.0, [Condition(text)], time_cond=embedding), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(told, denoise(x, 3.0, [Condition(text, guidance_scale=1.0)]))
    with pytest.raises(ValueError, match="does not take one"):
        Denoiser(Network(), denoise.schedule).raw(x, 1.0, [Condition(text, guidance_scale=8.5)])


def test_a_network_without_weights(conditions):
    class Mean(nn.Module):
        def forward(self, x, timesteps, text, class_labels=None):
            return x.mean() + torch.zeros_like(x)

    x = latents()
    denoised = Denoiser(Mean(), Schedule.from_config({**SD, "prediction_type": "sample"}))(x, 1.0, conditions)
    torch.testing.assert_close(denoised, (x.mean() / 2**0.5).expand(x.shape))


def test_rows_must_match(conditions):
    denoise = Denoiser(Network(), Schedule.from_config(SD), scaling=Epsilon())
    with pytest.raises(ValueError, match="3 rows of x but 2 conditions"):
        denoise(latents(), 1.0, conditions[:2])
    with pytest.raises(ValueError, match="3 rows of x but 2 noise levels"):
        denoise(latents(), [1.0, 2.0], conditions)
    with pytest.raises(ValueError, match=r"noise levels of shape \(2,\)"):
        denoise(latents(), torch.ones(2), conditions)


def test_rows_of_one_key_collate():
    rows = [Condition(torch.full((5, 6), float(i)), torch.full((1, 2, 2), float(i)), i) for i in range(3)]
    assert len({group_key(r) for r in rows}) == 1
    batch = collate(rows, dtype=torch.float64)
    assert batch.text.shape == (3, 5, 6)
    assert batch.text.dtype == batch.channels.dtype == torch.float64
    assert batch.class_labels.tolist() == [0, 1, 2]
    assert batch.class_labels.dtype == torch.int64
    assert batch.channels[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        Condition(torch.zeros(10, 6)),
        Condition(torch.zeros(5, 8)),
        Condition(torch.zeros(5, 6), class_label=0),
        Condition(torch.zeros(5, 6), guidance_scale=1.0),
        Condition(torch.zeros(5, 6), channels=torch.zeros(1, 2, 2)),
    ],
)
def test_rows_of_different_keys_do_not(other):
    first = Condition(torch.zeros(5, 6))
    assert group_key(first) != group_key(other)
    with pytest.raises(ValueError, match="can't share a U-Net call"):
        collate([first, other])


def test_no_rows():
    with pytest.raises(ValueError, match="no condition"):
        collate([])
