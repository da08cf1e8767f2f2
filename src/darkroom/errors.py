"""Errors a user can cause: one sentence each, with the offending value and what to do about it."""

from __future__ import annotations


class Error(Exception):
    """Base of every error that a user can cause. `str(error)` is one sentence for that user."""


class RequestError(Error):
    """What was asked for can't be done: a size, a step count, a sampler's name, a prompt, a picture."""


class CheckpointError(Error):
    """A model, adapter or embedding file is missing, broken, hostile, or of an architecture we don't know."""


class ImageError(Error):
    """A picture from outside can't be read or is not what it was said to be."""


class TrainingError(Error):
    """A training run can't start, or can't go on: data, recipe, disk, or a checkpoint of another run."""
