"""The patch discriminator: what an answer sees, sizes, refusals."""

from __future__ import annotations

import pytest
import torch

from darkroom.models.discriminator import PatchDiscriminator, smallest


@pytest.mark.parametrize(("layers", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_an_answer_sees_the_patch_of_the_paper(layers: int, seen: int) -> None:
    """By the convolutions alone: the norms look at the whole picture."""
    torch.manual_seed(0)
    net = PatchDiscriminator(3, 4, layers).double()
    plain = torch.nn.Sequential(*(m for m in net.net if not isinstance(m, torch.nn.GroupNorm)))
    picture = torch.randn(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    answer = plain(picture)
    middle = answer.shape[2] // 2
    answer[0, 0, middle, middle].backward()
    assert picture.grad is not None
    rows = picture.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == seen


def test_the_published_shape_has_its_size() -> None:
    net = PatchDiscriminator()
    weights = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight") and p.ndim == 4]
    assert weights == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    assert net(torch.zeros(2, 3, 64, 80)).shape == (2, 1, 6, 8)
    assert float(net.net[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_an_answer_depends_on_its_own_picture_alone() -> None:
    net, pictures = PatchDiscriminator(3, 8, 2), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(pictures)[1:2], net(pictures[1:2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_least_size_and_refusals(layers: int) -> None:
    net, side = PatchDiscriminator(3, 8, layers), smallest(layers)
    assert net(torch.zeros(1, 3, side, side)).numel() >= 1
    with pytest.raises(ValueError, match=f"at least {side} x {side}"):
        net(torch.zeros(1, 3, side - 1, side))
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        net(torch.zeros(1, 4, side, side))
