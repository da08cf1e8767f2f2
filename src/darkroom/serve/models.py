"""Which models, LoRAs, learned words and ControlNets the server has, by name. Reads names and sizes, no weights.

Names from outside are looked up here and never joined into a path. The folders are those of A1111 and ComfyUI, of
diffusers, or flat.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from ..embedded import HOME, MODEL
from ..errors import RequestError, did_you_mean, nearest
from ..names import A1111_UPSCALERS

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
KINDS: Mapping[str, tuple[str, ...]] = {  # kind -> A1111's and ComfyUI's names of its folder
    "model": ("Stable-diffusion", "checkpoints", "diffusers"),
    "lora": ("Lora", "loras", "LyCORIS"),
    "vae": ("VAE", "vae"),
    "embedding": ("embeddings",),
    "controlnet": ("ControlNet", "controlnet"),
    "upscaler": ("ESRGAN", "RealESRGAN", "upscale_models"),
}
MOST = 20_000  # files
EMBEDDED = "darkroom-embedded"
WITH = " + "  # between the names of a model and of an autoencoder in place of its own


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder: what it is for, its name here, where it lies, and what tells it from another of that name."""

    kind: str
    name: str
    path: str
    bytes: int
    modified: int  # nanoseconds
    vae: Found | None = None  # in place of a model's own

    @property
    def fingerprint(self) -> str:
        """Changes when the file does."""
        own = f"{self.path[-120:]}:{self.bytes}:{self.modified}"
        return own if self.vae is None else f"{own}+{sha256(self.vae.fingerprint.encode()).hexdigest()[:16]}"

    def with_vae(self, vae: Found) -> Found:
        """A model with another autoencoder: a model of its own, called "MODEL + VAE"."""
        return replace(self, name=f"{self.name}{WITH}{vae.name}", vae=vae)


@dataclass
class ModelIndex:
    """What there is, scanned anew by `scan`.

    Attributes:
        folder: of models; None: the embedded model alone.
        default: a model's path or hub name that is used where none is named; None: the folder's first, else the
            embedded one.
    """

    folder: Path | None = None
    default: str | None = None
    found: dict[str, dict[str, Found]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scan()

    def scan(self) -> None:
        """Look again. Raises RequestError where the folder isn't there, or holds more files than can be meant."""
        found: dict[str, dict[str, Found]] = {kind: {} for kind in KINDS}
        if self.folder is not None:
            if not self.folder.is_dir():
                raise RequestError(f"there is no folder {str(self.folder)!r} of models; create it, or name another")
            for one in _walk(self.folder):
                found[one.kind].setdefault(one.name, one)
        if self.default is not None:
            one = _single("model", Path(self.default))
            found["model"] = {one.name: one} | found["model"]
        if not found["model"]:
            found["model"][EMBEDDED] = _single("model", MODEL, EMBEDDED)
        if EMBEDDED in found["model"]:  # what comes with it
            for kind, pattern in (("lora", "lora/*"), ("embedding", "word/*"), ("controlnet", "controlnet-*")):
                for path in sorted(HOME.glob(pattern)):
                    if path.suffix == ".safetensors" or path.is_dir():
                        name = path.stem.removeprefix("controlnet-")
                        found[kind].setdefault(name, _single(kind, path, name))
        self.found = found

    @property
    def default_model(self) -> Found:
        """The model that is used where none is named."""
        return next(iter(self.found["model"].values()))

    def get(self, kind: str, name: str) -> Found:
        """What is called `name`, in any case, with or without its ending, or as "name [hash]". Raises RequestError."""
        known = self.found[kind]
        if kind == "model" and WITH in name and name not in known:
            model, _, vae = name.rpartition(WITH)
            return self.get("model", model).with_vae(self.get("vae", vae))
        plain = name.rsplit(" [", 1)[0] if name.endswith("]") else name
        for wanted in (name, plain):
            if wanted in known:
                return known[wanted]
        by_stem = {_plain(key): one for key, one in known.items()}
        if _plain(plain) in by_stem:
            return by_stem[_plain(plain)]
        what = {"lora": "LoRA", "vae": "VAE", "controlnet": "ControlNet"}.get(kind, kind)
        told = did_you_mean(plain[:60], known) if 0 < len(known) <= 8 else nearest(plain[:60], known)
        raise RequestError(f"there is no {what} {plain[:60]!r} here{told}")

    def upscaler(self, name: str) -> Found:
        """A network that enlarges, by its name here or by what A1111 calls it. Raises RequestError."""
        known = A1111_UPSCALERS.get(name, name)
        return self.get("upscaler", known if known in self.found["upscaler"] else name)

    def path(self, kind: str) -> str | None:
        """The folder of a kind, if there is one: where prompts' <lora:...> are looked up."""
        if self.folder is None:
            return None
        return next((str(self.folder / name) for name in KINDS[kind] if (self.folder / name).is_dir()), None)


def _plain(name: str) -> str:
    name = name.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    for ending in FILES:
        name = name.removesuffix(ending)
    return name


def _single(kind: str, path: Path, name: str | None = None) -> Found:
    """One file, folder or hub name."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        state = [file.stat() for file in files[:MOST]]
        size, newest = sum(s.st_size for s in state), max((s.st_mtime_ns for s in state), default=0)
        return Found(kind, name or path.name, str(path), size, newest)
    if not path.exists():
        return Found(kind, name or path.name, str(path), 0, 0)  # a name on the hub
    return Found(kind, name or path.stem, str(path), path.stat().st_size, path.stat().st_mtime_ns)


def _walk(folder: Path) -> Iterator[Found]:
    """All that lies in a folder of models: files, and diffusers folders, told by the folder that they lie in."""
    kinds = {name.casefold(): kind for kind, names in KINDS.items() for name in names}
    count = 0
    for place, folders, files in os.walk(folder):
        folders.sort()
        parts = Path(place).relative_to(folder).parts
        kind = next((kinds[part.casefold()] for part in parts if part.casefold() in kinds), "model")
        if "model_index.json" in files or ("config.json" in files and kind in ("controlnet", "vae")):
            folders.clear()
            yield _single(kind, Path(place))
            continue
        for name in sorted(files):
            count += 1
            if count > MOST:
                raise RequestError(f"{str(folder)!r} holds more than {MOST:,} files; name a folder of models")
            path = Path(place, name)
            if path.suffix.lower() in FILES and not name.startswith("."):
                yield _single(kind, path)
