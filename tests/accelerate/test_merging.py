"""Token merging: groups of tokens, there and back, and what it does to a U-Net."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from darkroom.accelerate.merging import Groups, _split, grouped, merging
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=(1, 1),
    attention_levels=(True, True),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(2, 2),
    cross_attention_dim=24,
    norm_num_groups=8,
)
SIZES = [(8, 8), (6, 10), (7, 5), (2, 2)]


def tokens(size: tuple[int, int], rows: int = 2, width: int = 6) -> Tensor:
    return torch.randn(rows, size[0] * size[1], width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75])
def test_groups_hold_every_token_once_and_their_means(size: tuple[int, int], ratio: float) -> None:
    x = tokens(size)
    groups = grouped(x, size, ratio)
    n, length, _ = x.shape
    kept = (size[0] // 2) * (size[1] // 2)
    gone = min(int(length * ratio), length - kept)
    merged = groups.merge(x)
    assert merged.shape == (n, length - gone, x.shape[2])
    assert torch.equal(groups.counts.sum((1, 2)), torch.full((n,), float(length)))
    assert bool((groups.counts >= 1).all())
    for row in range(n):  # written out: the mean over the members of each group
        places = groups.places[row] - row * merged.shape[1]
        for group in range(merged.shape[1]):
            torch.testing.assert_close(merged[row, group], x[row, places == group].mean(0))
    back = groups.unmerge(merged)
    assert back.shape == x.shape
    torch.testing.assert_close(groups.merge(back), merged)  # a projection
    torch.testing.assert_close(back.mean(1), x.mean(1))  # that keeps the mean


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_equal_tokens_come_back_exactly(size: tuple[int, int]) -> None:
    """Where the picture is flat in every 2 x 2 square, three quarters of the tokens are gone and nothing is lost."""
    height, width = size
    rows = torch.arange(height)[:, None] // 2 * 100 + torch.arange(width) // 2
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))[rows.flatten()][None]
    whole = (height // 2) * (width // 2)
    groups = grouped(x, size, 3 * whole / (height * width) + 1e-9)
    assert groups.counts.shape[1] == height * width - 3 * whole
    torch.testing.assert_close(groups.unmerge(groups.merge(x)), x)


def test_the_most_alike_go_first() -> None:
    x = tokens((4, 4), rows=1)
    one, few, many = (grouped(x, (4, 4), ratio) for ratio in (1 / 16, 0.2, 0.5))
    y = torch.nn.functional.normalize(x, dim=-1)[0]

    def pairs(groups: Groups) -> set[tuple[int, int]]:
        places = groups.places[0].tolist()
        return {(i, j) for i in range(16) for j in range(i) if places[i] == places[j]}

    assert len(pairs(one)) == 1
    assert pairs(one) < pairs(few) < pairs(many)
    kept, others = _split(4, 4)
    assert sorted(kept.tolist() + others.tolist()) == list(range(16))
    assert {(int(i) // 8, int(i) % 4 // 2) for i in kept} == {(0, 0), (0, 1), (1, 0), (1, 1)}  # one in each square
    ((i, j),) = pairs(one)
    assert float(y[i] @ y[j]) == pytest.approx(float((y[kept] @ y[others].T).max()))


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval().requires_grad_(False)


def inputs(size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, *size, generator=g), torch.tensor([500.0, 20.0]), torch.randn(2, 5, 24, generator=g)


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_a_unet_attends_to_fewer_tokens_at_its_finest_level_and_nothing_remains(size: tuple[int, int]) -> None:
    unet, x = network(), inputs(size)
    plain = unet(*x)
    seen: list[tuple[str, int]] = []
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.append((name, i[0].shape[1])))
        for name, module in unet.named_modules()
        if name.endswith("attn1.q")
    ]
    with merging(unet, 0.5, size):
        merged = unet(*x)
    for handle in handles:
        handle.remove()
    length = size[0] * size[1]
    for name, count in seen:
        finest = name.startswith(("down.0", "up.1"))
        expected = length - int(length * 0.5) if finest else ((size[0] + 1) // 2) * ((size[1] + 1) // 2)
        assert count == expected, name
    assert len(seen) == 7
    assert 1e-4 < (merged - plain).norm() / plain.norm() < 0.3
    assert torch.equal(unet(*x), plain)
    with merging(unet, 0.0, size):
        assert torch.equal(unet(*x), plain)


def test_a_single_row_of_tokens_stays_as_it_is() -> None:
    unet, x = network(), inputs((1, 9))
    with merging(unet, 0.5, (1, 9)):
        merged = unet(*x)
    assert torch.equal(merged, unet(*x))


def test_rows_do_not_meet() -> None:
    unet, (x, t, text) = network(), inputs()
    with merging(unet, 0.5, (8, 8)):
        both = unet(x, t, text)
        for row in range(2):
            alone = unet(x[row : row + 1], t[row : row + 1], text[row : row + 1])
            torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_other_threads_notice_nothing_and_a_failed_call_leaves_nothing() -> None:
    unet, x = network(), inputs()
    plain, there = unet(*x), []
    with merging(unet, 0.5, (8, 8)):
        thread = threading.Thread(target=lambda: there.append(unet(*x)))
        thread.start()
        thread.join()
        with pytest.raises(ValueError):
            unet(x[0][:, :3], x[1], x[2])
    assert torch.equal(there[0], plain)
    assert torch.equal(unet(*x), plain)
