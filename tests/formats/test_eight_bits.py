"""Numbers in 8 bits, plain and scaled: written, read everywhere, told, and opened by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom.errors import CheckpointError, RequestError
from darkroom.formats.artifact import convert, describe
from darkroom.formats.checkpoint import open_checkpoint
from darkroom.formats.control import PART, open_controlnet, save_controlnet
from darkroom.formats.embedding import read_embedding
from darkroom.formats.layouts import PARTS
from darkroom.formats.lora import read_lora
from darkroom.formats.rules import native_shapes
from darkroom.formats.weights import native_state
from darkroom.formats.writer import saved_type
from darkroom.models.config import ControlNetConfig
from darkroom.models.controlnet import ControlNet
from darkroom.pipeline import Pipeline

TINY = ControlNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=(1, 1),
    attention_levels=(True, False),
    only_cross_attention=(False, False),
    transformer_layers=(1, 1),
    heads=(8, 8),
    cross_attention_dim=24,
)


def rounded(tensor: Tensor, name: str) -> Tensor:
    """What is left of a tensor's numbers, in float32."""
    return tensor.to(saved_type(name) if tensor.ndim > 1 else torch.float16).float()


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("target", ["eighth", "eighth.safetensors"])
def test_a_model_in_8_bits(tiny_models: dict[str, Any], tmp_path: Path, name: str, family: str, target: str) -> None:
    model = tiny_models[family]
    path = convert(model.save(tmp_path / "whole"), tmp_path / target, dtype=saved_type(name))
    checkpoint = open_checkpoint(path)
    for part in PARTS:
        state = native_state(checkpoint, part, model.shapes(part), torch.float32)
        for key, tensor in state.items():
            assert tensor.dtype == torch.float32
            # OpenCLIP's three projections lie in one tensor, their biases in one vector: shapes as ours
            assert torch.equal(tensor, rounded(model.states[part][key], name)), (part, key)
    told = describe(path)
    assert told["fault"] is None
    assert all(
        set(part["dtypes"]) == {"float16", f"{name.replace('e4m3', 'e4m3fn')}"} for part in told["parts"].values()
    )
    again = convert(path, tmp_path / f"again-{target}")  # keeps each tensor's type
    assert describe(again)["parts"] == told["parts"]


def test_all_in_8_bits_as_comfyui_has_it(sd1: Any, tmp_path: Path) -> None:
    """Other tools' files have the vectors in 8 bits too."""
    path = sd1.save(tmp_path / "m.safetensors")
    tensors = {key: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for key, t in load_file(path).items()}
    save_file(tensors, tmp_path / "eighth.safetensors")
    state = native_state(open_checkpoint(tmp_path / "eighth.safetensors"), "unet", sd1.shapes("unet"), torch.bfloat16)
    for key, tensor in state.items():
        assert torch.equal(tensor, sd1.states["unet"][key].to(torch.float8_e4m3fn).bfloat16())


def test_too_large_for_8_bits_is_said(sd1: Any, tmp_path: Path) -> None:
    unet = dict(sd1.states["unet"])
    unet["conv_in.weight"] = unet["conv_in.weight"] + 500
    with pytest.raises(CheckpointError, match=r"conv_in\.weight holds .* too large for float8_e4m3fn"):
        sd1.save(tmp_path / "m", unet=unet, dtype=saved_type("float8_e4m3"))
    assert not (tmp_path / "m").exists()
    with pytest.raises(RequestError, match="dtype is 'float4'; it must be one of"):
        saved_type("float4")


@torch.no_grad()
def test_diffusers_opens_a_controlnet_in_8_bits_and_answers_the_same(tmp_path: Path) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    torch.manual_seed(0)
    net = ControlNet(TINY)
    for tensor in net.state_dict().values():
        tensor.normal_(std=0.2)
    path = save_controlnet(tmp_path / "net", net.state_dict(), TINY, saved_type("float8_e4m3"))
    assert path.joinpath("diffusion_pytorch_model.safetensors").stat().st_size < 1.25 * sum(
        tensor.numel() for tensor in net.state_dict().values()
    )
    file = open_controlnet(path)
    state = native_state(file, PART, native_shapes(TINY, "net"), torch.float32)
    for key, tensor in net.state_dict().items():
        assert torch.equal(state[key], rounded(tensor, "float8_e4m3"))
    net.load_state_dict(state)
    peer = ControlNetModel.from_pretrained(path, torch_dtype=torch.float32)
    x, text, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24), torch.rand(2, 3, 64, 64)
    down, middle = net(x=x, timesteps=torch.tensor([900.0, 3.0]), text=text, hint=hint)
    others, other = peer(x, torch.tensor([900.0, 3.0]), text, controlnet_cond=hint, return_dict=False)
    for ours, theirs in zip((*down, middle), (*others, other), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    assert describe(path)["dtypes"].keys() == {"float8_e4m3fn", "float16"}


# --- scaled, as ComfyUI's tools write them ---------------------------------------------------------------------------


def scaled(tensors: dict[str, Tensor], scale: str, *, rows: bool = False, **beside: Tensor) -> dict[str, Tensor]:
    """The U-Net's linear layers in float8 with a scale beside each, which makes its largest number 448."""
    out = {key: tensor.half() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if key.startswith("model.diffusion_model.") and key.endswith("attn1.to_q.weight"):
            top = tensor.abs().amax(dim=1, keepdim=True) if rows else tensor.abs().amax()
            out[key] = (tensor / (top / 448)).to(torch.float8_e4m3fn)
            out[key.removesuffix("weight") + scale] = top / 448
            out |= {key.removesuffix("weight") + name: value.clone() for name, value in beside.items()}
    return out


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    ("scale", "beside", "mark"),
    [
        ("scale_weight", {"scale_input": torch.tensor(1.0)}, {"model.diffusion_model.scaled_fp8": torch.zeros(2)}),
        (
            "weight_scale",
            {"comfy_quant": torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)},
            {},
        ),
    ],
)
def test_scaled_weights(
    sd1: Any, tmp_path: Path, scale: str, beside: dict[str, Tensor], mark: dict[str, Tensor], rows: bool
) -> None:
    whole = load_file(sd1.save(tmp_path / "m.safetensors"))
    tensors = scaled(whole, scale, rows=rows, **beside) | mark
    save_file(tensors, tmp_path / "scaled.safetensors")
    told = describe(tmp_path / "scaled.safetensors")
    assert told["fault"] is None
    assert told["parts"]["unet"]["dtypes"]["float8_e4m3fn"] == 4
    checkpoint = open_checkpoint(tmp_path / "scaled.safetensors")
    state = native_state(checkpoint, "unet", sd1.shapes("unet"), torch.float32)
    for key, tensor in state.items():
        own = sd1.states["unet"][key]
        near = (own.abs() / 16).clamp(min=2e-3) if key.endswith("attn1.q.weight") else own.abs() / 1000 + 1e-6
        assert bool(((tensor - own).abs() <= near).all()), key
    back = convert(tmp_path / "scaled.safetensors", tmp_path / "back")
    again = native_state(open_checkpoint(back), "unet", sd1.shapes("unet"), torch.float32)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_other_quantizations_are_refused(sd1: Any, tmp_path: Path) -> None:
    whole = load_file(sd1.save(tmp_path / "m.safetensors"))
    name = next(key for key in whole if key.endswith("attn1.to_q.weight"))
    for weight, scale in (
        (whole[name].to(torch.int8), torch.tensor(0.1)),
        (whole[name].to(torch.float8_e4m3fn), torch.ones(2, 2)),
        (whole[name].to(torch.float8_e4m3fn), torch.tensor(3)),
    ):
        save_file(whole | {name: weight, name.replace("weight", "weight_scale"): scale}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="quantized in a way that Darkroom does not read") as caught:
            open_checkpoint(tmp_path / "x.safetensors")
        assert "\n" not in str(caught.value)
    scale = torch.tensor(float("nan"))
    poisoned = whole | {name: whole[name].to(torch.float8_e4m3fn), name.replace("weight", "scale_weight"): scale}
    save_file(poisoned, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        native_state(open_checkpoint(tmp_path / "x.safetensors"), "unet", sd1.shapes("unet"))


# --- adapters --------------------------------------------------------------------------------------------------------


def test_a_lora_and_a_word_in_8_bits(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    networks: dict[str, nn.Module] = {"unet": tiny_pipe.unet}
    start = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = tiny_pipe.unet.get_submodule("down.0.attentions.0.blocks.0.attn1.q").weight.shape[0]  # type: ignore[union-attr]
    down, up = torch.randn(2, width), torch.randn(width, 2)
    plain = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up, f"{start}.alpha": torch.tensor(1.0)}
    for eighth in (torch.float8_e4m3fn, torch.float8_e5m2):
        save_file({key: tensor.to(eighth) for key, tensor in plain.items()}, tmp_path / "eighth.safetensors")
        (update,) = read_lora(tmp_path / "eighth.safetensors", networks).parts["unet"].values()
        assert torch.equal(
            update.product(torch.empty(len(up), down.shape[1])), up.to(eighth).float() @ down.to(eighth).float()
        )
        assert update.factor == 0.5
    save_file({"emb_params": torch.ones(2, 32).to(torch.float8_e4m3fn)}, tmp_path / "word.safetensors")
    ((vectors,),) = read_embedding(tmp_path / "word.safetensors").words.values()
    assert vectors.dtype == torch.float32
