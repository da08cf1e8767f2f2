"""Converted graphs on disk, in the folder of `caches`.

An entry is a folder that comes into being with one rename: whole or not at all, whoever else is at it. One that can't
be read any more is made anew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..caches import cache_folder
from .library import core, openvino

GRAPH = "graph.xml"  # and graph.bin, its constants

log = logging.getLogger(__name__)


def kept(key: str, make: Callable[[], Any]) -> Any:
    """The graph of a key (a file name), an `openvino.Model`; made, and kept, where it isn't there yet.

    A disk that is full or not writable costs the keeping, not the picture: one warning says so.
    """
    place = cache_folder() / "openvino" / key
    if (place / GRAPH).is_file():
        try:
            return core().read_model(place / GRAPH)
        except RuntimeError:
            log.warning("the converted network in %s can't be read; converting again", place)
            shutil.rmtree(place, ignore_errors=True)
    graph = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
            new = Path(temporary, key)
            new.mkdir()
            openvino().save_model(graph, new / GRAPH, compress_to_fp16=False)
            core().read_model(new / GRAPH)  # the library notices a full disk when it reads, not when it writes
            new.rename(place)
    except (OSError, RuntimeError) as error:
        if not place.exists():  # else another process was first, with the same graph
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.warning("the converted network can't be kept in %s (%s); it is converted each time", place, reason)
    return graph
