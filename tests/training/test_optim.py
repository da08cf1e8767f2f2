"""Optimizers against torch's own, and the shape of the learning rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from darkroom.training.optim import Muon, build, orthogonalize, rate


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (64, 27), (1, 9)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    g = torch.randn(shape, generator=generator) * 1e-3
    x = orthogonalize(g)
    assert (x.shape, x.dtype) == (g.shape, g.dtype)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The same directions: U V' of the singular value decomposition, up to the singular values' spread.
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    assert ((u.T @ x @ v.T).diagonal() > 0.3).all()


def test_nothing_stays_nothing() -> None:
    assert orthogonalize(torch.zeros(4, 6)).abs().max() == 0


def descend(optimizer: torch.optim.Optimizer, network: nn.Module, steps: int = 6) -> None:
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    for _ in range(steps):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()


def test_the_plain_part_is_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    descend(Muon([], list(ours.parameters()), lr=1.0, plain_lr=0.01), ours)
    descend(torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.0), theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_step_of_muon_by_hand() -> None:
    p = nn.Parameter(torch.ones(4, 6))
    p.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    Muon([p], [], lr=0.1, plain_lr=1.0, weight_decay=0.5).step()
    # The first momentum is the gradient, and Nesterov's look ahead 1.95 times it: the same directions.
    expected = 0.95 * torch.ones(4, 6) - 0.1 * 0.2 * 6**0.5 * orthogonalize(1.95 * p.grad)
    torch.testing.assert_close(p.data, expected, rtol=1e-3, atol=1e-3)


def test_an_update_has_the_size_of_adamw_s() -> None:
    p = nn.Parameter(torch.zeros(32, 16, 3, 3))
    p.grad = torch.randn_like(p)
    Muon([p], [], lr=1.0, plain_lr=1.0).step()
    assert p.data.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_what_goes_where() -> None:
    network = nn.Sequential(nn.Embedding(7, 4), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    network[3].bias.requires_grad_(False)
    optimizer = build("muon", [network], 0.01)
    matrices, plain = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert matrices == {id(network[1].weight), id(network[3].weight)}
    assert plain == {id(p) for p in network.parameters() if p.requires_grad} - matrices
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, pytest.approx(0.004)]
    decays = [group["weight_decay"] for group in build("adamw", [network], 0.01, 0.1).param_groups]
    assert decays == [0.1, 0.0]
    with pytest.raises(ValueError, match="'sgd'"):
        build("sgd", [network], 0.01)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [rate(step, 100, warmup=10, cooldown=0.4) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:61]) == {1.0}
    assert rates[60:] == pytest.approx([1 - i / 40 for i in range(41)])
    assert rate(101, 100, 10, 0.4) == 0.0
    assert rate(0, 1, 0, 0.0) == 1.0
    # Until its cool-down begins, a longer run is the same run.
    assert rates[:61] == [rate(step, 200, 10, 0.4) for step in range(61)]
