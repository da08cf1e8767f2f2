"""Networks that judge pictures, told by their content: CLIP, FID's Inception, LPIPS.

| what      | its files                                                                                        |
|-----------|--------------------------------------------------------------------------------------------------|
| CLIP      | a transformers folder of a CLIPModel, or of a CLIPVisionModelWithProjection (pictures only)      |
| Inception | pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, or torch-fidelity's of the same weights    |
| LPIPS     | the lpips package's `vgg.pth` or `alex.pth` (`lin0.model.1.weight`, ...), and torchvision's      |
|           | `vgg16-397923af.pth` or `alexnet-owt-7be5be79.pth`; or both in one file                          |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import CheckpointError
from ..files import read_json
from ..models.config import InceptionConfig, LpipsConfig
from . import folder
from .folder import network_config
from .hub import resolve
from .layouts import Part
from .rules import Config
from .tensors import Glance, TensorFile, open_tensors
from .weights import Artifact, Weights

Kind = Literal["clip", "inception", "lpips"]
KINDS: tuple[Kind, ...] = ("clip", "inception", "lpips")
WHERE: Mapping[Kind, str] = {
    "clip": "a folder of transformers, such as openai/clip-vit-large-patch14-336 on the hub",
    "inception": "pt_inception-2015-12-05-6726825d.pth, which the project mseitzer/pytorch-fid publishes",
    "lpips": "vgg.pth (or alex.pth) of the project richzhang/PerceptualSimilarity, and beside it torchvision's "
    "vgg16-397923af.pth (or alexnet-owt-7be5be79.pth)",
}
_CLASSES_OF_2015 = 1008  # TensorFlow's network of that year; torchvision's own knows 1000
_CLIPS = ("clip", "clip_vision_model")
_FIRST = {11: "alex", 3: "vgg"}  # the kernel of the first convolution


@dataclass(eq=False, kw_only=True)
class FeatureFile(Artifact):
    """A network that judges; `kind` is one of KINDS."""

    title = "network that judges"
    pictures: Mapping[str, Any] = field(default_factory=dict, repr=False)  # CLIP's preprocessor_config.json
    tokenizer: Path | None = None  # CLIP's, a folder


def is_features(seen: Glance) -> bool:
    """Whether a folder or a file holds such a network, or half of one."""
    marks = ("Mixed_5b.branch1x1.conv.", "lin0.model.1.", "features.0.", "net.slice1.0.")
    return seen.config.get("model_type") in _CLIPS or seen.has(*marks)


def open_features(sources: Sequence[str | Path]) -> dict[Kind, FeatureFile]:
    """Find out what networks some files and folders hold, or "org/name" on the hub (CLIP only).

    LPIPS may come as two files. Raises CheckpointError for what is no such network, half of one, or one twice.
    """
    found: dict[Kind, FeatureFile] = {}
    heads: list[Path] = []
    backbones: list[Path] = []
    for source in sources:
        path = resolve(source)
        if path.is_dir():
            _add(found, _clip(path))
            continue
        with open_tensors(path) as file:
            names = set(file.names())
            if "Mixed_5b.branch1x1.conv.weight" in names:
                _add(found, _inception(path, file))
            elif "lin0.model.1.weight" in names:
                whole = any(name.startswith(("net.", "features.")) for name in names)
                _add(found, _lpips(path, None)) if whole else heads.append(path)
            elif "features.0.weight" in names:
                backbones.append(path)
            else:
                first = ", ".join(file.names()[:3]) or "nothing"
                raise CheckpointError(
                    f"{path} is no Inception, LPIPS or CLIP network: its tensors are called {first}; "
                    f"give {'; '.join(WHERE.values())}"
                )
    for i, path in enumerate(heads or backbones):
        if not heads or i >= len(backbones):
            what, other = ("heads of LPIPS", "classifier") if heads else ("classifier of LPIPS", "heads")
            raise CheckpointError(f"{path} holds the {what}; give its {other} as well: {WHERE['lpips']}")
        _add(found, _lpips(path, backbones[i]))
    return found


def _add(found: dict[Kind, FeatureFile], file: FeatureFile) -> None:
    kind = cast(Kind, file.kind)
    if kind in found:
        raise CheckpointError(f"{file.path} is a second {kind} network beside {found[kind].path}; give one")
    found[kind] = file


def is_text_encoder(seen: Glance) -> bool:
    """Whether a folder is one of CLIP's text encoder alone, as transformers writes it."""
    return seen.config.get("model_type") == "clip_text_model"


def open_text_encoder(path: Path) -> Artifact:
    """The text encoder of a CLIP's folder, or of one that has nothing else. Raises CheckpointError."""
    content, where = read_json(path / "config.json"), str(path / "config.json")
    if content.get("model_type") not in ("clip", "clip_text_model"):
        raise CheckpointError(
            f"{path} is a {str(content.get('model_type'))[:60]!r}; it must be a CLIP: {WHERE['clip']}"
        )
    configs: dict[Part, Config] = {"text_encoder": network_config("text_encoder", content, where)}
    weights = Weights(folder.weights_file(path), "diffusers")
    return Artifact(path=path, kind="CLIP text encoder", configs=configs, weights={"text_encoder": weights})


def require(found: Mapping[Kind, FeatureFile], kind: Kind, what: str) -> FeatureFile:
    """The network that `what` needs. CheckpointError, saying where to get it, where it was not given."""
    if kind not in found:
        raise CheckpointError(f"{what} needs a network that is not given; name it by --features: {WHERE[kind]}")
    return found[kind]


def _inception(path: Path, file: TensorFile) -> FeatureFile:
    if "fc.weight" in file and file.shape("fc.weight")[0] != _CLASSES_OF_2015:
        raise CheckpointError(
            f"{path} is an Inception network of {file.shape('fc.weight')[0]} classes; distances are known by "
            f"TensorFlow's of {_CLASSES_OF_2015}: {WHERE['inception']}"
        )
    weights: dict[Part, Weights] = {"inception": Weights(path, "torchvision")}
    return FeatureFile(kind="inception", path=path, configs={"inception": InceptionConfig()}, weights=weights)


def _lpips(path: Path, backbone: Path | None) -> FeatureFile:
    weights = Weights(path, "torchvision", second=backbone)
    with weights.open() as file:
        first = next((n for n in ("features.0.weight", "net.slice1.0.weight") if n in file), None)
        shape = () if first is None else file.shape(first)
    net = _FIRST.get(shape[-1]) if len(shape) == 4 else None
    if net is None:
        raise CheckpointError(f"{backbone or path} is neither VGG-16 nor AlexNet; give {WHERE['lpips']}")
    return FeatureFile(kind="lpips", path=path, configs={"lpips": LpipsConfig(net)}, weights={"lpips": weights})


def _clip(path: Path) -> FeatureFile:
    content = read_json(path / "config.json")
    kind = content.get("model_type")
    if kind not in _CLIPS:
        raise CheckpointError(f"{path} is a {str(kind)[:60]!r}; it must be a CLIP: {WHERE['clip']}")
    where = str(path / "config.json")
    configs: dict[Part, Config] = {"image_encoder": network_config("image_encoder", content, where)}
    if kind == "clip":
        text = content.get("text_config")
        told = text if isinstance(text, dict) else {}
        whole = {"projection_dim": content.get("projection_dim", 512), "architectures": ["CLIPTextModelWithProjection"]}
        configs["text_encoder"] = network_config("text_encoder", told | whole, where)
    weights = Weights(folder.weights_file(path), "diffusers")
    about = path / "preprocessor_config.json"
    return FeatureFile(
        kind="clip",
        path=path,
        configs=configs,
        weights=dict.fromkeys(configs, weights),
        pictures=read_json(about) if about.is_file() else {},
        tokenizer=folder.tokenizer_files(path),
    )
