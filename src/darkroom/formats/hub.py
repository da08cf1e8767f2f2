"""From what a user writes to a model's place on disk: a path, or a model of the Hugging Face hub.

The hub's client obeys HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT. It reads them when it is
imported, so it is imported here on first use and not before.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..embedded import place_of
from ..errors import CheckpointError, clip

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json", ".gguf", ".onnx")

# The folders of a diffusers model that Darkroom reads; a safety checker of 1.2 GB, say, stays where it is.
_PARTS = {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "low_res_scheduler", "controlnet"}
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?P<variant>\.\w+)??(?:-\d{5}-of-\d{5}(?P<old_variant>\.\w+)?)?\.(?P<kind>safetensors|bin)"
)


def resolve(source: str | Path) -> Path:
    """The folder or file that `source` names.

    "embedded:NAME" is what comes with the embedded model. Else an existing path wins. Else "org/name" or
    "org/name@revision" is looked up on the hub and downloaded into its cache, or taken from there if the hub can't be
    reached or HF_HUB_OFFLINE is set: the configurations, the tokenizer and one set of weights for each part that
    Darkroom reads (full precision rather than a variant such as fp16, safetensors rather than pickles). A repository
    that is no diffusers folder but holds one single weights file gives that file.

    Raises CheckpointError, one sentence, for anything else.
    """
    found = check_source(source)
    return found if isinstance(found, Path) else _download(*found)


def check_source(source: str | Path) -> Path | tuple[str, str | None]:
    """The place that `source` names, or a repository of the hub and its revision, which nobody has been asked for yet.

    Raises CheckpointError for what can be neither.
    """
    source = place_of(source)
    text = os.fspath(source)
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # a home that nobody has
        path = path.expanduser()
    if text and os.path.exists(path):
        return path
    match = _ID.fullmatch(text)
    if isinstance(source, Path) or match is None or text.lower().endswith(_FILES):
        raise CheckpointError(
            f"{clip(text, 200) or 'An empty name'} does not exist: give a diffusers folder, a .safetensors or .ckpt "
            "file, or a model of the hub as org/name or org/name@revision"
        )
    repo, revision = match["repo"], match["revision"]
    if ".." in text or "--" in repo or len(repo) > 96 or repo.endswith((".git", ".", "-")):
        raise CheckpointError(f"{clip(text, 200)} is neither an existing path nor a hub id (org/name[@revision])")
    return repo, revision


def needed(files: Iterable[str]) -> list[str]:
    """Which of a repository's files a model needs; of one without configuration, the weights files at its root."""
    files = sorted(files)
    at_root = {file for file in files if "/" not in file}
    if at_root.isdisjoint({"model_index.json", "config.json"}):
        single = [file for file in sorted(at_root) if file.endswith(".safetensors")]
        return single or [file for file in sorted(at_root) if file.endswith(".ckpt")]
    folders = {""} if "model_index.json" not in at_root else _PARTS
    chosen = [file for file in at_root if file.endswith(".json") or file in {"merges.txt", "vocab.txt"}]
    for folder in folders:
        inside = [file for file in files if file.rpartition("/")[0] == folder]
        if folder:
            chosen += [file for file in inside if file.endswith((".json", ".txt"))]
        chosen += _one_set(inside)
    return sorted(chosen)


def _one_set(files: list[str]) -> list[str]:
    """The set of weights to prefer in one folder: whole before a variant such as fp16, safetensors before pickles."""
    sets: dict[tuple[bool, bool, bool, bool, str], list[str]] = {}
    for file in files:
        if match := _WEIGHTS.fullmatch(file.rpartition("/")[2]):
            variant = match["variant"] or match["old_variant"] or ""
            # fp16 before others: "non_ema" and the like are not what a picture should be made with
            sharded = "-of-" in file
            rank = (variant not in {"", ".fp16"}, variant != "", match["kind"] == "bin", sharded, variant)
            sets.setdefault(rank, []).append(file)
    return sets[min(sets)] if sets else []


def _download(repo: str, revision: str | None) -> Path:
    """The model's folder in the hub's cache, or its single file there."""
    from huggingface_hub import HfApi, errors, snapshot_download

    name = f"{repo}@{revision}" if revision else repo
    try:
        try:
            info = HfApi().model_info(repo, revision=revision)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as unreachable:  # offline, no network, a failing hub: perhaps the cache has it
            try:
                folder = snapshot_download(
                    repo, revision=revision, local_files_only=True, allow_patterns=["model_index.json", "config.json"]
                )
            except errors.LocalEntryNotFoundError:
                raise unreachable from None
        else:
            files = needed(sibling.rfilename for sibling in info.siblings or ())
            if not files:
                raise CheckpointError(f"{name} on the hub holds no weights that Darkroom reads")
            if "model_index.json" not in files and "config.json" not in files and len(files) > 1:
                raise CheckpointError(
                    f"{name} on the hub holds {len(files)} single files ({clip(', '.join(files), 200)}): "
                    "download the one you want and give its path"
                )
            folder = snapshot_download(repo, revision=revision, allow_patterns=[glob.escape(file) for file in files])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{name} {_why(error)}") from error
    return _single(Path(folder))


def _single(folder: Path) -> Path:
    """`folder`, or its only weights file if it is no model folder."""
    if (folder / "model_index.json").exists() or (folder / "config.json").exists():
        return folder
    files = needed(entry.name for entry in folder.iterdir())
    return folder / files[0] if len(files) == 1 else folder


def _why(error: Exception) -> str:
    """What went wrong with the hub, as the rest of a sentence that starts with the model's name."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its terms on the hub's web page and set HF_TOKEN to your token"
    if isinstance(error, errors.RevisionNotFoundError):
        return "is not on the hub: the model is, but not that revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is neither a path here nor a model on the hub; if it is a private one, set HF_TOKEN to your token"
    if status in (401, 403):
        return f"was refused by the hub (status {status}): set HF_TOKEN to a token that may read it"
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "is not in the hub's cache, and HF_HUB_OFFLINE forbids to download it: unset it once, or give a path"
    if status is not None:
        return f"could not be downloaded (the hub answered with status {status}): try again later"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"could not be stored in the hub's cache {error.filename}: {error.strerror}"
    return f"is not in the hub's cache, and the hub can't be reached ({type(error).__name__}): check the network"
