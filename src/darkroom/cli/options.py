"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import click

from ..elsewhere import DRAWING
from ..embedded import place_of
from ..errors import ImageError, RequestError, did_you_mean
from ..formats.picture import check_picture
from ..request import MAX_LORA_SCALE, Request, real, whole
from ..settings import joined
from . import completion
from .command import ADAPTERS, DEVICE, LARGE, OUTPUT, PICTURE, SPEED, Option

if TYPE_CHECKING:
    from ..engine import Control, Inputs
    from ..names import Backend as BackendName
    from ..names import DType, Hint, Quantization
    from ..pipeline import Pipeline
    from ..prompts.embeddings import LearnedWord

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_ENDINGS = (
    re.compile(r"(?P<image>.+)", re.DOTALL),
    re.compile(rf"(?P<image>.+):(?P<scale>{_NUMBER})", re.DOTALL | re.ASCII),
    re.compile(rf"(?P<image>.+):(?P<scale>{_NUMBER}):(?P<start>{_NUMBER})-(?P<stop>{_NUMBER})", re.DOTALL | re.ASCII),
)


def controls(given: list[str] | None, guess: bool) -> list[Control]:
    """The ControlNets and hints of --control: NET=IMAGE, NET=HINT@IMAGE, with :SCALE or :SCALE:START-STOP after it.

    Paths may hold "=", ":" and "@" themselves: of all ways to read the text, the first is taken that names a picture
    that exists, with as little as possible cut off its end. Raises `RequestError`, before anything is loaded.
    """
    if guess and not given:
        raise RequestError("--control-guess is given without --control; give it too, or leave it out")
    return [_control(text, guess) for text in given or ()]


def _control(text: str, guess: bool) -> Control:
    from ..hints import HINTS

    readings = list(_readings(text, tuple(HINTS)))
    for net, hint, match in readings:
        if _exists(match["image"]):
            values: dict[str, Any] = {
                k: float(v) for k, v in match.groupdict().items() if v is not None and k != "image"
            }
            from ..engine import Control

            return Control(net, match["image"], guess=guess, hint=cast("Hint | None", hint), **values)
    if not readings:
        raise RequestError(
            f"--control is {text[:200]!r}; give a ControlNet and a picture, as in net.safetensors=edges.png:0.8 or "
            f"net.safetensors=canny@photo.jpg"
        )
    image = readings[-1][2]["image"]
    name, at, photo = image.partition("@")
    if at and any((m := ending.fullmatch(photo)) and _exists(m["image"]) for ending in _ENDINGS):
        raise RequestError(
            f"--control is {text[:200]!r}, and there is no hint {name[:60]!r}{did_you_mean(name, HINTS)}"
        )
    raise RequestError(f"--control is {text[:200]!r}, and there is no picture {image[:200]!r}; check the path")


def _readings(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, str | None, re.Match[str]]]:
    """(network, hint's name, the rest taken apart) for every way to read the text, the most literal first."""
    for equals in (i for i, letter in enumerate(text) if letter == "=" and 0 < i < len(text) - 1):
        net, rest = text[:equals], text[equals + 1 :]
        name, at, image = rest.partition("@")
        made = at and name.replace("_", "-") in names and image
        for told, hint in ((rest, None), *(((image, name),) if made else ())):
            for ending in _ENDINGS:
                if match := ending.fullmatch(told):
                    yield net, hint, match


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


# Options of commands that are no fields of a request.
_OWN = ("backend", "device", "dtype", "quantize", "rounds", "scale", "threads", "tolerance")


@functools.cache
def _option_names() -> dict[str, str]:
    """The option that fills a field of a request, or says what a command checks."""
    found = {"num_images": "-n", **{name: f"--{name}" for name in _OWN}}
    for name, fields, declared in joined(Request):
        if declared.option is not None:
            found |= {field: declared.option if field == name else f"{declared.option}: {field}" for field in fields}
    return found


def whole_number(text: str) -> int:
    """An option's whole number. click's own message doesn't say what was given."""
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text[:40]!r} is not a whole number") from None


def real_number(text: str) -> float:
    """An option's number; what is not finite is left to `Request` to refuse."""
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text[:40]!r} is not a number") from None


def also(name: str) -> tuple[str, ...]:
    """What other programs call an option."""
    return tuple(f"--{other.replace('_', '-')}" for other in DRAWING.of(name))


Model = Annotated[
    str | None,
    Option(
        aliases=also("model"),
        panel=DEVICE,
        complete=completion.models,
        config="model",
        metavar="M",
        help="A diffusers folder, a checkpoint file, or ORG/NAME on the hub. [default: the embedded model]",
    ),
]
Vae = Annotated[
    str | None,
    Option(
        aliases=also("vae"),
        panel=DEVICE,
        metavar="V",
        help="Another autoencoder: a folder, a file, or ORG/NAME. [default: its own]",
    ),
]
Device = Annotated[
    str,
    Option(
        panel=DEVICE,
        config="device",
        complete=lambda _: ("auto", "cpu", "cuda", "mps"),
        metavar="D",
        help="auto, cpu, cuda, cuda:1, mps.",
    ),
]
Dtype = Annotated[
    str,
    Option(
        aliases=also("dtype"),
        panel=DEVICE,
        config="dtype",
        complete=lambda _: ("auto", "float32", "bfloat16", "float16"),
        metavar="T",
        help="auto, float32, bfloat16, float16.",
    ),
]
Compile = Annotated[bool, Option("--compile", panel=SPEED, help="Compile the networks: a slow start, faster steps.")]
Backend = Annotated[
    str,
    Option(
        panel=DEVICE,
        config="backend",
        complete=lambda _: ("auto", "native", "openvino"),
        metavar="B",
        help="auto, native, openvino: what runs the networks.",
    ),
]
Quantize = Annotated[
    str | None,
    Option(
        panel=SPEED,
        complete=lambda _: ("int8", "fp8"),
        metavar="Q",
        help="int8: the U-Net multiplies in 8 bits. Faster on a CPU, lossy.",
    ),
]
Threads = Annotated[
    int | None,
    Option(panel=DEVICE, config="threads", metavar="N", parser=whole_number, help="CPU threads. [default: all cores]"),
]
Embeddings = Annotated[
    list[str] | None,
    Option(
        "--embedding",
        panel=ADAPTERS,
        metavar="FILE",
        help="A textual-inversion file: a word of the prompt; may come several times.",
    ),
]
EmbeddingDir = Annotated[
    str | None,
    Option(
        aliases=also("embedding_dir"),
        panel=ADAPTERS,
        config="embedding_dir",
        metavar="DIR",
        help="A folder of textual-inversion files, for prompts that name them.",
    ),
]
Loras = Annotated[
    list[str] | None,
    Option(
        "--lora",
        aliases=also("lora"),
        panel=ADAPTERS,
        complete=completion.loras,
        metavar="FILE[:SCALE]",
        help="A LoRA to draw with; may come several times.",
    ),
]
LoraDir = Annotated[
    str | None,
    Option(
        "--lora-dir",
        aliases=also("lora_dir"),
        panel=ADAPTERS,
        config="lora_dir",
        metavar="DIR",
        help="Where <lora:NAME:WEIGHT> of a prompt is looked up.",
    ),
]
Output = Annotated[
    str,
    Option(
        "-o",
        "--output",
        aliases=also("output"),
        panel=OUTPUT,
        config="output",
        metavar="DIR|FILE",
        help="A folder, or FILE.png, .jpg, .webp.",
    ),
]
Overwrite = Annotated[bool, Option("--overwrite", panel=OUTPUT, help="Replace files that exist.")]
Preview = Annotated[
    bool,
    Option(
        "--preview", panel=OUTPUT, config="preview", help="Show pictures in a terminal that can (kitty, iTerm2, sixel)."
    ),
]
NewGlyph = Annotated[
    str | None,
    Option("--glyph", metavar="EMOJI|FILE", help="How it looks. [default: the emoji that Unicode calls by the noun]"),
]
Upscalers = Annotated[
    list[str] | None,
    Option(
        "--upscaler",
        panel=LARGE,
        metavar="FILE",
        help="A network that enlarges, or embedded:upscaler, for --upscale and recipes. May come several times.",
    ),
]
NewWord = Annotated[str | None, Option("--word", metavar="W", help="What prompts call it. [default: the noun]")]
Json = Annotated[bool, Option("--json", panel=OUTPUT, help="Print JSON.")]


def loras(given: list[str] | None) -> list[tuple[str, float]]:
    """Files and scales from "FILE" or "FILE:0.8". Raises `RequestError`, before anything is loaded."""
    found = []
    for text in given or ():
        name, colon, scale = text.rpartition(":")
        try:
            pair = (name, float(scale)) if colon and name else (text, 1.0)
        except ValueError:  # the colon is the name's own
            pair = (text, 1.0)
        if not Path(place_of(path(pair[0]))).exists():
            raise RequestError(f"there is no LoRA {pair[0][:200]!r}: --lora takes a file, as in ink.safetensors:0.8")
        found.append((pair[0], real("--lora", pair[1], -MAX_LORA_SCALE, MAX_LORA_SCALE)))
    return found


def upscalers(given: list[str] | None) -> tuple[str, ...]:
    """Files of networks that enlarge, or their names on the hub. Raises `RequestError` for a file that isn't there."""
    for text in given or ():
        if text.lower().endswith((".pth", ".pt", ".safetensors", ".ckpt", ".bin")) and not Path(path(text)).exists():
            raise RequestError(
                f"there is no upscaler {text[:200]!r}: --upscaler takes a file, as in RealESRGAN_x4plus.pth"
            )
        path(text)
    return tuple(given or ())


@dataclass(frozen=True, slots=True)
class Reader:
    """What a picture is made from besides its request: the options that say so, and (pipeline, requests) -> Inputs."""

    read: Callable[[Any, Iterable[Request]], Any]  # annotations are evaluated, and nothing here imports torch
    image: str | None
    mask: str | None


def given(
    image: Annotated[
        str | None, Option(aliases=also("image"), panel=PICTURE, metavar="FILE", help="A picture to start from.")
    ] = None,
    mask: Annotated[
        str | None,
        Option(aliases=also("mask"), panel=PICTURE, metavar="FILE", help="Of that picture: what is white is redrawn."),
    ] = None,
    depth: Annotated[
        str | None,
        Option(
            aliases=also("depth"),
            panel=PICTURE,
            metavar="FILE",
            help="A depth map for depth-to-image models; brighter is nearer.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        Option(
            panel=PICTURE,
            complete=completion.controls,
            metavar="NET=[HINT@]IMAGE[:SCALE]",
            help="A ControlNet and its picture; HINT (canny, ...) makes it. May come several times.",
        ),
    ] = None,
    control_guess: Annotated[
        bool, Option("--control-guess", panel=PICTURE, help="Guess mode: the ControlNets do without a prompt.")
    ] = False,
    lora: Loras = None,
    embedding: Embeddings = None,
    embedding_dir: EmbeddingDir = None,
) -> Reader:
    """The options for what a picture is made from besides its request: how to read it all for a model.

    Of a folder's embeddings those are read whose names are in a text of the requests that will be drawn.
    """
    if mask is not None and image is None:
        raise RequestError("--mask is given without --image; say with --image which picture it belongs to")
    files = loras(lora)
    steering = controls(control, control_guess)
    for option, file in (("--image", image), ("--mask", mask), ("--depth", depth)):
        if file is not None:
            if not Path(path(file)).exists():
                raise RequestError(f"{option} is {file[:200]!r}, which does not exist; check the path")
            try:
                check_picture(file)
            except ImageError as error:
                raise ImageError(f"{option}: {error}") from None

    def read(pipe: Pipeline, requests: Iterable[Request]) -> Inputs:
        from ..adapters import Lora

        texts: dict[str, list[str]] = {}
        for request in requests:
            texts.setdefault(request.prompt_style, []).extend((request.prompt, request.negative_prompt))
        words = [*(embedding or ()), *dict.fromkeys(file for style in texts for file in called(texts[style], style))]
        attached = [Lora(file, scale) for file, scale in files]
        return pipe.inputs(image=image, mask=mask, depth=depth, controls=steering, loras=attached, embeddings=words)

    def called(texts: Iterable[str], style: str) -> Sequence[Path]:
        return embeddings_called(embedding_dir, texts, style)

    return Reader(read, image, mask)


def load(
    model: str | None,
    device: str,
    dtype: str,
    compile: bool,
    threads: int | None,
    lora_dir: str | None = None,
    vae: str | None = None,
    backend: str = "auto",
    *,
    quantize: str | None = None,
) -> Pipeline:
    """Load a model as the options say. Raises `darkroom.Error`."""
    set_threads(threads)
    import darkroom

    with named_as_options():
        return darkroom.load(
            model,
            device=device,
            dtype=cast("DType", dtype),
            compile=compile,
            backend=cast("BackendName", backend),
            lora_dir=lora_dir,
            vae=vae,
            quantize=cast("Quantization | None", quantize),
        )


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads. Raises RequestError."""
    if threads is None:
        return
    with named_as_options():
        whole("threads", threads, 1, 4096)
    import torch

    torch.set_num_threads(threads)


@contextmanager
def named_as_options(*more: str) -> Iterator[None]:
    """Let a RequestError inside name the option, as `--guidance`, instead of the field, as `guidance_scale`. `more`:
    names of a command's own that its sentences begin with."""
    try:
        yield
    except RequestError as error:
        field, _, rest = str(error).partition(" ")
        option = f"--{field}" if field in more else _option_names().get(field, field)
        raise RequestError(f"{option} {rest}") from error


def taking(shared: Callable[..., Any], place: str = "asked") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of `shared`, another function of options, in the place of one of its parameters.

    That parameter receives what `shared` returns for their values.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters
        lent = inspect.signature(shared, eval_str=True).parameters
        every = [p for name in own for p in (lent.values() if name == place else [own[name]])]

        @functools.wraps(command)
        def called(**values: Any) -> Any:
            answer = shared(**{name: values.pop(name) for name in lent})
            return command(**values, **{place: answer})

        by_name = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]
        called.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in by_name}
        return called

    return decorate


def learned_words(
    files: Sequence[str] | None, folder: str | None, texts: Iterable[str], style: str
) -> tuple[LearnedWord, ...]:
    """The learned words of some files, and those of a folder whose names are in the texts. Raises `darkroom.Error`."""
    from ..formats.embedding import learned_words

    return learned_words([*(files or []), *embeddings_called(folder, texts, style)])


def embeddings_called(folder: str | None, texts: Iterable[str], style: str) -> Sequence[Path]:
    """The files of a folder, if one is given, whose names are in the texts. Raises `RequestError`."""
    from ..formats.embedding import named_in, scan_embeddings

    return named_in(scan_embeddings(folder), texts, style) if folder is not None else []


def path(text: str) -> str:
    """An output's path. Raises `RequestError` for what no file can be called; the rest only the system knows."""
    if not text or "\0" in text:
        raise RequestError(f"{text[:100]!r} can't be a file's name: choose another output")
    return text


def is_file_name(text: str) -> bool:
    """Whether an output names a picture file, not a folder. Raises `RequestError` for a format we don't write."""
    path = Path(text)
    if text.endswith(("/", "\\")) or path.is_dir():
        return False
    suffix = path.suffix.lower()
    if suffix in (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".svg", ".pdf"):
        raise RequestError(f"can't write {text!r}: pictures are written as .png, .jpg or .webp")
    return suffix in (".png", ".jpg", ".jpeg", ".webp")


def check_folder(folder: Path) -> None:
    """Raise `RequestError` unless pictures can be written into `folder`, or it can be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise RequestError(f"{str(there)!r} is not a folder: choose another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"can't write into the folder {str(there)!r}: choose another output")
