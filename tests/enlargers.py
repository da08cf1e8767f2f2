"""spandrel, which opens every published network that enlarges: what ours are compared with.

Two of its forty networks turn pictures by torchvision, which is imported with all of them and doesn't import beside
every build of torch; where it doesn't, it stands empty here, for these tests need neither of the two.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


def spandrel() -> Any:
    """The library; the test is skipped without it."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed; pip install spandrel brings it")
    _stand_in()
    return importlib.import_module("spandrel")


def _stand_in() -> None:
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = ModuleType(name)
        empty: Any = sys.modules["torchvision.transforms.functional"]
        empty.InterpolationMode = empty.rotate = empty.normalize = None


def architecture(name: str) -> Any:
    """A module of its architectures, such as "ESRGAN"."""
    spandrel()
    return importlib.import_module(f"spandrel.architectures.{name}")
