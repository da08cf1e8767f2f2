"""The U-Net of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752, sec. 3.3; blocks of Ho et al., 2006.11239).

Shapes: N rows, C_in / C_out channels of the latent that comes and goes, C channels inside, H W latent size, L = H W
pixels, T tokens, D width of the text, E width of the time embedding. The finest level comes first on the way down and
last on the way up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attend
from ..kernels.exact import GroupNorm, silu
from ..kernels.packed import ready
from .config import UNetConfig
from .layers import Block, ResnetBlock, Upsample

EPS = 1e-6  # the GroupNorm in front of a spatial transformer, whatever the resnets use
MAX_PERIOD = 10_000.0  # longest wavelength of the timestep embedding, over 2 pi
NONE: Mapping[str, Tensor] = {}
SHALLOW = 1  # blocks of the finest level that run where cached features are reused: so many down, one more up


@dataclass(slots=True, eq=False)
class CachedFeatures:
    """What all but the outermost blocks of a U-Net make of its input: [N, C, H, W], in front of the last two blocks.

    It changes slowly from step to step (Ma et al. 2023, DeepCache, arXiv 2312.00858, sec. 3.2). A call that is given
    features runs the outermost blocks only; a call that is given none leaves them here.
    """

    features: Tensor | None = None


def timestep_embedding(timesteps: Tensor, width: int, cosines_first: bool = True, freq_shift: float = 0.0) -> Tensor:
    """Sinusoids of `timesteps` (arXiv 1706.03762, sec. 3.5): [N], fractions allowed -> [N, width], float32.

    The half = width // 2 frequencies fall geometrically from 1 to about 1 / 10000 as
    `10000 ** (-i / (half - freq_shift))`.
    """
    half = width // 2
    # In float32 whatever the network's type: in half precision neighbouring timesteps would have one embedding.
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    waves = (angles.cos(), angles.sin()) if cosines_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=1), (0, width % 2))


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids [N, width] -> [N, E]; LCM adds an embedding [N, cond_width] in front."""

    def __init__(self, width: int, out: int, cond_width: int | None) -> None:
        super().__init__()
        self.cond = nn.Linear(cond_width, width, bias=False) if cond_width is not None else None
        self.linear1 = nn.Linear(width, out)
        self.linear2 = nn.Linear(out, out)

    def forward(self, waves: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.cond is not None and cond is not None:
            waves = waves + self.cond(cond)
        y: Tensor = self.linear2(silu(self.linear1(waves)))
        return y


class Attention(nn.Module):
    """Attention of pixels [N, L, C] to themselves, or to a text [N, T, D].

    In rows that `identity` [N] (bool) names, each pixel attends to itself alone (context is x).
    """

    def __init__(self, width: int, context_width: int, heads: int, upcast: bool) -> None:
        super().__init__()
        self.heads, self.upcast = heads, upcast
        # The published weights have biases on the last layer only.
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context_width, width, bias=False)
        self.v = nn.Linear(context_width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, identity: Tensor | None = None) -> Tensor:
        v = self.v(context)
        y = attend(self.q(x), self.k(context), v, self.heads, upcast=self.upcast)
        if identity is not None:
            y = torch.where(identity[:, None, None], v, y)
        projected: Tensor = self.out(y)
        return projected


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): a four times wider layer, gated by GELU. [N, L, C] -> [N, L, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Value and gate in one product, each four times as wide as what comes in.
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = self.out(value * F.gelu(gate))
        return y


class TransformerBlock(nn.Module):
    """Self-attention (attention to the text, if `only_cross`), attention to the text, feed-forward; each added."""

    def __init__(self, width: int, text_width: int, heads: int, only_cross: bool, upcast: bool) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, text_width if only_cross else width, heads, upcast)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, text_width, heads, upcast)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor, identity: Tensor | None = None) -> Tensor:
        # Normalised before each part, and added after it ("pre-norm"): what comes in reaches the end unchanged.
        y = self.norm1(x)
        x = x + (self.attn1(y, text) if self.only_cross else self.attn1(y, y, identity))
        x = x + self.attn2(self.norm2(x), text)
        x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(Block):
    """Transformer blocks over a level's pixels, added to their input: [N, C, H, W], text [N, T, D] -> [N, C, H, W]."""

    def __init__(self, config: UNetConfig, level: int, only_cross: bool) -> None:
        super().__init__()
        c, heads = config.block_out_channels[level], config.heads[level]
        self.linear = config.use_linear_projection
        self.norm = GroupNorm(config.norm_num_groups, c, eps=EPS)
        self.proj_in = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(c, config.cross_attention_dim, heads, only_cross, config.upcast_attention)
            for _ in range(config.transformer_layers[level])
        )
        self.proj_out = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, text: Tensor, identity: Tensor | None = None) -> Tensor:
        # SD 1.x projects the picture by 1x1 convolutions, SD 2 and SDXL the tokens by linear layers: the same numbers,
        # but other shapes of weights in the files.
        size = x.shape[2:]
        y = self.norm(x)
        if not self.linear:
            y = self.proj_in(y)
        y = y.flatten(2).transpose(1, 2).contiguous()  # [N, L, C]: every layer of the blocks runs over C
        if self.linear:
            y = self.proj_in(y)
        for block in self.blocks:
            y = block(y, text, identity)
        if self.linear:
            y = self.proj_out(y)
        y = y.transpose(1, 2).unflatten(2, size)  # [N, C, H, W]
        if not self.linear:
            y = self.proj_out(y)
        x = x + y
        return x


class DownLevel(nn.Module):
    """Resnets of one size, each followed by a transformer where the level has them, then halving (rounded up)."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths, count = config.block_out_channels, config.layers_per_block[level]
        c_in, c = widths[max(level - 1, 0)], widths[level]
        self.resnets = nn.ModuleList(_resnet(config, c_in if i == 0 else c, c) for i in range(count))
        self.attentions = _transformers(config, level, count)
        self.downsample = nn.Conv2d(c, c, 3, stride=2, padding=1) if level < len(widths) - 1 else None

    def forward(
        self, x: Tensor, time: Tensor, text: Tensor, identity: Tensor | None = None, blocks: int | None = None
    ) -> list[Tensor]:
        """The outputs of every resnet (and transformer) and of the halving: the skips; the last one goes on.

        With `blocks`, only so many resnets (and transformers) run.
        """
        skips = []
        for i in range(len(self.resnets) if blocks is None else blocks):
            x = self.resnets[i](x, time)
            if self.attentions is not None:
                x = self.attentions[i](x, text, identity)
            skips.append(x)
        if self.downsample is not None and blocks is None:
            skips.append(self.downsample(x))
        return skips


class Middle(nn.Module):
    """The coarsest level: resnet, transformer, resnet; the first resnet alone in a network without attention here."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c = config.block_out_channels[-1]
        self.resnet1 = _resnet(config, c, c)
        self.attention = SpatialTransformer(config, -1, only_cross=False) if config.mid_block_attention else None
        self.resnet2 = _resnet(config, c, c) if config.mid_block_attention else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor, identity: Tensor | None = None) -> Tensor:
        x = self.resnet1(x, time)
        if self.attention is not None and self.resnet2 is not None:
            x = self.resnet2(self.attention(x, text, identity), time)
        return x


class UpLevel(nn.Module):
    """As the level going down with one resnet more; each resnet is given a skip beside its input. Then doubling."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths, count = config.block_out_channels, config.layers_per_block[level] + 1
        # The skips are taken back in reverse. A level's last one is what the level above halved (or `conv_in` gave)
        # and has that level's width; the first resnet's input comes from below and has the width there.
        below, c, above = widths[min(level + 1, len(widths) - 1)], widths[level], widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            _resnet(config, (below if i == 0 else c) + (above if i == count - 1 else c), c) for i in range(count)
        )
        self.attentions = _transformers(config, level, count)
        self.upsample = Upsample(c) if level > 0 else None

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        skips: list[Tensor],
        identity: Tensor | None = None,
        cached: CachedFeatures | None = None,
    ) -> Tensor:
        """Takes its skips from the end of `skips`; the next one there gives the size to grow to.

        With `cached`, of the finest level: where it has features x is them, else it is given them.
        """
        last = len(self.resnets) - 1 - SHALLOW
        for i in range(last if cached is not None and cached.features is not None else 0, len(self.resnets)):
            if cached is not None and i == last:
                cached.features = x
            # What comes from below first, then the skip: the order of the weights' input channels.
            x = self.resnets[i](torch.cat((x, skips.pop()), dim=1), time)
            if self.attentions is not None:
                x = self.attentions[i](x, text, identity)
        if self.upsample is not None:
            height, width = skips[-1].shape[2:]  # an odd size was rounded up on the way down
            x = self.upsample(x, (height, width))
        return x


class Encoder(nn.Module):
    """The way down and the middle, which a U-Net and a ControlNet share."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embed = TimeEmbedding(widths[0], 4 * widths[0], config.time_cond_proj_dim)
        classes = config.num_class_embeds
        self.class_embed = nn.Embedding(classes, 4 * widths[0]) if classes is not None else None
        added = config.projection_class_embeddings_input_dim
        self.size_embed = TimeEmbedding(added, 4 * widths[0], None) if added is not None else None
        self.down = nn.ModuleList(DownLevel(config, level) for level in range(len(widths)))
        self.mid = Middle(config) if config.mid_block else None

    def encode(
        self, x: Tensor, time: Tensor, text: Tensor, identity: Mapping[str, Tensor] = NONE
    ) -> tuple[list[Tensor], Tensor]:
        """What `conv_in` gave, [N, C, H, W] -> the skips, that one first, and the middle's answer."""
        skips = [x]
        for i, level in enumerate(self.down):
            skips += level(skips[-1], time, text, identity.get(f"down.{i}"))
        return skips, skips[-1] if self.mid is None else self.mid(skips[-1], time, text, identity.get("mid"))

    def embed_time(
        self,
        timesteps: Tensor,
        class_labels: Tensor | None = None,
        time_cond: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """What every resnet adds: of timesteps [N] (and class labels [N], LCM's embedding [N, ...]) -> [N, E].

        With size conditioning also of a pooled text [N, P] and sizes [N, S] (SDXL; arXiv 2307.01952, sec. 2.2).
        """
        config, dtype = self.config, self.conv_in.weight.dtype
        waves = timestep_embedding(timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        time: Tensor = self.time_embed(waves.to(dtype), None if time_cond is None else time_cond.to(dtype))
        if self.class_embed is not None:
            time = time + self.class_embed(class_labels)
        # Size conditioning: every number has sinusoids of its own, as a timestep has; behind the pooled text they go
        # through two layers, and the answer is added to the timestep's.
        if self.size_embed is not None and pooled is not None and sizes is not None:
            width = config.addition_time_embed_dim or 0
            each = timestep_embedding(sizes.flatten(), width, config.flip_sin_to_cos, config.freq_shift)
            together = torch.cat([pooled.float(), each.view(sizes.shape[0], -1)], dim=1)  # [N, P + S width]
            time = time + self.size_embed(together.to(dtype))
        return time

    def _check(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor,
        class_labels: Tensor | None,
        time_cond: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> None:
        """Raise ValueError, with the values, on inputs of another network's shape."""
        config, rows = self.config, len(x)
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ValueError(
                f"latents of shape {tuple(x.shape)} given; this network takes [N, {config.in_channels}, H, W]"
            )
        if text.ndim != 3 or text.shape[2] != config.cross_attention_dim:
            raise ValueError(
                f"text of shape {tuple(text.shape)} given; this network takes [N, T, {config.cross_attention_dim}]"
            )
        if len(text) != rows:
            raise ValueError(f"{len(text)} rows of text given for {rows} rows of latents")
        if timesteps.ndim > 1 or timesteps.numel() not in (1, rows):
            raise ValueError(f"timesteps of shape {tuple(timesteps.shape)} given for {rows} rows")
        classes, width = config.num_class_embeds, config.time_cond_proj_dim
        if classes is None and class_labels is not None:
            raise ValueError("class_labels given; this network has no classes")
        if classes is not None and class_labels is None:
            raise ValueError(f"no class_labels given; this network needs them, [N] in 0..{classes - 1}")
        if classes is not None and class_labels is not None:
            if class_labels.shape != x.shape[:1]:
                raise ValueError(f"class_labels of shape {tuple(class_labels.shape)} given for {rows} rows")
            on_cpu = class_labels.device.type == "cpu"  # elsewhere a look at the values would wait for the device
            if on_cpu and not all(0 <= label < classes for label in class_labels.tolist()):
                labels = class_labels.tolist()
                raise ValueError(f"class_labels {labels} given; this network has classes 0..{classes - 1}")
        if time_cond is not None and (width is None or time_cond.shape[-1] != width):
            shape = tuple(time_cond.shape)
            raise ValueError(f"time_cond of shape {shape} given; this network's time_cond_proj_dim is {width}")
        added, together = config.addition_time_embed_dim, config.projection_class_embeddings_input_dim
        if added is None or together is None:
            if pooled is not None or sizes is not None:
                raise ValueError("a pooled text or sizes given; this network is not told them")
        elif pooled is None or sizes is None:
            raise ValueError("no pooled text or no sizes given; this network needs them, [N, P] and [N, S]")
        elif pooled.ndim != 2 or sizes.ndim != 2 or len(pooled) != rows or len(sizes) != rows:
            raise ValueError(
                f"a pooled text {tuple(pooled.shape)} and sizes {tuple(sizes.shape)} given for {rows} rows"
            )
        elif pooled.shape[1] + added * sizes.shape[1] != together:
            width, count = pooled.shape[1], sizes.shape[1]
            raise ValueError(
                f"a pooled text of {width} and {count} sizes make {width + added * count}; "
                f"this network takes {together}"
            )


class UNet(Encoder):
    """UNet2DConditionModel: what a noisy latent holds, given its noise level and a text."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        self.up = nn.ModuleList(UpLevel(config, level) for level in reversed(range(len(widths))))
        self.norm_out = GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor,
        class_labels: Tensor | None = None,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
        time_cond: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        identity: Mapping[str, Tensor] = NONE,
        cached: CachedFeatures | None = None,
    ) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], computed in the dtype of the weights; any H and W.

        Args:
            timesteps: [N], 0..999, fractions allowed, each row its own (or one value for all).
            text: [N, T, D].
            class_labels: [N] integers, for a network with classes and only there.
            down_residuals: one a skip connection, in the order they arise (`conv_in` first): a ControlNet's, added.
            mid_residual: a ControlNet's, added to the middle.
            time_cond: [N, time_cond_proj_dim], LCM's guidance embedding.
            pooled, sizes: [N, P] and [N, S]: size conditioning, a pooled text and sizes in pixels. SDXL's only.
            identity: for the named levels ("down.0", "mid", "up.0" the coarsest, ...), the rows [N] (bool) in which
                self-attention there is the identity (perturbed-attention guidance).
            cached: features of an earlier call that this one reuses (and it takes no residuals), or where to leave its
                own.

        Raises ValueError on shapes that don't fit.
        """
        self._check(x, timesteps, text, class_labels, time_cond, pooled, sizes)
        dtype = self.conv_in.weight.dtype
        x, text = ready(self, x.to(dtype)), text.to(dtype)
        time = self.embed_time(timesteps.to(x.device).expand(x.shape[0]), class_labels, time_cond, pooled, sizes)
        # With features from an earlier call only the outermost blocks run, down and up.
        x, finest = self.conv_in(x), len(self.up) - 1
        if cached is not None and cached.features is not None:
            skips = [x, *self.down[0](x, time, text, identity.get("down.0"), SHALLOW)]
            x = self.up[finest](cached.features, time, text, skips, identity.get(f"up.{finest}"), cached)
            return self._out(x)
        skips, x = self.encode(x, time, text, identity)
        if down_residuals is not None:
            if len(down_residuals) != len(skips):
                raise ValueError(f"{len(down_residuals)} down_residuals given; this U-Net has {len(skips)} skips")
            skips = [_add(skip, residual) for skip, residual in zip(skips, down_residuals, strict=True)]
        if mid_residual is not None:
            x = _add(x, mid_residual)
        for i, level in enumerate(self.up):
            x = level(x, time, text, skips, identity.get(f"up.{i}"), cached if i == finest else None)
        return self._out(x)

    def _out(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(silu(self.norm_out(x)))
        return y


def _add(x: Tensor, residual: Tensor) -> Tensor:
    """Add a ControlNet's residual, which must have the shape of what it corrects."""
    if residual.shape != x.shape:
        raise ValueError(f"a residual of shape {tuple(residual.shape)} given where the U-Net has {tuple(x.shape)}")
    return x + residual.to(x.dtype)


def _resnet(config: UNetConfig, c_in: int, c_out: int) -> ResnetBlock:
    return ResnetBlock(c_in, c_out, config.norm_num_groups, config.norm_eps, 4 * config.block_out_channels[0])


def _transformers(config: UNetConfig, level: int, count: int) -> nn.ModuleList | None:
    """One transformer for each of a level's `count` resnets, if it has them at all."""
    if not config.attention_levels[level]:
        return None
    only_cross = config.only_cross_attention[level]
    return nn.ModuleList(SpatialTransformer(config, level, only_cross) for _ in range(count))
