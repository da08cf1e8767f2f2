"""Recipes: complete, typed configurations of a training; every setting is declared once, on its field.

A recipe is a frozen dataclass. A field says what its values must be and what it is for (`settings.setting`); `check`,
`override`, `keys`, `listing` and `unused` are derived from that. A kind of training adds its own fields in its own
file, and what they must be beside each other in a method `check`.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from .. import settings
from ..elsewhere import TRAINING
from ..errors import TrainingError, distance
from ..settings import Kind, SettingError, setting

OPTIMIZERS = ("muon", "adamw", "adamw8bit", "adafactor")
SCHEDULES = ("stable", "constant", "linear", "cosine", "restarts")
SHARDINGS = ("none", "fsdp")
PRECISIONS = ("float32", "bfloat16", "float16")

Recipe = TypeVar("Recipe")
Test = Callable[[Any], Any]

# --- kinds of values


def _kind(wanted: str, test: Test, read: Callable[[str], Any], written: str, metavar: str) -> Kind:
    """Values that pass a test, as they are (NaN never does); `read` makes one of a text, or raises ValueError."""

    def check(name: str, value: Any) -> Any:
        if not (value == value and test(value)):
            raise SettingError(f"{name} is {value!r}; it must be {wanted}")
        return value

    def parse(name: str, text: str) -> Any:
        try:
            return read(text)
        except (ValueError, KeyError):
            raise SettingError(f"{name} is {text[:100]!r}; it must be {written}") from None

    return Kind(check, parse, metavar, wanted)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def whole(wanted: str = "a whole number", test: Test = lambda v: True) -> Kind:
    """Whole numbers that pass a test, which `wanted` says in words."""
    return _kind(wanted, test, int, "a whole number", "N")


def number(wanted: str, test: Test) -> Kind:
    """Numbers that pass a test, which `wanted` says in words."""
    return _kind(wanted, test, _finite, "a finite number", "X")


def text(wanted: str = "a text", test: Test = lambda v: True) -> Kind:
    """Texts that pass a test, which `wanted` says in words."""
    return _kind(wanted, test, str, "a word", "TEXT")


def named(names: Iterable[str]) -> Kind:
    """One of a few names: "'a', 'b' or 'c'"."""
    known = tuple(names)
    return text(", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}", lambda v: v in known)


def either(names: Iterable[str]) -> Kind:
    """One of a few names: "'a' or 'b' or 'c'"."""
    known = tuple(names)
    return text(" or ".join(map(repr, known)), lambda v: v in known)


def listed(names: Iterable[str], *more: str) -> Kind:
    """One of many names: "one of a, b, c"; `more` are not told of."""
    known = tuple(names)
    return text("one of " + ", ".join(known), lambda v: v in (*known, *more))


def flag() -> Kind:
    """True or False."""
    return _kind("true or false", lambda v: True, lambda text: {"true": True, "false": False}[text.lower()],
                 "true or false", "")  # fmt: skip


def several(one: Kind, wanted: str = "", test: Test = lambda v: True) -> Kind:
    """Tuples of what another kind reads, with commas between them (and brackets around them, if one likes)."""

    def parse(name: str, text: str) -> tuple[Any, ...]:
        return tuple(one.read(name, part.strip()) for part in text.strip("()[]").split(",") if part)

    return Kind(_kind(wanted, test, str, "", "").check, parse, f"{one.metavar},...", wanted or f"{one.wanted}, several")


FRACTION = number("between 0 and 1", lambda v: 0 <= v <= 1)
BELOW_ONE = number("at least 0 and below 1", lambda v: 0 <= v < 1)
ABOVE_ZERO = number("above 0", lambda v: v > 0)
WEIGHT = number("0 or more", lambda v: 0 <= v < math.inf)  # of a term in a loss
RATE = number("a number above 0, at most 1", lambda v: 0 < v <= 1)  # a learning rate
COUNT = whole("0 or more", lambda v: v >= 0)
STEPS = whole("0 or more (steps)", lambda v: v >= 0)


def again(owner: type, name: str, default: Any = MISSING) -> Any:
    """A field of another recipe, declared as it is there; with another default, if one is given."""
    (there,) = (f for f in fields(owner) if f.name == name)
    known = settings.settings(owner)[name]
    return setting(there.default if default is MISSING else default, known.kind, known.help, **known.extra)


# --- the recipe of the loop


def _lengths(value: Any) -> bool:
    return len(set(value)) == len(value) != 1 and all(0 < v < 0.28 for v in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What every stage's recipe has. A `free` setting decides when, where and how, not what is learned: it may be
    another when a run is resumed. One that `needs` others changes nothing without them (see `unused`)."""

    heading: ClassVar[str] = "The loop"  # of a class's own settings in a listing

    steps: int = setting(
        kind=whole("between 1 and 10^9", lambda v: 1 <= v <= 10**9),
        help="Length of the run; may be changed between resumes where the schedule allows it.",
        free=True,
    )
    batch_size: int = setting(
        kind=whole("between 1 and 65536", lambda v: 1 <= v <= 65536),
        help="Rows of a step, of all processes and parts together.",
    )
    lr: float = setting(kind=RATE, help="The learning rate at its highest.")
    optimizer: str = setting("muon", named(OPTIMIZERS), 'With little memory: "adamw8bit", "adafactor".')
    weight_decay: float = setting(0.0, FRACTION, "Of matrices; norms, biases and embeddings never decay.")
    schedule: str = setting(
        "stable",
        named(SCHEDULES),
        '"stable": constant until the cool-down; "constant": without one; "linear", "cosine": falling to zero over the '
        'whole run; "restarts": falling as a cosine `cycles` times.',
    )
    cycles: int = setting(
        1, whole("between 1 and 1000", lambda v: 1 <= v <= 1000), 'Of "restarts".', beside=(("schedule", "restarts"),)
    )
    warmup: int = setting(200, COUNT, "Steps over which the learning rate rises.")
    cooldown: float = setting(
        0.4,
        FRACTION,
        'The fraction of a "stable" run over which the learning rate falls to zero.',
        free=True,
        beside=(("schedule", "stable"),),
    )
    clip: float = setting(1.0, ABOVE_ZERO, "Largest norm of the gradient.")
    accumulate: int = setting(
        1,
        whole("between 1 and 65536", lambda v: 1 <= v <= 65536),
        "Parts in which a process computes its rows, one after the other: less memory, the same step.",
        free=True,
    )
    ema: float = setting(0.998, BELOW_ONE, "Decay of the averaged weights.")
    ema_lengths: tuple[float, ...] = setting(
        (),
        several(number("", lambda v: True), "none, or two or more different lengths above 0 and below 0.28", _lengths),
        "Power-function averages to keep snapshots of, such as 0.05,0.1.",
    )
    snapshot_every: int = setting(
        1000, whole("1 or more (steps)", lambda v: v >= 1), "Steps between those.", beside=(("ema_lengths",),)
    )
    ema_length: float = setting(
        0.0,
        number("0, or above 0 and below 0.28", lambda v: 0 <= v < 0.28),
        "Make the result from an average of that length, out of snapshots; 0: from that of `ema`.",
        free=True,
    )
    precision: str = setting("bfloat16", named(PRECISIONS), "Of the products; weights and optimizer are float32.")
    checkpointing: bool = setting(
        False, flag(), "Forget what blocks computed and compute it again: a third slower, far less memory.", free=True
    )
    sharding: str = setting(
        "none",
        named(SHARDINGS),
        '"fsdp": every process keeps its part of weights, gradients, optimizer and average only.',
        free=True,
    )
    compile: bool = setting(False, flag(), "By torch.compile: slow to begin, faster after.", free=True)
    seed: int = setting(0, whole("0 or more, below 2^63", lambda v: 0 <= v < 2**63), "Of all that is drawn.")
    validate_every: int = setting(0, STEPS, "Steps between losses on held-out rows; 0: never.", free=True)
    best: bool = setting(
        False, flag(), "Make the result from the checkpoint whose held-out loss was the smallest.", free=True
    )
    sample_every: int = setting(0, STEPS, "Steps between sheets of samples; 0: never.", free=True)
    save_every: float = setting(
        300.0, number("above 0 (seconds)", lambda v: v > 0), "Seconds between checkpoints.", free=True
    )
    log_every: int = setting(50, whole("1 or more", lambda v: v >= 1), "Steps between log lines.", free=True)
    tensorboard: bool = setting(
        False, flag(), "Write the log for TensorBoard too.", free=True, library=("tensorboard", "train")
    )
    keep: int = setting(2, whole("1 or more", lambda v: v >= 1), "Checkpoints kept.", free=True)
    device: str = setting("cpu", text(), "cpu, cuda, cuda:1 or mps.", free=True)

    @property
    def stage(self) -> Any:
        """The class of what is trained by this recipe, a `stage.Stage`."""
        raise NotImplementedError(type(self).__name__)

    def estimate(self, model: str | None, world: int) -> Any:
        """The `memory.Estimate` of a run from `model` in each of `world` processes."""
        return self.stage.estimate(self, model, world)

    def check(self, workers: int) -> None:
        """Raise TrainingError, naming the setting, where settings contradict each other or can't be done by `workers`
        processes. A subclass calls its base's, and adds its own."""
        if workers < 1:
            raise TrainingError(f"workers is {workers}; it must be 1 or more")
        if self.batch_size % workers:
            raise TrainingError(f"batch_size is {self.batch_size}; {workers} workers can't share it evenly")
        rows = self.batch_size // workers
        if rows % self.accumulate:
            raise TrainingError(
                f"accumulate is {self.accumulate}; {rows} rows can't be computed in so many equal parts"
            )
        if self.sharding == "fsdp" and self.optimizer != "adamw":
            raise TrainingError(
                f"sharding is 'fsdp', and {self.optimizer} needs whole matrices; set optimizer=adamw or sharding=none"
            )
        if self.sharding == "fsdp" and self.sample_every:
            raise TrainingError(
                "sharding is 'fsdp', and no process has a whole network to draw with; set sample_every=0"
            )
        if self.best and not self.validate_every:
            raise TrainingError(
                "best is true and validate_every is 0; say how often the held-out loss shall be measured"
            )
        if self.ema_length and not self.ema_lengths:
            raise TrainingError(
                f"ema_length is {self.ema_length:g}, and no snapshots are kept; set ema_lengths=0.05,0.1 from the start"
            )


# --- what is derived


def check_early(assignments: Iterable[str]) -> None:
    """Raise TrainingError for what is wrong with "key=value" whatever is trained: said before torch is imported."""
    declared = settings.settings(LoopConfig)
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        known = declared.get(TRAINING.ours(key) or key)
        if known is None or not equals:
            continue
        try:
            value = known.kind.check(key, known.kind.read(key, text))
        except SettingError as wrong:
            raise TrainingError(str(wrong)) from None
        module, extra = known.extra.get("library", ("", ""))
        if value and module and importlib.util.find_spec(module) is None:
            raise TrainingError(
                f"{key} is {text}, and {module} isn't installed; pip install 'darkroom-diffusion[{extra}]', or leave it"
            )


def check(recipe: LoopConfig, workers: int = 1) -> None:
    """Raise TrainingError, naming the setting, on a recipe that can't be trained by `workers` processes."""
    check_loop(recipe, workers)
    _check_device(recipe.device)


def check_loop(config: LoopConfig, workers: int = 1) -> None:
    """`check`, wherever the training is to be: of values, and of what they must be beside each other."""
    settings.check(config, TrainingError)
    config.check(workers)


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device is {name!r}; there are cpu, cuda, cuda:1, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device is {name!r}, and no GPU was found; choose the preset cpu, or set device=cpu")


def check_recipe(old: Mapping[str, Any], config: LoopConfig, folder: Any) -> None:
    """Raise TrainingError unless a run that was begun by `old` may go on by `config`.

    It may be prolonged or told to log and save otherwise; anything else would make it another run. A setting that
    the run's version did not know yet had its default.
    """
    declared = settings.settings(config)
    for f in fields(config):
        now = getattr(config, f.name)
        before = old.get(f.name, f.default)
        free = f.name in declared and declared[f.name].extra.get("free", False)
        if not free and before != now and before is not MISSING:
            raise TrainingError(f"{folder} was trained with {f.name}={before!r}, not {now!r}; use another folder")
    if config.schedule not in ("stable", "constant") and old["steps"] != config.steps:
        raise TrainingError(
            f"{folder} was laid out for {old['steps']} steps, over which schedule={config.schedule} falls to zero; "
            f"{config.steps} would change what has been. Only 'stable' and 'constant' runs can be prolonged"
        )


def recipe_of(kind: type[Recipe], saved: Mapping[str, Any]) -> Recipe:
    """A recipe from what a checkpoint or recipe.json holds; what this version doesn't know is left out.

    Raises TrainingError where something is missing.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known}
    try:
        return kind(**values)
    except TypeError as error:
        raise TrainingError(f"a run's recipe is incomplete: {error}") from None


def parts(recipe: Any) -> Sequence[LoopConfig]:
    """The runs of the loop that a recipe is of: several where its fields are recipes themselves."""
    found = [value for f in fields(recipe) if isinstance(value := getattr(recipe, f.name), LoopConfig)]
    return found or [recipe]


def on(recipe: Recipe, preset: str) -> Recipe:
    """A recipe for one of `kinds.PRESETS`: the same numbers, on its device."""
    return replace(recipe, device="cuda") if preset == "gpu" else recipe  # type: ignore[type-var]


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """`recipe` with fields changed by "key=value"; "part.key=value" reaches into a recipe of several parts.

    Values are written as in Python, lists with commas: "lr=3e-4", "widths=64,128,192", "attention_levels=false,true".
    Raises TrainingError on a key that doesn't exist, with the nearest one, and on a value of another type.
    """
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise TrainingError(f"{assignment[:100]!r} is no setting; write key=value, such as steps=1000")
        recipe = _set(recipe, key.strip(), value.strip(), key.strip())
    return recipe


def assigned(assignments: Iterable[str]) -> list[str]:
    """The names of the settings that `override` changes by some assignments."""
    return list(dict.fromkeys(assignment.partition("=")[0].strip() for assignment in assignments))


def keys(recipe: Any, prefix: str = "") -> list[str]:
    """The names that `override` knows in a recipe."""
    names: list[str] = []
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        names += keys(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return names


@dataclass(frozen=True, slots=True)
class Listed:
    """A setting as it is told to people: its name in `override`, the heading that it stands under, what its values
    must be, its value in this recipe, and what it is for."""

    name: str
    heading: str
    wanted: str
    value: Any
    help: str

    @property
    def written(self) -> str:
        """Its value as `override` reads it."""
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if isinstance(self.value, tuple):
            return ",".join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.value)
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


def listing(recipe: Any, prefix: str = "") -> list[Listed]:
    """All settings of a recipe, those of its own first and those of the loop last; of several parts one after the
    other."""
    found: list[Listed] = []
    for owner in type(recipe).__mro__:
        for name in inspect.get_annotations(owner):
            value = getattr(recipe, name, None)
            if isinstance(value, LoopConfig):
                found += listing(value, f"{prefix}{name}.")
            elif (declared := settings.settings(recipe).get(name)) and prefix + name not in [f.name for f in found]:
                heading = owner.__dict__.get("heading", "Its own")
                found.append(Listed(prefix + name, heading, declared.kind.wanted, value, declared.help))
    return found


def unused(recipe: Any, given: Iterable[str], data: bool = True) -> list[str]:
    """A sentence for each of the settings `given`, by name, that changes nothing in this recipe: what it `needs` is
    not asked for, or it is `of` the built-in "scenes", or of one's own "pictures", and the run has the other (`data`:
    it has one's own). A need is (name, values that will do) or (name,), which must be set; one of several is enough.
    """
    sentences = []
    for name in given:
        first, dot, rest = name.partition(".")
        if dot:
            sentences += [f"{first}.{sentence}" for sentence in unused(getattr(recipe, first), [rest], data)]
            continue
        declared = settings.settings(recipe)
        known = name if name in declared else TRAINING.ours(name) or name
        needs, of = declared[known].extra.get("beside", ()), declared[known].extra.get("of")
        if of == ("scenes" if data else "pictures"):
            wanted = "the built-in scenes" if data else "one's own pictures (--data)"
            sentences.append(f"{name} is set and changes nothing: it is for {wanted}")
            continue
        if needs and not any(_met(getattr(recipe, other), values) for other, *values in needs):
            wanted = " or ".join("=".join((n, "|".join(map(str, values)))) if values else n for n, *values in needs)
            sentences.append(f"{name} is set and changes nothing: it is for {wanted}")
    return sentences


def _met(value: Any, wanted: Sequence[Any]) -> bool:
    """Whether a setting is one of some values (of several, one that has one of them in it), or, without any, set."""
    if not wanted:
        return bool(value)
    return any(w in part for part in value for w in wanted) if isinstance(value, tuple) else value in wanted


def _set(recipe: Any, key: str, value: str, whole_key: str) -> Any:
    first, dot, rest = key.partition(".")
    declared = settings.settings(recipe)
    if not dot and key not in declared:
        ours = TRAINING.ours(key)
        first = ours if ours in declared else key
    if first not in (() if dot else declared) and not (dot and is_dataclass(getattr(recipe, first, None))):
        known = keys(recipe, whole_key[: len(whole_key) - len(key)])
        same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
        if instead := TRAINING.instead(key):
            raise TrainingError(f"there is no setting {whole_key[:100]!r}: {instead}")
        hint = (
            f"; did you mean {min(same, key=partial(distance, whole_key))!r}?"
            if same
            else TRAINING.near(whole_key, known)
        )
        raise TrainingError(f"the recipe has no setting {whole_key[:100]!r}{hint}")
    if dot:
        return replace(recipe, **{first: _set(getattr(recipe, first), rest, value, whole_key)})
    try:
        return replace(recipe, **{first: declared[first].kind.read(whole_key, value)})
    except SettingError as wrong:
        raise TrainingError(str(wrong)) from None
