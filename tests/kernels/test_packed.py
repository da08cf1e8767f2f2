"""Packed layers answer as ordinary ones, and are ordinary ones as soon as somebody looks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from darkroom.kernels import packed
from darkroom.kernels.doubling import Doubling
from darkroom.kernels.packed import PackedConv2d, PackedLinear, PackedPointwise, available, pack, ready, weight_of
from darkroom.models.layers import Upsample

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="this build of torch has no oneDNN")
TYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not available(torch.bfloat16), reason="slow here")),
]
NEAR = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


class Net(nn.Module):
    """Every geometry that is packed, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 32, 3, padding=1)  # too narrow
        self.conv = nn.Conv2d(32, 80, 3, padding=1)
        self.halving = nn.Conv2d(80, 32, 3, stride=2, padding=1)
        self.point = nn.Conv2d(32, 64, 1, bias=False)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.same = nn.Conv2d(64, 64, 3, padding="same")
        self.dilated = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.linear = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.halving(F.silu(self.conv(self.first(x))))
        x = self.dilated(self.same(self.grouped(self.point(x))))
        y: torch.Tensor = self.linear(x.flatten(2).transpose(1, 2))
        return y


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype).eval().requires_grad_(False)


def kinds(network: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in network.named_children()}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (17, 16)])
def test_same_answers(dtype: torch.dtype, size: tuple[int, int]) -> None:
    network, x = net(dtype), torch.randn(2, 4, *size).to(dtype)
    with torch.no_grad():
        plain = copy.deepcopy(network).double()(x.double())
        y = network(ready(network, x))
    assert kinds(network)["conv"] is kinds(network)["halving"] is kinds(network)["dilated"] is PackedConv2d
    assert kinds(network)["point"] is PackedPointwise
    assert kinds(network)["linear"] is PackedLinear
    assert kinds(network)["first"] is kinds(network)["grouped"] is kinds(network)["same"] is nn.Conv2d
    assert apart(y, plain) < NEAR[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_whoever_asks_finds_the_weights(dtype: torch.dtype) -> None:
    network = net(dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        pack(network)
        assert network.linear.bias is not None
        assert type(network.linear) is PackedLinear
        assert torch.equal(network.conv.weight, before["conv.weight"])
        assert network.conv.weight is network.conv.weight is network.get_parameter("conv.weight")
        assert dict(network.conv._parameters).keys() == {"weight", "bias"}
        assert {**network.conv._parameters}["weight"] is network.conv.weight
        assert type(network.conv) is PackedConv2d
        pack(network)
        after = network.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        pack(network)
        assert [p.shape for p in network.parameters()] == [before[name].shape for name in before]
        for twin in (lambda n: copy.deepcopy(n), lambda n: pickle.loads(pickle.dumps(n))):
            pack(network)
            other = twin(network)
            assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
            assert type(other.conv) is nn.Conv2d
            assert type(network.conv) is PackedConv2d
        pack(network)
        assert network.to(torch.float64).conv.weight.dtype == torch.float64


def test_a_weight_that_somebody_keeps_stays_the_weight() -> None:
    network, x = net(), torch.randn(1, 4, 8, 8)
    kept = network.conv.weight
    with torch.no_grad():
        network(ready(network, x))
        kept.mul_(2)  # as merging an adapter does
        y = network(ready(network, x))
        assert type(network.conv) is PackedConv2d
        assert network.conv.weight is kept
        assert apart(y, network(x)) < 1e-6


def test_weights_are_held_once() -> None:
    network = net()
    with torch.no_grad():
        pack(network)
    kept = ref(network.conv.weight)
    assert kept() is not None  # until the next call
    with torch.no_grad():
        pack(network)
    assert kept() is None


def test_gradients_go_through_ordinary_layers() -> None:
    network, x = net(), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        network(ready(network, x))
    x.requires_grad_()
    network(ready(network, x)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    network.requires_grad_(True)  # frozen no more
    network(ready(network, x)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert network.conv.weight.grad is not None
    with torch.no_grad():
        network(ready(network, x))
    assert type(network.conv) is nn.Conv2d


def test_inference_mode_leaves_ordinary_weights() -> None:
    network, x = net(), torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        network(ready(network, x))
        assert not network.conv.weight.is_inference()
        network(ready(network, x))
    with torch.no_grad():
        network.conv.weight.mul_(2)
        network(ready(network, x))
    assert type(network.conv) is PackedConv2d


def test_blocks_that_fit_one_size_only_are_not_made() -> None:
    layer = nn.Sequential(nn.Conv2d(32, 96, 3, padding=1)).eval().requires_grad_(False)
    with torch.no_grad():
        assert not pack(layer)


def test_networks_that_learn_stay_as_they_are() -> None:
    network = net().requires_grad_(True)
    with torch.no_grad():
        assert not pack(network)
    assert type(network.conv) is nn.Conv2d


def test_a_weight_can_be_looked_at_and_answers_do_not_depend_on_who_looked() -> None:
    network, x = net(), torch.randn(1, 4, 8, 8)
    weights = {name: network.get_submodule(name).weight.clone() for name in ("conv", "point", "linear")}
    with torch.no_grad():
        first = network(ready(network, x))
        for name, weight in weights.items():
            layer = network.get_submodule(name)
            assert torch.equal(weight_of(layer), weight)
            assert isinstance(layer, packed.Packed)
        for _ in range(20):
            network.state_dict()
            assert torch.equal(network(ready(network, x)), first)


@pytest.mark.parametrize(
    "write",
    [
        lambda layer, new: layer.weight.copy_(new),
        lambda layer, new: setattr(layer, "weight", nn.Parameter(new, requires_grad=False)),
        lambda layer, new: setattr(layer.weight, "data", new),
        lambda layer, new: layer._parameters.update(weight=nn.Parameter(new, requires_grad=False)),
        lambda layer, new: layer.load_state_dict({"weight": new, "bias": layer.bias}),
        lambda layer, new: layer.load_state_dict({"weight": new, "bias": layer.bias}, assign=True),
        lambda layer, new: layer.state_dict()["weight"].copy_(new),
    ],
)
def test_whoever_writes_is_heard(write: Callable[[Any, torch.Tensor], object]) -> None:
    """At once by the layer itself, and by the next call, which packs anew."""
    network, x = net(), torch.randn(1, 4, 8, 8)
    new = torch.randn_like(network.conv.weight)
    with torch.no_grad():
        network(ready(network, x))
        write(network.conv, new)
        seen = torch.randn(1, 32, 5, 5)
        expected = F.conv2d(seen, new, network.conv.bias, padding=1)
        assert apart(network.conv(seen), expected) < 1e-6
        network(ready(network, x))
        assert type(network.conv) is PackedConv2d
        assert apart(network.conv(seen), expected) < 1e-6
        assert torch.equal(network.conv.weight, new)


# --- threads


@contextmanager
def hurried() -> Iterator[None]:
    """Threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(works: list[Callable[[], object]]) -> list[BaseException]:
    """Do all at once, each in a thread; what they raised."""
    raised: list[BaseException] = []
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        try:
            with torch.no_grad():
                work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    with hurried():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return raised


def test_first_calls_and_looks_of_many_threads() -> None:
    x = torch.randn(1, 4, 8, 8)
    for _ in range(8):
        network, answers = net(), list[torch.Tensor]()
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with torch.no_grad():
            twin = net()
            expected = twin(ready(twin, x))

        def draw(network: Net = network, answers: list[torch.Tensor] = answers) -> None:
            for _ in range(5):
                answers.append(network(ready(network, x)))

        def look(network: Net = network, weights: dict[str, torch.Tensor] = weights) -> None:
            for _ in range(10):
                assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
                assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())

        assert together([*[draw] * 8, *[look] * 3]) == []
        assert all(torch.equal(answer, expected) for answer in answers)


def test_a_layer_answers_between_any_two_steps_of_packing() -> None:
    """What a thread has begun when another one packs or unpacks: a plain layer's call, a packed one's, and a look."""
    network, x = net(), torch.randn(1, 32, 5, 5)
    with torch.no_grad():
        expected = network.conv(x)
        looking = iter(network.conv._parameters.items())
        assert next(looking)[0] == "weight"
        pack(network)
        assert next(looking)[0] == "bias"
        assert apart(nn.Conv2d.forward(network.conv, x), expected) < 1e-6
        layer: Any = network.conv
        form = packed.form_for(layer, x)
        assert form is not None
        begun = layer.forward
        packed.unpack(layer)
        assert type(layer) is nn.Conv2d
        assert apart(begun(x), expected) < 1e-6
        assert apart(packed._convolved(layer, x, (1, 1), form), expected) < 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_of_a_process_whose_threads_computed_is_told(threads: int) -> None:
    code = (
        f"import os, torch\ntorch.set_num_threads({threads})\n"
        "from darkroom.errors import RequestError\nfrom darkroom.kernels.packed import ready\n"
        "layer, x = torch.nn.Linear(64, 64).eval().requires_grad_(False), torch.randn(3, 64)\n"
        "with torch.no_grad():\n"
        "    layer(ready(layer, x))\n"
        "    if os.fork() == 0:\n"
        "        try:\n            ready(layer, x)\n            os._exit(1)\n"
        "        except RequestError as error:\n            os._exit(2 if 'spawn' in str(error) else 3)\n"
        "    code = os.waitstatus_to_exitcode(os.wait()[1])\n"
        "    layer(ready(layer, x))\n"  # here nothing has changed
        "print(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == (f"{threads}\n", "")


def test_hooks_see_the_layers() -> None:
    network, x, seen = net(), torch.randn(1, 4, 8, 8), []
    with torch.no_grad():
        network(ready(network, x))
        network.linear.register_forward_hook(lambda layer, inputs, output: seen.append(type(layer)) or output + 1)
        plain = copy.deepcopy(network)(x)
        assert apart(network(ready(network, x)), plain) < 1e-6
    assert PackedLinear in seen


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (9, 7)])
def test_doubling(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    up = Upsample(32).to(dtype).eval().requires_grad_(False)
    assert isinstance(up.conv, Doubling)
    x = torch.randn(2, 32, *size).to(dtype)
    large = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    expected = F.conv2d(large, up.conv.weight.double(), up.conv.bias.double(), padding=1)
    with torch.no_grad():
        assert up.conv.doubled(x) is not None
        assert apart(up(x), expected) < NEAR[dtype]
        assert apart(up(x, (2 * size[0], 2 * size[1])), expected) < NEAR[dtype]
        assert up(x, (2 * size[0] + 1, 2 * size[1])).shape[2:] == (2 * size[0] + 1, 2 * size[1])
        up.conv.weight.mul_(3)
        assert apart(up(x) - up.conv.bias[:, None, None], 3 * (expected - up.conv.bias.double()[:, None, None])) < 3e-2
        up.conv.register_forward_hook(lambda layer, inputs, output: output * 0)  # as an attached adapter
        assert up(x).abs().max() == 0


def test_doubling_in_other_numbers_takes_their_weights() -> None:
    """`to` changes what a parameter holds, and neither the parameter nor its version."""
    torch.manual_seed(1)
    up = Upsample(32).eval().requires_grad_(False)
    x = torch.randn(2, 32, 5, 8)
    with torch.no_grad():
        up(x)
        fresh = copy.deepcopy(up).to(torch.bfloat16)
        assert torch.equal(up.to(torch.bfloat16)(x.bfloat16()), fresh(x.bfloat16()))


def test_networks_without_values_are_left_alone_and_decide_nothing_for_others() -> None:
    """A memory estimate must neither pack tensors without values nor answer, for the whole process, what packs."""
    before = available(torch.float32)
    available.cache_clear()
    with FakeTensorMode(), torch.no_grad():
        assert available(torch.float32) == before
        network = nn.Linear(64, 64).requires_grad_(False).eval()
        x = torch.zeros(3, 64)
        assert network(ready(network, x)).shape == (3, 64)
    assert type(network) is nn.Linear
    assert available(torch.float32) == before
