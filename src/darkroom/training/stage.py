"""What a kind of training is: from what it is opened, a step's loss, what is made of it, the memory that it takes.

A kind's file has a recipe (`recipe.LoopConfig`) and a subclass of `Stage`; `run.run` does with them all that a command
does, `loop.train` the steps. See docs/adding-a-training.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor, nn

from ..errors import TrainingError, visible
from ..files import whole_file
from .kinds import Report, Source, log
from .memory import Estimate
from .parallel import Rank
from .recipe import LoopConfig
from .sheets import Use, near

LEFT_OUT = "left-out.txt"  # in the output folder: the pictures that can't be learned from, and why


class Stage(ABC):
    """What is trained: networks, the batch of a step, its loss. `modules` are saved, averaged and updated by name.

    The loop alone needs no more than `config`, `modules`, `batch` and `loss`; a run needs more (see "a run").

    Attributes:
        config: the recipe.
        hooks: closed at the end: what is attached to a model leaves it.
    """

    title: ClassVar[str] = "training"  # what the line of progress calls it
    encoding: ClassVar[str] = ""  # and what is computed before the first step; empty: nothing is
    writing: ClassVar[str] = ""  # and its end
    afterwards: ClassVar[Sequence[str]] = ()  # what to type next, {} being the result, where nothing is drawn with it
    # What a run belongs to, by `belongs`, and the sentence where it is resumed with something else.
    others: ClassVar[Mapping[str, str]] = {}
    unnoted: ClassVar[Mapping[str, Any]] = {}  # what runs of earlier versions belong to that have not noted it

    config: Any
    modules: Mapping[str, nn.Module]
    hooks: ExitStack

    # --- a run

    @classmethod
    def settled(cls, recipe: Any, source: Source) -> Any:
        """The recipe with what `source` decides. Raises TrainingError where the two contradict each other."""
        return recipe

    @classmethod
    def open(cls, recipe: Any, source: Source, output: Path, report: Report | None = None) -> Self:
        """The stage of a run in the folder `output`: networks as they begin, pictures looked at.

        It is called in every process of a run. `report` is given in the first one alone: what the others need is made
        there and then (class pictures, a vocabulary). Raises TrainingError, CheckpointError.
        """
        raise NotImplementedError

    def belongs(self) -> Mapping[str, Any]:
        """What the run belongs to, as it is noted in JSON: `others` says what of it must stay the same."""
        raise NotImplementedError

    @property
    def left_out(self) -> Sequence[tuple[Path, str]] | None:
        """The pictures that can't be learned from, and why; None where there could be none."""
        return None

    def tell(self, output: Path) -> None:
        """Warn whoever started the run of what is odd about its pictures."""
        if self.left_out is None:
            return
        lines = [visible(f"{path}: {why}") for path, why in self.left_out]
        with whole_file(output / LEFT_OUT, TrainingError) as draft:
            draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if lines:
            log.warning("%d pictures are left out; %s says which, and why", len(lines), output / LEFT_OUT)

    def encode(self, cache: Path) -> None:  # noqa: B027
        """Compute this process's part of what can be before the first step, and keep it in the folder `cache`."""

    def take(self, cache: Path, ahead: bool | None = None) -> None:  # noqa: B027
        """Use what has been encoded from now on. `ahead` is given in the first process alone, and says whether what is
        missing shall be made now."""

    def write(self, output: Path, report: Report) -> Path:
        """Write what was made, in the form that others read; the modules hold the averages."""
        raise NotImplementedError

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        """How what was `made` is used: what to type next, and how the sheet of before and after is drawn."""
        return Use(instead=[word.format(near(made)) for word in cls.afterwards])

    @classmethod
    def compare(cls, recipe: Any, source: Source, made: Path, output: Path, report: Report) -> tuple[str, Path | None]:
        """What to type next, and a sheet in `output`, before and after, drawn with what was `made`; None: no sheet."""
        return cls.use(recipe, made).command("", source.model), None

    # --- the loop

    @abstractmethod
    def batch(self, step: int, rank: Rank) -> Any:
        """This process's share of a step's data, prepared in another thread; a pure function of its arguments."""

    @abstractmethod
    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, a mean over rows, and detached figures to log.

        torch's generator has been seeded for this step: draw for the whole batch, then take the share.
        """

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of modules that have another than the recipe's `lr`, by name."""
        return {}

    @property
    def compiled(self) -> Sequence[nn.Module]:
        """What torch.compile is for."""
        return list(self.modules.values())

    @property
    def discriminators(self) -> Mapping[str, nn.Module]:
        """Networks that learn against `modules`, by name; their loss is a summand of `loss`."""
        return {}

    @property
    def discriminator_lr(self) -> float:
        return 0.0

    def validation(self) -> Sequence[Any]:
        """Batches that are never trained on, always the same, for `validate_every`; the weights are the averages."""
        raise _unable("validate_every", self.config)

    def sheet(self) -> Image.Image:
        """Samples drawn with the networks as they are, for `sample_every`; the weights are the averages."""
        raise _unable("sample_every", self.config)

    # --- memory

    @classmethod
    def estimate(cls, recipe: Any, model: str | None, world: int) -> Estimate:
        """What a run from `model` takes in each of `world` processes: its own loss, through networks without values.

        Raises CheckpointError for a model that can't be opened, ValueError for networks that can't be built.
        """
        raise NotImplementedError


def _unable(name: str, config: LoopConfig) -> TrainingError:
    return TrainingError(f"{name} is {getattr(config, name)}; this training can't do that: leave it at 0")
