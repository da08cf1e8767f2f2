"""Networks that judge, in the ecosystem's files: random weights, published names; and what they are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from darkroom.formats.layouts import table
from darkroom.models.config import InceptionConfig
from darkroom.models.inception import Inception


def write(folder: Path, model: Any) -> None:
    """What `save_pretrained` writes, in a tenth of its time."""
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))


def write_clip(folder: Path) -> Any:
    """Write a tiny CLIP as transformers does, with the tokenizer of the real one; returns transformers' network."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    from darkroom.prompts.tokenizer import Tokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=small | ids,
        vision_config=small | {"image_size": 24, "patch_size": 8},
        projection_dim=20,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    write(folder, model)
    Tokenizer.default().save(folder)
    about = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 28}, "image_mean": [0.5, 0.4, 0.3],
             "image_std": [0.2, 0.3, 0.25], "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return model


def prepared(pictures: list[np.ndarray]) -> Tensor:
    """Pictures as `write_clip`'s preprocessor_config.json says: the shorter side to 28, 24 x 24 of it, normalised."""
    ready = []
    for picture in pictures:
        image = Image.fromarray(picture)
        scale = 28 / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 24) // 2, (image.height - 24) // 2
        pixels = np.asarray(image, np.float32)[top : top + 24, left : left + 24] / 255
        ready.append((pixels - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.25]))
    return torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2)


class WrittenOut:
    """FID's Inception by the names of the published file, one function a kind of block."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: Any = 0) -> Tensor:
        def get(rest: str) -> Tensor:
            return self.state[f"{name}.{rest}"]

        y = F.conv2d(x, get("conv.weight"), stride=stride, padding=padding)
        m, v = get("bn.running_mean")[:, None, None], get("bn.running_var")[:, None, None]
        y = (y - m) / (v + 1e-3).sqrt() * get("bn.weight")[:, None, None] + get("bn.bias")[:, None, None]
        return y.clamp(min=0)

    def chain(self, x: Tensor, block: str, *names: str, last_stride: int = 1) -> Tensor:
        for i, name in enumerate(names):
            kernel = self.state[f"{block}.branch{name}.conv.weight"].shape[2:]
            reduces = last_stride == 2 and i == len(names) - 1
            padding = 0 if reduces else (kernel[0] // 2, kernel[1] // 2)
            x = self.conv(x, f"{block}.branch{name}", 2 if reduces else 1, padding)
        return x

    @staticmethod
    def mean(x: Tensor) -> Tensor:
        """Over the pixels of a 3 x 3 window that lie inside the picture."""
        return F.avg_pool2d(x, 3, 1, 1) * 9 / (F.avg_pool2d(torch.ones_like(x), 3, 1, 1) * 9)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for name in ("5b", "5c", "5d"):
            b = f"Mixed_{name}"
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(x, b, "5x5_1", "5x5_2"),
                           self.chain(x, b, "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
                           self.chain(self.mean(x), b, "_pool")], 1)  # fmt: skip
        x = torch.cat([self.chain(x, "Mixed_6a", "3x3", last_stride=2),
                       self.chain(x, "Mixed_6a", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3", last_stride=2),
                       F.max_pool2d(x, 3, 2)], 1)  # fmt: skip
        for name in ("6b", "6c", "6d", "6e"):
            b = f"Mixed_{name}"
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(x, b, "7x7_1", "7x7_2", "7x7_3"),
                           self.chain(x, b, *(f"7x7dbl_{i}" for i in range(1, 6))),
                           self.chain(self.mean(x), b, "_pool")], 1)  # fmt: skip
        x = torch.cat([self.chain(x, "Mixed_7a", "3x3_1", "3x3_2", last_stride=2),
                       self.chain(x, "Mixed_7a", *(f"7x7x3_{i}" for i in range(1, 5)), last_stride=2),
                       F.max_pool2d(x, 3, 2)], 1)  # fmt: skip
        for name in ("7b", "7c"):
            b = f"Mixed_{name}"
            single, double = self.chain(x, b, "3x3_1"), self.chain(x, b, "3x3dbl_1", "3x3dbl_2")
            pooled = self.mean(x) if name == "7b" else F.max_pool2d(x, 3, 1, 1)
            x = torch.cat([self.chain(x, b, "1x1"), self.chain(single, b, "3x3_2a"), self.chain(single, b, "3x3_2b"),
                           self.chain(double, b, "3x3dbl_3a"), self.chain(double, b, "3x3dbl_3b"),
                           self.chain(pooled, b, "_pool")], 1)  # fmt: skip
        return x.mean((2, 3))


def write_inception(path: Path) -> dict[str, Tensor]:
    """Write a file of random weights as pytorch-fid's; returns them by their published names."""
    torch.manual_seed(0)
    network = Inception(InceptionConfig())
    state = network.state_dict()
    for name, tensor in state.items():
        if ".bn." in name:
            tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.normal_(std=0.3)
    places = table("inception", "torchvision", state, InceptionConfig())
    published = {places[name].name: tensor for name, tensor in state.items()}
    extras = {"fc.weight": torch.zeros(1008, 8), "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}
    torch.save(published | extras, path)
    return published
