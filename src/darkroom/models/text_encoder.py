"""The text encoder of Stable Diffusion: CLIP's (Radford et al. 2021, arXiv 2103.00020, sec. 2.4; the layers of GPT-2).

Shapes: N prompts, T tokens (77 for the published models), D = hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attend
from ..kernels.packed import ready
from .config import TextEncoderConfig, VisionEncoderConfig
from .layers import Block


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP has (Hendrycks & Gimpel 2016, arXiv 1606.08415, sec. 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Attention of tokens to each other, or (`causal`) only to those before them: [N, T, D] -> [N, T, D]."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(attend(self.q(x), self.k(x), self.v(x), self.heads, causal=self.causal))
        return y


class Layer(Block):
    """A pre-norm transformer layer: attention, then two linear layers, each added: [N, T, D] -> [N, T, D]."""

    def __init__(self, config: TextEncoderConfig | VisionEncoderConfig, causal: bool = True) -> None:
        super().__init__()
        width = config.hidden_size
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SelfAttention(width, config.num_attention_heads, causal)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x


def embedding_table(count: int, width: int) -> nn.Embedding:
    """A table without its first values: drawing normal ones on the meta device costs torch over a second of imports."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)  # type: ignore[no-untyped-call]
    return table


@torch.no_grad()
def draw_weights(network: nn.Module, config: TextEncoderConfig | VisionEncoderConfig) -> None:
    """CLIP's own initial weights: normal, narrower with width, and with depth where a layer adds to its input."""
    # Each layer adds twice to its input (attention, feed-forward), so what is added gets narrower by sqrt(2 layers):
    # the sum keeps its size at any depth (GPT-2).
    inner = config.hidden_size**-0.5
    added = inner * (2 * max(config.num_hidden_layers, 1)) ** -0.5
    std = {"q": inner, "k": inner, "v": inner, "out": added, "fc1": inner * 2**-0.5, "fc2": added}
    std["projection"] = inner
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std[name.rsplit(".", 1)[-1]])
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class TextEncoder(nn.Module):
    """CLIPTextModel: token ids to one embedding a token."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = embedding_table(config.vocab_size, config.hidden_size)
        self.position_embedding = embedding_table(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False) if config.projection else None
        )
        if not self.final_norm.weight.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """CLIP's own initial weights, see `draw_weights`."""
        draw_weights(self, self.config)

    def forward(self, ids: Tensor, clip_skip: int = 0, embeddings: Tensor | None = None) -> Tensor:
        """Token ids [N, T] -> [N, T, D], after the final norm.

        `clip_skip` n leaves out the last n - 1 layers (A1111's counting: 0 and 1 leave out none, 2 takes the
        penultimate layer's output). `embeddings` [N, T, D], where given, stand in for the looked-up tokens. Raises
        ValueError on more tokens than positions, an id outside the vocabulary, or a clip_skip outside 0..layers + 1.
        """
        *_, x = self._run(ids, clip_skip, embeddings)
        y: Tensor = self.final_norm(x)
        return y

    def penultimate(
        self, ids: Tensor, clip_skip: int = 0, embeddings: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What SDXL takes of a text: ids [N, T] -> ([N, T, D], [N, P] or None where there is no projection).

        The first is the output of the last layer but one (of the n-th from the end for `clip_skip` n >= 2), without the
        final norm; the second the last layer's at the end of the text (the first EOS), normed and projected. Raises
        ValueError as `forward` does.
        """
        count = len(self.layers)
        if clip_skip > count + 1:
            raise ValueError(f"clip_skip={clip_skip} is outside 0..{count + 1} of this text encoder of {count} layers")
        states = self._run(ids, min(clip_skip, 1), embeddings)
        # states[-1] is the last layer's, so the last but one is states[-2].
        hidden = states[-min(max(clip_skip, 2), len(states))]
        if self.projection is None:
            return hidden, None
        eos = self.config.eos_token_id
        # A config of transformers' first versions says 2 for the id that is the highest of CLIP's vocabulary.
        ends = ids.argmax(dim=1) if eos == 2 else (ids == eos).int().argmax(dim=1)
        last = self.final_norm(states[-1])[torch.arange(ids.shape[0], device=ids.device), ends]
        pooled: Tensor = self.projection(last)
        return hidden, pooled

    def _run(self, ids: Tensor, clip_skip: int, embeddings: Tensor | None) -> list[Tensor]:
        """The embedded tokens and the output of each layer, without the last `clip_skip` - 1: each [N, T, D]."""
        count, width, positions = len(self.layers), self.config.hidden_size, self.config.max_position_embeddings
        x = self._look_up(ids) if embeddings is None else embeddings.to(self.token_embedding.weight.dtype)
        if x.ndim != 3 or x.shape[2] != width:
            raise ValueError(f"embeddings of shape {tuple(x.shape)} given; this text encoder takes [N, T, {width}]")
        if x.shape[1] > positions:
            raise ValueError(f"{x.shape[1]} tokens given; this text encoder takes at most {positions}")
        if not 0 <= clip_skip <= count + 1:
            raise ValueError(f"clip_skip={clip_skip} is outside 0..{count + 1} of this text encoder of {count} layers")
        states = [ready(self, x) + self.position_embedding.weight[: x.shape[1]]]
        for layer in self.layers[: count - max(clip_skip - 1, 0)]:
            states.append(layer(states[-1]))
        return states

    def _look_up(self, ids: Tensor) -> Tensor:
        """Look up [N, T] ids -> [N, T, D]."""
        if ids.ndim != 2:
            raise ValueError(f"token ids of shape {tuple(ids.shape)} given; this text encoder takes [N, T]")
        if ids.device.type == "cpu" and ids.numel():  # elsewhere the check would wait for the device
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise ValueError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}")
        x: Tensor = self.token_embedding(ids)
        return x
