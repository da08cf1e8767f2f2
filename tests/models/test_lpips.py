"""LPIPS against its definition, written out with torchvision's layers by their numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darkroom.models.config import LpipsConfig
from darkroom.models.layers import parameter_count
from darkroom.models.lpips import Lpips

# torchvision's `features`: number -> convolution (stride, padding) or pooling (kernel); the rest are ReLUs.
ALEX = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
ALEX_POOLS, ALEX_LOOKED_AT, ALEX_LAST = {2: 3, 5: 3}, (1, 4, 7, 9, 11), 12
VGG = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
VGG_POOLS, VGG_LOOKED_AT, VGG_LAST = dict.fromkeys((4, 9, 16, 23), 2), (3, 8, 15, 22, 29), 30
NETS = {
    "alex": (ALEX, ALEX_POOLS, ALEX_LOOKED_AT, ALEX_LAST),
    "vgg": (VGG, VGG_POOLS, VGG_LOOKED_AT, VGG_LAST),
}
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def written_out(state: dict[str, Tensor], net: str, a: Tensor, b: Tensor) -> Tensor:
    convolutions, pools, looked_at, last = NETS[net]

    def answers(x: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((x.movedim(1, -1) - shift) / scale).movedim(-1, 1)
        found = []
        for i in range(last):
            if i in convolutions:
                stride, padding = convolutions[i]
                x = F.conv2d(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"], stride, padding)
            elif i in pools:
                x = F.max_pool2d(x, pools[i], 2)
            else:
                x = x.clamp(min=0)
            if i in looked_at:
                found.append(x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(len(a))
    for k, (x, y) in enumerate(zip(answers(a), answers(b), strict=True)):
        weights = state[f"heads.{k}.weight"][0, :, 0, 0]
        total += ((x - y).pow(2) * weights[None, :, None, None]).sum(dim=1).mean(dim=(1, 2))
    return total


@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_is_the_definition(net: str) -> None:
    torch.manual_seed(0)
    network = Lpips(LpipsConfig(net))
    for head in network.heads:
        head.weight.abs_()  # as the published ones
    a, b = torch.rand(2, 3, 33, 40) * 2 - 1, torch.rand(2, 3, 33, 40) * 2 - 1
    found = network(a, b)
    assert torch.allclose(found, written_out(network.state_dict(), net, a, b), rtol=1e-4)
    assert (found > 0).all()
    assert torch.equal(network(a, a), torch.zeros(2))
    assert [head.weight.shape[1] for head in network.heads] == list(WIDTHS[net])


def test_is_of_the_published_size() -> None:
    with torch.device("meta"):
        assert parameter_count(Lpips(LpipsConfig("vgg"))) == 14_714_688 + 1472  # VGG-16's convolutions; the heads
        assert parameter_count(Lpips(LpipsConfig("alex"))) == 2_469_696 + 1152


def test_flat_pictures_have_gradients() -> None:
    """A pixel that no channel answers to has no direction: its gradient must be 0, not NaN."""
    torch.manual_seed(0)
    network = Lpips(LpipsConfig("alex"))
    with torch.no_grad():
        for layer in network.layers.values():
            layer.bias.fill_(-10)
    a = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(a, torch.ones(1, 3, 32, 32)).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_what_can_t_be_is_named() -> None:
    with pytest.raises(ValueError, match="31x40 pixels given; LPIPS needs 32 a side"):
        Lpips(LpipsConfig("alex"))(torch.zeros(1, 3, 40, 31), torch.zeros(1, 3, 40, 31))
    with pytest.raises(ValueError, match="net is 'squeeze'"):
        LpipsConfig("squeeze")
