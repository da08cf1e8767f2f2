"""The loss: known weights, known optima on Gaussian data, known laws of times and noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom.diffusion.condition import Batch
from darkroom.diffusion.denoiser import Denoiser
from darkroom.diffusion.scalings import scaling_for
from darkroom.diffusion.schedule import PREDICTION_TYPES, Schedule
from darkroom.training.objective import DenoisingRecipe, bands, denoising_loss, noise_of, times_of, weight_of
from darkroom.training.parallel import Rank

RECIPE = DenoisingRecipe(steps=1, batch_size=1, lr=1.0)
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MEAN, DEVIATION = 0.5, 0.7  # of the data below


def schedule_of(prediction: str) -> Schedule:
    return Schedule.flow() if prediction == "flow" else Schedule.from_config({**BETAS, "prediction_type": prediction})


@pytest.mark.parametrize(
    ("weight", "prediction", "expected"),
    [  # at SNR 25, 4 and 1/4, by the papers' formulas, gamma 5
        ("constant", "epsilon", None),
        ("min-snr", "epsilon", (5 / 25, 4 / 4, 1.0)),
        ("min-snr", "v_prediction", (5 / 26, 4 / 5, 0.25 / 1.25)),
        ("min-snr", "sample", (5.0, 4.0, 0.25)),
        ("min-snr", "flow", (5 / 36, 4 / 9, 0.25 * 4 / 9)),  # the error of x0 is s^2 that of the velocity's
        ("snr-plus-one", "v_prediction", (5 / 26, 1.0, 1.0)),
        ("snr-plus-one", "sample", (5.0, 5.0, 1.25)),
        ("debiased", "epsilon", (1 / 5, 1 / 2, 2.0)),
        ("debiased", "v_prediction", (5 / 26, 2 / 5, 0.5 / 1.25)),
    ],
)
def test_weights_are_the_papers(weight: str, prediction: str, expected: tuple[float, ...] | None) -> None:
    sigma = torch.tensor([25.0, 4.0, 0.25]) ** -0.5
    found = weight_of(replace(RECIPE, weight=weight), scaling_for(prediction), sigma)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


class Ideal(nn.Module):
    """The perfect network on data whose every number is normal(MEAN, DEVIATION), told what the noise's variance is."""

    def __init__(self, denoiser_of: Any, schedule: Schedule, variance: float = 1.0) -> None:
        super().__init__()
        self.scaling, self.schedule, self.variance = denoiser_of, schedule, variance

    def forward(self, x: Tensor, t: Tensor, text: Tensor, **_: Any) -> Tensor:
        sigma = self.schedule.t_to_sigma(t).float().view(-1, 1, 1, 1)
        x = x / self.scaling.c_in(sigma)
        noise = sigma**2 * self.variance
        denoised = MEAN + DEVIATION**2 / (DEVIATION**2 + noise) * (x - MEAN)
        return (denoised - self.scaling.c_skip(sigma) * x) / self.scaling.c_out(sigma)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_the_optimum_on_gaussian_data_is_the_known_denoiser(prediction: str) -> None:
    """Its error is what can't be known of x0, in units of the network's output; any other answer's is larger."""
    schedule, scaling = schedule_of(prediction), scaling_for(prediction)
    network = Ideal(scaling, schedule)
    denoiser, rows = Denoiser(network, schedule), 512
    x0 = MEAN + DEVIATION * torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    text = Batch(torch.zeros(rows, 1, 1))

    def error(seed: int = 2) -> float:
        torch.manual_seed(seed)
        return float(denoising_loss(denoiser, x0, text, Rank(), RECIPE)[1]["error"])

    torch.manual_seed(2)
    noise_of(RECIPE, x0, Rank())
    sigma = schedule.t_to_sigma(times_of(RECIPE, schedule, rows)).double()
    unknown = 1 / (1 / DEVIATION**2 + 1 / sigma**2)
    expected = float((unknown / scaling.c_out(sigma) ** 2).mean())
    least = error()
    assert least == pytest.approx(expected, rel=0.02)
    for change in (0.9, 1.1):
        network.variance = change
        assert error() > least


def test_input_perturbation_is_shown_and_not_asked_for() -> None:
    """eps given x = x0 + sigma (eps + gamma xi) is known up to 1 - sigma^2 / (deviation^2 + sigma^2 (1 + gamma^2))."""
    schedule, scaling = schedule_of("epsilon"), scaling_for("epsilon")

    class Best(nn.Module):
        def forward(self, x: Tensor, t: Tensor, text: Tensor, **_: Any) -> Tensor:
            sigma = schedule.t_to_sigma(t).float().view(-1, 1, 1, 1)
            x = x / scaling.c_in(sigma) - MEAN
            return sigma * x / (DEVIATION**2 + sigma**2 * (1 + 0.3**2))

    rows = 512
    x0 = MEAN + DEVIATION * torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    recipe = replace(RECIPE, perturbation=0.3)
    torch.manual_seed(2)
    found = denoising_loss(Denoiser(Best(), schedule), x0, Batch(torch.zeros(rows, 1, 1)), Rank(), recipe)[0]
    torch.manual_seed(2)
    noise_of(recipe, x0, Rank())
    sigma = schedule.t_to_sigma(times_of(recipe, schedule, rows)).double()
    expected = 1 - sigma**2 / (DEVIATION**2 + sigma**2 * (1 + 0.3**2))
    assert float(found) == pytest.approx(float(expected.mean()), rel=0.02)


def test_rows_and_weights_multiply() -> None:
    schedule = schedule_of("v_prediction")

    class Silent(nn.Module):
        def forward(self, x: Tensor, t: Tensor, text: Tensor, **_: Any) -> Tensor:
            return torch.zeros_like(x)

    x0, recipe = torch.ones(4, 1, 2, 2), replace(RECIPE, weight="min-snr")

    def loss(rows: Tensor | None) -> float:
        torch.manual_seed(3)
        text, network = Batch(torch.zeros(4, 1, 1)), Silent()
        return float(denoising_loss(Denoiser(network, schedule), x0, text, Rank(), recipe, rows)[0])

    parts = [loss(4 * torch.eye(4)[i]) for i in range(4)]
    assert loss(None) == pytest.approx(sum(parts) / 4, rel=1e-5)
    assert loss(torch.tensor([2.0, 0.0, 2.0, 0.0])) == pytest.approx((parts[0] + parts[2]) / 2, rel=1e-5)


def test_uniform_times_are_spread_over_the_part_that_is_asked_for() -> None:
    schedule = schedule_of("epsilon")
    torch.manual_seed(0)
    t = times_of(RECIPE, schedule, 100)
    assert torch.equal((t / 10).floor(), torch.arange(100.0))
    assert torch.equal(t, t.floor())
    some = times_of(replace(RECIPE, times_from=0.3, times_to=0.5), schedule, 400)
    assert (float(some.min()), float(some.max())) == (300, 499)
    least = times_of(replace(RECIPE, times_from=0.0, times_to=0.0005), schedule, 4)
    assert torch.equal(least, torch.zeros(4))


def test_logit_normal_times_have_their_law() -> None:
    """ln(s / (1 - s)) is normal with the recipe's mean and deviation."""
    schedule = Schedule.flow()
    torch.manual_seed(0)
    s = times_of(replace(RECIPE, times="logit-normal", times_mean=-0.5, times_std=0.8), schedule, 2000).double() / 1000
    logit = (s / (1 - s)).log()
    assert float(logit.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(logit.std()) == pytest.approx(0.8, abs=0.01)
    assert float((logit < -0.5).double().mean()) == pytest.approx(0.5, abs=0.002)


def test_a_flow_model_s_times_are_moved_by_its_shift() -> None:
    torch.manual_seed(0)
    plain = times_of(RECIPE, Schedule.flow(), 50).double() / 1000
    torch.manual_seed(0)
    moved = times_of(RECIPE, Schedule.flow(shift=3.0), 50).double() / 1000
    torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain), rtol=1e-3, atol=1e-3)


def test_offset_noise_has_a_number_for_each_channel() -> None:
    torch.manual_seed(0)
    noise = noise_of(replace(RECIPE, noise_offset=0.4), torch.zeros(2000, 2, 8, 8), Rank())
    means = noise.mean(dim=(2, 3))
    assert float(means.var()) == pytest.approx(0.4**2 + 1 / 64, rel=0.05)
    assert float((noise - means[:, :, None, None]).var()) == pytest.approx(1 - 1 / 64, rel=0.02)


def test_immiscible_noise_is_the_same_noise_dealt_out_nearer() -> None:
    x0 = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    plain = noise_of(RECIPE, x0, Rank())
    torch.manual_seed(1)
    dealt = noise_of(replace(RECIPE, immiscible=True), x0, Rank())
    assert sorted(plain.flatten(1).sum(dim=1).tolist()) == sorted(dealt.flatten(1).sum(dim=1).tolist())
    distances = [(x0 - noise).square().sum() for noise in (plain, dealt)]
    assert distances[1] < distances[0]
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x0.flatten(1), plain.flatten(1)).square().numpy()
    best = cost[linear_sum_assignment(cost)].sum()
    assert float(distances[1]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"noise_offset": 0.1}, {"times": "logit-normal"}, {"perturbation": 0.1}])
def test_every_process_sees_its_part_of_one_draw(options: dict[str, Any]) -> None:
    schedule, recipe = schedule_of("epsilon"), replace(RECIPE, **options)
    denoiser = Denoiser(Ideal(scaling_for("epsilon"), schedule), schedule)
    x0 = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    values = []
    for rank in (Rank(), Rank(0, 2), Rank(1, 2)):
        torch.manual_seed(4)
        part = rank.of(x0)
        values.append(float(denoising_loss(denoiser, part, Batch(torch.zeros(len(part), 1, 1)), rank, recipe)[0]))
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-5)


def test_bands_part_the_errors_by_noise() -> None:
    found = bands(torch.tensor([0.1, 0.5, 0.7, 14.0]), torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert {name: pair.tolist() for name, pair in found.items()} == {
        "error_0_0.3": [1, 1], "error_0.3_1": [6, 2], "error_1_3": [0, 0], "error_3": [8, 1],
    }  # fmt: skip
    assert math.isclose(sum(float(pair[1]) for pair in found.values()), 4)
