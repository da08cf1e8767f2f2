"""What is measured is what it says: the work, the weights, the turns."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from darkroom.bench import table
from darkroom.bench.networks import AUTOENCODERS, UNETS, decode_run, guided_step, with_random_weights
from darkroom.bench.table import alternate, report
from darkroom.embedded import MODEL
from darkroom.errors import Error
from darkroom.formats.checkpoint import open_checkpoint
from darkroom.models.presets import SD15_UNET
from darkroom.models.unet import UNet

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("part", "size", "gflop"),
    [("U-Net step", 256, 360.2), ("decode", 512, 2514.5), ("text encoder", 512, 13.3)],
)
def test_the_work_is_counted_without_weights(part: str, size: int, gflop: float) -> None:
    assert table.work(part, "sd15", size) == pytest.approx(gflop, rel=0.005)


def test_the_embedded_shape_is_the_embedded_models() -> None:
    config = open_checkpoint(MODEL).unet_config
    for field in ("block_out_channels", "layers_per_block", "attention_levels", "heads", "cross_attention_dim"):
        assert getattr(UNETS["embedded"], field) == getattr(config, field)
    small = open_checkpoint(MODEL).autoencoder_config
    for field in ("block_out_channels", "layers_per_block", "norm_num_groups", "latent_channels"):
        assert getattr(AUTOENCODERS["embedded"], field) == getattr(small, field)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_answer_alike_in_every_dtype(dtype: torch.dtype) -> None:
    step, unet = guided_step(UNETS["tiny"], 64, "cpu", dtype)
    assert {weight.dtype for weight in unet.parameters()} == {dtype}
    assert float(unet.conv_in.weight.std()) > 0
    exact, _ = guided_step(UNETS["tiny"], 64, "cpu", torch.float32, unet.float())
    assert float((step() - exact()).norm() / exact().norm()) < 0.1
    decode, _ = decode_run(AUTOENCODERS["tiny"], 64, "cpu", dtype)
    assert decode().shape == (1, 3, 64, 64)
    assert bool(decode().isfinite().all())


def test_random_weights_are_those_of_a_seed() -> None:
    first, second, other = (
        with_random_weights(lambda: UNet(UNETS["tiny"]), "cpu", torch.float32, seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.conv_in.weight, second.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)
    assert bool(all(weight.isfinite().all() for weight in first.parameters()))


def test_contestants_take_turns() -> None:
    order: list[str] = []
    told: list[tuple[int, int]] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = alternate(runs, rounds=2, on_turn=lambda *turn: told.append(turn))
    assert "".join(order) == "abcbcacab"
    assert told == [(n, 9) for n in range(1, 10)]
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 2)
    assert report({"a": [1.0, 3.0, 2.0], "b": [4.0]}).splitlines()[1].endswith("x 2.00")


def test_a_row_knows_its_share() -> None:
    row = table.Row("x", (4.0, 1.0, 2.0), "float32", gflop=100.0, ceiling=200.0)
    assert (row.median, row.share) == (2.0, 0.25)
    assert "2.00 s  (1.00 s to 4.00 s)" in table.line(row)
    assert "25% of the ceiling" in table.line(row)
    assert table.line(table.Row("y", (0.0123,))) == f"{'y':50} {'':9} 12.3 ms  (12.3 ms to 12.3 ms)"


def test_slow_bfloat16_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"float32": 300.0, "bfloat16": 40.0, "float16": 2.0}
    monkeypatch.setattr(table, "ceiling", lambda dtype, device: speeds[dtype])
    assert table.ceilings([], "cpu") == {"float32": 300.0}
    assert table.ceilings(["bfloat16"], "cpu") == {"bfloat16": 40.0}
    speeds["bfloat16"] = 700.0
    assert list(table.ceilings([], "cpu")) == ["float32", "bfloat16"]


def test_memory_is_that_of_the_weights() -> None:
    assert 2 * 859.5e6 * 4 < table.memory_needed("sd15", 256, ["float32"]) < 3 * 859.5e6 * 4


def test_a_failed_cold_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=2, stderr="darkroom: no disk\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(Error, match="no disk"):
        table.cold_start(1, "cpu", lambda *_: None)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def test_the_profile_counts_every_product_once(scripts: Any) -> None:
    profile = scripts("profile_step")
    done, shapes = profile["work"](*guided_step(SD15_UNET, 512, "meta", torch.float32))
    kinds = profile["by_kind"](done)
    assert sum(kinds.values()) == pytest.approx(1606.6, rel=0.005)
    assert kinds["3x3 convolution"] + kinds["1x1 convolution"] == pytest.approx(888, rel=0.005)
    assert kinds["linear"] == pytest.approx(467, rel=0.005)
    assert kinds["attention"] == pytest.approx(252, rel=0.005)
    run, network = guided_step(UNETS["tiny"], 64, "cpu", torch.float32)
    seconds = profile["by_kind"](profile["times"](run, network, 1))
    assert all(seconds[kind] > 0 for kind in profile["KINDS"])
    assert {name for kind, name in done if kind == "attention"} >= {"mid.attention.blocks.0.attn1"}
    assert shapes["conv_in"] == "[2, 4, 64, 64] -> [2, 320, 64, 64]"


def test_the_largest_activation_is_before_the_last_level(scripts: Any) -> None:
    decode = scripts("decode")
    config = AUTOENCODERS["sd15"]
    network = with_random_weights(lambda: decode["Autoencoder"](config), "meta", torch.float32)
    assert decode["largest_activation"](network, 512, torch.bfloat16) == 2 * 256 * 512 * 512
