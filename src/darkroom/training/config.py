"""What every training's recipe has: the settings of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..errors import TrainingError

OPTIMIZERS = ("muon", "adamw", "adamw8bit", "adafactor")
SCHEDULES = ("stable", "constant", "linear", "cosine", "restarts")
SHARDINGS = ("none", "fsdp")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What every stage's recipe has."""

    steps: int  # length of the run; may be changed between resumes where the schedule allows it
    batch_size: int  # rows of a step, of all processes and parts together
    lr: float
    optimizer: str = "muon"  # "muon", "adamw"; with little memory: "adamw8bit", "adafactor"
    weight_decay: float = 0.0  # of matrices; norms, biases and embeddings never decay
    # "stable": constant until the cool-down; "constant": without one; "linear", "cosine": falling to zero over the
    # whole run; "restarts": falling as a cosine `cycles` times
    schedule: str = "stable"
    cycles: int = 1
    warmup: int = 200  # steps
    cooldown: float = 0.4  # the fraction of a "stable" run over which the learning rate falls to zero
    clip: float = 1.0  # largest norm of the gradient
    accumulate: int = 1  # parts in which a process computes its rows, one after the other: less memory, the same step
    ema: float = 0.998  # decay of the averaged weights
    ema_lengths: tuple[float, ...] = ()  # power-function averages to keep snapshots of, such as 0.05,0.1
    snapshot_every: int = 1000  # steps between those
    ema_length: float = 0.0  # make the result from an average of that length, out of snapshots; 0: from that of `ema`
    precision: str = "bfloat16"  # of the products ("float32", "bfloat16", "float16"); weights and optimizer are float32
    checkpointing: bool = False  # forget what blocks computed and compute it again: a third slower, far less memory
    sharding: str = "none"  # "fsdp": every process keeps its part of weights, gradients, optimizer and average only
    compile: bool = False  # by torch.compile: slow to begin, faster after
    seed: int = 0
    validate_every: int = 0  # steps between losses on held-out rows; 0: never
    best: bool = False  # make the result from the checkpoint whose held-out loss was the smallest
    sample_every: int = 0  # steps between sheets of samples; 0: never
    save_every: float = 300.0  # seconds between checkpoints
    log_every: int = 50  # steps between log lines
    tensorboard: bool = False  # write the log for TensorBoard too
    keep: int = 2  # checkpoints kept
    device: str = "cpu"


# What may be another when a run is resumed: it decides when, where and how, not what is learned.
FREE = frozenset({
    "steps", "cooldown", "accumulate", "ema_length", "checkpointing", "sharding", "compile", "validate_every", "best",
    "prompts", "sample_every", "save_dtype", "save_every", "log_every", "tensorboard", "keep", "device", "form",
    "trigger",
})  # fmt: skip


def _one_of(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"


def _lengths(value: Any) -> bool:
    return len(set(value)) == len(value) != 1 and all(0 < v < 0.28 for v in value)


Rule = tuple[str, str, Callable[[Any], bool]]  # field, what it must be, test
LOOP_RULES: tuple[Rule, ...] = (
    ("steps", "between 1 and 10^9", lambda v: 1 <= v <= 10**9),
    ("batch_size", "between 1 and 65536", lambda v: 1 <= v <= 65536),
    ("lr", "a number above 0, at most 1", lambda v: 0 < v <= 1),
    ("optimizer", _one_of(OPTIMIZERS), lambda v: v in OPTIMIZERS),
    ("weight_decay", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("schedule", _one_of(SCHEDULES), lambda v: v in SCHEDULES),
    ("cycles", "between 1 and 1000", lambda v: 1 <= v <= 1000),
    ("warmup", "0 or more", lambda v: v >= 0),
    ("cooldown", "between 0 and 1", lambda v: 0 <= v <= 1),
    ("clip", "above 0", lambda v: v > 0),
    ("accumulate", "between 1 and 65536", lambda v: 1 <= v <= 65536),
    ("ema", "at least 0 and below 1", lambda v: 0 <= v < 1),
    ("ema_lengths", "none, or two or more different lengths above 0 and below 0.28", _lengths),
    ("snapshot_every", "1 or more (steps)", lambda v: v >= 1),
    ("ema_length", "0, or above 0 and below 0.28", lambda v: 0 <= v < 0.28),
    ("sharding", _one_of(SHARDINGS), lambda v: v in SHARDINGS),
    ("precision", _one_of(PRECISIONS), lambda v: v in PRECISIONS),
    ("seed", "0 or more, below 2^63", lambda v: 0 <= v < 2**63),
    ("validate_every", "0 or more (steps)", lambda v: v >= 0),
    ("sample_every", "0 or more (steps)", lambda v: v >= 0),
    ("save_every", "above 0 (seconds)", lambda v: v > 0),
    ("log_every", "1 or more", lambda v: v >= 1),
    ("keep", "1 or more", lambda v: v >= 1),
)


def check_rules(config: Any, rules: tuple[Rule, ...]) -> None:
    """Raise TrainingError for a field that is not what its rule says, or NaN."""
    names = {f.name for f in fields(config)}
    for name, wanted, good in rules:
        if name in names and not ((value := getattr(config, name)) == value and good(value)):
            raise TrainingError(f"{name} is {value!r}; it must be {wanted}")


def check_loop(config: LoopConfig, workers: int = 1) -> None:
    """Raise TrainingError, naming the setting, on what the loop can't do in `workers` processes."""
    check_rules(config, LOOP_RULES)
    if workers < 1:
        raise TrainingError(f"workers is {workers}; it must be 1 or more")
    if config.batch_size % workers:
        raise TrainingError(f"batch_size is {config.batch_size}; {workers} workers can't share it evenly")
    rows = config.batch_size // workers
    if rows % config.accumulate:
        raise TrainingError(f"accumulate is {config.accumulate}; {rows} rows can't be computed in so many equal parts")
    if config.sharding == "fsdp" and config.optimizer != "adamw":
        raise TrainingError(
            f"sharding is 'fsdp', and {config.optimizer} needs whole matrices; set optimizer=adamw or sharding=none"
        )
    if config.sharding == "fsdp" and config.sample_every:
        raise TrainingError("sharding is 'fsdp', and no process has a whole network to draw with; set sample_every=0")
    if config.best and not config.validate_every:
        raise TrainingError("best is true and validate_every is 0; say how often the held-out loss shall be measured")
    if config.ema_length and not config.ema_lengths:
        raise TrainingError(
            f"ema_length is {config.ema_length:g}, and no snapshots are kept; set ema_lengths=0.05,0.1 from the start"
        )


def check_recipe(old: Mapping[str, Any], config: LoopConfig, folder: Any) -> None:
    """Raise TrainingError unless a run that was begun by `old` may go on by `config`.

    It may be prolonged or told to log and save otherwise; anything else would make it another run. A setting that
    the run's version did not know yet had its default.
    """
    for field in fields(config):
        now = getattr(config, field.name)
        before = old.get(field.name, field.default)
        if field.name not in FREE and before != now and before is not MISSING:
            raise TrainingError(f"{folder} was trained with {field.name}={before!r}, not {now!r}; use another folder")
    if config.schedule not in ("stable", "constant") and old["steps"] != config.steps:
        raise TrainingError(
            f"{folder} was laid out for {old['steps']} steps, over which schedule={config.schedule} falls to zero; "
            f"{config.steps} would change what has been. Only 'stable' and 'constant' runs can be prolonged"
        )
