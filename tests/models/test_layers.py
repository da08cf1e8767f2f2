"""The shared layers."""

from __future__ import annotations

import torch

from darkroom.models.layers import Upsample


@torch.no_grad()
def test_upsample_repeats_pixels_to_an_odd_size():
    layer = Upsample(1)
    layer.conv.weight.zero_()
    layer.conv.weight[0, 0, 1, 1] = 1
    layer.conv.bias.zero_()
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert layer(x)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert layer(x, (3, 4))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
