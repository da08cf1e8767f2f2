"""Prompts to what guidance holds: texts become conditions, schedules timelines, AND a composition."""

from __future__ import annotations

from collections.abc import Callable

from ...diffusion.condition import Condition, Prompted, Timeline
from ...errors import RequestError
from ...prompts.composition import Part, parts
from ...prompts.embeddings import Finder, LearnedWord
from ...prompts.stages import stages
from ...request import Request
from ..inputs import Inputs
from ..plan import Plan


def over_steps(text: str, style: str, plan: Plan, condition: Callable[[str], Condition]) -> Prompted:
    """A prompt's condition, or its timeline where its text changes; `condition` is called once for each text.

    The steps counted are those that the plan runs, from where it starts. Raises RequestError as `stages` does.
    """
    if style != "a1111":
        return condition(text)
    found = stages(text, max(plan.steps - plan.start, 1))
    if len(found) == 1:
        return condition(found[0].text)
    conditions = {words: condition(words) for words in dict.fromkeys(stage.text for stage in found)}
    return Timeline(tuple((plan.sigmas[plan.start + stage.until], conditions[stage.text]) for stage in found))


def composed_parts(request: Request) -> tuple[Part, ...]:
    """The prompts that AND joins, with their weights; in a grammar without AND the whole prompt."""
    return parts(request.prompt) if request.prompt_style == "a1111" else (Part(request.prompt),)


def learned_words(request: Request, inputs: Inputs) -> tuple[LearnedWord, ...]:
    """The learned words given that the request's texts use. Raises RequestError where a recipe's are not given."""
    given = {word.hash: word for word in inputs.embeddings}
    for recorded in request.embeddings:
        name, _, digits = recorded.rpartition(":")
        if not any(word.startswith(digits) for word in given):
            raise RequestError(
                f"this picture was drawn with the embedding {name[:60]!r} (hash {digits[:16]}); give that file again"
            )
    finder = Finder(inputs.embeddings, request.prompt_style)
    used = [*finder.used(request.prompt), *finder.used(request.negative_prompt)]
    return tuple({word.hash: word for word in used}.values())
