"""Whether pictures and captions find each other: how well a CLIP was trained.

Shapes: N pictures and their captions, P width of their common space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.clip import Clip
from ..prompts.tokenizer import Tokenizer
from ..toy.objects import with_article
from ..toy.scenes import Scene, draw_scene, render_scene
from .text_encoder import pixels_of

ROWS = 50  # encoded at once
FIRST = 20_000_000  # the scene from which those are counted that nothing learns from


@torch.no_grad()
def embed(
    clip: Clip, tokenizer: Tokenizer, pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Pictures [S, S, 3] and captions, each [N, P] of unit length."""
    device = clip.logit_scale.device
    seen = [clip.see(pixels_of(pictures[i : i + ROWS]).to(device)) for i in range(0, len(pictures), ROWS)]
    ids = torch.tensor([tokenizer.padded(caption) for caption in captions])
    read = [clip.read(part.to(device)) for part in torch.split(ids, ROWS)]
    return torch.cat(seen).cpu(), torch.cat(read).cpu()


def retrieval(pictures: Tensor, texts: Tensor) -> dict[str, float]:
    """Of N pictures and texts [N, P], row by row of each other: the fraction that finds its other first, and among the
    first five, in both directions."""
    found: dict[str, float] = {}
    right = torch.arange(len(texts))[:, None]
    for name, scores in (("text_to_picture", texts @ pictures.T), ("picture_to_text", pictures @ texts.T)):
        order = scores.argsort(dim=1, descending=True)
        found[name] = float((order[:, :1] == right).any(dim=1).float().mean())
        found[f"{name}_5"] = float((order[:, :5] == right).any(dim=1).float().mean())
    return found


def score_scenes(clip: Clip, tokenizer: Tokenizer, count: int, seed: int) -> dict[str, float]:
    """The scores of an encoder over built-in scenes that training never saw.

    `text_to_picture`, `picture_to_text` (and `..._5`): among `count` scenes with different captions. `swap`: the
    fraction of pictures of two objects that are nearer to their caption than to its twin with the nouns swapped
    (chance: 0.5).
    """
    scenes = list(islice(_different(seed), count))
    pictures, texts = embed(clip, tokenizer, [render_scene(s) for s in scenes], [s.caption for s in scenes])
    scores = {"scenes": float(count)} | retrieval(pictures, texts)
    pairs = [draw_scene(seed, FIRST + i, kind="relation", held_out=None) for i in range(count)]
    shown = [render_scene(s) for s in pairs]
    pictures, texts = embed(clip, tokenizer, shown, [s.caption for s in pairs])
    _, twins = embed(clip, tokenizer, shown[:1], [swapped(s) for s in pairs])
    nearer = (pictures * texts).sum(dim=1) > (pictures * twins).sum(dim=1)
    return scores | {"swap": float(nearer.float().mean())}


def swapped(scene: Scene) -> str:
    """The caption of a scene of two objects with the nouns swapped: what the picture does not show."""
    first, second = (with_article(o.noun) for o in scene.objects)
    told = f"{first} {scene.relation} {second}"
    return f"{second} {scene.relation} {first}{scene.caption.removeprefix(told)}"


def _different(seed: int) -> Iterator[Scene]:
    """Scenes of any kind that training never saw, each with a caption of its own."""
    seen: set[str] = set()
    index = FIRST
    while True:
        scene = draw_scene(seed, index, held_out=None)
        index += 1
        if scene.caption not in seen:
            seen.add(scene.caption)
            yield scene
