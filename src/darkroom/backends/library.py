"""OpenVINO itself, imported when it is asked for."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from ..errors import RequestError

TELEMETRY = "openvino_telemetry"


def openvino() -> Any:
    """The module. Raises RequestError where it isn't installed.

    Its converter reports its use to its maker as soon as it is imported. Nothing that Darkroom does may leave the
    machine, so the reporting part is out of reach meanwhile, and the converter takes the silent one that it has.
    """
    hidden = TELEMETRY not in sys.modules and "openvino" not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino as library
    except ImportError as error:
        raise RequestError(
            "backend is 'openvino', and OpenVINO isn't installed; pip install 'darkroom-diffusion[openvino]', "
            "or leave it"
        ) from error
    finally:
        if hidden:
            del sys.modules[TELEMETRY]
    return library


@cache
def core() -> Any:
    """OpenVINO's devices; one for the process."""
    return openvino().Core()
