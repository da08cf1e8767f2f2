"""A1111's fields of txt2img and img2img: what they are where nothing is sent, and how they are read.

Numbers and flags are taken as texts, too, as pydantic takes them there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import RequestError, shown
from ...files import read_bytes
from ...formats.infotext import number, whole
from ..answers import Refused
from ..models import ModelIndex

MAX_STYLES = 2**20  # bytes

COMMON: Mapping[str, Any] = {
    "prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "sampler_index": "Euler",
    "scheduler": None, "batch_size": 1, "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "width": 512, "height": 512,
    "restore_faces": False, "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "eta": None,
    "denoising_strength": 0.75, "s_min_uncond": 0.0, "s_churn": 0.0, "s_tmax": 0.0, "s_tmin": 0.0, "s_noise": 1.0,
    "override_settings": {}, "override_settings_restore_afterwards": True, "refiner_checkpoint": None,
    "refiner_switch_at": None, "disable_extra_networks": False, "firstpass_image": None, "comments": None,
    "script_name": None, "script_args": [], "send_images": True, "save_images": False, "alwayson_scripts": {},
    "force_task_id": None, "infotext": None,
}  # fmt: skip
TXT2IMG: Mapping[str, Any] = {
    "enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None,
    "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None,
    "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "",
}  # fmt: skip
IMG2IMG: Mapping[str, Any] = {
    "init_images": [], "resize_mode": 0, "image_cfg_scale": None, "mask": None, "mask_blur": None, "mask_blur_x": 4,
    "mask_blur_y": 4, "mask_round": True, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0, "initial_noise_multiplier": 1.0, "include_init_images": False,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"txt2img": {**COMMON, **TXT2IMG}, "img2img": {**COMMON, **IMG2IMG}}


@dataclass
class Fields:
    """What somebody sent, over A1111's defaults; it collects what isn't followed."""

    kind: str
    given: Mapping[str, Any]
    ignored: dict[str, str] = field(default_factory=dict)

    @property
    def usual(self) -> Mapping[str, Any]:
        """All fields of this kind of request, and what they are where nothing is sent."""
        return DEFAULTS[self.kind]

    def __getitem__(self, name: str) -> Any:
        value = self.given.get(name)
        return self.usual.get(name) if value is None else value

    def whole(self, name: str) -> int:
        """A field that is a whole number. Raises Refused (422)."""
        return int(self._read(name, whole(self[name]), "a whole number"))

    def number(self, name: str) -> float:
        """A field that is a number."""
        return float(self._read(name, number(self[name]), "a number"))

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self[name]
        value = value.casefold() if isinstance(value, str) else value
        known = {True: True, "true": True, "1": True, False: False, "false": False, "0": False, "": False}
        return bool(
            self._read(name, known.get(value) if isinstance(value, bool | int | str) else None, "true or false")
        )

    def text(self, name: str) -> str:
        """A field that is a text."""
        value = self[name]
        return str(self._read(name, "" if value is None else value if isinstance(value, str) else None, "a text"))

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts, or one."""
        value = [self[name]] if isinstance(self[name], str) else self[name]
        fine = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return list(self._read(name, value if fine else None, "a list of texts"))

    def object(self, name: str) -> Mapping[str, Any]:
        """A field that is an object."""
        return self._read(name, self[name] if isinstance(self[name], Mapping) else None, "an object")  # type: ignore[no-any-return]

    def _read(self, name: str, value: Any, what: str) -> Any:
        if value is None:
            raise Refused(422, f"{name} is {shown(self[name])}; give {what}", field=name)
        return value

    def ignore(self, name: str, why: str) -> None:
        """Say that something isn't followed."""
        self.ignored[name[:200]] = why


# --- styles: texts that requests name


def read_styles(index: ModelIndex) -> dict[str, tuple[str, str]]:
    """The styles in `styles.csv` of the models' folder: name -> (prompt, negative prompt). Raises RequestError."""
    path = None if index.folder is None else index.folder / "styles.csv"
    if path is None or not path.exists():
        return {}
    text = read_bytes(path, MAX_STYLES, "a file of styles", RequestError).decode("utf-8-sig", "replace")
    rows = csv.DictReader(io.StringIO(text))
    # "text" is the prompt's name in the oldest files.
    return {
        row["name"]: (row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
        if row.get("name")
    }


def styled(text: str, styles: Iterable[str]) -> str:
    """A prompt with styles, in A1111's way: where one says {prompt} it goes around, else it comes behind."""
    for style in styles:
        parts = (text.strip(), style.strip())
        text = (
            style.replace("{prompt}", text)
            if "{prompt}" in style
            else ", ".join(filter(None, parts))
            if style
            else text
        )
    return text
