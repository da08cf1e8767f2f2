"""LoRA files: names, faults, formulas, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.adapters import Adapter, Update
from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.artifact import describe
from darkroom.formats.lora import is_lora, open_lora, read_lora
from darkroom.formats.lora_names import Home, Homes, read_key
from darkroom.formats.lora_save import convert_lora, published_networks, save_lora
from darkroom.formats.lora_store import LoraStore, index_of
from darkroom.formats.tensors import Glance
from darkroom.pipeline import Pipeline

CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SELF = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture(scope="module")
def networks(tiny_pipe: Pipeline) -> dict[str, nn.Module]:
    return {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(name: str, inner: int = 16, out: int = 16, rank: int = 2) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": rand(rank, inner), f"{name}.lora_up.weight": rand(out, rank)}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def only(adapter: Adapter) -> Update:
    (updates,) = adapter.parts.values()
    (update,) = updates.values()
    return update


def test_names_of_published_models() -> None:
    """Names as they stand in files of SD 1.x and of SDXL, each with its native layer."""
    sd, _, sdxl = (Homes(networks) for networks in published_networks())
    expected = {
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_k": "up.3.attentions.2.blocks.0.attn2.k",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": "mid.attention.blocks.0.ff.proj",
        "lora_unet_down_blocks_1_downsamplers_0_conv": "down.1.downsample",
        "lora_unet_down_blocks_0_resnets_1_time_emb_proj": "down.0.resnets.1.time",
        "lora_unet_input_blocks_1_1_proj_in": "down.0.attentions.0.proj_in",
        "unet.time_embedding.linear_1": "time_embed.linear1",
        "diffusion_model.output_blocks.11.0.in_layers.2": "up.3.resnets.2.conv1",
        "base_model.model.unet.conv_in": "conv_in",
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out": "mid.attention.blocks.0.attn1.out",
        "lora_te_text_model_encoder_layers_11_mlp_fc2": "layers.11.fc2",
        "text_encoder.text_model.encoder.layers.3.self_attn.out_proj": "layers.3.attention.out",
        "text_encoder.encoder.layers.3.self_attn.to_out": "layers.3.attention.out",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "layers.0.attention.q",
    }
    for name, path in expected.items():
        home = sd.find(name)
        assert home is not None, name
        assert home.path == path
    deep = sdxl.find("lora_unet_output_blocks_0_1_transformer_blocks_9_attn2_to_v")
    assert deep == Home("unet", "up.0.attentions.0.blocks.9.attn2.v")
    assert sdxl.find("lora_te2_text_model_encoder_layers_31_mlp_fc1") == Home("text_encoder_2", "layers.31.fc1")
    for name in ("lora_unet_", "unet.", "", "lora_unet_down_blocks_9_attentions_0_proj_in", "vae.conv_in", "a" * 1000):
        assert sd.find(name) is None
    for homes in (sd, sdxl):  # no two layers share a name once the dots are gone
        joined = [(home.part, name.replace(".", "_")) for home, name in homes.names.items()]
        assert len(joined) == len(set(joined)) == len(homes.layers)


def test_keys() -> None:
    for name, expected in {
        "a.b.lora_down.weight": ("a.b", "down"),
        "a_b.lora_mid.weight": ("a_b", "mid"),
        "a.to_q_lora.up.weight": ("a.to_q", "up"),
        "a.lora_B.default_0.weight": ("a", "up"),
        "a.lora_B.bias": ("a", "bias"),
        "a.lora_magnitude_vector.weight": ("a", "magnitude"),
        "a.dora_scale": ("a", "dora_scale"),
        "a.lokr_w2_b": ("a", "lokr_w2_b"),
        "a.w_norm": ("a", "diff"),
    }.items():
        key = read_key(name)
        assert key is not None
        assert (key.module, key.slot) == expected
    for name in ("a.weight", "lora_down.weight.x", "a.lora_A.bias", ".alpha", "a.oft_blocks", ""):
        assert read_key(name) is None


def test_alpha(networks: Any, tmp_path: Path) -> None:
    for given, factor in ((None, 1.0), (0.0, 1.0), (1.0, 0.5), (4.0, 2.0)):
        tensors = pair(SELF) | ({} if given is None else {f"{SELF}.alpha": torch.tensor(given)})
        assert only(read_lora(write(tmp_path / "a.safetensors", tensors), networks)).factor == factor
    path = write(tmp_path / "a.safetensors", pair(SELF) | {f"{SELF}.alpha": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"alpha is \[3\], not one number"):
        read_lora(path, networks)


def test_convolution_with_a_core(networks: Any, tmp_path: Path) -> None:
    """LyCORIS' CP form against the three convolutions that it is."""
    down, mid, up = rand(2, 16, 1, 1), rand(2, 2, 3, 3), rand(16, 2, 1, 1)
    slots = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    adapter = read_lora(write(tmp_path / "a.safetensors", {f"{CONV}.{k}": t for k, t in slots.items()}), networks)
    layer = networks["unet"].get_submodule("down.0.resnets.0.conv1")
    x = rand(2, 16, 8, 8)
    inner = nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1)
    expected = nn.functional.conv2d(inner, up)
    torch.testing.assert_close(only(adapter)(layer, x, 1.0), expected, rtol=1e-4, atol=1e-4)
    whole = only(adapter).difference(layer.weight)
    assert whole is not None
    torch.testing.assert_close(nn.functional.conv2d(x, whole, padding=1), expected, rtol=1e-4, atol=1e-3)


def test_dora_of_either_axis(networks: Any, tmp_path: Path) -> None:
    """m (W + dW) / ||W + dW||, with the norm over a row (dora_scale [O, 1]) or over a column ([1, I])."""
    name = CROSS  # [16, 32]: the shapes differ
    weight = networks["unet"].get_submodule("down.0.attentions.0.blocks.0.attn2.k").weight
    for shape, axis in (((16, 1), 1), ((1, 32), 0)):
        tensors = pair(name, 32) | {f"{name}.dora_scale": rand(*shape).abs()}
        update = only(read_lora(write(tmp_path / "a.safetensors", tensors), networks))
        changed = weight + 0.5 * tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
        expected = changed / changed.norm(dim=axis, keepdim=True) * tensors[f"{name}.dora_scale"]
        found = update.difference(weight, 0.5)
        assert found is not None
        torch.testing.assert_close(weight + found, expected)


def test_full_differences_of_weights_biases_and_norms(networks: Any, tmp_path: Path) -> None:
    norm = "lora_unet_down_blocks_0_resnets_0_norm1"
    tensors = {
        f"{CONV}.diff": rand(16, 16, 3, 3),
        f"{CONV}.diff_b": rand(16),
        f"{norm}.w_norm": rand(16),
        f"{norm}.b_norm": rand(16) + 1,
    }
    adapter = read_lora(write(tmp_path / "a.safetensors", tensors), networks)
    x = rand(2, 16, 8, 8)
    assert set(adapter.parts["unet"]) == {"down.0.resnets.0.conv1", "down.0.resnets.0.norm1"}
    for path, update in adapter.parts["unet"].items():
        layer = networks["unet"].get_submodule(path)
        delta = update.difference(layer.weight, 0.5)
        assert delta is not None
        changed = {"weight": layer.weight + delta, "bias": layer.bias + 0.5 * update.bias}
        expected = torch.func.functional_call(layer, changed, (x,))
        torch.testing.assert_close(layer(x) + update(layer, x, 0.5), expected, rtol=1e-4, atol=1e-4)


def test_linear_factors_for_a_pointwise_convolution(networks: Any, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    update = only(read_lora(write(tmp_path / "a.safetensors", pair(name)), networks))
    assert update.factors["down"].shape == (2, 16, 1, 1)


# --- what is refused


def test_unmatched_keys_are_listed_and_refused_unless_allowed(networks: Any, tmp_path: Path) -> None:
    strange = {f"lora_unet_nowhere_{i}.lora_down.weight": rand(2, 2) for i in range(4)}
    path = write(tmp_path / "a.safetensors", pair(SELF) | strange | {"note": rand(1)})
    with pytest.raises(CheckpointError, match=r"5 keys .*\(note, lora_unet_nowhere_0.*, \.\.\.\).*allow_unmatched"):
        read_lora(path, networks)
    adapter = read_lora(path, networks, allow_unmatched=True)
    assert only(adapter).rank == 2
    assert len(adapter.unmatched) == 5
    with pytest.raises(CheckpointError, match="none of its"):
        read_lora(write(tmp_path / "b.safetensors", strange), networks, allow_unmatched=True)


@pytest.mark.parametrize(
    ("width", "said"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL"), (7, "width 7")]
)
def test_another_base_model_is_named(networks: Any, tmp_path: Path, width: int, said: str) -> None:
    path = write(tmp_path / "a.safetensors", pair(CROSS, width) | pair(SELF))
    for allowed in (False, True):
        with pytest.raises(CheckpointError, match=rf"made for .*{said}.*; this model is a custom model .text width 32"):
            read_lora(path, networks, allow_unmatched=allowed)


def test_faults_are_sentences(networks: Any, tmp_path: Path) -> None:
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": rand(2, 9)}
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({f"{SELF}.lora_down.weight": rand(2, 16)}, "is broken: .* has no up"),
        ({f"{SELF}.hada_w1_a": rand(2, 16)}, "has no hada_w1_b"),
        ({f"{SELF}.lokr_w1": rand(2, 2), f"{SELF}.lokr_w2_a": rand(8, 1)}, "has no lokr_w2"),
        (pair(SELF, 17), r"another model: .*down \[2, 17\].* does not fit a layer of \[16, 16\]"),
        (pair(SELF) | {f"{SELF}.dora_scale": rand(5, 1)}, r"magnitudes \[5, 1\]"),
        ({f"{SELF}.lokr_w1": rand(4, 4), f"{SELF}.lokr_w2": rand(4, 5)}, "does not fit a layer"),
        (pair(SELF) | {f"{SELF}.lora_up.weight": torch.full((16, 2), torch.nan)}, "lora_up"),
        (pair(SELF) | {f"{SELF}.lora_up.weight": torch.ones(16, 2, dtype=torch.int32)}, "no floating-point"),
        ({f"{SELF}.lora_down.weight": rand(3, 16), f"{SELF}.lora_up.weight": rand(16, 2)}, "ranks of .* are not one"),
        ({f"{SELF}.lora_down.weight": rand(0, 16), f"{SELF}.lora_up.weight": rand(16, 0)}, "no factor"),
        (pair(SELF) | {f"{SELF}.dora_scale": torch.tensor(1.0)}, "no factor"),
        (pair(SELF) | {f"{SELF}.alpha": torch.ones(2)}, r"alpha is \[2\], not one number"),
        (flux, "is a LoRA for Flux.1, which Darkroom does not draw with"),
        ({"weight": rand(2)}, "is no LoRA: its tensors are called weight"),
        (pair(SELF) | pair("unet." + SELF[10:].replace("_", "."))
         | pair("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"), "twice"),
    ]  # fmt: skip
    for tensors, said in cases:
        with pytest.raises(CheckpointError, match=said) as caught:
            read_lora(write(tmp_path / "a.safetensors", tensors), networks)
        assert str(tmp_path) in str(caught.value)
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError):
            read_lora(path, networks)


def test_pickles_are_read_as_safely_as_checkpoints(networks: Any, tmp_path: Path) -> None:
    tensors = pair(SELF) | {f"{SELF}.alpha": torch.tensor(1.0)}
    torch.save(tensors, tmp_path / "a.pt")
    found = only(read_lora(tmp_path / "a.pt", networks))
    assert torch.equal(found.factors["down"], tensors[f"{SELF}.lora_down.weight"])
    torch.save({"state_dict": tensors, "x": print}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError):
        read_lora(tmp_path / "b.pt", networks)


# --- what is written


def test_kohya_to_diffusers_and_back(networks: Any, tmp_path: Path) -> None:
    """Lossless: the same tensors, in their own types, under the same names; metadata kept."""
    tensors = {k: t.half() for k, t in (pair(SELF) | pair(CROSS, 32, rank=3)).items()}
    tensors |= {f"{CONV}.lora_down.weight": rand(2, 16, 3, 3), f"{CONV}.lora_up.weight": rand(16, 2, 1, 1)}
    alphas = {SELF: 1.0, CROSS: 3.0, CONV: 1.0}
    tensors |= {f"{name}.alpha": torch.tensor(alpha) for name, alpha in alphas.items()}
    tensors |= pair("lora_te_text_model_encoder_layers_0_mlp_fc1", 32, 64)
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(2.0)
    first = write(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    second = convert_lora(first, tmp_path / "b.safetensors", networks=networks)
    middle = load_file(second)
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    assert middle[key].dtype == torch.float16
    assert not any("alpha" in name for name in middle)
    third = load_file(convert_lora(second, tmp_path / "c.safetensors"))  # the names of any model do
    assert third.keys() == tensors.keys()
    assert all(torch.equal(third[name], tensors[name]) for name in tensors)
    assert describe(tmp_path / "c.safetensors")["metadata"]["ss_base_model_version"] == "sd_v1"
    with pytest.raises(CheckpointError, match=r"end the name in \.safetensors"):
        convert_lora(first, tmp_path / "c.pt")


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_saved_adapters_are_read_again(networks: Any, tmp_path: Path, form: Any) -> None:
    """All kinds, with biases and magnitudes."""
    names = {
        f"{SELF}.hada_w1_a": rand(16, 2), f"{SELF}.hada_w1_b": rand(2, 16),
        f"{SELF}.hada_w2_a": rand(16, 2), f"{SELF}.hada_w2_b": rand(2, 16), f"{SELF}.alpha": torch.tensor(1.0),
        f"{CONV}.lokr_w1": rand(4, 4), f"{CONV}.lokr_w2": rand(4, 4, 3, 3), f"{CONV}.diff_b": rand(16),
        **pair(CROSS, 32), f"{CROSS}.alpha": torch.tensor(3.0), f"{CROSS}.dora_scale": rand(16, 1),
    }  # fmt: skip
    before = read_lora(write(tmp_path / "a.safetensors", names), networks)
    after = read_lora(save_lora(tmp_path / "b.safetensors", before, networks, form), networks)
    assert after.parts["unet"].keys() == before.parts["unet"].keys()
    for path, update in before.parts["unet"].items():
        other, weight = after.parts["unet"][path], networks["unet"].get_submodule(path).weight
        torch.testing.assert_close(other.difference(weight), update.difference(weight))
        assert (other.bias is None) == (update.bias is None)


def test_description(tmp_path: Path) -> None:
    metadata = {"ss_network_dim": "2", "modelspec.title": "ink", "format": "pt"}
    path = write(tmp_path / "ink.safetensors", pair(CROSS, 768), metadata)
    told = describe(path)
    assert told["base"] == "Stable Diffusion 1.x (text width 768)"
    assert told["ranks"] == {"2": 1}
    assert told["metadata"] == {"modelspec.title": "ink", "ss_network_dim": "2"}
    assert json.dumps(told)
    assert is_lora(Glance(path))
    assert not is_lora(Glance(tmp_path / "none"))
    again = write(tmp_path / "noted.safetensors", pair(CROSS, 768), {"note": "what stands here does not matter"})
    assert describe(again)["hash"] == told["hash"]


# --- a folder of names


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": " ohwx ink ", "ss_tag_frequency": '{"a": {"tree": 3}}'}, ("ohwx ink",)),
        # kohya's: tags by folder; the trigger word is that of all pictures
        ({"ss_tag_frequency": '{"10_ink": {"tree": 3, " ohwx": 12, "sky": 11}, "b": {"ohwx": 8}}'}, ("ohwx",)),
        ({"ss_tag_frequency": '{"a": {"ohwx": 9, "ink": 10, "tree": 4}}'}, ("ink", "ohwx")),
        ({"ss_tag_frequency": '{"a": ["tree"], "b": {"x": "3", "y": -1}}'}, ()),
        ({"ss_tag_frequency": "[" * 100_000}, ()),
        ({"ss_output_name": "ink"}, ()),
    ],
)
def test_words_that_call_it(tmp_path: Path, metadata: dict[str, str], words: tuple[str, ...]) -> None:
    found = open_lora(write(tmp_path / "ink.safetensors", pair(CROSS, 768), metadata))
    assert found.triggers == words
    assert found.title == metadata.get("ss_output_name")


def test_names_in_a_folder(networks: Any, tmp_path: Path) -> None:
    for name in ("ink.safetensors", "styles/gold.safetensors", "old/ink.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, pair(SELF))
    assert set(index_of(tmp_path)) == {"ink", "styles/gold", "gold", "old/ink"}
    store = LoraStore(networks, tmp_path)
    adapter = store.find("gold")
    assert store.find("styles/gold") is adapter  # read once
    for name in ("gild", "../ink", "/etc/passwd", "styles\\gold", ""):
        with pytest.raises(RequestError, match="there is no LoRA"):
            store.find(name)
    with pytest.raises(RequestError, match="did you mean 'gold'"):
        store.find("gild")
    with pytest.raises(RequestError, match="lora_dir"):
        LoraStore(networks).find("gold")
    with pytest.raises(RequestError, match="no folder"):
        LoraStore(networks, tmp_path / "none").find("gold")
    write(tmp_path / "styles/gold.safetensors", pair(SELF, rank=3))
    assert only(store.find("gold")).rank == 3
