"""Where what can be made again is kept on disk: $DARKROOM_CACHE, or `darkroom` in $XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder; it need not be there."""
    own = os.environ.get("DARKROOM_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "darkroom"
