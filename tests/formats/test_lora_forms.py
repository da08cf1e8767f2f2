"""LoRA files of many tools: ComfyUI's names, cloneofsimo's numbers, words that come along, LyCORIS' further kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.adapters import Adapter, Lora, Update, attached
from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.artifact import describe
from darkroom.formats.embedding import save_embedding
from darkroom.formats.lora import is_lora, read_lora
from darkroom.formats.lora_names import Home, Homes
from darkroom.formats.lora_save import convert_lora, published_networks, save_lora
from darkroom.formats.tensors import Glance
from darkroom.models.presets import SDXL_TEXT_ENCODER_2, SDXL_UNET
from darkroom.models.text_encoder import TextEncoder
from darkroom.pipeline import Pipeline

REAL = Path(__file__).parents[2].parent / "shared" / "real"
BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
LINEAR, WIDE, CONV = BLOCK + "attn1_to_q", BLOCK + "attn2_to_k", "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def networks(tiny_pipe: Pipeline) -> dict[str, nn.Module]:
    return {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def only(adapter: Adapter) -> Update:
    (updates,) = adapter.parts.values()
    (update,) = updates.values()
    return update


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_comfyui() -> None:
    sd, _, sdxl = (Homes(networks) for networks in published_networks())
    layer = "text_model.encoder.layers.3.mlp.fc1"
    for homes, name, part in (
        (sd, f"text_encoders.clip_l.transformer.{layer}", "text_encoder"),
        (sd, f"clip_l.transformer.{layer}", "text_encoder"),
        (sd, f"clip_l.{layer}", "text_encoder"),
        (sd, f"text_encoders.clip_h.transformer.{layer}", "text_encoder"),
        (sdxl, f"text_encoders.clip_l.transformer.{layer}", "text_encoder"),
        (sdxl, f"text_encoders.clip_g.transformer.{layer}", "text_encoder_2"),
        (sdxl, f"clip_g.{layer}", "text_encoder_2"),
    ):
        assert homes.find(name) == Home(part, "layers.3.fc1"), name
    found = sdxl.find("diffusion_model.output_blocks.0.1.transformer_blocks.9.attn2.to_v")
    assert found == Home("unet", "up.0.attentions.0.blocks.9.attn2.v")
    assert sd.find(f"text_encoders.clip_g.transformer.{layer}") is None


def test_the_refiners_text_encoder_is_called_clip_g() -> None:
    from dataclasses import replace

    from darkroom.models.unet import UNet

    config = replace(SDXL_UNET, cross_attention_dim=1280)
    with torch.device("meta"):
        homes = Homes({"unet": UNet(config), "text_encoder": TextEncoder(SDXL_TEXT_ENCODER_2)})
    name = "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc1"
    assert homes.find(name) == Home("text_encoder", "layers.31.fc1")


def test_a_file_in_comfyuis_names_is_the_same_file(networks: Any, tmp_path: Path) -> None:
    start = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    unet = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    tensors = {}
    for name, theirs, width in ((LINEAR, unet, 16), ("lora_te_" + start.split("transformer.")[1], start, 32)):
        for which, shape in (("down", (2, width)), ("up", (width, 2))):
            tensors[name.replace(".", "_"), theirs, which] = rand(*shape)
    kohya = {f"{ours}.lora_{which}.weight": tensor for (ours, _, which), tensor in tensors.items()}
    comfy = {f"{theirs}.lora_{which}.weight": tensor for (_, theirs, which), tensor in tensors.items()}
    first = read_lora(write(tmp_path / "a.safetensors", kohya), networks)
    second = read_lora(write(tmp_path / "b.safetensors", comfy), networks)
    for part, updates in first.parts.items():
        assert updates.keys() == second.parts[part].keys()
        for path, update in updates.items():
            assert torch.equal(update.factors["up"], second.parts[part][path].factors["up"])


def test_sdxl_under_kohyas_names(tmp_path: Path) -> None:
    """All linear layers of the true networks on `meta`: the U-Net goes by LDM's names, the text encoders by 1 and 2."""
    *_, networks = published_networks()
    parts: dict[str, dict[str, Update]] = {}
    for part, network in networks.items():
        for path, layer in network.named_modules():
            if isinstance(layer, nn.Linear):
                factors = {"down": torch.ones(1, layer.in_features), "up": torch.ones(layer.out_features, 1)}
                parts.setdefault(part, {})[path] = Update(factors)
    path = save_lora(tmp_path / "a.safetensors", Adapter(parts), networks, "kohya", dtype=torch.float16)
    names = {name.partition(".")[0] for name in load_file(path)}
    assert len(names) == sum(len(updates) for updates in parts.values())
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
    assert names >= {
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k",
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn1_to_out_0",
        "lora_unet_label_emb_0_2",
        "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    }
    assert not any("down_blocks" in name for name in names)
    again = read_lora(path, networks)
    assert {part: updates.keys() for part, updates in again.parts.items()} == {p: u.keys() for p, u in parts.items()}
    diffusers = convert_lora(path, tmp_path / "b.safetensors")
    assert "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight" in load_file(diffusers)
    back = convert_lora(diffusers, tmp_path / "c.safetensors")
    assert load_file(back).keys() == load_file(path).keys()


# --- cloneofsimo's numbers -------------------------------------------------------------------------------------------


def linears(network: nn.Module, ancestors: set[str]) -> list[str]:
    """The linear layers in the order in which cloneofsimo's trainer meets them: in all modules of these classes."""
    found = []
    for path, module in network.named_modules():
        if type(module).__name__ in ancestors:
            found += [f"{path}.{name}" for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    return found


def numbered(part: str, layers: list[str], network: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for number, name in enumerate(layers):
        out, inner = network.get_submodule(name).weight.shape  # type: ignore[misc, union-attr]
        tensors[f"{part}:{number}:up"] = torch.full((int(out), 2), float(number + 1))
        tensors[f"{part}:{number}:down"] = torch.ones(2, int(inner))
    return tensors


@pytest.mark.parametrize("order", ["in 2022", "today", "attention alone"])
def test_numbers_are_places_among_the_modules(tiny_reference: Any, networks: Any, tmp_path: Path, order: str) -> None:
    """Against the modules of diffusers and transformers, which had the feed-forward before attn2 in 2022."""
    unet, text = tiny_reference.unet, tiny_reference.text_encoder
    layers = linears(unet, {"Attention", "GEGLU"} if order != "attention alone" else {"Attention"})
    per_block = 8 if order == "attention alone" else 9
    if order == "in 2022":
        blocks = [layers[i : i + 9] for i in range(0, len(layers), 9)]
        layers = [name for block in blocks for name in (*block[:4], block[8], *block[4:8])]
    text_layers = linears(text, {"CLIPAttention"})
    assert len(layers) == per_block * sum(name.endswith("attn1.to_q") for name in layers)
    tensors = numbered("unet", layers, unet) | numbered("text_encoder", text_layers, text)
    adapter = read_lora(write(tmp_path / "a.safetensors", tensors), networks)
    homes = Homes(networks)
    for part, names in (("unet", layers), ("text_encoder", text_layers)):
        assert len(adapter.parts[part]) == len(names)
        for number, name in enumerate(names):
            home = homes.find(f"{part}.{name}")
            assert home is not None
            update = adapter.parts[part][home.path]
            assert update.factors["up"][0, 0] == number + 1
            assert update.factor == 1
    assert describe(tmp_path / "a.safetensors")["form"] == "cloneofsimo"


def test_numbers_of_an_unknown_order_are_refused(networks: Any, tmp_path: Path) -> None:
    tensors = {f"unet:{i}:{which}": rand(*shape) for i in range(3) for which, shape in PAIR.items()}
    tensors["unet:2:up"] = rand(128, 2)
    with pytest.raises(CheckpointError, match="numbers the layers of a U-Net in an order that Darkroom does not know"):
        read_lora(write(tmp_path / "a.safetensors", tensors), networks)
    more = {f"unet:{i}:{which}": rand(*shape) for i in range(8) for which, shape in PAIR.items()}
    with pytest.raises(CheckpointError, match=r"made for a custom model \(text width 16\)"):
        read_lora(write(tmp_path / "b.safetensors", more), networks)


PAIR = {"down": (2, 16), "up": (16, 2)}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files of others are not beside this checkout")
@pytest.mark.parametrize(("name", "words", "rank"), [("lora_disney", ["<s1>", "<s2>"], 1), ("analog_svd_rank4", [], 4)])
def test_real_files_of_cloneofsimo(tmp_path: Path, name: str, words: list[str], rank: int) -> None:
    path = REAL / f"{name}.safetensors"
    assert is_lora(Glance(path))
    told = describe(path)
    assert told["words"] == words
    assert told["kinds"] == {"lora": 192}
    assert told["ranks"] == {str(rank): 192}
    assert told["unknown"] == []
    assert told["base"] is not None
    assert "1.x" in told["base"]
    sd = next(published_networks())
    adapter = read_lora(path, sd)
    assert {part: len(updates) for part, updates in adapter.parts.items()} == {"unet": 144, "text_encoder": 48}
    assert [(word, [part.shape for part in parts]) for word, parts in adapter.words.items()] == [
        (word, [(1, 768)]) for word in words
    ]
    # A gated feed-forward, and an attention to the text, are where the shapes say.
    assert adapter.parts["unet"]["down.0.attentions.0.blocks.0.ff.proj"].factors["up"].shape == (2560, rank)
    mid = adapter.parts["unet"]["mid.attention.blocks.0.attn2.k"]
    stored = load_file(path)
    assert torch.equal(mid.factors["down"], stored["unet:141:down"])
    assert torch.equal(mid.factors["up"], stored["unet:141:up"])
    converted = read_lora(convert_lora(path, tmp_path / "kohya.safetensors"), sd)
    assert torch.equal(converted.parts["unet"]["mid.attention.blocks.0.attn2.k"].factors["up"], mid.factors["up"])
    for word, parts in adapter.words.items():
        assert torch.equal(converted.words[word][0], parts[0])


# --- words that come along -------------------------------------------------------------------------------------------


def bundle(path: Path, vectors: dict[str, Tensor], metadata: dict[str, str] | None = None, scale: float = 1) -> Path:
    down, up = rand(2, 16), scale * rand(16, 2)
    return write(path, {f"{LINEAR}.lora_down.weight": down, f"{LINEAR}.lora_up.weight": up, **vectors}, metadata)


@pytest.mark.parametrize(
    ("key", "metadata"),
    [
        ("bundle_emb.zork.string_to_param.*", None),
        ("bundle_emb.zork.emb_params", None),
        ("bundle_emb.zork.clip_l", None),
        ("bundle_emb.zork.zork", None),
        ("zork", {"zork": "<embed>"}),
    ],
)
def test_words_that_come_with_a_lora(tiny_pipe: Pipeline, tmp_path: Path, key: str, metadata: Any) -> None:
    """As the same LoRA without words, and the words' own file."""
    vectors = 3 * rand(2, 32)
    with_word = bundle(tmp_path / "with.safetensors", {key: vectors}, metadata)
    without = bundle(tmp_path / "without.safetensors", {})
    own = save_embedding(tmp_path / "zork.safetensors", vectors, "zork")
    options: dict[str, Any] = {"seed": 1, "steps": 2, "output": "pt"}
    expected = tiny_pipe.generate("a zork", loras=[without], embeddings=[own], **options)
    result = tiny_pipe.generate("a zork", loras=[with_word], **options)
    assert torch.equal(result.images, expected.images)
    assert result.requests[0].embeddings == expected.requests[0].embeddings
    plain = tiny_pipe.generate("a zork", loras=[without], **options)
    assert not torch.equal(plain.images, expected.images)
    assert describe(with_word)["words"] == ["zork"]
    assert describe(with_word)["unknown"] == []
    assert tiny_pipe.generate("a fox", loras=[with_word], **options).requests[0].embeddings == ()


def test_a_recipe_with_such_a_word_is_drawn_again(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    path = bundle(tmp_path / "with.safetensors", {"bundle_emb.zork.string_to_param.*": 3 * rand(1, 32)})
    first = tiny_pipe.generate("a zork", loras=[Lora(path, 0.5)], seed=1, steps=2, output="pt")
    (again,) = tiny_pipe.draw(first.requests, [tiny_pipe.inputs(loras=[path])], output="pt").images
    assert torch.equal(again, first.images[0])


def test_merged_loras_bring_their_words(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    path = bundle(tmp_path / "with.safetensors", {"bundle_emb.zork.string_to_param.*": 3 * rand(1, 32)})
    tiny_pipe.merge_loras(path)
    try:
        result = tiny_pipe.generate("a zork", seed=1, steps=1)
    finally:
        tiny_pipe.unmerge_loras()
    assert result.requests[0].embeddings[0].startswith("zork:")


def test_two_words_of_one_name(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    key = "bundle_emb.<s1>.string_to_param.*"
    files = [bundle(tmp_path / f"{n}.safetensors", {key: n * rand(1, 32)}) for n in (1, 2)]
    tiny_pipe.generate("a fox", loras=files, steps=1)
    with pytest.raises(RequestError, match="the LoRAs '1' and '2' both bring a word '<s1>'; give one of them"):
        tiny_pipe.generate("a <s1>", loras=files, steps=1)
    own = save_embedding(tmp_path / "own.safetensors", rand(1, 32), "<s1>")
    tiny_pipe.generate("a <s1>", loras=files, embeddings=[own], steps=1)


def test_words_of_sdxl(networks: Any, tmp_path: Path) -> None:
    vectors = {"bundle_emb.a.b.clip_g": rand(2, 1280), "bundle_emb.a.b.clip_l": rand(2, 768)}
    adapter = read_lora(bundle(tmp_path / "a.safetensors", vectors), networks)
    assert {word: [p.shape for p in parts] for word, parts in adapter.words.items()} == {"a.b": [(2, 768), (2, 1280)]}
    saved = save_lora(tmp_path / "b.safetensors", adapter, networks, "kohya")
    assert load_file(saved).keys() >= vectors.keys()
    with pytest.raises(CheckpointError, match="has no place: write it in kohya's form"):
        save_lora(tmp_path / "c.safetensors", adapter, networks, "diffusers")
    assert torch.equal(read_lora(saved, networks).words["a.b"][1], vectors["bundle_emb.a.b.clip_g"])


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({"bundle_emb.a.clip_l_out": rand(1, 32)}, "output of a text encoder"),
        ({"bundle_emb.a.clip_l": rand(1, 32), "bundle_emb.a.t5": rand(1, 32)}, "Stable Diffusion 3, Flux"),
        ({"bundle_emb.a.x": rand(1, 32), "bundle_emb.a.y": rand(1, 32)}, "has x, y for the word a"),
        ({"bundle_emb.a.clip_l": rand(1, 2, 3)}, "clip_l is"),
        ({"bundle_emb.a.clip_l": rand(1, 32) * float("nan")}, "NaN"),
        ({"bundle_emb. .clip_l": rand(1, 32)}, "can't be called"),
    ],
)
def test_words_that_can_not_be_used(networks: Any, tmp_path: Path, vectors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_lora(bundle(tmp_path / "a.safetensors", vectors), networks)


# --- LyCORIS' further kinds, by their definitions in numpy -----------------------------------------------------------


def reshaped(numbers: Any, *shape: int) -> Any:
    return np.asarray(numbers.numpy(), dtype=np.float64).reshape(*shape)


def ia3(weight: Any, vector: Tensor, by_input: bool) -> Any:
    ones = [1] * (weight.ndim - 2)
    return weight * reshaped(vector, *([1, -1, *ones] if by_input else [-1, 1, *ones]))


def oft(weight: Any, blocks: Tensor, constraint: float = 0, rescale: Tensor | None = None) -> Any:
    """Of each row of blocks, W' = R^T W with R = (I + Q) (I - Q)^-1."""
    q = blocks.double().numpy() - blocks.double().numpy().transpose(0, 2, 1)
    norm = np.sqrt((q**2).sum())
    if 0 < constraint * len(weight) < norm:
        q = q * constraint * len(weight) / norm
    n = q.shape[1]
    changed = weight.copy()
    for k, block in enumerate(q):
        r = (np.eye(n) + block) @ np.linalg.inv(np.eye(n) - block)
        rows = slice(k * n, (k + 1) * n)
        changed[rows] = np.tensordot(r.T, weight[rows], 1)
    if rescale is not None:
        changed *= reshaped(rescale, -1, *[1] * (weight.ndim - 1))
    return changed - weight


def glora(weight: Any, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, bm: Tensor | None = None) -> Any:
    flat = [np.asarray(t.double().numpy().reshape(len(t), -1)) for t in (a1, a2, b1, b2)]
    through = np.einsum("oi...,ij->oj...", weight, flat[0] @ flat[1])
    if bm is None:
        return (flat[2] @ flat[3]).reshape(weight.shape) + through
    return np.einsum("mnkl,im,nj->ijkl", bm.double().numpy(), flat[2], flat[3]) + through


def factors(out: int, inner: int, k: tuple[int, ...] = (), r: int = 2) -> dict[str, Tensor]:
    ones = (1,) * len(k)
    shapes = {"a1": (inner, r, *ones), "a2": (r, inner, *ones), "b1": (out, r, *ones), "b2": (r, inner, *k)}
    return {name: rand(*shape) for name, shape in shapes.items()}


def _cases() -> dict[str, Any]:
    gl, glc = factors(16, 32), factors(16, 16, (3, 3))
    tucker = {**factors(16, 16, (1, 1)), "bm": rand(2, 2, 3, 3)}
    old = {"a1": gl["a2"], "a2": gl["a1"], "b1": gl["b2"], "b2": gl["b1"]}
    blocks, scale = rand(4, 4, 4) / 4, rand(16, 1)
    on, off = torch.tensor(1), torch.tensor(0)
    return {
        "ia3 by outputs": (WIDE, {"weight": rand(16), "on_input": off}, lambda w: ia3(w, rand(16), False)),
        "ia3 by inputs": (WIDE, {"weight": rand(32), "on_input": on}, lambda w: ia3(w, rand(32), True)),
        "ia3 of a convolution by outputs": (
            CONV,
            {"weight": rand(1, 16, 1, 1), "on_input": off},
            lambda w: ia3(w, rand(1, 16, 1, 1), False),
        ),
        "ia3 of a convolution by inputs": (
            CONV,
            {"weight": rand(1, 16, 1, 1), "on_input": on},
            lambda w: ia3(w, rand(1, 16, 1, 1), True),
        ),
        "oft": (WIDE, {"oft_blocks": blocks}, lambda w: oft(w, blocks)),
        "oft without a limit": (WIDE, {"oft_blocks": blocks, "alpha": off.float()}, lambda w: oft(w, blocks)),
        "oft within a limit": (
            WIDE,
            {"oft_blocks": blocks, "alpha": torch.tensor(0.01)},
            lambda w: oft(w, blocks, 0.01),
        ),
        "oft within a wide limit": (WIDE, {"oft_blocks": blocks, "alpha": torch.tensor(9.0)}, lambda w: oft(w, blocks)),
        "oft rescaled": (
            WIDE,
            {"oft_blocks": blocks, "rescale": scale},
            lambda w: oft(w, blocks, rescale=scale),
        ),
        "oft of a convolution": (CONV, {"oft_blocks": blocks}, lambda w: oft(w, blocks)),
        "glora": (WIDE, {f"{k}.weight": v for k, v in gl.items()}, lambda w: glora(w, **gl)),
        "glora with an alpha": (
            WIDE,
            {**{f"{k}.weight": v for k, v in gl.items()}, "alpha": torch.tensor(1.0)},
            lambda w: 0.5 * glora(w, **gl),
        ),
        "glora of before": (WIDE, {f"{k}.weight": v for k, v in old.items()}, lambda w: glora(w, **gl)),
        "glora of a convolution": (CONV, {f"{k}.weight": v for k, v in glc.items()}, lambda w: glora(w, **glc)),
        "glora with a core": (CONV, {f"{k}.weight": v for k, v in tucker.items()}, lambda w: glora(w, **tucker)),
    }


CASES = _cases()


@pytest.mark.parametrize("what", CASES)
def test_further_kinds(networks: Any, tmp_path: Path, what: str) -> None:
    name, tensors, change = CASES[what]
    path = write(tmp_path / "a.safetensors", {f"{name}.{key}": tensor for key, tensor in tensors.items()})
    kind = what.split()[0]
    assert is_lora(Glance(path))
    assert describe(path)["kinds"] == {kind: 1}
    adapter = read_lora(path, networks)
    (native,) = adapter.parts["unet"]
    layer = networks["unet"].get_submodule(native)
    update = only(adapter)
    assert update.kind == kind
    weight = layer.weight.detach()
    expected = torch.tensor(change(weight.double().numpy())).float()
    difference = update.difference(weight, 0.7)
    assert difference is not None
    torch.testing.assert_close(difference, 0.7 * expected, rtol=1e-4, atol=1e-5)
    x = rand(2, 16, 8, 8) if weight.ndim == 4 else rand(2, 5, weight.shape[1])
    changed = torch.func.functional_call(layer, {"weight": weight + 0.7 * expected}, (x,))
    torch.testing.assert_close(layer(x) + update(layer, x, 0.7), changed, rtol=1e-4, atol=1e-4)
    for form in ("kohya", "diffusers"):
        saved = save_lora(tmp_path / f"{form}.safetensors", adapter, networks, form)
        again = only(read_lora(saved, networks)).difference(weight)
        torch.testing.assert_close(again, update.difference(weight))
        back = convert_lora(path, tmp_path / f"c-{form}.safetensors", form, networks)
        torch.testing.assert_close(only(read_lora(back, networks)).difference(weight), again)


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        (WIDE, {"weight": rand(17), "on_input": torch.tensor(0)}, "is made for another model"),
        (WIDE, {"weight": rand(1), "on_input": torch.tensor(0)}, "is made for another model"),
        (NORM, {"weight": rand(16), "on_input": torch.tensor(0)}, "is made for another model"),
        (WIDE, {"on_input": torch.tensor(0)}, "has no weight"),
        (WIDE, {"oft_blocks": rand(4, 5, 5)}, "is made for another model"),
        (WIDE, {"oft_blocks": rand(2, 4, 2, 2)}, "is a BOFT or another kind of OFT"),
        (NORM, {"oft_blocks": rand(4, 4, 4)}, "is made for another model"),
        (WIDE, {f"{k}.weight": v for k, v in factors(16, 17).items()}, "is made for a custom model"),
        (WIDE, {f"{k}.weight": v for k, v in factors(16, 32).items() if k != "b2"}, "has no b2"),
        (WIDE, {"oft_diag": rand(4, 4, 4)}, "is an OFT as LyCORIS wrote it before 2.0"),
        (WIDE, {"oft_R.default.weight": rand(4, 6)}, "is an OFT in PEFT's form"),
        (WIDE, {"ia3_l": rand(4, 6)}, "is an IA3 in PEFT's form"),
        (WIDE, {"boft_R": rand(4, 6)}, "is a BOFT"),
        (WIDE, {"vera_lambda_b": rand(4)}, "is a VeRA"),
    ],
)
def test_further_kinds_that_are_refused(
    networks: Any, tmp_path: Path, name: str, tensors: dict[str, Tensor], said: str
) -> None:
    path = write(tmp_path / "a.safetensors", {f"{name}.{key}": tensor for key, tensor in tensors.items()})
    assert is_lora(Glance(path))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_lora(path, networks)
    assert str(caught.value).count("\n") == 0


def test_a_control_lora_is_no_lora(networks: Any, tmp_path: Path) -> None:
    from darkroom.formats.checkpoint import open_checkpoint
    from darkroom.formats.control import open_controlnet

    path = write(
        tmp_path / "a.safetensors",
        {
            "lora_controlnet": torch.zeros(1),
            "input_hint_block.0.weight": rand(16, 3, 3, 3),
            "input_blocks.1.0.in_layers.2.up": rand(16, 2),
            "input_blocks.1.0.in_layers.2.down": rand(2, 16),
        },
    )
    assert not is_lora(Glance(path))
    for read in (open_checkpoint, open_controlnet, lambda source: read_lora(source, networks)):
        with pytest.raises(CheckpointError, match="a Control-LoRA") as caught:
            read(path)  # type: ignore[operator]
        assert "--lora" not in str(caught.value)


def test_several_kinds_are_attached_together(networks: Any, tmp_path: Path) -> None:
    names = ("ia3 by inputs", "oft", "glora")
    scaled = []
    from darkroom.adapters import Scaled

    for i, what in enumerate(names):
        name, tensors, _ = CASES[what]
        path = write(tmp_path / f"{i}.safetensors", {f"{name}.{key}": tensor for key, tensor in tensors.items()})
        scaled.append(Scaled(read_lora(path, networks), 0.5))
    layer = networks["unet"].get_submodule("down.0.attentions.0.blocks.0.attn2.k")
    weight = layer.weight.detach()
    expected = weight.double() + sum(0.5 * torch.tensor(CASES[what][2](weight.double().numpy())) for what in names)
    x = rand(1, 3, 32)
    with attached(networks["unet"], "unet", [scaled]):
        torch.testing.assert_close(layer(x), (x.double() @ expected.T).float(), rtol=1e-4, atol=1e-4)
