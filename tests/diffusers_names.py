"""Native parameter names to those of diffusers and transformers, by regular expressions.

Written apart from `darkroom.formats` on purpose: an error there must not hide itself here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Rules = tuple[tuple[str, str], ...]

RESNET: Rules = (
    (r"(resnets\.\d+)\.time\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.shortcut\.", r"\1.conv_shortcut."),
)
SAMPLING: Rules = (
    (r"\.downsample\.(weight|bias)", r".downsamplers.0.conv.\1"),
    (r"\.upsample\.conv\.", r".upsamplers.0.conv."),
)
UNET: Rules = (
    (r"^mid\.resnet1\.", "mid_block.resnets.0."),
    (r"^mid\.attention\.", "mid_block.attentions.0."),
    (r"^mid\.resnet2\.", "mid_block.resnets.1."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"^time_embed\.linear([12])\.", r"time_embedding.linear_\1."),
    (r"^time_embed\.cond\.", "time_embedding.cond_proj."),
    (r"^class_embed\.", "class_embedding."),
    (r"^size_embed\.linear([12])\.", r"add_embedding.linear_\1."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"(?<!^hint)\.blocks\.(\d+)\.", r".transformer_blocks.\1."),
    (r"\.(attn[12])\.([qkv])\.", r".\1.to_\2."),
    (r"\.(attn[12])\.out\.", r".\1.to_out.0."),
    (r"\.ff\.proj\.", ".ff.net.0.proj."),
    (r"\.ff\.out\.", ".ff.net.2."),
    *RESNET,
    *SAMPLING,
)
CONTROLNET: Rules = (
    *UNET,
    (r"^hint\.", "controlnet_cond_embedding."),
    (r"^zero_convs\.", "controlnet_down_blocks."),
    (r"^zero_mid\.", "controlnet_mid_block."),
)
AUTOENCODER: Rules = (
    (r"^(encoder|decoder)\.mid\.resnet1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.attention\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"^(encoder|decoder)\.mid\.attention\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
    (r"^(encoder|decoder)\.mid\.attention\.out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"^(encoder|decoder)\.mid\.resnet2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.(down|up)\.(\d+)\.", r"\1.\2_blocks.\3."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(post_)?quant\.", r"\1quant_conv."),
    *RESNET,
    *SAMPLING,
)
TEXT_ENCODER: Rules = (
    (r"^(token|position)_embedding\.", r"embeddings.\1_embedding."),
    (r"^final_norm\.", "final_layer_norm."),
    (r"^layers\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^layers\.(\d+)\.attention\.(q|k|v|out)\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"^layers\.(\d+)\.(fc[12])\.", r"encoder.layers.\1.mlp.\2."),
)
PROJECTED: Rules = (
    (r"^(?!projection)", "text_model."),
    *((p.replace("^", r"^text_model\.", 1), "text_model." + r) for p, r in TEXT_ENCODER),
    (r"^projection\.", "text_projection."),
)


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The same tensors under the other library's names."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
