"""What an engine's process is asked beside its pictures: what a prompt says to a model, what files of LoRAs and learned
words are for. Needs torch, as the readers of those files do.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..embedded import EXAMPLES
from ..engine.enlarge import Upscaler, load_upscaler
from ..errors import Error, RequestError
from ..formats.embedding import read_embedding
from ..formats.lora import family, open_lora
from ..pipeline import Pipeline
from ..prompts.readable import whole_words

USUAL = (
    "a lighthouse on a cliff at dusk, oil painting",
    "portrait of an old fisherman, soft light, photograph",
    "a small house in a snowy forest, watercolor",
)
MOST_WORDS = 8  # of one file that are told
LONGEST = 200  # characters of one of them


def explained(pipe: Pipeline | None, arguments: Mapping[str, Any]) -> Any:
    """What a model reads of a prompt. Raises RequestError."""
    if pipe is None:
        raise RequestError("no model is loaded yet; try again in a moment")
    return pipe.explain(arguments["prompt"], arguments.get("style", "a1111")).to_dict()


def enlarged(picture: bytes, arguments: Mapping[str, Any]) -> str:
    """A picture's file made larger by the network at `path` to cover `size`: a PNG as base64. Raises darkroom.Error."""
    with Image.open(io.BytesIO(picture)) as opened:
        large = _upscaler(arguments["path"], arguments["fingerprint"]).enlarge(opened, size=tuple(arguments["size"]))
    buffer = io.BytesIO()
    large.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@functools.lru_cache(maxsize=2)
def _upscaler(path: str, fingerprint: str) -> Upscaler:
    """Read once; a file that has changed has another fingerprint."""
    return load_upscaler(path)


def vocabulary(pipe: Pipeline) -> dict[str, Any]:
    """What to write for a model: the words that it knows (none: any), and three prompts to begin with."""
    words = whole_words(pipe.prompts.tokenizer)
    examples = EXAMPLES if not words or all(set(text.split()) - {"a"} <= {*words} for text in EXAMPLES) else ()
    return {"words": words, "examples": list(examples if words else USUAL)}


def text_sizes(pipe: Pipeline) -> dict[str, Any]:
    """What tells which LoRAs and learned words are for a model."""
    width = pipe.unet.config.cross_attention_dim
    return {"text_width": width, "text_widths": list(pipe.prompts.widths), "base": family(width)}


def adapters(files: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What files are for, each given as (kind, path): "lora" or "embedding".

    Keys: base (which models, in words, or None), text_width (of a LoRA), text_widths (of a learned word), words (what
    calls it in a prompt), and error, a sentence, of one that can't be used. The tensors of LoRAs aren't read.
    """
    return [_adapter(kind, path) for kind, path in files]


def _adapter(kind: str, path: str) -> dict[str, Any]:
    try:
        return _lora(path) if kind == "lora" else _word(path)
    except Exception as error:  # a broken file must not hide the others
        sentence = str(error) if isinstance(error, Error) else f"it can't be read ({type(error).__name__})"
        for told in (path, str(Path(path).parent)):  # nobody outside needs to know where files lie
            sentence = sentence.replace(f"{told}/", "").replace(told, Path(path).name)
        return {"error": sentence}


def _lora(path: str) -> dict[str, Any]:
    scan = open_lora(path)
    width = scan.text_width
    told = [word[:LONGEST] for word in (*scan.words, *scan.triggers)]
    return {
        "base": None if width is None else family(width),
        "text_width": width,
        "words": list(dict.fromkeys(told))[:MOST_WORDS],
        "title": scan.title,
    }


def _word(path: str) -> dict[str, Any]:
    found = read_embedding(path).learned()
    widths = list(found[0].widths) if found else []
    told = None
    with contextlib.suppress(IndexError):
        told = family(2048 if len(widths) == 2 else widths[0])
    return {"base": told, "text_widths": widths, "words": [word.name[:LONGEST] for word in found][:MOST_WORDS]}
