"""LoRAs of a request: those given with it, and those its prompt names."""

from __future__ import annotations

from dataclasses import replace

from ...adapters import Adapter, Scaled
from ...diffusion.guidance import Adapted
from ...errors import RequestError
from ...prompts.grammar import take_tags
from ...request import Request, UsedLora
from ..job import Inputs, Job
from .common import Model


def with_loras(model: Model, request: Request, inputs: Inputs) -> tuple[Request, Inputs]:
    """The request without <lora:...> in its prompt, and the inputs with all LoRAs it takes.

    A recipe that is drawn again takes those it names at its strengths: files that are given, or else ones of the same
    name and hash from the model's folder. Raises RequestError for one that is not there.
    """
    prompt, tags = take_tags(request.prompt, request.prompt_style)
    loras = list(inputs.loras)
    if request.loras:
        given = [lora.adapter for lora in loras]
        merged = {used_lora(lora) for lora in model.merged_loras}
        loras = [lora for lora in loras if not any(_is(lora.adapter, used) for used in request.loras)]
        for used in request.loras:
            if used not in merged:
                adapter = next((one for one in given if _is(one, used)), None) or _again(model, used)
                loras.append(Scaled(adapter, used.scale, used.text_scale))
    else:
        loras += [Scaled(model.find_lora(tag.name), tag.scale, tag.text_scale) for tag in tags]
    return replace(request, prompt=prompt), replace(inputs, loras=tuple(loras))


def carrying(model: Model, job: Job, request: Request, loras: tuple[Scaled, ...]) -> Job:
    """A job that was made of a request without tags, with its LoRAs on every row, and a recipe that tells it all."""
    used = tuple(used_lora(lora) for lora in (*model.merged_loras, *loras))
    job.request = replace(job.request, prompt=request.prompt, loras=used)
    if loras:
        job.guidance = Adapted(job.guidance, loras)
    return job


def used_lora(lora: Scaled) -> UsedLora:
    """What a recipe says of a LoRA."""
    return UsedLora(lora.adapter.name, lora.adapter.hash[:12], lora.scale, lora.text_scale)


def _is(adapter: Adapter, used: UsedLora) -> bool:
    """Whether a recipe means this one: by its hash, or by its name where another tool's recipe has no hash."""
    return adapter.hash[:12] == used.hash if used.hash else adapter.name == used.name


def _again(model: Model, used: UsedLora) -> Adapter:
    """A LoRA of a recipe, from the model's folder."""
    told = f"this recipe used the LoRA {used.name[:60]!r} (hash {used.hash[:12] or 'unknown'}) at {used.scale:g}"
    try:
        adapter = model.find_lora(used.name)
    except RequestError as error:
        raise RequestError(f"{told}; give that file again, or the folder it is in") from error
    if not adapter.hash.startswith(used.hash[:12]):
        raise RequestError(f"{told}; the folder has another file of that name (hash {adapter.hash[:12]})")
    return adapter
