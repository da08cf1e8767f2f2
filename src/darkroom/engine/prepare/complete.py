"""From a request to a recipe: what it says is parsed, what it brings is opened, and what it leaves open is filled in.

Each happens once. Before the last a task decides what is its own to decide (a size, a strength) and plans its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ... import __version__, hints
from ...adapters import Adapter, Scaled
from ...errors import RequestError, clip
from ...formats.at_hand import hash_told, stem
from ...images import open_mask, open_picture
from ...prompts.embeddings import Finder, LearnedWord, fingerprints, names_in, normal
from ...prompts.grammar import Prompt, Tag
from ...prompts.readable import unread
from ...request import (
    EMBEDDED_UPSCALER,
    MAX_PIXELS,
    OF_AN_IMAGE,
    OUTPUTS,
    Enlarge,
    Hires,
    Request,
    UsedControl,
    UsedLora,
    choice,
)
from ...samplers import entry
from ..job import Control, Inputs, OpenedControl, ParsedRequest
from ..plan import Plan
from .common import LoadedModel

Enlarging = TypeVar("Enlarging", Hires, Enlarge)
FAR = 2.5  # times a model's own size, or below: twice is common, and may be meant
GUIDANCE_SCALE = 7.5  # what diffusers, and the published examples, use


def parse(model: LoadedModel, request: Request, id: str, inputs: Inputs, output: str) -> ParsedRequest:
    """Parse the texts, open the pictures, find the LoRAs, words and ControlNets that a request asks for.

    Raises RequestError for what can't be, whatever the task: pictures and files that are not there, words about them.
    """
    choice("output", output, OUTPUTS)
    prompt = Prompt.parse(request.prompt, request.prompt_style)
    negative = Prompt.parse(request.negative_prompt, request.prompt_style, negative=True)
    told = list(inputs.told)
    request = _at_hand(model, request, told)
    inputs = replace(
        inputs,
        loras=_loras(model, request, inputs.loras, prompt.loras),
        image=None if inputs.image is None else open_picture(inputs.image, tell=told.append),
        mask=None if inputs.mask is None else open_mask(inputs.mask, tell=told.append),
    )
    _check(model, request, inputs, output)
    brought = _brought(request, inputs.embeddings, (*model.merged_loras, *inputs.loras), (prompt, negative))
    words = _learned_words(request, (*inputs.embeddings, *brought), (prompt, negative))
    controls = tuple(_opened(model, control, told.append) for control in inputs.controls)
    return ParsedRequest(
        id=id,
        asked=request,
        prompt=prompt,
        negative=negative,
        words=words,
        controls=controls,
        inputs=inputs,
        output=output,
        warnings=(*told, *_other_networks(model, request), *_not_as_meant(model, request, inputs, prompt, words)),
    )


def _not_as_meant(
    model: LoadedModel, request: Request, inputs: Inputs, prompt: Prompt, words: tuple[LearnedWord, ...]
) -> Iterator[str]:
    """What of a request the model will hardly draw as it is meant, one sentence each."""
    taught = bool(words or inputs.loras or model.merged_loras)
    yield from unread(prompt, model.prompts.tokenizer, words, taught=taught)
    if inputs.image is not None or inputs.depth is not None or inputs.controls or request.latents is not None:
        return
    if not prompt.text.strip() and not taught and not request.negative_prompt.strip():
        yield "the prompt is empty: the model draws whatever it likes; say what there is to be seen"
    if request.tile is None and request.outpaint is None:
        own, (width, height) = model.size, (request.width or model.size[0], request.height or model.size[1])
        most, least = FAR * max(own), min(own) / FAR
        if max(width, height) > most:
            yield (
                f"{width}x{height} is far beyond the {own[0]}x{own[1]} that this model was trained on, and things will "
                f"be repeated; draw smaller, and make it larger with hires or upscale"
            )
        elif min(width, height) < least:
            yield (
                f"{width}x{height} is far below the {own[0]}x{own[1]} that this model was trained on, and little will "
                f"be recognised; draw larger, and shrink the picture"
            )


def _other_networks(model: LoadedModel, request: Request) -> Iterator[str]:
    """What a recipe names and this model isn't, one sentence each. Names count where there are no hashes to compare."""
    theirs, ours = request.model_hash, model.model_hash
    if (told := hash_told(theirs)) and ours:
        other = told != ours[:10]
    else:
        other = bool(request.model) and stem(request.model or "") != stem(model.name)
    if other:
        yield (
            f"the picture was drawn by the model {_named(request.model, theirs)}; "
            f"this one is {_named(model.name, ours if theirs else None)}"
        )
    if request.vae_hash and request.vae_hash[:10] != (model.vae_hash or "")[:10]:
        own = f"this one has {model.vae!r} with {model.vae_hash}" if model.vae else "this model has its own"
        yield (f"the picture was decoded by the autoencoder {_named(request.vae, request.vae_hash)}; {own}")
    elif request.vae and not request.vae_hash and stem(request.vae) != stem(model.vae or ""):
        own = f"this one has {model.vae!r}" if model.vae else "this model has its own"
        yield f"the picture was decoded by the autoencoder {_named(request.vae)}; {own}"


def _named(name: str | None, hash: str | None = None) -> str:
    return repr(clip(name or "without a name", 100)) + (f" with the hash {clip(hash)}" if hash else "")


def complete(model: LoadedModel, parsed: ParsedRequest, plan: Plan, **decided: Any) -> Request:
    """The recipe: the request with all that it left open, and names and fingerprints of what the picture is made of.

    `decided` is what the task says of its own fields. Raises RequestError for a size that is too large.
    """
    asked, inputs = parsed.asked.seeded(), parsed.inputs
    width, height = asked.width or model.size[0], asked.height or model.size[1]
    width, height = decided.pop("width", width), decided.pop("height", height)
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width}x{height} is {width * height:,} pixels; ask for {MAX_PIXELS:,} or fewer")
    filled: dict[str, Any] = {
        "width": width,
        "height": height,
        "steps": wanted_steps(model, asked) or entry(plan.sampler_name).steps,
        "sampler": plan.sampler_name,
        "schedule": plan.schedule_name,
        "guidance_scale": _first(asked.guidance_scale, model.defaults.get("guidance_scale"), GUIDANCE_SCALE),
        "image": None if inputs.image is None else picture_fingerprint(inputs.image),
        "mask": None if inputs.mask is None else picture_fingerprint(inputs.mask),
        "depth": None if inputs.depth is None else fingerprint(inputs.depth),
        "latents": None if inputs.latents is None else fingerprint(inputs.latents),
        "embeddings": fingerprints(parsed.words),
        "loras": tuple(_used(lora) for lora in (*model.merged_loras, *inputs.loras)),
        "controls": tuple(control.used for control in parsed.controls),
        "hires": asked.hires and _by_network(model, asked.hires, asked.hires.network),
        "enlarge": asked.enlarge and _by_network(model, asked.enlarge, asked.enlarge.upscaler or EMBEDDED_UPSCALER),
        "model": model.name or None,
        "model_hash": model.model_hash,
        "vae": model.vae,
        "vae_hash": model.vae_hash,
        "version": __version__,
    }
    return replace(asked, **filled | decided)


def _by_network(model: LoadedModel, asked: Enlarging, name: str | None) -> Enlarging:
    """A second pass, or what comes at the end, with the name and the hash of the network that enlarges.

    Raises RequestError where it is not there, or is another than a recipe names.
    """
    if name is None:
        return asked
    found = model.find_upscaler(name, asked.upscaler_hash)
    if asked.upscaler_hash is not None and found.hash != asked.upscaler_hash[:10]:
        raise RequestError(
            f"this recipe used the upscaler {name[:60]!r} (hash {asked.upscaler_hash[:10]}), and the one here has the "
            f"hash {found.hash}; give that file"
        )
    return replace(asked, upscaler=found.name, upscaler_hash=found.hash)


def _at_hand(model: LoadedModel, request: Request, told: list[str]) -> Request:
    """A request whose second pass is enlarged by a network that is here. Where another tool's recipe names one that is
    not, by no hash, Lanczos takes its place, and that is told."""
    hires = request.hires
    if hires is None or hires.network is None or hires.upscaler_hash is not None:
        return request
    try:
        model.find_upscaler(hires.network)
    except RequestError:
        told.append(
            f"the second pass is enlarged by Lanczos, not by the upscaler {hires.network[:100]!r}, which is not here; "
            "give its file by --upscaler"
        )
        return replace(request, hires=replace(hires, upscaler="lanczos"))
    return request


def wanted_steps(model: LoadedModel, request: Request) -> int | None:
    """The steps that are asked for, or that the model's folder recommends for its own sampler."""
    if request.steps is None and request.sampler is None and "steps" in model.defaults:
        return int(model.defaults["steps"])
    return request.steps


def _first(*values: float | None) -> float | None:
    """What was asked for, else what the model's folder recommends, else what everybody uses."""
    return next((value for value in values if value is not None), None)


def fingerprint(numbers: Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of starting noise or a depth map, as little-endian float32."""
    values = numbers.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().astype("<f4")
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def picture_fingerprint(picture: Image.Image) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a picture's "WIDTHxHEIGHT" and its pixels."""
    return hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.tobytes()).hexdigest()[:16]


# --- what can't be


def _check(model: LoadedModel, request: Request, inputs: Inputs, output: str) -> None:
    """Raise RequestError where what a recipe was made of is missing, or something is said of what isn't there."""
    if request.controls and not inputs.controls:
        names = ", ".join(repr(used.name[:60]) for used in request.controls)
        raise RequestError(
            f"this recipe was made with pictures that were given to ControlNets ({names}); give the same controls again"
        )
    if request.latents is not None and inputs.latents is None:
        raise RequestError(
            f"this recipe began from noise that was given (fingerprint {request.latents}), not from its seed; "
            f"give the same latents again"
        )
    for name in ("image", "mask", "depth"):
        if getattr(request, name) is not None and getattr(inputs, name) is None:
            raise RequestError(
                f"this recipe was made with {'an' if name == 'image' else 'a'} {name} that was given (fingerprint "
                f"{getattr(request, name)}); give the same {name} again"
            )
    if inputs.image is None and inputs.mask is None and request.outpaint is None:
        for name in OF_AN_IMAGE:
            if getattr(request, name) is not None:
                raise RequestError(
                    f"{name} is {getattr(request, name)!r}, but there is no image; give one, or leave it out"
                )
    for name in ("start", "stop"):
        if getattr(request, name) is not None and inputs.image is not None:
            raise RequestError(f"{name} is {getattr(request, name)}, which goes with a text alone; leave out the image")
    if request.start is not None and inputs.latents is None:
        raise RequestError(f"start is {request.start}, but there are no latents; give those of a picture that stopped")
    if request.noise_level is not None and model.unet.config.num_class_embeds is None:
        raise RequestError(f"noise_level is {request.noise_level}, which only upscaling models take; leave it out")
    if request.enlarge is not None and output != "pil":
        raise RequestError(
            f"the picture is to be enlarged by a network, and output is {output!r}; leave one of them out"
        )
    if request.cache_interval > 1 and inputs.controls:
        raise RequestError(
            f"cache_interval is {request.cache_interval}, which doesn't go with ControlNets; leave it out, or them"
        )


# --- LoRAs, learned words, ControlNets


def _loras(
    model: LoadedModel, request: Request, given: tuple[Scaled, ...], tags: tuple[Tag, ...]
) -> tuple[Scaled, ...]:
    """The LoRAs of a picture: those given, and those its prompt names.

    A recipe that is drawn again takes those it names at its strengths: files that are given, or else ones of the same
    name and hash from the model's folder. Raises RequestError for one that is not there.
    """
    if not request.loras:
        return (*given, *(Scaled(model.find_lora(tag.name), tag.scale, tag.text_scale) for tag in tags))
    merged = {_used(lora) for lora in model.merged_loras}
    loras = [lora for lora in given if not any(_is(lora.adapter, used) for used in request.loras)]
    for used in request.loras:
        if used not in merged:
            adapter = next((lora.adapter for lora in given if _is(lora.adapter, used)), None) or _again(model, used)
            loras.append(Scaled(adapter, used.scale, used.text_scale))
    return tuple(loras)


def _used(lora: Scaled) -> UsedLora:
    """What a recipe says of a LoRA."""
    return UsedLora(lora.adapter.name, lora.adapter.hash[:12], lora.scale, lora.text_scale)


def _is(adapter: Adapter, used: UsedLora) -> bool:
    """Whether a recipe means this one: by its hash, or by its name where another tool's recipe has no hash."""
    return adapter.hash[:12] == used.hash if used.hash else adapter.name == used.name


def _again(model: LoadedModel, used: UsedLora) -> Adapter:
    """A LoRA of a recipe, from the model's folder."""
    told = f"this recipe used the LoRA {used.name[:60]!r} (hash {used.hash[:12] or 'unknown'}) at {used.scale:g}"
    try:
        adapter = model.find_lora(used.name)
    except RequestError as error:
        raise RequestError(f"{told}; give that file again, or the folder it is in") from error
    if not adapter.hash.startswith(used.hash[:12]):
        raise RequestError(f"{told}; the folder has another file of that name (hash {adapter.hash[:12]})")
    return adapter


def _brought(
    request: Request, given: tuple[LearnedWord, ...], loras: tuple[Scaled, ...], texts: tuple[Prompt, ...]
) -> list[LearnedWord]:
    """The words that come with LoRAs and were not given as files of their own.

    Trainers call many different words alike (`<s1>`), so two LoRAs may bring different words of one name; raises
    RequestError only where the texts use it.
    """
    found: dict[str, tuple[LearnedWord, str]] = {}
    taken = {normal(name) for word in given for name in word.names}
    for adapter in {lora.adapter.hash: lora.adapter for lora in loras}.values():
        for name, parts in adapter.words.items():
            if normal(name) in taken:
                continue
            word = LearnedWord((name,), parts)
            other, owner = found.setdefault(normal(name), (word, adapter.name))
            if other.hash != word.hash and any(names_in(text.text, [name], request.prompt_style) for text in texts):
                raise RequestError(
                    f"the LoRAs {owner[:60]!r} and {adapter.name[:60]!r} both bring a word {name[:60]!r}; give one of "
                    f"them, or the word's own file as an embedding"
                )
    return [word for word, _ in found.values()]


def _learned_words(
    request: Request, given: tuple[LearnedWord, ...], texts: tuple[Prompt, ...]
) -> tuple[LearnedWord, ...]:
    """The learned words given that the request's texts use. Raises RequestError where a recipe's are not given."""
    hashes = {word.hash for word in given}
    for recorded in request.embeddings:
        name, _, digits = recorded.rpartition(":")
        if not any(word.startswith(digits) for word in hashes):
            raise RequestError(
                f"this picture was drawn with the embedding {name[:60]!r} (hash {digits[:16]}); give that file again"
            )
    finder = Finder(given, request.prompt_style)
    return tuple({word.hash: word for text in texts for word in finder.used(text.text)}.values())


def _opened(model: LoadedModel, control: Control, tell: Callable[[str], None]) -> OpenedControl:
    """A ControlNet and the picture that it is shown."""
    net, name, hash = model.controlnet(control.net)
    hint = hints.make(control.hint, control.image) if control.hint else open_picture(control.image, "a hint", tell)
    seen = picture_fingerprint(hint)
    used = UsedControl(name, hash, seen, control.scale, control.start, control.stop, control.guess)
    return OpenedControl(net, hint, used)
