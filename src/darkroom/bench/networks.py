"""The networks that are measured, with random weights: their speed is that of trained ones.

Each function returns a run, to be called again and again, and the network it runs; on the device "meta" nothing is
computed, which is how work is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..devices import DTYPES as DTYPES
from ..diffusion.condition import Condition
from ..diffusion.denoiser import Denoiser
from ..diffusion.guidance import ClassifierFree
from ..diffusion.schedule import Schedule
from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig, UNetConfig
from ..models.presets import SD2_UNET, SD15_AUTOENCODER, SD15_TEXT_ENCODER, SD15_UNET
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet

_EMBEDDED = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 128, 192),
    layers_per_block=(1, 1, 1),
    attention_levels=(False, True, True),
    only_cross_attention=(False, False, False),
    transformer_layers=(1, 1, 1),
    heads=(4, 4, 4),
    cross_attention_dim=192,
    norm_num_groups=16,
)
UNETS = {
    "sd15": SD15_UNET,
    "sd2": SD2_UNET,
    "embedded": _EMBEDDED,
    "tiny": replace(_EMBEDDED, block_out_channels=(16, 32, 48), cross_attention_dim=32),
}
_SMALL = AutoencoderConfig(block_out_channels=(16, 32, 96, 192), layers_per_block=1, norm_num_groups=4)
AUTOENCODERS = {
    "sd15": SD15_AUTOENCODER,
    "sd2": SD15_AUTOENCODER,
    "embedded": _SMALL,
    "tiny": replace(_SMALL, block_out_channels=(8, 8, 16, 16), norm_num_groups=8),
}
TOKENS = 77
SCALE = 7.5
SIGMA = 1.6  # about timestep 475 of Stable Diffusion's schedule

Network = TypeVar("Network", bound=nn.Module)


def with_random_weights(
    make: Callable[[], Network], device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Network:
    """A network with its initial weights, drawn in place and in its own dtype: never a second copy of them."""
    with torch.device("meta"):
        network = make().to(dtype)
    if str(device) != "meta":
        torch.manual_seed(seed)
        network.to_empty(device=device)
        for module in reversed(list(network.modules())):  # the whole last: it may know better than its layers
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return network.eval().requires_grad_(False)


def guided_step(
    config: UNetConfig, size: int, device: str, dtype: torch.dtype, unet: UNet | None = None
) -> tuple[Callable[[], Tensor], UNet]:
    """What sampling repeats: prompt and negative prompt through the U-Net as two rows, and guidance.

    `size` is the picture's side in pixels. The run returns the denoised latent [1, C, h, w] float32 of the latent and
    texts of `step_inputs`.
    """
    network = with_random_weights(lambda: UNet(config), device, dtype) if unet is None else unet
    x, texts = step_inputs(config, size, device, dtype)
    denoiser = Denoiser(network, schedule())
    guidance = ClassifierFree(Condition(texts[0]), Condition(texts[1]), scale=SCALE)

    @torch.no_grad()
    def run() -> Tensor:
        rows = guidance.branches(SIGMA)
        answers = denoiser(torch.stack([x] * len(rows)), SIGMA, rows)
        return finished(guidance.combine(list(answers), x, SIGMA)[None])

    return run, network


def schedule() -> Schedule:
    """Stable Diffusion's."""
    return Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})


def step_inputs(config: UNetConfig, size: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A latent at noise level SIGMA [C, h, w] float32, and a prompt's and a negative prompt's texts [2, T, D]."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(config.in_channels, size // 8, size // 8, generator=random) * (1 + SIGMA**2) ** 0.5
    texts = torch.randn(2, TOKENS, config.cross_attention_dim, generator=random)
    return x.to(device), texts.to(device=device, dtype=dtype)


def decode_run(
    config: AutoencoderConfig, size: int, device: str, dtype: torch.dtype, autoencoder: Autoencoder | None = None
) -> tuple[Callable[[], Tensor], Autoencoder]:
    """A latent becomes a picture of `size` x `size` pixels [1, 3, size, size]."""
    network = with_random_weights(lambda: Autoencoder(config), device, dtype) if autoencoder is None else autoencoder
    z = decode_input(config, size, device, dtype)

    @torch.no_grad()
    def run() -> Tensor:
        return finished(network.decode(z))

    return run, network


def decode_input(config: AutoencoderConfig, size: int, device: str, dtype: torch.dtype) -> Tensor:
    """A latent [1, C, h, w] of unit deviation."""
    f = config.downscale
    random = torch.Generator().manual_seed(2)
    z = torch.randn(1, config.latent_channels, size // f, size // f, generator=random)
    return z.to(device=device, dtype=dtype)


def encode_text(device: str, dtype: torch.dtype) -> tuple[Callable[[], Tensor], TextEncoder]:
    """One prompt of Stable Diffusion 1.5: 77 tokens through the text encoder, [1, T, D]."""
    network = with_random_weights(lambda: TextEncoder(SD15_TEXT_ENCODER), device, dtype)
    ids = torch.randint(0, SD15_TEXT_ENCODER.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    ids = ids.to(device)

    @torch.no_grad()
    def run() -> Tensor:
        return finished(network(ids))

    return run, network


def finished(answer: Tensor) -> Tensor:
    """The answer when it is there: a GPU's calls return before."""
    if answer.is_cuda:
        torch.cuda.synchronize()
    return answer
