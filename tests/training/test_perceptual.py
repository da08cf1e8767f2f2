"""The perceptual distance: zero, grows with every distortion, and counts blur worse than brightness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darkroom.errors import CheckpointError
from darkroom.models.config import LpipsConfig
from darkroom.models.lpips import Lpips
from darkroom.toy.scenes import draw_scene, render_scene
from darkroom.training.latents import stacked
from darkroom.training.perceptual import OWN, PerceptualDistance, open_distance


@pytest.fixture(scope="module")
def distance() -> torch.nn.Module:
    return open_distance(OWN)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return stacked([render_scene(draw_scene(3, i)) for i in range(2)])[:, :, 16:80, 16:80]


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    line = torch.exp(-torch.arange(-8, 9).float().square() / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 17, 17)
    return F.conv2d(F.pad(pictures, (8, 8, 8, 8), mode="reflect"), kernel, groups=3)


@torch.no_grad()
def test_it_grows_with_every_distortion(distance: torch.nn.Module, pictures: Tensor) -> None:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    for distorted in (
        [blurred(pictures, s) for s in (0.5, 1.0, 2.0, 4.0)],
        [pictures + s * noise for s in (0.02, 0.05, 0.1, 0.3)],
        [pictures * s for s in (0.95, 0.8, 0.6, 0.3)],
    ):
        found = [distance(pictures, d) for d in distorted]
        assert all(
            (a < b).all() for a, b in zip([torch.zeros(2), *found], [*found, torch.full((2,), 99.0)], strict=True)
        )
    assert distance(pictures, pictures).abs().max() == 0


@torch.no_grad()
def test_a_blurred_picture_is_further_away_than_a_brighter_one(distance: torch.nn.Module, pictures: Tensor) -> None:
    """At the same squared error: what the squared error can't tell."""
    soft = blurred(pictures, 2.0)
    error = (soft - pictures).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    assert (distance(pictures, soft) > 1.3 * distance(pictures, pictures + error)).all()


def test_gradients_lead_to_the_picture_and_nowhere_else(distance: torch.nn.Module, pictures: Tensor) -> None:
    wanted, given = pictures[:1].clone().requires_grad_(), blurred(pictures[:1], 1.5).requires_grad_()
    before = distance(wanted, given).sum()
    before.backward()
    assert wanted.grad is None
    assert given.grad is not None
    assert all(p.grad is None for p in distance.parameters())
    with torch.no_grad():
        after = distance(wanted, given - 0.05 * given.grad / given.grad.abs().max()).sum()
    assert after < before


def test_the_formula_by_hand() -> None:
    a, b = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([5.0, 0.0]).view(1, 2, 1, 1)

    class Features(torch.nn.Module):
        def forward(self, pictures: Tensor) -> list[Tensor]:
            return [pictures, pictures.repeat(1, 1, 2, 2)]

    # (0.6, 0.8) and (1, 0): 0.16 + 0.64 a pixel, averaged over pixels, for each of two layers.
    torch.testing.assert_close(PerceptualDistance(Features())(a, b), torch.tensor([1.6]))


def test_lpips_files_are_read_as_they_are_published(tmp_path: Path, pictures: Tensor) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = Lpips(LpipsConfig("alex"))
    for head in net.heads:
        head.weight.data.abs_()
    found = {name: value.contiguous() for name, value in net.state_dict().items()}
    names = {"layers.": ("features.", ""), "heads.": ("lin", ".model.1")}
    whole: dict[str, Tensor] = {}
    for name, value in found.items():
        start = next(s for s in names if name.startswith(s))
        number, _, kind = name.removeprefix(start).partition(".")
        whole[f"{names[start][0]}{number}{names[start][1]}.{kind}"] = value
    heads = {name: value for name, value in whole.items() if name.startswith("lin")}
    save_file(heads, tmp_path / "alex.safetensors")
    save_file({n: v for n, v in whole.items() if n not in heads}, tmp_path / "alexnet.safetensors")
    distance = open_distance(f"{tmp_path / 'alex.safetensors'}, {tmp_path / 'alexnet.safetensors'}")
    given = blurred(pictures, 1.0).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        answer = distance(pictures, given)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.detach(), net(pictures, given).detach(), rtol=1e-4, atol=1e-6)
    answer.sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_what_is_no_file_of_weights_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"vgg\.pth"):
        open_distance("vgg.pth")
