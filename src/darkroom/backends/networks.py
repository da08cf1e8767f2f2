"""The networks, run by OpenVINO where it can: the same weights and calls as their parents in `models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.strips import MEMORY
from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from .convert import Answer, Input, Method
from .runner import Runner

# Free sides, as they are traced (see `Input`). That they differ is all that matters.
ROWS, HEIGHT, WIDTH, TOKENS = -2, -16, -24, -77
EMBEDDED = ("class_labels", "time_cond", "pooled", "sizes")  # what becomes part of a U-Net's time embedding


class OpenVINOUNet(UNet):
    """A U-Net. Natively: perturbed attention, features that are reused."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.runner = Runner()

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, *others: Any, **options: Any) -> Tensor:
        """As `UNet.forward`."""
        given = {name: value for name, value in options.items() if value is not None and not _nothing(value)}
        down: Sequence[Tensor] = given.pop("down_residuals", ())
        if others or not given.keys() <= {*EMBEDDED, "mid_residual"}:
            return super().forward(x, timesteps, text, *others, **options)
        embedded = [given.pop(name, None) for name in EMBEDDED]
        self._check(x, timesteps, text, *embedded)
        # Sines of a timestep that is rounded to bfloat16 first, as it would be in the graph, are another timestep's.
        time = self.embed_time(timesteps.to(x.device).expand(len(x)), *embedded)
        inputs = {"x": x, "time": time, "text": text, **given}
        inputs |= {f"down{i}": residual for i, residual in enumerate(down)}
        answers = self.runner(self, UNet, _unet_method(self.config, inputs), inputs)
        return super().forward(x, timesteps, text, **options) if answers is None else answers[0]


def _nothing(value: Any) -> bool:
    return isinstance(value, dict | tuple | list) and not value


def _unet_method(config: UNetConfig, given: dict[str, Tensor]) -> Method:
    """A call of a U-Net with these inputs, whatever their rows and sizes."""
    inputs = {
        "x": Input((ROWS, config.in_channels, HEIGHT, WIDTH)),
        "time": Input((ROWS, 4 * config.block_out_channels[0])),
        "text": Input((ROWS, TOKENS, config.cross_attention_dim)),
    }
    count = sum(name.startswith("down") for name in given)
    if "mid_residual" in given or count:
        skips, middle = _skips(config)
        inputs |= {f"down{i}": skip for i, skip in enumerate(skips[:count])}
        inputs |= {"mid_residual": middle} if "mid_residual" in given else {}

    def call(network: UNet, x: Tensor, time: Tensor, text: Tensor, **residuals: Tensor) -> Answer:
        down = [residuals.pop(f"down{i}") for i in range(count)]
        network.__dict__.update(embed_time=lambda *_: time, _check=lambda *_: None)  # both were done outside
        return network(x, torch.zeros(()), text, down_residuals=down or None, **residuals)  # type: ignore[no-any-return]

    return Method(f"unet {' '.join(inputs)}", call, inputs)


def _skips(config: UNetConfig) -> tuple[list[Input], Input]:
    """The shapes of a U-Net's skips and of its middle, at the size that is traced."""
    width = config.block_out_channels[0]
    with torch.device("meta"), torch.enable_grad():
        x, text = torch.empty(-ROWS, width, -HEIGHT, -WIDTH), torch.empty(-ROWS, -TOKENS, config.cross_attention_dim)
        skips, middle = UNet(config).encode(x, torch.empty(-ROWS, 4 * width), text)
    *shapes, last = (Input((ROWS, y.shape[1], *(-side for side in y.shape[2:]))) for y in (*skips, middle))
    return shapes, last


class OpenVINOAutoencoder(Autoencoder):
    """An autoencoder. Natively: pictures too large to be done whole (`kernels.strips`)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.runner = Runner()

    def encode(self, pictures: Tensor, memory: float = MEMORY) -> Tensor:
        """As `Autoencoder.encode`."""
        f, config = self.config.downscale, self.config
        shape = Input((-1, config.in_channels, HEIGHT * f, WIDTH * f))
        if pictures.ndim != 4 or pictures.shape[1] != config.in_channels or not self.fits(pictures, 1, memory):
            return super().encode(pictures, memory)  # which says what is wrong
        method = Method("encode", lambda network, pictures: network.encode(pictures), {"pictures": shape})
        answers = self.runner(self, Autoencoder, method, {"pictures": pictures})
        return super().encode(pictures, memory) if answers is None else answers[0]

    def decode(self, latents: Tensor, memory: float = MEMORY) -> Tensor:
        """As `Autoencoder.decode`."""
        shape = Input((-1, self.config.latent_channels, HEIGHT, WIDTH))
        f = self.config.downscale
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels or not self.fits(latents, f, memory):
            return super().decode(latents, memory)  # which says what is wrong
        method = Method("decode", lambda network, latents: network.decode(latents), {"latents": shape})
        answers = self.runner(self, Autoencoder, method, {"latents": latents})
        return super().decode(latents, memory) if answers is None else answers[0]


class OpenVINOTextEncoder(TextEncoder):
    """A text encoder."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__(config)
        self.runner = Runner()

    def forward(self, ids: Tensor, clip_skip: int = 0, embeddings: Tensor | None = None) -> Tensor:
        """As `TextEncoder.forward`."""
        answers = self._answers("forward", ids, clip_skip, embeddings)
        return super().forward(ids, clip_skip, embeddings) if answers is None else answers[0]

    def penultimate(
        self, ids: Tensor, clip_skip: int = 0, embeddings: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `TextEncoder.penultimate`."""
        answers = self._answers("penultimate", ids, clip_skip, embeddings)
        if answers is None:
            return super().penultimate(ids, clip_skip, embeddings)
        return answers[0], answers[1] if len(answers) > 1 else None

    def _answers(self, name: str, ids: Tensor, clip_skip: int, embeddings: Tensor | None) -> list[Tensor] | None:
        # A graph doesn't look whether ids, length and clip_skip can be: who asks for what can't is told natively.
        config = self.config
        fits = ids.ndim == 2 and ids.shape[1] <= config.max_position_embeddings and ids.numel() > 0
        if not fits or not 0 <= clip_skip <= config.num_hidden_layers + 1:
            return None
        inputs = {"ids": ids}
        if embeddings is None:
            if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
                return None
        elif embeddings.shape != (*ids.shape, config.hidden_size):
            return None
        else:
            inputs["embeddings"] = embeddings

        def call(network: nn.Module, **tensors: Tensor) -> Answer:
            answers = getattr(network, name)(**tensors, clip_skip=clip_skip)
            return tuple(y for y in answers if y is not None) if isinstance(answers, tuple) else answers

        length = -min(abs(TOKENS), config.max_position_embeddings)
        shapes = {"ids": Input((ROWS, length), torch.int64)}
        if embeddings is not None:
            shapes["embeddings"] = Input((ROWS, length, config.hidden_size))
        return self.runner(self, TextEncoder, Method(f"{name} {clip_skip} {' '.join(shapes)}", call, shapes), inputs)
