"""Files of other models and kinds are called by their names, from their headers alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from darkroom.errors import CheckpointError
from darkroom.formats.artifact import convert, describe
from darkroom.formats.checkpoint import open_checkpoint
from darkroom.formats.lora import open_lora

# Names as the published files have them -> what is told.
FILES: dict[str, tuple[str, ...]] = {
    "Flux.1 model": (
        "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale",
        "single_blocks.0.linear1.weight",
    ),
    "Flux.1 model ": ("transformer_blocks.0.attn.add_k_proj.weight", "single_transformer_blocks.0.attn.to_q.weight"),
    "Flux.2 model": ("single_stream_modulation.lin.weight", "double_blocks.0.img_attn.qkv.weight"),
    "Chroma model": ("distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.qkv.weight"),
    "Stable Diffusion 3 model": (
        "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.k_proj.weight",
    ),
    "Stable Diffusion 3 model ": ("transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight"),
    "Qwen-Image model": (
        "txt_norm.weight",
        "transformer_blocks.0.img_mod.1.weight",
        "transformer_blocks.0.attn.add_k_proj.bias",
    ),
    "Z-Image model": ("cap_pad_token", "layers.0.attention.qkv.weight", "cap_embedder.0.weight"),
    "Lumina 2 model": ("model.diffusion_model.cap_embedder.0.weight", "layers.0.attention.qkv.weight"),
    "Wan model": ("head.modulation", "blocks.0.self_attn.q.weight", "blocks.0.cross_attn.k.weight"),
    "Wan model ": ("condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"),
    "HunyuanVideo model": (
        "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",
        "double_blocks.0.img_mlp.0.weight",
    ),
    "LTX-Video model": (
        "model.diffusion_model.patchify_proj.weight",
        "model.diffusion_model.transformer_blocks.0.attn1.to_k.weight",
    ),
    "PixArt model": (
        "adaln_single.emb.timestep_embedder.linear_1.weight",
        "pos_embed.proj.weight",
        "transformer_blocks.0.scale_shift_table",
    ),
    "Sana model": ("blocks.0.cross_attn.q_linear.weight", "blocks.0.mlp.inverted_conv.conv.weight"),
    "AuraFlow model": ("double_layers.0.attn.w1q.weight", "t_embedder.mlp.0.weight"),
    "HiDream model": ("double_stream_blocks.0.block.adaLN_modulation.1.bias",),
    "Cosmos model": ("net.x_embedder.proj.1.weight", "net.blocks.0.self_attn.q_proj.weight"),
    "Mochi model": ("blocks.0.attn.qkv_x.weight",),
    "CogVideoX model": ("transformer_blocks.0.norm1.linear.weight", "patch_embed.proj.weight"),
    "Stable Cascade model": ("clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.weight"),
    "Stable Video Diffusion model": (
        "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
    ),
    "Kolors model": ("encoder_hid_proj.weight", "down_blocks.1.attentions.0.norm.weight"),
    "ControlNet for Flux.1": (
        "controlnet_blocks.0.weight",
        "transformer_blocks.0.attn.add_k_proj.weight",
        "single_transformer_blocks.0.norm.linear.weight",
    ),
    "LoRA for Flux.1": (
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight",
    ),
    "LoRA for Flux.1 ": (
        "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight",
        "transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight",
    ),
    "LoRA for Stable Diffusion 3": (
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_B.weight",
    ),
    "LoRA for Qwen-Image": (
        "transformer_blocks.0.img_mlp.net.2.lora_A.default.weight",
        "transformer_blocks.0.img_mlp.net.2.lora_B.default.weight",
    ),
    "LoRA for Z-Image": (
        "diffusion_model.layers.0.attention.to_q.lora_A.weight",
        "diffusion_model.layers.0.attention.to_q.lora_B.weight",
    ),
    "LoRA for Wan": (
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "diffusion_model.blocks.0.cross_attn.q.lora_A.weight",
        "diffusion_model.blocks.0.cross_attn.q.lora_B.weight",
    ),
    "Control-LoRA (a ControlNet as changes of a U-Net)": (
        "lora_controlnet",
        "input_blocks.1.0.in_layers.2.down",
        "input_hint_block.0.weight",
    ),
    "ControlNet-LLLite": ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight",),
    "IP-Adapter for Flux.1": (
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight",
        "ip_adapter_proj_model.norm.bias",
    ),
    "AnimateDiff motion module": ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",),
    "T2I-Adapter": ("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"),
    "T2I-Adapter ": ("body.0.block1.weight", "body.0.block2.weight", "conv_in.weight"),
    "GLIGEN adapter": ("position_net.linears.0.weight", "input_blocks.1.1.transformer_blocks.0.fuser.attn.to_q.weight"),
    "upscaler (HAT)": (
        "layers.0.residual_group.overlap_attn.qkv.weight",
        "layers.0.residual_group.blocks.0.norm1.weight",
    ),
    "upscaler (SwinIR)": ("layers.0.residual_group.blocks.0.norm1.weight",),
    "upscaler (DAT)": ("layers.0.blocks.0.attn.attns.0.pos.pos_proj.weight",),
    "upscaler (RealPLKSR)": ("feats.0.weight", "feats.1.lk.conv.weight"),
    "face restorer (GFPGAN)": ("stylegan_decoder.style_mlp.1.weight",),
    "face restorer (CodeFormer)": (
        "fuse_convs_dict.32.scale.0.weight",
        "ft_layers.0.norm1.weight",
        "encoder.blocks.0.weight",
    ),
    "T5 text encoder": (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "shared.weight",
    ),
    "T5 text encoder (UMT5)": (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    "CLIP vision encoder": ("vision_model.embeddings.class_embedding", "visual_projection.weight"),
    "SigLIP vision encoder": ("vision_model.embeddings.patch_embedding.weight",),
    "CLIP (text and pictures)": (
        "text_model.embeddings.token_embedding.weight",
        "vision_model.embeddings.class_embedding",
    ),
    "CLIP text encoder": (
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.self_attn.k_proj.weight",
    ),
    "language model": ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
    "autoencoder (VAE) of videos": ("decoder.middle.0.residual.0.gamma", "decoder.conv1.weight"),
}


def written(path: Path, names: tuple[str, ...], shape: tuple[int, ...] = (2, 2)) -> Path:
    save_file({name: torch.zeros(shape) for name in names}, path)
    return path


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_called_by_its_name(what: str, tmp_path: Path) -> None:
    names = FILES[what]
    path = written(tmp_path / "file.safetensors", names)
    found = describe(path)
    assert found["kind"] == what.strip()
    assert (found["tensors"], found["parameters"], found["dtypes"]) == (
        len(names),
        4 * len(names),
        {"float32": len(names)},
    )
    assert found["runs"]
    assert found["fault"] is None
    with pytest.raises(CheckpointError) as caught:  # and the same name where a model is wanted
        open_checkpoint(path)
    assert what.strip() in str(caught.value)
    assert "which Darkroom does not load" in str(caught.value)
    with pytest.raises(CheckpointError, match="does not convert"):
        convert(path, tmp_path / "other.safetensors")
    if "LoRA for" in what:
        with pytest.raises(CheckpointError, match=f"is a {what.strip()}, which Darkroom does not draw with"):
            open_lora(path)


@pytest.mark.parametrize(
    ("names", "shape", "base"),
    [
        (("ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"), (4, 768), "Stable Diffusion 1"),
        (("ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"), (4, 2048), "SDXL"),
        (("body.0.block1.weight", "conv_in.weight"), (4, 192, 3, 3), "Stable Diffusion 1"),
        (("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"), (4, 768, 3, 3), "SDXL"),
        (("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight",), (4, 4), "Flux.1"),
    ],
)
def test_what_it_goes_beside(names: tuple[str, ...], shape: tuple[int, ...], base: str, tmp_path: Path) -> None:
    assert describe(written(tmp_path / "file.safetensors", names, shape))["base"] == base


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"params": {"layers": {"0": {"swin1": 1}}}, "layers.0.swin1.weight": 1}, "upscaler (DRCT)"),
        ({768: [{"linear.0.weight": 1}, {"linear.0.weight": 1}], "name": "h"}, "hypernetwork"),
        ({"image_proj": {"proj.weight": 1}, "ip_adapter": {"1.to_k_ip.weight": 1}}, "IP-Adapter"),
    ],
)
def test_tensors_deep_in_a_pickle(content: dict[Any, Any], what: str, tmp_path: Path) -> None:
    def grown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: grown(item) for key, item in value.items()}
        return (
            [grown(item) for item in value] if isinstance(value, list) else value if value != 1 else torch.ones(2, 768)
        )

    torch.save(grown(content), tmp_path / "file.pth")
    found = describe(tmp_path / "file.pth")
    assert found["kind"] == what
    if what in ("hypernetwork", "IP-Adapter"):
        assert found["base"] == "Stable Diffusion 1"
    with pytest.raises(CheckpointError, match=r"file.pth is an? (upscaler|hypernetwork|IP-Adapter)"):
        open_checkpoint(tmp_path / "file.pth")


def gguf(tensors: dict[str, tuple[tuple[int, ...], int, int]], pairs: bytes = b"", count: int = 0) -> bytes:
    """A GGUF file of zeros; name -> shape, ggml's type, bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head, offset = b"", 0
    for name, (shape, kind, size) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, offset)
        offset += -(-size // 32) * 32
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + pairs + head
    return whole + bytes(-len(whole) % 32) + bytes(offset)


def test_gguf_by_its_names(tmp_path: Path) -> None:
    key = struct.pack("<Q", 20) + b"general.architecture"
    pairs = key + struct.pack("<IQ", 8, 4) + b"flux"
    pairs += struct.pack("<Q", 4) + b"list" + struct.pack("<IIQ", 9, 8, 2) + (struct.pack("<Q", 1) + b"a") * 2
    pairs += struct.pack("<Q", 4) + b"more" + struct.pack("<IIQ", 9, 5, 3) + bytes(12)
    flux = gguf({"double_blocks.0.img_attn.qkv.weight": ((4, 32), 8, 136), "img_in.bias": ((8,), 0, 32)}, pairs, 3)
    path = tmp_path / "flux.gguf"
    path.write_bytes(flux)
    found = describe(path)
    assert (found["kind"], found["parameters"], found["fault"]) == ("Flux.1 model, in GGUF", 136, None)
    assert found["dtypes"] == {"Q8_0": 1, "float32": 1}
    with pytest.raises(CheckpointError, match=r"flux.gguf is a Flux.1 model, which Darkroom does not load"):
        open_checkpoint(path)
    path.write_bytes(flux[:-40])
    assert "is cut short: it needs" in describe(path)["fault"]
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    path.write_bytes(gguf({name: ((320, 768), 1, 320 * 768 * 2)}))
    found = describe(path)
    assert (found["kind"], found["base"]) == ("Stable Diffusion model, in GGUF", "Stable Diffusion 1")
    for cut in (10, 30, 60, 120):  # never anything but a sentence
        path.write_bytes(flux[:cut])
        assert "is a broken GGUF file" in describe(path)["fault"], cut
    path.write_bytes(b"GGUF" + b"\xff" * 40)
    assert "is a broken GGUF file, or of a version" in describe(path)["fault"]
    path.write_bytes(flux[:3])
    with pytest.raises(CheckpointError, match="is no weights file"):
        describe(path)


def test_a_damaged_file_is_told_and_how(sd1: Any, tmp_path: Path) -> None:
    """Its header is there, its tensors are not: what it is, and that it is cut short."""
    for name, path in (
        ("model", sd1.save(tmp_path / "model.safetensors")),
        ("Flux.1 model", written(tmp_path / "flux.safetensors", FILES["Flux.1 model"])),
        ("VAE", sd1.save(tmp_path / "folder") / "vae" / "diffusion_pytorch_model.safetensors"),
    ):
        path.write_bytes(path.read_bytes()[:-4])
        found = describe(path)
        assert found["kind"] == name
        assert "is cut short" in found["fault"]
        assert found["size"] == path.stat().st_size
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is cut short"):  # nothing can be told any more
        describe(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "StableDiffusion3Pipeline", "QwenImageEditPipeline", "ZImagePipeline"]
)
def test_a_folder_of_another_pipeline(name: str, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    found = describe(tmp_path)
    assert found["kind"] == f"diffusers folder of a {name}"
    assert found["runs"] == "diffusers"


def test_our_own_files_are_none_of_these(tiny_models: dict[str, Any], tmp_path: Path) -> None:
    for family, model in tiny_models.items():
        for path in (model.save(tmp_path / f"{family}.safetensors"), model.save(tmp_path / family)):
            assert "runs" not in describe(path), family
        assert "runs" not in describe(tmp_path / family / "vae")
        assert "runs" not in describe(tmp_path / family / "vae" / "diffusion_pytorch_model.safetensors")
