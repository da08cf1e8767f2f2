"""A loaded model as one value: what `load` makes, `Pipeline` draws with, training changes and `save` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .diffusion.schedule import Schedule
from .formats.save import Contents

if TYPE_CHECKING:
    from torch import nn

    from .formats.checkpoint import Checkpoint
    from .formats.layouts import Part
    from .models.autoencoder import Autoencoder
    from .models.text_encoder import TextEncoder
    from .models.unet import UNet
    from .prompts.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """Networks, what their texts are read with, the noise levels they know, and what suits them.

    `dataclasses.replace` makes another of it that shares the rest.
    """

    unet: UNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    scheduler_config: Mapping[str, Any]  # as in scheduler_config.json: the schedule, and which sampler it is meant for
    text_encoder_2: TextEncoder | None = None  # SDXL's second, and
    tokenizer_2: Tokenizer | None = None  # what that one reads with; None: the same
    zero_negative: bool = False  # an empty negative prompt means zeros (SDXL)
    low_res_scheduler_config: Mapping[str, Any] | None = None  # of upscalers: how the small picture is noised
    defaults: Mapping[str, float] | None = None  # steps, guidance_scale, refine_strength; None: as the checkpoint says
    checkpoint: Checkpoint | None = None  # where it came from; None: networks made by hand
    name: str = ""

    def __post_init__(self) -> None:
        origin = self.checkpoint
        told: dict[str, Any] = {"defaults": {} if origin is None else origin.defaults} if self.defaults is None else {}
        if origin is not None:
            told["name"] = self.name or origin.name
            told["low_res_scheduler_config"] = self.low_res_scheduler_config or origin.low_res_scheduler_config
        for name, value in told.items():
            object.__setattr__(self, name, value)

    @property
    def text_encoders(self) -> dict[str, TextEncoder]:
        """One, or SDXL's two, in order."""
        second = {} if self.text_encoder_2 is None else {"text_encoder_2": self.text_encoder_2}
        return {"text_encoder": self.text_encoder, **second}

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """What each of the text encoders reads with."""
        own = {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2 or self.tokenizer}
        return {part: own[part] for part in self.text_encoders}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks."""
        return {"unet": self.unet, "autoencoder": self.autoencoder, **self.text_encoders}

    @property
    def grid(self) -> int:
        """Of what a side of a picture must be a multiple, in pixels (64 for Stable Diffusion)."""
        return self.unet.config.grid * self.autoencoder.config.downscale

    @cached_property
    def schedule(self) -> Schedule:
        """The noise levels that the U-Net was trained at."""
        return Schedule.from_config(self.scheduler_config)

    @cached_property
    def low_res_schedule(self) -> Schedule:
        """What upscaling models noise the small picture with; DDPM's own betas where the checkpoint doesn't say."""
        return Schedule.from_config(self.low_res_scheduler_config or {})

    @property
    def contents(self) -> Contents:
        """What is written of it."""
        networks: dict[Any, Any] = self.networks
        return Contents(
            configs={part: network.config for part, network in networks.items()},
            states={part: network.state_dict() for part, network in networks.items()},
            tokenizers=cast("Mapping[Part, Tokenizer]", self.tokenizers),
            scheduler_config=self.scheduler_config,
            low_res_scheduler_config=self.low_res_scheduler_config,
            zero_negative=self.zero_negative,
            defaults=self.defaults or {},
        )
