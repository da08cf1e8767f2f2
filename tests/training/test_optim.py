"""Optimizers against torch's and transformers' own, and steps that change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from darkroom.training.optim import LossScale, Muon, build, orthogonalize, pack, table, unpack
from darkroom.training.recipe import OPTIMIZERS


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


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("zero", [True, False])
def test_gradients_of_zeros_leave_finite_parameters(kind: str, zero: bool) -> None:
    """As they are behind zero convolutions: nothing moves, and what comes after it is no larger than a usual step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 70, 3), nn.GroupNorm(7, 70), nn.Flatten(), nn.Linear(70 * 4, 6))
    if zero:
        for p in network.parameters():
            nn.init.zeros_(p)
    before = copy.deepcopy(network)
    optimizer = build(kind, [network], lr=0.01)
    for _ in range(3):
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, old in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, old)
    for p in network.parameters():  # now of a single one, and of single rows
        p.grad = torch.zeros_like(p)
        p.grad[0] = 1e-3
    optimizer.step()
    for p, old in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.isfinite(p).all()
        assert (p - old).abs().max() < 1
        assert not torch.equal(p, old)
        assert torch.equal(p[1:], old[1:])


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


def test_muon_is_that_of_torch() -> None:
    ours, theirs = (nn.ParameterList([torch.ones(4, 6), torch.ones(9, 5)]) for _ in range(2))
    mine = Muon(ours, [], lr=0.1, plain_lr=1.0, weight_decay=0.5)
    peer = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        mine.step()
        peer.step()
    for p, q in zip(ours, theirs, strict=True):  # orthogonalised in bfloat16, from momenta of another scale
        torch.testing.assert_close(p.data, q.data, rtol=0.01, atol=0.02)
        assert (p - 1).abs().max() > 0.3


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
    adapter = nn.ParameterDict({"up": torch.ones(4, 2), "magnitude": torch.ones(4, 1, 1, 1), "bias": torch.ones(3)})
    assert [len(group["params"]) for group in build("adamw", [adapter], 0.01, 0.1).param_groups] == [1, 2]
    with pytest.raises(ValueError, match="'sgd'"):
        build("sgd", [network], 0.01)


def small_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def test_adafactor_is_that_of_transformers() -> None:
    from transformers.optimization import Adafactor as Theirs

    ours, theirs = small_net(), small_net()
    descend(build("adafactor", [ours], 0.01, 0.1), ours, 20)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1]},
    ]
    descend(Theirs(groups, lr=0.01, scale_parameter=False, relative_step=False), theirs, 20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_adafactor_is_that_of_torch() -> None:
    ours, theirs = small_net(), small_net()
    descend(build("adafactor", [ours], 0.01, 0.1), ours, 20)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    # Its rate is relative to a parameter's size, at least eps[1]: with that at 1, small parameters have the plain one.
    descend(torch.optim.Adafactor(groups, lr=0.01, eps=(1e-30, 1.0)), theirs, 20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_numbers_of_eight_bits() -> None:
    for signed in (True, False):
        values = table(signed)
        assert len(values) == 256
        assert (values.diff() > 0).all()
        assert {0.0, 1.0} <= set(values.tolist())
    x = torch.randn(700, generator=torch.Generator().manual_seed(0)) * 1e-4
    codes, scale = pack(x, table(True))
    assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, (3, 256), (3, 1))
    back = unpack(codes, scale, table(True), x)
    assert back.shape == x.shape
    assert (back - x).abs().max() < 0.01 * x.abs().max()
    large = x.abs() > 0.1 * x.abs().max()
    assert ((back - x).abs() / x.abs())[large].max() < 0.06
    again = pack(back, table(True))
    assert torch.equal(unpack(*again, table(True), x), back)
    # What isn't zero stays so without a sign: an update is divided by it.
    second, steep = table(False), torch.tensor([1.0, 1e-12, 0.0])
    assert (unpack(*pack(steep, second), second, steep) > 0).tolist() == [True, True, False]
    assert unpack(*pack(torch.zeros(5), second), second, torch.zeros(5)).tolist() == [0.0] * 5


def wide_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 800), nn.Tanh(), nn.Linear(800, 6), nn.Linear(6, 3))


def test_eight_bits_follow_adamw_and_take_a_quarter(tmp_path: Path) -> None:
    ours, theirs = wide_net(), wide_net()
    kinds = [build(kind, [net], 1e-3, 0.01) for kind, net in (("adamw8bit", ours), ("adamw", theirs))]
    for optimizer, net in zip(kinds, (ours, theirs), strict=True):
        descend(optimizer, net, 30)
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    start = wide_net()(x)
    moved = (theirs(x) - start).norm()
    assert (ours(x) - theirs(x)).norm() < 0.05 * moved
    large, small = ours[0].weight, ours[3].weight
    size = sum(v.nbytes for v in kinds[0].state[large].values())
    assert size < 0.26 * sum(v.nbytes for v in kinds[1].state[theirs[0].weight].values())
    assert kinds[0].state[small]["first"].dtype == torch.float32
    # To disk and back it goes on with the same bits.
    torch.save([kinds[0].state_dict(), ours.state_dict()], tmp_path / "saved.pt")
    state, weights = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = wide_net()
    again.load_state_dict(weights)
    resumed = build("adamw8bit", [again], 1e-3, 0.01)
    resumed.load_state_dict(state)
    descend(kinds[0], ours, 3)
    descend(resumed, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bad_step_changes_nothing_of_any_optimizer(kind: str) -> None:
    net = wide_net()
    optimizer = build(kind, [net], 0.01, 0.1)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    descend(optimizer, net, 2)
    before = copy.deepcopy([optimizer.state_dict()["state"], net.state_dict()])
    net(torch.full((1, 6), float("nan"))).sum().backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    after = [optimizer.state_dict()["state"], net.state_dict()]
    for number, values in before[0].items():
        assert all(torch.equal(v, after[0][number][k]) for k, v in values.items()), (number, values.keys())
    assert all(torch.equal(v, after[1][k]) for k, v in before[1].items())
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    descend(optimizer, net, 1)
    assert not torch.equal(net[0].weight, before[1]["0.weight"])
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_scale_of_float16_falls_and_grows() -> None:
    scale = LossScale(torch.device("cpu"))
    scale.update(torch.ones(()))
    assert scale.factor.item() == 32768
    for _ in range(2000):
        scale.update(torch.zeros(()))
    assert scale.factor.item() == 65536
    other = LossScale(torch.device("cpu"))
    scale.update(torch.zeros(()))
    other.load(scale.state())
    assert (other.factor.item(), other.good_steps.item()) == (65536, 1)
