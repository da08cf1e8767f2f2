"""How good are the pictures. `darkroom.evaluate(model, ...)` is a call, and the package of what it measures with."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Call(ModuleType):
    """`darkroom.evaluate(...)` is `call.evaluate`; `darkroom.evaluate.judge` stays this package's."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .call import evaluate

        return evaluate(*arguments, **options)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        from .call import evaluate

        return signature(evaluate)


sys.modules[__name__].__class__ = _Call
