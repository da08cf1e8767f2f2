"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"  # an ordinary diffusers folder
