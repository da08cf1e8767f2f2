"""OpenVINO runs the networks: the answers are torch's, whatever the size, the rows, the adapters and the controls."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("openvino")

import darkroom
from darkroom.adapters import Adapter, Merged, Scaled, Update, attached
from darkroom.backends import convert, runner
from darkroom.backends.networks import OpenVINOAutoencoder, OpenVINOTextEncoder, OpenVINOUNet
from darkroom.errors import RequestError
from darkroom.files import cache_folder
from darkroom.models.autoencoder import Autoencoder
from darkroom.models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

UNET = UNetConfig(
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


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DARKROOM_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pair(native: type[Any], ours: type[Any], config: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same random network twice: torch's, and OpenVINO's on the same weights."""
    torch.manual_seed(0)
    plain = native(config).to(dtype).eval().requires_grad_(False)
    with torch.device("meta"):
        other = ours(config)
    other.load_state_dict({name: tensor.clone() for name, tensor in plain.state_dict().items()}, assign=True)
    return plain, other.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unets() -> tuple[UNet, OpenVINOUNet]:
    return pair(UNet, OpenVINOUNet, UNET)


def question(rows: int = 2, height: int = 8, width: int = 8, tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(rows * height + width)
    x, text = (torch.randn(rows, *shape, generator=random) for shape in ((4, height, width), (tokens, 24)))
    return x, torch.rand(rows, generator=random) * 999, text


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a.float() - b.float()).norm() / b.float().norm())


def natively(network: nn.Module, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether it has said that torch does it."""
    return any("torch does it" in record.getMessage() for record in caplog.records)


def test_any_rows_sizes_and_lengths_of_text(unets: tuple[UNet, OpenVINOUNet], caplog: pytest.LogCaptureFixture) -> None:
    plain, ours = unets
    for shape in ((2, 8, 8, 7), (1, 8, 8, 7), (3, 5, 13, 154), (2, 24, 16, 77)):
        asked = question(*shape)
        assert apart(ours(*asked), plain(*asked)) < 2e-5, shape
    x, _, text = question()
    assert apart(ours(x, torch.tensor(3.0), text), plain(x, torch.tensor(3.0), text)) < 2e-5  # one timestep for all
    assert not natively(ours, caplog)
    with pytest.raises(ValueError, match="this network takes"):
        ours(x[:, :3], torch.tensor(3.0), text)


def test_few_graphs_are_compiled_for_many_shapes(unets: tuple[UNet, OpenVINOUNet]) -> None:
    """The first shape has its own; the others share one until they come often."""
    _, ours = unets
    fresh = OpenVINOUNet(UNET)
    fresh.load_state_dict(ours.state_dict())
    fresh.eval().requires_grad_(False)
    for side in (4, 6, 8, 10, 12):
        fresh(*question(height=side))
    assert len(fresh.runner._compiled) == 2
    for _ in range(runner.OFTEN):
        fresh(*question(height=12))
    assert len(fresh.runner._compiled) == 3


def test_what_else_a_unet_can_be_told() -> None:
    config = replace(
        UNET,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        num_class_embeds=9,
        time_cond_proj_dim=12,
    )
    told = {
        "pooled": torch.randn(3, 20),
        "sizes": torch.rand(3, 6) * 1024,
        "class_labels": torch.tensor([0, 8, 3]),
        "time_cond": torch.randn(3, 12),
    }
    plain, ours = pair(UNet, OpenVINOUNet, config)
    want = plain(*question(3), **told)
    assert apart(ours(*question(3), **told), want) < 2e-5
    for name in ("sizes", "pooled", "class_labels", "time_cond"):
        other = {**told, name: told[name].flip(0)}
        assert apart(plain(*question(3), **other), want) > 1e-4
        assert apart(ours(*question(3), **other), plain(*question(3), **other)) < 2e-5
    assert ours.runner._compiled


def test_control_residuals(unets: tuple[UNet, OpenVINOUNet], caplog: pytest.LogCaptureFixture) -> None:
    plain, ours = unets
    net = ControlNet.from_unet(plain, hint_widths=(8, 8, 8, 8)).eval()
    for parameter in net.zero_convs.parameters():
        nn.init.normal_(parameter, std=0.1)
    for asked in (question(), question(1, 12, 8)):
        x = asked[0]
        down, middle = net(*asked, torch.rand(len(x), 3, 8 * x.shape[2], 8 * x.shape[3]))
        want = plain(*asked, down_residuals=down, mid_residual=middle)
        assert apart(want, plain(*asked)) > 1e-3
        assert apart(ours(*asked, down_residuals=down, mid_residual=middle), want) < 2e-5
    assert not natively(ours, caplog)


def test_torch_does_what_the_graph_has_not(unets: tuple[UNet, OpenVINOUNet]) -> None:
    plain, ours = unets
    identity = {"mid": torch.tensor([True, False])}
    want = plain(*question(), identity=identity)
    assert apart(want, plain(*question())) > 1e-5
    assert apart(ours(*question(), identity=identity), want) < 1e-5
    with torch.enable_grad():
        x, *rest = question()
        x.requires_grad_(True)
        ours(x, *rest).sum().backward()
        assert x.grad is not None


def test_hooks_are_obeyed(unets: tuple[UNet, OpenVINOUNet]) -> None:
    plain, ours = unets
    handle = ours.conv_out.register_forward_hook(lambda layer, inputs, output: 0 * output)
    try:
        assert not ours(*question()).any()
    finally:
        handle.remove()
    assert apart(ours(*question()), plain(*question())) < 2e-5


def lora(network: nn.Module, rank: int, seed: int, which: type | tuple[type, ...] = (nn.Linear, nn.Conv2d)) -> Adapter:
    """Random factors on layers of all kinds: linear, of a time, 3x3, 1x1, halving."""
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * 0.2

    updates = {
        path: Update({"down": drawn(rank, *w.shape[1:]), "up": drawn(len(w), rank, *[1] * (w.ndim - 2))}, factor=0.5)
        for path, layer in network.named_modules()
        if isinstance(layer, which)
        for w in [layer.weight]
    }
    return Adapter({"unet": updates})


def test_loras_come_and_go_without_compiling(
    unets: tuple[UNet, OpenVINOUNet], caplog: pytest.LogCaptureFixture
) -> None:
    plain, ours = unets
    first, second = lora(plain, 3, 1), lora(plain, 2, 2, nn.Linear)
    bare = ours(*question())
    calls: list[list[list[Scaled]]] = [
        [[Scaled(first, 0.7)]],  # all rows
        [[Scaled(first, -0.3)]],
        [[Scaled(second, 1.0)]],
        [[Scaled(second, 0.5), Scaled(first, 0.2)], [Scaled(first, 0.9)]],  # each row its own
        [[], [Scaled(second, 2.0)]],
    ]
    counts = []
    for rows in calls:
        with attached(plain, "unet", rows):
            want = plain(*question())
        with attached(ours, "unet", rows):
            got = ours(*question())
        assert apart(want, bare) > 1e-3
        assert apart(got, want) < 2e-5
        counts.append(len(ours.runner._compiled))
    assert counts[0] == counts[1] == counts[2], "another strength, or fewer layers, compiles nothing"
    assert torch.equal(ours(*question()), bare), "nothing remains"
    assert not natively(ours, caplog)


def test_other_adapters_are_torchs(unets: tuple[UNet, OpenVINOUNet], caplog: pytest.LogCaptureFixture) -> None:
    plain, ours = unets
    full = Adapter({"unet": {"conv_in": Update({"diff": torch.randn(16, 4, 3, 3)})}})
    with attached(plain, "unet", [[Scaled(full)]]):
        want = plain(*question())
    with caplog.at_level(logging.WARNING), attached(ours, "unet", [[Scaled(full)]]):
        assert apart(ours(*question()), want) < 1e-5
        ours(*question())
    told = [record.getMessage() for record in caplog.records if "torch does it" in record.getMessage()]
    assert len(told) == 1
    assert "merge it" in told[0]


def test_merged_adapters_are_noticed_and_so_is_their_leaving() -> None:
    plain, ours = pair(UNet, OpenVINOUNet, UNET)
    before = ours(*question())
    scaled = [Scaled(lora(plain, 2, 3))]
    with Merged({"unet": plain}, scaled), Merged({"unet": ours}, scaled):
        want = plain(*question())
        assert apart(want, before) > 1e-3
        assert apart(ours(*question()), want) < 2e-5
    assert torch.equal(ours(*question()), before)


@pytest.mark.parametrize("quant", [True, False])
def test_autoencoder(quant: bool) -> None:
    config = AutoencoderConfig(
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    plain, ours = pair(Autoencoder, OpenVINOAutoencoder, config)
    for rows, height, width in ((1, 8, 8), (2, 5, 11)):
        latents, pictures = torch.randn(rows, 4, height, width), torch.rand(rows, 3, 4 * height, 4 * width)
        assert apart(ours.decode(latents), plain.decode(latents)) < 2e-5
        assert apart(ours.encode(pictures), plain.encode(pictures)) < 2e-5
    assert len(ours.runner._compiled) > 1
    with pytest.raises(ValueError, match="latents of shape"):
        ours.decode(torch.zeros(1, 5, 8, 8))


def test_text_encoder() -> None:
    config = TextEncoderConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=20,
        bos_token_id=58,
        eos_token_id=59,
        projection=True,
        projection_dim=16,
    )
    plain, ours = pair(TextEncoder, OpenVINOTextEncoder, config)
    torch.manual_seed(1)
    ids = torch.randint(0, 58, (2, 20))
    ids[0, 9:], ids[1, 15:] = 59, 59
    learned = torch.randn(2, 20, 24)
    for skip in (0, 1, 2, 4):
        assert apart(ours(ids, skip), plain(ids, skip)) < 2e-5
        for got, want in zip(ours.penultimate(ids, skip), plain.penultimate(ids, skip), strict=True):
            assert apart(got, want) < 2e-5
    assert apart(ours(ids[:1, :11]), plain(ids[:1, :11])) < 2e-5
    assert apart(ours(ids, 0, learned), plain(ids, 0, learned)) < 2e-5
    for got, want in zip(ours.penultimate(ids, 0, learned), plain.penultimate(ids, 0, learned), strict=True):
        assert apart(got, want) < 2e-5
    assert ours.runner._compiled
    for wrong in ((ids + 30,), (ids, 9), (torch.zeros(1, 21, dtype=torch.int64),)):
        with pytest.raises(ValueError):
            ours(*wrong)


def test_bfloat16_costs_what_it_costs_torch() -> None:
    """At timesteps that bfloat16 does not have, too."""
    exact, _ = pair(UNet, OpenVINOUNet, UNET)
    plain, ours = pair(UNet, OpenVINOUNet, UNET, torch.bfloat16)
    x, _, text = question()
    for t in (999.0, 777.3):
        want, native, got = (network(x, torch.tensor([t, t]), text) for network in (exact, plain, ours))
        assert got.dtype == torch.bfloat16
        assert apart(got.float(), want) < 1.5 * apart(native.float(), want)


# --- the cache


def test_a_conversion_is_kept_and_shared(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the architecture: other weights, another precision, another process need no other graph."""
    _, ours = pair(UNet, OpenVINOUNet, UNET)
    ours(*question())

    def again(*_: Any) -> Any:
        raise AssertionError("it is converted again")

    monkeypatch.setattr(convert, "converted", again)
    torch.manual_seed(5)
    other = OpenVINOUNet(UNET).eval().requires_grad_(False).bfloat16()
    other(*question())
    with pytest.raises(AssertionError, match="converted again"):
        OpenVINOUNet(replace(UNET, norm_num_groups=4)).eval().requires_grad_(False)(*question())


def test_a_torn_entry_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    plain, ours = pair(UNet, OpenVINOUNet, UNET)
    ours(*question())
    (graph,) = tmp_path.rglob(convert.GRAPH)
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    plain, ours = pair(UNet, OpenVINOUNet, UNET)
    assert apart(ours(*question()), plain(*question())) < 2e-5
    assert "can't be read" in caplog.text
    assert len(graph.read_bytes()) == len(whole)
    assert [path.name for path in graph.parent.parent.iterdir()] == [graph.parent.name], "nothing else is left"


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "file"))
    plain, ours = pair(UNet, OpenVINOUNet, UNET)
    assert apart(ours(*question()), plain(*question())) < 2e-5
    assert "can't be kept" in caplog.text


def test_a_disk_that_tears_the_graph_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    monkeypatch.setattr(convert.openvino(), "save_model", lambda graph, path, **_: path.write_text("<net><lay"))
    plain, ours = pair(UNet, OpenVINOUNet, UNET)
    assert apart(ours(*question()), plain(*question())) < 2e-5
    assert "can't be kept" in caplog.text
    assert not list(tmp_path.rglob(convert.GRAPH))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DARKROOM_CACHE")
    assert cache_folder() == tmp_path / "darkroom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "darkroom"


# --- the whole


def test_the_embedded_model_draws_the_same_picture() -> None:
    native = darkroom.load(dtype="float32", backend="native")
    ours = darkroom.load(dtype="float32", backend="openvino")
    assert isinstance(ours.unet, OpenVINOUNet)
    options: dict[str, Any] = {"steps": 3, "seed": 4, "output": "pt", "width": 96, "height": 120}
    want, got = (pipe.generate("a large fox on a yellow background", **options).images for pipe in (native, ours))
    assert (got - want).abs().max() < 1e-3
    (picture,) = native.generate("a fox", steps=1, seed=1).images
    assert apart(ours.encode_image(picture), native.encode_image(picture)) < 1e-4
    assert ours.unet.runner._compiled
    assert ours.autoencoder.runner._compiled


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="backend"):
        darkroom.load(backend="onnx")
    with pytest.raises(RequestError, match="backend is 'openvino'"):
        darkroom.load(backend="openvino", compile=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RequestError, match="runs on the CPU, and device is 'cuda'"):
        darkroom.load(backend="openvino", device="cuda")
    assert darkroom.load(backend="openvino").device.type == "cpu"  # "auto" means the CPU then
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequestError, match=r"pip install 'darkroom-diffusion\[openvino\]'"):
        darkroom.load(backend="openvino")


def test_nothing_is_reported_to_anyone() -> None:
    """OpenVINO's converter tells its maker when it is imported; not when Darkroom imports it."""
    program = (
        "import sys; from darkroom.backends.convert import openvino; openvino(); "
        "assert 'openvino_telemetry' not in sys.modules; "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("telemetry_stub")
