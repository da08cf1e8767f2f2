"""Attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), on each device in the way that is fastest there.

Shapes: N rows, heads, L queries, T keys and values, d width of a head, E = heads d.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact import FEW, exact
from .exact import attention as by_sums
from .packed import available, blocks_of, multiply

SCORES = 2**21  # in a piece: what is found again in a processor's cache from one product to the next
SAMPLES, STRIDE = 16, 64  # so many keys at least, or every 64th, tell about how large the scores of a query are
ALIGNED = 2  # widths that products of bfloat16 like
FAR = 2.0**100  # a sum of powers that is still far from float32's end, and so from bfloat16's
MANY = 2**19  # scores of a head from which on float32 is faster by powers, too
LONG = 2**16  # keys up to which it is done by powers: each needs a second copy of keys and values
SHARE = 8  # or so few queries that those copies cost more than they save: fewer than one for so many keys


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, upcast: bool = False, causal: bool = False) -> Tensor:
    """Multi-head attention: q [N, L, E], k and v [N, T, E] -> [N, L, E].

    `upcast` guards float16 against overflowing scores; `causal` (L == T) lets a position see only itself and those
    before it.
    """
    n, length, width = q.shape
    q, k, v = (y.view(n, -1, heads, width // heads).transpose(1, 2) for y in (q, k, v))  # [N, heads, L or T, d]
    dtype = v.dtype
    if upcast and dtype == torch.float16 and not v.is_cuda:  # CUDA's kernels keep the scores in float32 anyway
        q, k, v = q.float(), k.float(), v.float()
    y: Tensor | None = None
    if _plain_is_faster(q, k):
        y = _plain(q, k, v, causal)
    elif not causal and exact() and length <= FEW:  # in this order: compiled code should not depend on the length
        y = by_sums(q, k, v)
    elif not causal and _powers_are_faster(q, k):
        y = _each_by_powers(q, k, v) if exact() else by_powers(q, k, v)
    if y is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.to(dtype).transpose(1, 2).reshape(n, length, width)


def _plain_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether to write the products out: torch's fused CPU kernel goes backward 2 to 8 times slower in bfloat16.

    Only while training, and only up to scores of 64 MB a layer, which have to be kept for the way back.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not (torch.is_grad_enabled() and q.requires_grad):
        return False
    return q.shape[:3].numel() * k.shape[2] <= 2**25


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k' / sqrt(d)) v over [N, heads, L or T, d] -> [N, heads, L, d]."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.matmul(scores.softmax(dim=-1), v)


def _powers_are_faster(q: Tensor, k: Tensor) -> bool:
    """Whether `by_powers` is: torch's fused CPU kernel is up to three times slower. Without gradients only."""
    length, keys = q.shape[2], k.shape[2]
    if torch.is_grad_enabled() or q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if type(q) is not Tensor:  # a tensor without values, whose sums can't be looked at
        return False
    if not 0 < keys <= min(SHARE * length, LONG) or not q.numel() or not available(q.dtype):
        return False
    return length * keys >= (64 * 64 if q.dtype == torch.bfloat16 else MANY)


def _each_by_powers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same of each row by itself: whether it has to be done the other way must not depend on another one."""
    answers = []
    for row in range(len(q)):
        some = q[row : row + 1], k[row : row + 1], v[row : row + 1]
        y = by_powers(*some)
        answers.append(F.scaled_dot_product_attention(*some) if y is None else y)
    return torch.cat(answers)


def by_powers(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """softmax(q k' / sqrt(d)) v over [N, heads, L or T, d] -> [N, heads, L, d], by two products and powers of two.

    A softmax may be shifted: with s = q k' log2(e) / sqrt(d) it is 2^(s - m) over its sum, whatever m is, as long as
    nothing overflows or vanishes. So m needn't be a query's greatest score; the greatest of a few keys' will do. It is
    subtracted inside the first product, by one more column of queries and keys, and the sum comes out of the second, by
    a column of ones. Between them the scores are read and written once. They are rounded after the shift, where they
    are small, and powers are rounded once: nearer to the exact answer than a softmax of rounded scores.

    None where a score is so far above the few ones' that powers might overflow, and where a number is not finite.
    """
    n, heads, length, d = q.shape
    keys, wide = k.shape[2], _aligned(d + 1)
    # 2^s with s = q k' log2(e) / sqrt(d) is e^(q k' / sqrt(d)): powers of two are what hardware does fast.
    q = _widened(q * (math.log2(math.e) * d**-0.5), length, wide)
    k, v = (_widened(y, _aligned(keys), wide) for y in (k, v))  # a key that isn't there has a value and a one of 0
    k[:, :keys, d] = v[:, :keys, d] = 1
    # Column d holds 1 for each key and minus the shift for each query, so that the product subtracts it; and 1 for each
    # value, so that the second product sums the powers.
    few = k[:, : keys : min(max(keys // SAMPLES, 1), STRIDE)]
    q[:, :, d] = -torch.bmm(q, few.transpose(1, 2)).amax(dim=-1)
    y = torch.empty_like(q)
    (_in_bfloat16 if q.dtype == torch.bfloat16 else _in_float32)(q, k, v, y)
    total = y[:, :, d:]
    # Also false for NaN, which compares as false: the caller then takes torch's own way.
    if not bool(total[:, :, 0].amax() < FAR):
        return None
    return (y[:, :, :d] / total[:, :, :1]).view(n, heads, length, d)


def _in_bfloat16(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
    """2^(q k') v of every head into y [N heads, L, wide]: some heads, or some queries of one, at a time."""
    (count, length, _), keys = q.shape, k.shape[1]
    rows = max(SCORES // keys, 1)
    # So many rows of scores that a piece stays in the cache between the two products.
    together, queries = (rows // length, length) if rows >= length else (1, rows)
    for head in range(0, count, together):
        some = slice(head, head + together)
        for first in range(0, length, queries):
            piece = slice(first, first + queries)
            scores = torch.bmm(q[some, piece], k[some].transpose(1, 2))
            torch.bmm(torch.exp2(scores, out=scores), v[some], out=y[some, piece])


def _in_float32(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
    """The same by oneDNN's products of one head: the BLAS of `bmm` reaches half their speed on some processors."""
    queries = max(SCORES // k.shape[1], 1)
    for head in range(len(q)):
        values = blocks_of(v[head].T)
        for piece, into in zip(q[head].split(queries), y[head].split(queries), strict=True):  # type: ignore[no-untyped-call]
            scores = multiply(piece, k[head])
            into.copy_(multiply(torch.exp2(scores, out=scores), values))


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _widened(y: Tensor, rows: int, wide: int) -> Tensor:
    """[N, heads, L or T, d] -> [N heads, rows, wide], zeros behind it."""
    n, heads, count, d = y.shape
    wider = y.new_zeros(n, heads, rows, wide)
    wider[:, :, :count, :d] = y
    return wider.view(n * heads, rows, wide)
