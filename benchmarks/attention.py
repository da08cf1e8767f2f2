"""One attention, ours by powers of two beside torch's fused kernel, and how far each is from the exact answer.

    python benchmarks/attention.py [--dtype float32 bfloat16] [--rounds 9] [--smoke]

The shapes are those of Stable Diffusion 1.5's guided step at 512 px, and of its autoencoder. What decides which of the
two answers is in `darkroom.kernels.attention`; here both do, whatever it says.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from common import alternate, machine, report
from torch import Tensor

from darkroom.bench.networks import DTYPES
from darkroom.kernels.attention import by_powers
from darkroom.kernels.heap import keep_freed_memory

# rows, heads, queries, keys, width of a head
SHAPES = (
    (2, 8, 4096, 4096, 40),
    (2, 8, 1024, 1024, 80),
    (2, 8, 256, 256, 160),
    (2, 8, 4096, 77, 40),
    (1, 1, 4096, 4096, 512),
)
SMOKE = ((1, 2, 256, 256, 40),)


def main() -> None:
    parser = argparse.ArgumentParser(description="One attention, ours beside torch's.")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="a small one, two rounds")
    given = parser.parse_args()
    keep_freed_memory()  # as a packed network does
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in given.dtype:
        for rows, heads, length, keys, width in SMOKE if given.smoke else SHAPES:
            random = torch.Generator().manual_seed(1)
            sizes = (length, keys, keys)
            q, k, v = (torch.randn(rows, heads, n, width, generator=random).to(DTYPES[name]) for n in sizes)
            exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())

            def powers(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                answer = by_powers(q, k, v)
                assert answer is not None
                return answer

            def torchs(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v)

            contestants = {"torch": torchs, "darkroom": powers}
            with torch.no_grad():
                far = {n: float((run().double() - exact).norm() / exact.norm()) for n, run in contestants.items()}
                seconds = alternate(contestants, 2 if given.smoke else given.rounds)
            print(f"{name}, [{rows}, {length}, {heads} x {width}] against {keys}")
            for line, error in zip(report(seconds, "ms").splitlines(), far.values(), strict=True):
                print(f"{line}   {error:.1e}")


if __name__ == "__main__":
    main()
