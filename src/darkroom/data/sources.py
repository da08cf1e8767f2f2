"""Whatever a user names as training pictures, looked at: a folder, or shards."""

from __future__ import annotations

from pathlib import Path

from .examples import Remembered, Scan
from .folders import scan
from .shards import scan_shards, shard_files


def scan_any(data: str, index: Path | None = None) -> Scan:
    """The pictures of a folder or of WebDataset shards ("shards/", "a-{000..015}.tar", "*.tar").

    `index`: a file that remembers what was found, so that the next scan looks at what has changed only. Raises
    TrainingError.
    """
    remembered = Remembered(index)
    shards = shard_files(data)
    return scan(data, remembered) if shards is None else scan_shards(shards, remembered)
