"""How alike two pictures look: distances between what a network sees in them (Zhang et al. 2018, arXiv 1801.03924), and
whether a discriminator can tell them apart: the losses of both sides, and the weight between two losses.

Shapes: N pictures, H W height and width, K answers of C_k channels and h_k w_k pixels, p q rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.autoencoder import Autoencoder, DownLevel, Encoder
from ..models.layers import ResnetBlock
from .parallel import sum_over_ranks

EPS = 1e-10
LARGEST = 1e4  # of the adaptive weight
TINY = 1e-4  # keeps it from dividing by nothing
OWN = "own"  # names the features that come with the package


class EncoderFeatures(nn.Module):
    """What an autoencoder's encoder sees: [N, 3, H, W] in -1..1 -> K answers of its resnets, each [N, C_k, h_k, w_k].

    Frozen. Zhang et al. found features learned without labels nearly as good as a classifier's (their sec. 4); those of
    an encoder come with every latent diffusion model. They are taken inside each resnet after its second norm: what
    goes past the norms carries a picture's brightness, and would count a fainter picture worse than a blurred one.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, seen = self.encoder.conv_in(pictures), []
        for level in self.encoder.down:
            assert isinstance(level, DownLevel)
            for resnet in level.resnets:
                assert isinstance(resnet, ResnetBlock)
                y = F.silu(resnet.norm2(resnet.conv1(F.silu(resnet.norm1(x)))))
                seen.append(y)
                y = resnet.conv2(y)
                x = y + (x if resnet.shortcut is None else resnet.shortcut(x))
            if level.downsample is not None:
                x = level.downsample(F.pad(x, (0, 1, 0, 1)))
        return seen


class PerceptualDistance(nn.Module):
    """Pictures [N, 3, H, W] in -1..1 and others to their distances [N], 0 where they are the same.

    Zhang et al., eq. 1: each layer's answers are brought to unit length pixel by pixel, and the squared differences are
    averaged over pixels and summed over channels and layers. All channels count alike (the paper's "baseline"; its
    linear weights belong to one network and are read with it).
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, wanted: Tensor, given: Tensor) -> Tensor:
        """Gradients flow to `given` alone."""
        with torch.no_grad():
            theirs: Sequence[Tensor] = self.features(wanted)
        ours: Sequence[Tensor] = self.features(given)
        total = torch.zeros(len(given), device=given.device)
        for a, b in zip(theirs, ours, strict=True):
            total = total + (_unit(a.float()) - _unit(b.float())).square().sum(dim=1).mean(dim=(1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    """[N, C, h, w] with every pixel's C numbers at length 1."""
    return x / (x.square().sum(dim=1, keepdim=True) + EPS).sqrt()


def own_features() -> EncoderFeatures:
    """The features that come with the package: of the embedded model's autoencoder."""
    import darkroom

    autoencoder = darkroom.load(device="cpu", dtype="float32").autoencoder
    assert isinstance(autoencoder, Autoencoder)
    return EncoderFeatures(autoencoder.encoder)


class LpipsDistance(nn.Module):
    """LPIPS of a given network, in float32 whatever the rest is computed in: what it compares is nearly equal."""

    def __init__(self, lpips: nn.Module) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, wanted: Tensor, given: Tensor) -> Tensor:
        """As `PerceptualDistance.forward`. Pictures smaller than 32 pixels raise ValueError."""
        with torch.autocast(given.device.type, enabled=False):
            distances: Tensor = self.lpips(wanted.detach().float(), given.float())
        return distances


def open_distance(features: str) -> nn.Module:
    """What a recipe's `features` names: wanted and given pictures [N, 3, H, W] in -1..1 to distances [N].

    "own", or LPIPS' files with commas between them: its heads and torchvision's classifier (`formats.features`). Raises
    CheckpointError for what is no such thing.
    """
    if features == OWN:
        return PerceptualDistance(own_features())
    from ..evaluate.networks import load_lpips
    from ..formats.features import open_features, require

    found = open_features([part.strip() for part in features.split(",") if part.strip()])
    return LpipsDistance(load_lpips(require(found, "lpips", "the perceptual term")))


# --- against a discriminator


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """The hinge loss of a discriminator's answers [N, 1, p, q] (Lim & Ye 2017, arXiv 1705.02894, eq. 11): a scalar.

    Nothing is gained by calling a real patch more than 1, or a made one less than -1.
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def generator_loss(made: Tensor) -> Tensor:
    """What an autoencoder minimises against it: minus the mean of the answers to what it made."""
    return -made.float().mean()


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last: Tensor) -> Tensor:
    """How much an adversarial loss counts beside a reconstruction's: a detached scalar in 0..10,000.

    lambda = |grad(reconstruction)| / (|grad(generator)| + 1e-4), gradients by the weights of the decoder's `last` layer
    (Esser et al. 2021, arXiv 2012.09841, eq. 7; the constant is that of their code): both losses then pull at it alike.
    The gradients are those of all processes' rows together. The losses can still be gone back through afterwards.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (against,) = torch.autograd.grad(generator, last, retain_graph=True)
    # autograd may hand out one tensor twice, or a view of one: what is summed in place must be ours.
    both = [wanted.float().clone(), against.float().clone()]
    sum_over_ranks(both)
    weight: Tensor = (both[0].norm() / (both[1].norm() + TINY)).clamp(0.0, LARGEST)
    return weight.detach()
