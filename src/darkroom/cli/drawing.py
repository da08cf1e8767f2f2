"""The options that all commands which draw have in common: a request's, as `Request` declares them, and the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import click

from ..arguments import GROUPS
from ..elsewhere import DRAWING
from ..errors import RequestError
from ..formats.hub import check_source
from ..request import OF_AN_IMAGE, Request
from ..settings import Setting, SettingError, default, joined, settings
from . import command, completion, note, options

if TYPE_CHECKING:
    from ..engine import Inputs
    from ..pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the drawing commands: what is declared of it, and which fields of a request it fills."""

    declared: Setting
    fields: tuple[str, ...]
    usual: Any  # what is taken where it isn't given
    inside: str | None = None  # the field that has them, where that is a value of its own: "hires"

    @property
    def name(self) -> str:
        """The command's parameter: "guidance_rescale"."""
        return str(self.declared.option).lstrip("-").replace("-", "_")

    @property
    def aliases(self) -> tuple[str, ...]:
        """What other programs call it, as options."""
        if len(self.fields) > 1:
            return ()
        called = self.fields[0] if self.inside is None else self.name
        told = [called, *DRAWING.of(called)]
        return tuple(o for each in dict.fromkeys(told) if (o := _as_option(each)) != self.declared.option)

    @property
    def panel(self) -> str:
        """Where help shows it."""
        if self.inside is not None:
            return command.LARGE
        if self.fields[0] in OF_AN_IMAGE:
            return command.PICTURE
        group = (self.declared.group or "").partition(".")[0]
        return _PANELS.get(group, command.BASICS)

    def parameter(self) -> inspect.Parameter:
        """As `command.built` wants it."""
        kind, option, help = self.declared.kind, str(self.declared.option), self.declared.help
        usual = self.usual if isinstance(self.usual, int | float | str) else None
        annotation: Any
        if kind.of is bool:
            usual, annotation = (
                False,
                Annotated[bool, command.Option(option, help=help, panel=self.panel, aliases=self.aliases)],
            )
        else:
            told = command.Option(
                option,
                aliases=self.aliases,
                metavar=self.declared.metavar or kind.metavar,
                help=help,
                parser=self._parser(),
                panel=self.panel,
                complete=COMPLETE.get(self.name) or ((lambda _: kind.choices) if kind.choices else None),
            )
            annotation = Annotated[str if usual is not None else str | None, told]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=usual, annotation=annotation)

    def _parser(self) -> Callable[[str], Any] | None:
        """Numbers are read by click, which names the option and says where to read more."""
        if self.declared.kind.of is str or self.declared.kind.count != 1:
            return None

        def parse(text: str) -> Any:
            try:
                return self.declared.kind.read(self.name, text)
            except SettingError as wrong:
                raise click.BadParameter(wrong.clause) from None

        return parse

    def read(self, given: Any) -> dict[str, Any]:
        """The fields' values; {} where nothing is said. Raises RequestError."""
        if given is None or given is False:
            return {}
        if self.declared.kind.count != 1:
            try:
                given = self.declared.kind.read(str(self.declared.option), given)
            except SettingError as wrong:
                raise RequestError(str(wrong)) from None
        return dict(zip(self.fields, given if len(self.fields) > 1 else (given,), strict=True))


def _as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


_PANELS = {
    "guidance": command.GUIDANCE,
    "inpaint": command.PICTURE,
    "noise": command.NOISE,
    "tiling": command.LARGE,
    "speed": command.SPEED,
    "sizes": command.SDXL,
}
COMPLETE: dict[str, Callable[[str], Sequence[str]]] = {
    "sampler": completion.samplers,
    "schedule": completion.schedules,
}


def options_of(owner: type = Request) -> list[Option]:
    """The options of a kind of request: first what `generate` takes by itself, then each of its groups."""
    found: list[tuple[int, Option]] = []
    groups = [None, *GROUPS]
    for _, names, declared in joined(owner):
        group = declared.group and declared.group.partition(".")[0]
        if is_dataclass(declared.kind.of) and declared.kind.count == 1:
            inner = joined(declared.kind.of)
            parts = [Option(part, fields, None, names[0]) for _, fields, part in inner if part.option is not None]
            found += [(groups.index(group), part) for part in parts]
        elif declared.option is not None:
            found.append((groups.index(group), Option(declared, names, default(owner, names[0]))))
        if len(names) > 1:  # width and height, where people know them as two
            found += [(groups.index(group), _alone(owner, name)) for name in names]
    return [option for _, option in sorted(found, key=lambda pair: pair[0])]


def _alone(owner: type, name: str) -> Option:
    """The option of a field that is usually said together with another."""
    declared = replace(settings(owner)[name], option=_as_option(name), help=f"In pixels: --size by its {name} alone.")
    return Option(declared, (name,), default(owner, name))


_OPTIONS = options_of()


def request(**given: Any) -> Request:
    """The request that the options of `Request` say, with an empty prompt. Raises RequestError."""
    values: dict[str, Any] = {"prompt": ""}
    inside: dict[str, dict[str, Any]] = {}
    first: dict[str, Option] = {}  # of the options of a value of its own: the one without which the others say nothing
    for option in _OPTIONS:
        if option.inside is None:
            said = option.read(given[option.name])
            if said.keys() & values.keys():
                raise RequestError(f"--size is given, and {option.declared.option} too; give one of them")
            values |= said
            continue
        first.setdefault(option.inside, option)
        if said := option.read(given[option.name]):
            if option is not first[option.inside] and option.inside not in inside:
                needed = first[option.inside].declared.option
                raise RequestError(
                    f"{option.declared.option} is given without {needed}; give it too, such as {needed} 2"
                )
            inside.setdefault(option.inside, {}).update(said)
    with options.named_as_options():
        return Request.from_dict(values | inside)


request.__signature__ = inspect.Signature([option.parameter() for option in _OPTIONS])  # type: ignore[attr-defined]


@dataclass(frozen=True)
class DrawingOptions:
    """What the options of a drawing command say."""

    request: Request  # with an empty prompt
    load: Callable[[], Pipeline]
    inputs: Callable[[Pipeline, Sequence[Request]], Inputs]  # what all its pictures are made from beside requests
    model: str | None
    given: options.Reader
    upscalers: Sequence[str] = ()  # networks that enlarge, which requests and recipes name


@options.taking(options.given, "inputs")
@options.taking(request, "request")
def drawing(
    model: options.Model = None,
    *,
    inputs: options.Reader,
    request: Request,
    upscaler: options.Upscalers = None,
    lora_dir: options.LoraDir = None,
    vae: options.Vae = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    compile: options.Compile = False,
    quantize: options.Quantize = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
) -> DrawingOptions:
    """The options that all commands which draw have in common, checked as far as no model is needed for it."""
    if request.sampler is not None:
        from ..samplers import canonical

        canonical(request.sampler)  # says so before a model is loaded
    if request.schedule is not None:
        from ..diffusion import AUTOMATIC, spacing_name

        if request.schedule.lower() != AUTOMATIC:
            spacing_name(request.schedule)

    if model is not None:
        check_source(model)
    upscalers = options.upscalers(upscaler)
    if upscalers and request.enlarge is not None:
        request = replace(request, enlarge=replace(request.enlarge, upscaler=upscalers[0]))

    def load() -> Pipeline:
        return options.load(model, device, dtype, compile, threads, lora_dir, vae, backend, quantize=quantize)

    def read(pipe: Pipeline, requests: Sequence[Request]) -> Inputs:
        from ..prompts.embeddings import unused

        if upscalers and not any(one.enlarge or (one.hires and one.hires.network) for one in requests):
            raise RequestError("--upscaler is given without --upscale; give it too, such as --upscale 4")
        for file in (*upscalers, *([] if asked is None else [asked])):
            pipe.upscaler(file)
        made: Inputs = inputs.read(pipe, requests)
        texts = [(text, one.prompt_style) for one in requests for text in (one.prompt, one.negative_prompt)]
        for sentence in unused(made.embeddings, texts):
            note(sentence)
        return made

    asked = None if request.hires is None else request.hires.network
    return DrawingOptions(request, load, read, model, inputs, upscalers)
