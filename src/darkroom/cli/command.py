"""Commands made from functions: a parameter's annotation says what it is on the command line.

    @app.command()
    def enlarge(
        picture: Annotated[str, Argument(metavar="IMAGE", help="What to enlarge.")],
        scale: Annotated[float, Option(metavar="X", help="How many times.")] = 2.0,
    ) -> None:
        "Make a picture larger."

A parameter without a default must be given; `X | None` may be left out, `list[X]` given several times, and a bool is a
flag. The rest is click's, in its public parts (docs/decisions/0023-click-in-place-of-typer.md).
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import click

from ..elsewhere import DRAWING, TRAINING, plain
from ..errors import closest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The panels of --help, in their order.
PANELS = (
    "Basics",
    "Picture in",
    "Guidance",
    "Adapters",
    "Large pictures",
    "Noise",
    "SDXL",
    "Speed",
    "Model and device",
    "Output",
)
BASICS, PICTURE, GUIDANCE, ADAPTERS, LARGE, NOISE, SDXL, SPEED, DEVICE, OUTPUT = PANELS
QUIET, TYPED = "darkroom.quiet", "darkroom.typed"  # where a context notes it
More = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True, init=False)
class Option:
    """A parameter that is an option.

    Attributes:
        names: such as "-o", "--output"; none: the parameter's, with dashes. "--x/--no-x" of a flag that can be denied.
        aliases: what else is taken, and not told of: other programs' names.
        metavar: what stands for the value in help.
        help: a line for people.
        parser: text -> value; raises `click.BadParameter`. None: by the annotation.
        min, max: of a number.
        panel: under which heading --help shows it, of `PANELS`; None: "Options", or the first panel if there are any.
        complete: (what is begun) -> what a shell may offer; None: by the kind of value.
        hidden: whether help leaves it out.
        config: the key of a setting in darkroom.toml that is taken where nothing is given (`config.py`).
    """

    names: tuple[str, ...]
    aliases: tuple[str, ...]
    metavar: str | None
    help: str
    parser: Callable[[str], Any] | None
    min: float | None
    max: float | None
    panel: str | None
    complete: Callable[[str], Sequence[str]] | None
    config: str | None
    show_default: bool
    hidden: bool

    def __init__(
        self,
        *names: str,
        aliases: Sequence[str] = (),
        metavar: str | None = None,
        help: str = "",
        parser: Callable[[str], Any] | None = None,
        min: float | None = None,
        max: float | None = None,
        panel: str | None = None,
        complete: Callable[[str], Sequence[str]] | None = None,
        config: str | None = None,
        show_default: bool = True,
        hidden: bool = False,
    ) -> None:
        values = {k: v for k, v in locals().items() if k != "self"} | {"aliases": tuple(aliases)}
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter that is told by its place."""

    metavar: str
    help: str = ""
    complete: Callable[[str], Sequence[str]] | None = None


@dataclass(slots=True)
class App:
    """The commands of a module: one, or a group of them."""

    about: str | None = None
    commands: list[tuple[str, Callable[..., Any], More | None]] = field(default_factory=list)

    def command(
        self, name: str | None = None, more: More | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function a command, called as it is, or otherwise. `more` of its help: (the words that were typed) ->
        a text below the options."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self.commands.append((name or function.__name__.replace("_", "-"), function, more))
            return function

        return decorate

    def build(self, name: str) -> click.Command:
        """The command line of it all."""
        if self.about is None:
            return built(name, *self.commands[0][1:])
        group = Group(name, help=self.about, context_settings=SETTINGS, no_args_is_help=False)
        for each, function, more in self.commands:
            group.add_command(built(each, function, more))
        return group


# Names of options may be written with underscores, as kohya's and diffusers' are.
SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 100,
}


def built(name: str, function: Callable[..., Any], more: More | None = None) -> click.Command:
    """A function as a command."""
    several = []
    parameters: list[click.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        made = _parameter(parameter)
        parameters.append(made)
        if made.multiple or made.nargs == -1:
            several.append(parameter.name)
    parameters.append(
        _Option(
            Option("-q", "--quiet", panel=OUTPUT, help="No progress and no notes; errors are still said."),
            ["quiet", "-q", "--quiet"], is_flag=True, expose_value=False, is_eager=True, callback=_quieten,
            help="No progress and no notes; errors are still said.",
        )
    )  # fmt: skip

    def call(**values: Any) -> Any:
        for each in several:
            values[each] = list(values[each]) or None
        return function(**values)

    made_of = {"params": parameters, "help": inspect.getdoc(function), "context_settings": SETTINGS}
    return Command(name, more, callback=call, **made_of)


def _quieten(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[QUIET] = value


def is_quiet() -> bool:
    """Whether the command that runs was asked to be quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


class _Option(click.Option):
    """click's, which knows where help shows it, and what it is called elsewhere."""

    def __init__(self, declared: Option, names: Sequence[str], **rest: Any) -> None:
        super().__init__(names, **rest)
        self.declared = declared

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        every, told = self.opts, [name for name in self.opts if name not in self.declared.aliases]
        self.opts = told  # other programs' names are taken, and not told of
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


class _Argument(click.Argument):
    """click's, with a line of help."""

    def __init__(self, declared: Argument, names: Sequence[str], **rest: Any) -> None:
        super().__init__(names, metavar=declared.metavar, **rest)
        self.declared = declared

    def make_metavar(self, ctx: click.Context) -> str:
        """As it was declared, in brackets where it may be left out."""
        told = self.declared.metavar
        told = told if self.required or told.startswith("[") else f"[{told}]"
        return f"{told}..." if self.nargs == -1 else told


class _Sentences(click.Command):
    """click's, with a sentence for options that are none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's, with another sentence for what is no option."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [name for p in self.get_params(ctx) for name in (*p.opts, *p.secondary_opts)]
            raise click.UsageError(no_such_option(error.option_name, known), ctx) from None
        except click.UsageError as error:
            error.ctx = ctx if error.ctx is None else error.ctx
            raise


class Group(_Sentences, click.Group):
    """A group of commands."""


class Command(_Sentences):
    """With panels in its help, and defaults from darkroom.toml."""

    def __init__(self, name: str, more: More | None = None, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.more = more

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """And note what was typed, for help."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What there is more to say."""
        if self.more is not None and (text := self.more(ctx.meta.get(TYPED, ()))):
            formatter.write(f"\n{text}\n")

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """With the defaults that the user has written down."""
        wanted = {p.name: p.declared.config for p in self.params if isinstance(p, _Option) and p.declared.config}
        if wanted and not extra.get("resilient_parsing"):
            from .config import defaults

            found = defaults()
            extra["default_map"] = {name: found[key].value for name, key in wanted.items() if key in found}
        return super().make_context(info_name, args, parent, **extra)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """click's, without other programs' names."""
        also = {name for p in self.params if isinstance(p, _Option) for name in p.declared.aliases}
        return [item for item in super().shell_complete(ctx, incomplete) if item.value not in also]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments, then options by their panels."""
        told = [p for p in self.get_params(ctx) if isinstance(p, _Argument)]
        if rows := [(p.declared.metavar.strip("[]"), p.declared.help) for p in told if p.declared.help]:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        panels: dict[str | None, list[tuple[str, str]]] = {panel: [] for panel in (None, *PANELS)}
        for p in self.get_params(ctx):
            if isinstance(p, click.Option) and (row := p.get_help_record(ctx)) is not None:
                panel = p.declared.panel if isinstance(p, _Option) else OUTPUT
                panels[panel].append(row)
        if not panels[BASICS]:  # too few for panels
            panels = {None: [row for rows in panels.values() for row in rows]}
        else:
            panels[BASICS] = panels.pop(None, []) + panels[BASICS]
        for heading, rows in panels.items():
            if rows:
                with formatter.section(heading or "Options"):
                    formatter.write_dl(rows)


def no_such_option(given: str, known: Sequence[str]) -> str:
    """The sentence for an option that is none."""
    name = plain(given)
    if "--set" in known and (ours := TRAINING.ours(name) or (name if name in TRAINING.same else None)):
        return f"{given} is no option but a setting: --set {ours}=VALUE"
    told = (TRAINING, DRAWING) if "--set" in known else (DRAWING,)
    if sentence := next((said for names in told if (said := names.instead(name))), ""):
        return f"there is no option {given}: {sentence}"
    near = closest(given.lower(), [name for name in known if name.startswith("--")])
    return f"there is no option {given}" + (f"; did you mean {near}?" if near else "")


# --- parameters


def _parameter(parameter: inspect.Parameter) -> click.Parameter:
    if get_origin(parameter.annotation) is not Annotated:
        raise TypeError(f"{parameter.name} is not annotated with an Option or an Argument")
    annotation, declared, *_ = get_args(parameter.annotation)
    kind, multiple = _kind(annotation)
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if isinstance(declared, Argument):
        rest: dict[str, Any] = {"nargs": -1} if multiple else {"default": default} if not required else {}
        return _Argument(
            declared, [parameter.name], type=_type(kind, declared), required=required,
            shell_complete=_completion(declared.complete, declared.metavar), **rest,
        )  # fmt: skip
    names = declared.names or (f"--{parameter.name.replace('_', '-')}",)
    options: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": _type(kind, declared)}
    if default is not None or kind is bool:
        options["default"] = default
    return _Option(
        declared, [parameter.name, *names, *declared.aliases], required=required, multiple=multiple,
        hidden=declared.hidden,
        metavar=None if kind is bool else declared.metavar, help=declared.help,
        show_default=declared.show_default and default != "" and "[default:" not in declared.help,
        shell_complete=_completion(declared.complete, declared.metavar or ""), **options,
    )  # fmt: skip


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    return annotation, False


def _type(kind: Any, declared: Option | Argument) -> Any:
    low, high, parser = (getattr(declared, name, None) for name in ("min", "max", "parser"))
    if parser is not None:
        return _Parsed(parser)
    if low is not None or high is not None:
        return (click.IntRange if kind is int else click.FloatRange)(low, high)
    if kind is Path:
        return click.Path(path_type=Path)
    return kind


class _Parsed(click.ParamType[Any]):
    """Values that a function reads."""

    name = "text"

    def __init__(self, parser: Callable[[str], Any]) -> None:
        self.parser = parser

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A value that is none yet is read."""
        return self.parser(value) if isinstance(value, str) else value


_FILES, _FOLDERS = {"FILE", "IMAGE", "MODEL", "DATA", "SRC"}, {"DIR", "FOLDER"}


def _completion(complete: Callable[[str], Sequence[str]] | None, metavar: str) -> Any:
    """What a shell offers, as click wants it: words, else files or folders where such are taken."""
    words = set(re.findall(r"[A-Z]+", metavar))
    kind = "file" if words & _FILES else "dir" if words & _FOLDERS else ""
    if complete is None and not kind:
        return None

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        known = [] if complete is None else complete(incomplete)
        found = [CompletionItem(each) for each in known if each.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type=kind)] if kind else [])

    return offer
