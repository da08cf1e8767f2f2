"""Training an autoencoder: reconstruction in pixels and in features, a whisper of KL, and a discriminator
(Rombach et al. 2022, arXiv 2112.10752, sec. 3.1 and app. G; Esser et al. 2021, arXiv 2012.09841, sec. 3.1).

Shapes: N pictures, H W height and width of a crop, C latent channels, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from ..models.autoencoder import Autoencoder
from ..models.config import AutoencoderConfig
from ..models.discriminator import PatchDiscriminator
from .adversarial import adaptive_weight, deceiver_loss, discriminator_loss
from .config import LoopConfig
from .crops import SHOWN, Crops
from .latents import stacked
from .loop import step_seed
from .parallel import Share
from .perceptual import OWN

SCALINGS = ("folded", "factor", "kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderRecipe(LoopConfig):
    """An autoencoder from nothing, or from a finished one; on the built-in scenes or on one's own pictures."""

    # The network; a finished one (--model) has its own.
    widths: tuple[int, ...] = (16, 32, 96, 192)  # of its levels: n levels make latents of a 2^(n-1)th the size
    layers: int = 1
    groups: int = 4
    latent_channels: int = 4
    # The pictures.
    size: int = 128  # side of the square whose pixels a whole picture has about as many of
    crop: int = 64  # side of the crops until `whole_from`
    flip: bool = False  # mirror half of one's own pictures
    whole_from: float = 0.8  # fraction of the run after which whole pictures are used (as many pixels a batch)
    decoder_from: float = 1.0  # fraction of the run after which only the decoder goes on, and the latents are final
    held_out: int = 0  # pictures that are never learned from, for `validate_every` and `sample_every`
    collages: float = 0.2  # fraction of pictures off the grid, with emoji that are no object of ours (scenes)
    # The loss.
    kl: float = 1e-6  # weight of the KL term, a sum over a latent
    l2: float = 1.0  # weight of the mean squared error
    l1: float = 0.1  # weight of the mean absolute error
    perceptual: float = 0.0  # weight of the distance in features
    features: str = OWN  # whose: "own" (of the embedded model's autoencoder), or LPIPS' files: vgg.pth,vgg16.pth
    adversarial: float = 0.0  # weight of the discriminator beside the reconstruction, times the adaptive one
    adversarial_from: float = 0.5  # fraction of the run after which the discriminator plays
    discriminator_width: int = 64  # of its first layer
    discriminator_layers: int = 3  # that halve: an answer sees 70 x 70 pixels with 3, 34 x 34 with 2
    discriminator_lr: float = 2e-4
    # The result.
    scaling: str = "folded"  # the latents' deviation of 1: in the convolutions, as a "factor" beside them, or "kept"


def network(recipe: AutoencoderRecipe) -> Autoencoder:
    """The untrained network of a recipe."""
    config = AutoencoderConfig(
        block_out_channels=recipe.widths, layers_per_block=recipe.layers, norm_num_groups=recipe.groups,
        latent_channels=recipe.latent_channels, sample_size=recipe.size, scaling_factor=1.0, force_upcast=False,
    )  # fmt: skip
    torch.manual_seed(step_seed(recipe.seed, -1))
    return Autoencoder(config)


@dataclass
class AutoencoderStage:
    """The loop's view of an autoencoder's training.

    `distance`, of wanted and given pictures to [N], counts by the recipe's weight `perceptual`; None: it is left out.
    """

    config: AutoencoderRecipe
    autoencoder: Autoencoder
    crops: Crops
    distance: nn.Module | None = None
    discriminator: PatchDiscriminator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        c = self.config
        if c.adversarial:
            torch.manual_seed(step_seed(c.seed, -2))
            channels = self.autoencoder.config.out_channels
            built = PatchDiscriminator(channels, c.discriminator_width, c.discriminator_layers)
            # Made on the CPU, and a rehearsal's, which has no values, can't be moved, not even to where it is.
            self.discriminator = built if c.device == "cpu" else built.to(c.device)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder}

    @property
    def opponents(self) -> dict[str, nn.Module]:
        """What learns against the autoencoder, with an optimizer of its own (see `loop.Stage`)."""
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    @property
    def opponents_lr(self) -> float:
        return self.config.discriminator_lr

    def batch(self, step: int, share: Share) -> Tensor:
        """Pictures [N, 3, H, W] in -1..1."""
        return self.crops.batch(step, share)

    def validation(self) -> list[Tensor]:
        """Whole pictures that no step shows, one by one. The discriminator has no part in their loss."""
        return [stacked([picture]) for picture in self.crops.held_out()]

    def sheet(self) -> Image.Image:
        """Eight of them above what the autoencoder makes of their latents' means."""
        shown = [stacked([picture]) for picture in islice(self.crops.held_out(), SHOWN)]
        with torch.no_grad():
            back = [self.autoencoder(picture.to(self.config.device)).cpu() for picture in shown]
        sheet = Image.new("RGB", (sum(p.shape[3] for p in shown), 2 * max(p.shape[2] for p in shown)))
        x = 0
        for pair in zip(shown, back, strict=True):
            for row, picture in enumerate(pair):
                pixels = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                sheet.paste(Image.fromarray(pixels), (x, row * sheet.height // 2))
            x += pair[0].shape[3]
        return sheet

    def loss(self, batch: Tensor, step: int, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        pictures = batch.to(c.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and step < c.decoder_from * c.steps):
            mean, logvar = self.autoencoder.encode(pictures).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        noise = share.of(torch.randn(len(mean) * share.world, *mean.shape[1:])).to(mean.device)
        y = self.autoencoder.decode(mean + torch.exp(0.5 * logvar) * noise).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        psnr = -10 * torch.log10(F.mse_loss(y.detach().clamp(-1, 1), pictures) / 4)
        figures = {"psnr": psnr, "kl": kl.detach(), "deviation": mean.detach().std()}
        reconstruction = c.l2 * F.mse_loss(y, pictures) + c.l1 * F.l1_loss(y, pictures)
        if self.distance is not None:
            distance = self.distance(pictures, y).mean()
            figures["distance"] = distance.detach()
            reconstruction = reconstruction + c.perceptual * distance
        loss = reconstruction + c.kl * kl
        if self.discriminator is not None and torch.is_grad_enabled():
            against, told = self._against(pictures, y, reconstruction, step)
            loss, figures = loss + against, figures | told
        return loss, figures

    def _against(
        self, pictures: Tensor, y: Tensor, reconstruction: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What both sides of the game minimise, and figures of it: nothing before `adversarial_from`.

        Both learn in the same step from the same pictures: the autoencoder's loss goes through the discriminator's
        present weights without moving them, the discriminator's sees pictures without a way back.
        """
        c, judge = self.config, self.discriminator
        assert judge is not None
        nothing = torch.zeros((), device=y.device)
        if step < c.adversarial_from * c.steps:
            return nothing, dict.fromkeys(("deception", "weight", "discriminator"), nothing)
        still = {name: p.detach() for name, p in judge.named_parameters()}
        deception = deceiver_loss(functional_call(judge, still, (y,)))
        weight = adaptive_weight(reconstruction, deception, self.autoencoder.decoder.conv_out.weight)
        losing = discriminator_loss(judge(pictures), judge(y.detach()))
        figures = {"deception": deception.detach(), "weight": weight, "discriminator": losing.detach()}
        return c.adversarial * weight * deception + losing, figures
