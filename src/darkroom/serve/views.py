"""What the own dialect's routes answer, for `/openapi.json` and for the page, whose types are made of it
(tools/page_types.py). Routes write plain JSON; a test holds what they write against these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["queued", "running", "finished", "failed", "cancelled"]


class View(BaseModel):
    """An answer, with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class JobImage(View):
    """A finished picture of a job."""

    id: str
    index: int
    seed: str
    width: int
    height: int
    sha256: str
    warnings: list[str]


class AttachedLora(View):
    """A LoRA beside the prompt's own."""

    name: str
    scale: float
    text_scale: float | None


class AttachedControl(View):
    """A ControlNet; its picture is the job's input `control.N`."""

    net: str
    scale: float
    start: float
    stop: float
    guess: bool
    hint: str | None


class Job(View):
    """A job's present state."""

    id: str
    state: State
    alias: str | None
    position: int | None = Field(description="How many jobs come before it, while it waits.")
    step: int = Field(description="Of all its pictures together.")
    steps: int
    request: dict[str, Any]
    loras: list[AttachedLora]
    controls: list[AttachedControl]
    upscale: dict[str, float | None] | None
    inputs: dict[str, str] = Field(description="Pictures that it is made from: role -> SHA-256.")
    model: str
    images: list[JobImage]
    n: int
    error: str | None
    created: float
    finished: float | None
    seconds: float = Field(description="What it was expected to take, when it was taken in.")


class Jobs(View):
    """Jobs, newest first."""

    jobs: list[Job]


class Cancelled(View):
    """How many jobs were ended."""

    cancelled: int


class Picture(View):
    """A picture of the gallery."""

    id: str
    job: str
    index: int
    seed: str = Field(description="A text: 2^64 doesn't fit into a JavaScript number.")
    width: int
    height: int
    bytes: int | None
    sha256: str | None
    warnings: list[str]
    prompt: str
    model: str | None
    created: float
    pinned: bool
    rating: int | None
    tags: list[str]
    gone: bool = Field(description="The file was let go; the recipe is still there.")
    file: str
    thumb: str


class PictureInfo(Picture):
    """A picture with its recipe."""

    recipe: dict[str, Any]
    infotext: str


class Pictures(View):
    """A page of the gallery, newest first."""

    images: list[Picture]
    next: str | None = Field(description="`before` of the next page; null: this is the last.")


class Deleted(View):
    """A picture that was taken out, and for how long it can come back."""

    id: str
    undo_seconds: int


class Imported(View):
    """The recipe in a picture of any tool."""

    source: str
    width: int
    height: int
    recipe: dict[str, Any]
    ignored: Any = Field(description="What of the recipe is not followed.")
    warnings: list[str]
    texts: dict[str, str]


class Input(View):
    """A picture that was sent ahead."""

    sha256: str
    width: int
    height: int


class Model(View):
    """A model; what is told of it from `hash` on is known once it was loaded."""

    name: str
    bytes: int
    fits: bool = Field(description="Whether an engine has room for it.")
    state: Literal["here", "loading", "loaded"]
    seconds: float | None = Field(description="What loading it takes; null: nobody knows yet.")
    hash: str | None = None
    size: tuple[int, int] | None = Field(None, description="Pixels that it was made for: width, height.")
    task: str | None = None
    defaults: dict[str, float] | None = None
    sampler: str | None = None
    xl: bool | None = None
    base: str | None = None
    words: list[str] | None = Field(None, description="All that it knows, where these are few; else empty.")
    examples: list[str] | None = Field(None, description="Prompts to begin with.")


class Choice(View):
    """A sampler."""

    id: str
    label: str


class Limits(View):
    """What may be asked for."""

    body: int
    pixels: int
    side: int
    steps: int
    prompt: int
    n: int
    cost: float


class Style(View):
    """Texts of the models' folder (styles.csv) that a prompt is put into."""

    name: str
    prompt: str
    negative_prompt: str


class EngineState(View):
    """An engine's process."""

    alive: bool
    models: list[str]
    aboard: int


class ServerInfo(View):
    """What the server is and has."""

    version: str
    ready: bool
    bit_exact: bool
    default_model: str
    models: list[Model]
    samplers: list[Choice]
    schedules: list[str]
    hints: list[str]
    settings: dict[str, Any] = Field(description="What can be asked for, and what it is where nothing is said.")
    limits: Limits
    styles: list[Style]
    key: str | None
    keys_needed: bool
    queue: dict[str, int]
    engines: list[EngineState]


class Adapter(View):
    """A LoRA or a learned word."""

    name: str
    use: str = Field(description="What to write into a prompt.")
    title: str | None
    words: list[str] = Field(description="What calls it.")
    base: str | None
    bytes: int
    fits: bool | None = Field(description="Whether the model can use it; null: not known yet.")
    why: str | None


class Named(View):
    """Something with a name."""

    name: str


class Adapters(View):
    """All that can be put beside a model."""

    loras: list[Adapter]
    embeddings: list[Adapter]
    controlnets: list[Named]
    vaes: list[Named]
    reading: int = Field(description="Files of which nothing is known yet.")


class SweepImage(View):
    """A cell's picture."""

    id: str
    seed: str
    width: int
    height: int


class SweepCell(View):
    """A place of a sweep."""

    x: int
    y: int
    z: int
    words: str
    job: str
    state: State
    error: str | None
    image: SweepImage | None


class SweepAxis(View):
    """What varies in one direction."""

    name: str
    labels: list[str]


class SweepSummary(View):
    """A sweep without its cells."""

    id: str
    state: State
    created: float
    prompt: str
    axes: list[SweepAxis]
    finished: int
    n: int


class Sweep(SweepSummary):
    """A sweep, x fastest."""

    cells: list[SweepCell]


class Sweeps(View):
    """Sweeps, newest first."""

    sweeps: list[SweepSummary]


class Token(BaseModel):
    """What a model reads at one place."""

    text: str
    weight: float


class ExplainedText(BaseModel):
    """A part's text as it stands for some of the steps."""

    chunks: list[list[Token]]


class ExplainedPart(BaseModel):
    """A part of a prompt."""

    texts: list[ExplainedText]


class Explained(BaseModel):
    """What a model reads of a prompt (`Pipeline.explain`), as far as it is promised."""

    parts: list[ExplainedPart]
