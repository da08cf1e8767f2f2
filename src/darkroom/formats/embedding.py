"""Textual-inversion files, in every form that is in use, and in the two that we write.

    a1111      a pickle: {"string_to_token": {"*": 265}, "string_to_param": {"*": [n, D]}, "name": ..., ...}
    diffusers  {"<token>": [D] or [n, D]}; also several tokens, of which `t_1`, `t_2`, ... are further vectors of `t`
    kohya      {"emb_params": [n, D]}
    sdxl       {"clip_l": [n, 768], "clip_g": [n, 1280]}

Others write emp_params (OneTrainer), clip_l, clip_g or clip_h alone, text_encoders_0 and text_encoders_1 (early scripts
for SDXL). Vectors for T5, or for a text encoder's output (`..._out`, OneTrainer), have no use here, and their files are
refused. All but the first are safetensors or pickles. What a file is, is decided by its content. In a prompt a file's
word is called by the file's name without its ending, and, in diffusers' form, by its token too; several words by their
tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import place_of
from ..errors import CheckpointError, RequestError, clip
from ..files import whole_file
from ..prompts.embeddings import MAX_NAME, LearnedWord, check_name, names_in, normal
from .storage import Source
from .tensors import Glance, is_pickle, open_tensors, read_pickle_tensors
from .writer import Entry, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("diffusers", "kohya", "sdxl")  # that we write; kohya's is the one that A1111 and ComfyUI read as well
ENDINGS = (".safetensors", ".pt", ".bin")
MAX_BYTES = 64 << 20
MAX_VECTORS = 1024  # of one word
MAX_WORDS = 256  # of one file
MAX_FILES = 10_000  # of one folder

Vectors = tuple["Tensor", ...]  # [n, D] float32, one for each text encoder


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """What a textual-inversion file holds."""

    path: Path
    form: str  # "a1111" or one of FORMS
    words: Mapping[str, Vectors]  # token -> vectors; the token is "" where the file gives none to call the word by
    about: Mapping[str, str | int]  # what else it says: name, step, sd_checkpoint_name

    def learned(self, name: str | None = None) -> tuple[LearnedWord, ...]:
        """Its words as a prompt may call them. `name` replaces all other names of a file's only word."""
        if len(self.words) > 1:
            if name is not None:
                tokens = ", ".join(repr(token) for token in self.words)
                raise RequestError(
                    f"{self.path} holds {len(self.words)} words ({tokens[:200]}), so it can't be called {name[:60]!r}; "
                    f"leave out the name"
                )
            return tuple(LearnedWord((token,), vectors) for token, vectors in self.words.items())
        ((token, vectors),) = self.words.items()
        own = tuple(dict.fromkeys(word for word in (self.path.stem[:MAX_NAME], token) if normal(word)))
        return (LearnedWord((check_name(name),) if name is not None else own, vectors),)

    def describe(self, with_hash: bool = True) -> dict[str, Any]:
        """Ready for JSON: path, kind, form, words (names, vectors, width, hash), and what else the file says."""
        words = [
            {"names": list(word.names), "vectors": word.count, "width": list(word.widths), "hash": word.hash}
            for word in self.learned()
        ]
        kind = "embedding (textual inversion)"
        return {"path": str(self.path), "kind": kind, "form": self.form, "words": words, **self.about}


class Embedding:
    """A textual-inversion file to draw with: `pipe.generate("a photo of cat-toy", embeddings=[Embedding("toy.pt",
    "cat-toy")])`.

    Args:
        path: the file, or "embedded:NAME" for one of the embedded model's.
        name: what the prompt calls it, instead of the file's stem and token.

    Raises CheckpointError for a file that is missing, broken, hostile or no embedding; RequestError for a name that
    can't be.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(place_of(path))
        self.words = read_embedding(path).learned(name)

    def __repr__(self) -> str:
        return f"Embedding({str(self.path)!r}, {', '.join(repr(word.name) for word in self.words)})"


def learned_words(embeddings: Any) -> tuple[LearnedWord, ...]:
    """What requests bring of `embeddings`: paths and Embeddings, one or a sequence."""
    given = [embeddings] if isinstance(embeddings, str | Path | Embedding) else embeddings
    if not isinstance(given, Sequence):
        raise RequestError(f"embeddings is {str(given)[:60]!r}; give the paths of textual-inversion files")
    words: list[LearnedWord] = []
    for one in given:
        if not isinstance(one, str | Path | Embedding):
            raise RequestError(f"embeddings holds {str(one)[:60]!r}; give the paths of textual-inversion files")
        words += (one if isinstance(one, Embedding) else Embedding(one)).words
    return tuple(words)


def scan_embeddings(folder: str | Path) -> dict[str, Path]:
    """Name -> file of the embeddings in a folder and its folders, by the files' stems, without opening any.

    A name is a key of what is returned and never part of a path. Of several files with one stem the first in the order
    of their paths is it. Raises RequestError where there is no such folder, or it holds more than 10,000 files.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RequestError(f"{str(folder)!r} is no folder; give one that holds textual-inversion files")
    found: list[Path] = []
    for place, _, files in os.walk(root):  # doesn't follow links to folders
        found += [Path(place, name) for name in files if name.lower().endswith(ENDINGS)]
        if len(found) > MAX_FILES:
            raise RequestError(f"{str(folder)!r} holds more than {MAX_FILES:,} files; give a smaller folder")
    names: dict[str, Path] = {}
    for path in sorted(found):
        if normal(path.stem) and len(path.stem) <= MAX_NAME:
            names.setdefault(path.stem, path)
    return names


def named_in(folder: Mapping[str, Path], texts: Iterable[str], style: str = "a1111") -> list[Path]:
    """The files of `scan_embeddings` that prompts call by name."""
    called = {name for text in texts for name in names_in(text, folder, style)}
    return [path for name, path in folder.items() if name in called]


def read_embedding(path: str | Path) -> EmbeddingFile:
    """Read a textual-inversion file. Raises CheckpointError where it is none, is broken or hostile, or holds NaN."""
    path = Path(place_of(path))
    source = Source(path)
    try:
        size, head = source.size, source.read(0, 8)
    finally:
        source.close()
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, more than any embedding ({MAX_BYTES:,}): name another file")
    if is_pickle(head):
        content = read_pickle_tensors(path)
    else:
        with open_tensors(path) as file:
            if len(file) > MAX_WORDS * MAX_VECTORS:
                raise _none(path)
            _check_names(path, file.names())
            content = {name: file.load(name) for name in file.names()}
    if not isinstance(content, dict):
        raise _none(path)
    if "string_to_param" in content:
        return _read_a1111(path, content)
    tensors = {key: value for key, value in content.items() if _is_tensor(value) and isinstance(key, str)}
    if not tensors or len(tensors) < len(content):
        raise _none(path)
    _check_names(path, tensors)
    if parts := _by_encoder(path, tensors):
        return EmbeddingFile(path, "kohya" if len(parts) == 1 else "sdxl", {"": parts}, {})
    return EmbeddingFile(path, "diffusers", _by_token(path, tensors), {})


def bundled_word(path: Path, word: str, tensors: Mapping[str, Tensor]) -> Vectors:
    """The vectors of a word that a LoRA brings along, one for each text encoder; `tensors` by what an embedding's file
    would call them. Raises CheckpointError."""
    try:
        check_name(word)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if parts := _by_encoder(path, tensors):
        return parts
    if len(tensors) != 1:
        raise CheckpointError(
            f"{path} has {', '.join(map(clip, sorted(tensors)[:4]))} for the word {clip(word)}: it can't be used"
        )
    ((name, tensor),) = tensors.items()
    return (_vectors(path, name, tensor),)


# What vectors are called that have an encoder's name instead of a word's: the encoder's place in a model.
_ENCODERS = {
    "emb_params": 0, "emp_params": 0, "clip_l": 0, "clip_g": 1, "clip_h": 0, "text_encoders_0": 0, "text_encoders_1": 1,
}  # fmt: skip
_ELSEWHERE = re.compile(r"(t5|t5xxl|umt5|llama|gemma|qwen|bert|pile_t5xl)(_.*)?\Z|mt5xl")


def _by_encoder(path: Path, tensors: Mapping[str, Tensor]) -> Vectors | None:
    """A word's vectors for each text encoder, where a file names its tensors by these; None where it names words.

    Raises CheckpointError where some of them are for what no model here has: the word would do less than it was trained
    to, and nobody would know.
    """
    places = {_ENCODERS[name]: name for name in tensors if name in _ENCODERS}
    outputs = [name for name in sorted(tensors) if name.endswith("_out") and name.removesuffix("_out") in _ENCODERS]
    others = [name for name in sorted(tensors) if name not in _ENCODERS and name not in outputs]
    if outputs:
        raise CheckpointError(
            f"{path} has vectors for the output of a text encoder ({outputs[0]}: OneTrainer's output embedding), which "
            f"Darkroom does not use: train it without"
        )
    if foreign := [name for name in others if _ELSEWHERE.match(name) and (places or len(tensors) == 1)]:
        raise CheckpointError(
            f"{path} has vectors for {clip(foreign[0])}, a text encoder of Stable Diffusion 3, Flux or the like, which "
            f"Darkroom does not load: use an embedding made for this model"
        )
    if not places:
        return None
    if others or len(places) < len(tensors):
        told = ", ".join(map(clip, sorted(tensors)[:4]))
        raise CheckpointError(f"{path} has {told} for one word: which of them a model is meant to read is not known")
    parts = tuple(_vectors(path, name, tensors[name]) for _, name in sorted(places.items()))
    if len({len(part) for part in parts}) > 1:
        raise CheckpointError(
            f"{path} has {len(parts[0])} vectors for one text encoder, {len(parts[1])} for the other: it is broken"
        )
    return parts


def is_embedding(seen: Glance) -> bool:
    """Whether a file is a textual-inversion file, broken or not, without reading its tensors."""
    try:
        if seen.path.is_dir() or seen.path.stat().st_size > MAX_BYTES:
            return False
        if seen.shapes:
            return _looks_learned(seen.shapes)
        content = read_pickle_tensors(seen.path, finite=False)  # A1111's has its tensors deeper
        return isinstance(content, dict) and "string_to_param" in content
    except (CheckpointError, OSError):
        return False


def save_embedding(
    path: str | Path,
    vectors: Tensor | Sequence[Tensor],
    name: str = "",
    form: str = "diffusers",
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a learned word as a safetensors file, whole or not at all.

    Args:
        vectors: [n, D], or for the form "sdxl" [n, 768] and [n, 1280].
        name: the token, which the form "diffusers" stores.
        form: one of FORMS.
        about: what to keep in the file's metadata beside it.

    Raises CheckpointError where the numbers are not finite or the file can't be written, RequestError for a form that
    doesn't fit.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path}: Darkroom writes no pickles; end the name in .safetensors")
    parts: list[Tensor] = list(vectors) if isinstance(vectors, list | tuple) else [vectors]  # type: ignore[list-item]
    if form not in FORMS:
        raise RequestError(f"the form {form!r} of an embedding is unknown; choose one of {', '.join(FORMS)}")
    if (form == "sdxl") != (len(parts) == 2):
        raise RequestError(
            f"the form {form!r} holds the vectors of {2 if form == 'sdxl' else 1} text encoders, not of {len(parts)}"
        )
    keys = {"diffusers": [name], "kohya": ["emb_params"], "sdxl": ["clip_l", "clip_g"]}[form]
    for key in keys:
        check_name(key)
    entries = [
        Entry(key, tuple(part.shape), part.dtype, lambda part=part: part)  # type: ignore[misc]
        for key, part in zip(keys, parts, strict=True)
    ]
    with whole_file(path) as draft:
        write_safetensors(draft, entries, {"format": "pt", **({"name": name} if name else {}), **(about or {})})
    return path


def convert_embedding(source: str | Path, target: str | Path, form: str | None = None) -> Path:
    """Write a textual-inversion file anew, as safetensors, and return its path.

    `form` None: the other one of diffusers' and kohya's; sdxl's stays. Raises CheckpointError and RequestError.
    """
    found = read_embedding(source)
    form = form or {"diffusers": "kohya", "sdxl": "sdxl"}.get(found.form, "diffusers")
    if len(found.words) > 1:
        raise RequestError(f"{source} holds {len(found.words)} words; the forms that are written hold one")
    if Path(target).exists() and Path(target).resolve() == found.path.resolve():
        raise CheckpointError(f"{target} is both the source and the target: choose another name for the result")
    ((token, parts),) = found.words.items()
    about = {key: str(value) for key, value in found.about.items() if key != "name"}
    return save_embedding(target, parts, token or found.path.stem[:MAX_NAME], form, about)


def _read_a1111(path: Path, content: dict[Any, Any]) -> EmbeddingFile:
    params = content["string_to_param"]
    tensors = {key: value for key, value in params.items() if _is_tensor(value)} if isinstance(params, dict) else {}
    if len(tensors) != 1:
        raise CheckpointError(f"{path} holds {len(tensors)} learned words where one is expected: it can't be used")
    about: dict[str, str | int] = {}
    for key in ("name", "step", "sd_checkpoint", "sd_checkpoint_name"):
        value = content.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            about[key] = value[:1000] if isinstance(value, str) else value
    ((key, tensor),) = tensors.items()
    return EmbeddingFile(path, "a1111", {"": (_vectors(path, str(key), tensor),)}, about)


def _by_token(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Vectors]:
    """Words by their tokens, where `t_1`, `t_2`, ... are further vectors of `t`."""
    import torch

    found = {token: _vectors(path, token, tensor) for token, tensor in tensors.items()}
    words: dict[str, Vectors] = {}
    for token, vectors in found.items():
        stem = re.fullmatch(r"(.+)_([1-9][0-9]{0,3})", token, re.DOTALL)
        if stem and all(f"{stem[1]}_{i}" in found for i in range(1, int(stem[2]))) and stem[1] in found:
            continue  # a further vector of its stem's
        rows = [vectors]
        while (more := f"{token}_{len(rows)}") in found:
            rows.append(found[more])
        if len({row.shape[1] for row in rows}) > 1:
            raise CheckpointError(f"{path} has vectors of different widths for {clip(token)}: it is broken")
        words[token] = (torch.cat(rows),)
    return words


def _vectors(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A word's vectors as [n, D] float32, checked."""
    shape = list(tensor.shape)
    if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or 0 in shape:
        raise CheckpointError(
            f"{path}: {clip(name)} is {shape} of {str(tensor.dtype).removeprefix('torch.')}; "
            f"a learned word has vectors [n, width] of floating-point numbers"
        )
    vectors = tensor.detach().float().reshape(-1, shape[-1])
    if len(vectors) > MAX_VECTORS:
        raise CheckpointError(f"{path}: {clip(name)} has {len(vectors):,} vectors, more than the {MAX_VECTORS} allowed")
    if not bool(vectors.isfinite().all()):
        raise CheckpointError(f"{path}: {clip(name)} holds NaN or infinity: it can't be used")
    return vectors.contiguous()


def _check_names(path: Path, names: Any) -> None:
    """Raise CheckpointError for what is a network and no list of words."""
    if len(names) > MAX_WORDS or any(name.endswith((".weight", ".bias", ".alpha")) for name in names):
        raise _none(path)


def _looks_learned(shapes: Mapping[Any, tuple[int, ...]]) -> bool:
    names = [str(name) for name in shapes]
    network = any(name.endswith((".weight", ".bias", ".alpha")) or ".lora" in name for name in names)
    few = 0 < len(names) <= MAX_WORDS
    return few and not network and all(len(s) in (1, 2) and 16 <= s[-1] <= 8192 for s in shapes.values())


def _is_tensor(value: object) -> bool:
    return hasattr(value, "is_floating_point")


def _none(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is no textual-inversion embedding: name a file that holds learned words.")
