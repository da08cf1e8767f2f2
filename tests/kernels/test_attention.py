"""Attention by its definition, in every way it is computed, and in the precisions where a network would hurt."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from darkroom.kernels import attention
from darkroom.kernels.attention import attend, by_powers
from darkroom.kernels.packed import available

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(not available(dtype), reason="no packed products of it here"))
    for dtype in (torch.float32, torch.bfloat16)
]


def by_definition(q, k, v, heads, causal=False):
    """Attention one head and one query at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    d = q.shape[2] // heads
    rows = []
    for n in range(len(q)):
        columns = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            answers = []
            for i in range(q.shape[1]):
                seen = i + 1 if causal else k.shape[1]
                weights = (k[n, :seen, part] @ q[n, i, part] / d**0.5).softmax(0)
                answers.append(weights @ v[n, :seen, part])
            columns.append(torch.stack(answers))
        rows.append(torch.cat(columns, dim=1))
    return torch.stack(rows)


def random_inputs(length: int, tokens: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, width, generator=generator) for n in (length, tokens, tokens)]


@pytest.mark.parametrize(("tokens", "causal"), [(5, False), (9, False), (9, True)])
def test_attention_is_what_it_is_defined_to_be(tokens, causal):
    q, k, v = random_inputs(9, tokens, 12)
    expected = by_definition(q, k, v, 3, causal)
    assert torch.allclose(attend(q, k, v, 3, causal=causal).double(), expected, atol=1e-6)


@pytest.mark.parametrize(("tokens", "causal"), [(5, False), (9, False), (9, True)])
def test_attention_trains_in_bfloat16(tokens, causal, difference):
    """The way that training takes on a CPU has the answer and the gradients of float64."""
    exact = [x.double().requires_grad_() for x in random_inputs(9, tokens, 12)]
    expected = by_definition(*exact, 3, causal)
    half = [x.to(torch.bfloat16).requires_grad_() for x in random_inputs(9, tokens, 12)]
    answer = attend(*half, 3, causal=causal)
    assert answer.dtype == torch.bfloat16
    assert difference(answer.double(), expected) < 2e-2
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected.backward(pull)
    answer.backward(pull.to(torch.bfloat16))
    for ours, theirs in zip(half, exact, strict=True):
        assert difference(ours.grad.double(), theirs.grad) < 3e-2


def test_upcast_attention_survives_scores_that_float16_cannot_hold():
    q, k, v = random_inputs(4, 4, 64)
    q, k = q.sign() * 60, k.sign() * 60  # scores up to 230,400; float16 ends at 65,504
    expected = by_definition(q, k, v, 1)
    answer = attend(q.half(), k.half(), v.half(), 1, upcast=True)
    assert answer.dtype == torch.float16
    assert torch.allclose(answer.double(), expected, atol=1e-2)


def heads_of(*shapes: tuple[int, ...], dtype: torch.dtype, spread: float = 1.0) -> list[torch.Tensor]:
    """Queries, keys and values [N, heads, L or T, d]; scores have about the deviation `spread`."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [(q * spread).to(dtype), k.to(dtype), v.to(dtype)]


def apart(answer: torch.Tensor | None, inputs: list[torch.Tensor]) -> tuple[float, float]:
    """How far an answer and torch's own are from the exact one for these inputs."""
    assert answer is not None
    exact = F.scaled_dot_product_attention(*(x.double() for x in inputs))
    theirs = F.scaled_dot_product_attention(*inputs)
    far = [float((y.double() - exact).norm() / exact.norm()) for y in (answer, theirs)]
    return far[0], far[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize(
    ("n", "heads", "length", "keys", "d"),
    [(2, 8, 64, 64, 64), (2, 2, 700, 77, 80), (1, 2, 2100, 1500, 40), (3, 1, 100, 1, 5), (1, 3, 1, 8, 512)],
)
@torch.no_grad()
def test_powers_are_a_softmax(
    dtype: torch.dtype, spread: float, n: int, heads: int, length: int, keys: int, d: int
) -> None:
    inputs = heads_of((n, heads, length, d), (n, heads, keys, d), (n, heads, keys, d), dtype=dtype, spread=spread)
    given = [x.clone() for x in inputs]
    ours, theirs = apart(by_powers(*inputs), inputs)
    assert ours < max(2 * theirs, 4e-6 if dtype == torch.float32 else 1e-2)
    assert all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_key_far_above_the_ones_that_were_looked_at_is_left_to_torch(dtype: torch.dtype) -> None:
    q, k, v = heads_of((1, 2, 600, 16), (1, 2, 1000, 16), (1, 2, 1000, 16), dtype=dtype)
    few = range(0, 1000, 1000 // attention.SAMPLES)
    assert 999 not in few
    k[0, 1, 999] = 60 * q[0, 1, 5]  # its score with this query is hundreds above every other
    assert by_powers(q, k, v) is None
    merged = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    answer = attend(*merged, 2).view(1, 600, 2, 16).transpose(1, 2)
    ours, theirs = apart(answer, [q, k, v])
    assert ours == pytest.approx(theirs)
    assert torch.allclose(answer[0, 1, 5], v[0, 1, 999])
    k[0, 1, 999] = 3 * q[0, 1, 5]  # above them, but not by so much
    ours, theirs = apart(by_powers(q, k, v), [q, k, v])
    assert ours < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_scores_far_from_zero_cost_nothing(dtype: torch.dtype) -> None:
    """All scores of a query may be moved by any number: its attention is the same."""
    q, k, v = heads_of((1, 1, 300, 32), (1, 1, 300, 32), (1, 1, 300, 32), dtype=torch.float64)
    q[..., -1], k[..., -1] = 64.0, 0.0
    moved = k.clone()
    for shift in (-160.0, 160.0):  # of scores: shift 64 / sqrt(32) = 1810 either way
        moved[..., -1] = shift
        inputs = [q.to(dtype), moved.to(dtype), v.to(dtype)]
        ours = by_powers(*inputs)
        assert ours is not None
        exact = F.scaled_dot_product_attention(q.to(dtype).double(), k.to(dtype).double(), inputs[2].double())
        assert (ours.double() - exact).norm() / exact.norm() < (1e-3 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.no_grad()
def test_numbers_that_are_not_finite_are_torchs(dtype: torch.dtype, bad: float) -> None:
    q, k, v = heads_of((1, 1, 90, 8), (1, 1, 900, 8), (1, 1, 900, 8), dtype=dtype)
    k[0, 0, 64, 0] = bad
    assert by_powers(q, k, v) is None


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_any_number_of_threads_and_rows_gives_the_same_bits(dtype: torch.dtype) -> None:
    q, k, v = heads_of((3, 2, 800, 40), (3, 2, 1500, 40), (3, 2, 1500, 40), dtype=dtype)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            answers.append(by_powers(q, k, v))
    finally:
        torch.set_num_threads(before)
    assert answers[0] is not None
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    if dtype == torch.float32:
        assert torch.equal(by_powers(q[1:2], k[1:2], v[1:2]), answers[0][1:2])


def test_who_attends_by_powers() -> None:
    """Nobody with gradients, over next to nothing, or with few queries for many keys."""

    def asked(length: int, keys: int, dtype: torch.dtype = torch.float32) -> bool:
        return attention._powers_are_faster(torch.zeros(1, 1, length, 8, dtype=dtype), torch.zeros(1, 1, keys, 8))

    with torch.no_grad():
        assert asked(1024, 1024) == available(torch.float32)
        assert asked(256, 256, torch.bfloat16) == available(torch.bfloat16)
        assert not asked(1024, 1024, torch.float64)
        assert not asked(256, 256)
        assert not asked(100, 2**14)
        assert not asked(2**15, 2**17)
        assert not asked(1024, 0)
        q = torch.zeros(1, 1, 1024, 8, device="meta")
        assert not attention._powers_are_faster(q, q)
        with FakeTensorMode():
            q = torch.zeros(1, 1024, 8)
            assert attend(q, q, q, 1).shape == (1, 1024, 8)
    assert not asked(1024, 1024)
