"""From a caption as it was found to the text of one training step: templates, shuffled tags, dropout.

All of it is a pure function of the options and of (seed, step, row), so that any step's texts can be made at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TrainingError

ALTERNATIVE = "|"  # between templates


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """What is made of captions. Recipes have fields of the same names (`keep` is `keep_tags`). Raises TrainingError.

    In this order: a line is chosen (`lines`), tags are dropped and shuffled, the template and the prefix are put
    around; or the whole is dropped.
    """

    template: str = "{}"  # around every caption: "a photo of {}"; several with | between them are taken in turns by lot
    prefix: str = ""  # before every caption
    dropout: float = 0.0  # fraction of captions replaced by the empty one, so that guidance goes on working
    shuffle: bool = False  # put tags (between commas) in another order each time
    keep: int = 0  # that many first tags stay where they are, and are never dropped
    tag_dropout: float = 0.0  # fraction of tags left out
    lines: bool = False  # each line of a caption's file is a caption of its own, taken by lot; else lines are joined

    def __post_init__(self) -> None:
        if any("{}" not in part for part in self.template.split(ALTERNATIVE)):
            raise TrainingError(
                f"template is {self.template[:100]!r}; each must have a {{}} for the caption, such as 'a photo of {{}}'"
            )
        for name in ("dropout", "tag_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.keep < 0:
            raise TrainingError(f"keep is {self.keep}; it must be 0 or more")

    def text(self, caption: str, seed: int, step: int, row: int) -> str:
        """What the network reads of a picture's caption in a step. `row` is the picture's number."""
        rng = np.random.default_rng((seed, step, row, 5))
        # Every draw is made whether it is needed or not: one option changed changes nothing else.
        gone, line, template = rng.random(3)
        if gone < self.dropout:
            return ""
        parts = self._lines(caption)
        chosen = parts[int(line * len(parts))]
        if self.shuffle or self.tag_dropout:
            chosen = self._tags(chosen, rng)
        templates = self.template.split(ALTERNATIVE)
        return self._around(chosen, templates[int(template * len(templates))])

    def texts(self, captions: Sequence[str], rows: Sequence[int], step: int, seed: int) -> list[str]:
        """`text` for the pictures `rows` of a batch, whose captions are in `captions` (all pictures')."""
        return [self.text(captions[int(i)], seed, step, int(i)) for i in rows]

    def all(self, caption: str) -> list[str] | None:
        """Every text that can come of a caption, the empty one included; None where tags make too many.

        What is encoded ahead where the text encoder is frozen.
        """
        if self.shuffle or self.tag_dropout:
            return None
        found = [self._around(line, t) for line in self._lines(caption) for t in self.template.split(ALTERNATIVE)]
        return list(dict.fromkeys([*found, *([""] if self.dropout else [])]))

    def _lines(self, caption: str) -> list[str]:
        lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
        return lines if self.lines else [" ".join(lines)]

    def _tags(self, caption: str, rng: np.random.Generator) -> str:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept, loose = tags[: self.keep], tags[self.keep :]
        stays = rng.random(len(loose)) >= self.tag_dropout
        order = rng.permutation(len(loose)) if self.shuffle else range(len(loose))
        return ", ".join([*kept, *(loose[i] for i in order if stays[i])])

    def _around(self, caption: str, template: str) -> str:
        return (self.prefix + template.replace("{}", caption)).strip()
