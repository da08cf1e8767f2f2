"""A request of A1111's dialect as a job, and by name what of it isn't followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...diffusion import spacing_name
from ...errors import RequestError, shown
from ...formats.foreign import recognise
from ...formats.sampler_names import draws_of, has_torchsde, own_schedule, read_sampler, read_schedule
from ...request import MAX_IMAGES, MAX_MERGING, Hires, Request, whole
from ...samplers import entry, names
from ..answers import Refused
from ..jobs import Wanted
from ..models import ModelIndex
from .controlnet import read_units
from .fields import DEFAULTS, Fields, read_styles, styled
from .options import FOLLOWED
from .pictures import bytes_of, fitted, mask_from, opened, png

# Fields that change the picture in A1111 and not here, and why; with those that nobody knows they are named.
_NOT_DONE = {
    "restore_faces": "faces are not restored",
    "tiling": "pictures are not made to be laid side by side",
    "refiner_checkpoint": "there is no change of models on the way",
    "refiner_switch_at": "there is no change of models on the way",
    "disable_extra_networks": "LoRAs that the prompt names are attached",
    "firstpass_image": "the first pass is always drawn",
    "comments": "nothing is added to the recipe",
    "initial_noise_multiplier": "the noise is the sampler's own",
    "mask_round": "a mask's edge is where it is half white",
    **dict.fromkeys(("s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise"), "the sampler's own is taken"),
    **dict.fromkeys(("firstphase_width", "firstphase_height"), "width and height are the first pass's"),
    **dict.fromkeys(("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler"), "the second pass is as the first"),
}
_SAME = ("", "Use same checkpoint", "Use same sampler", "Use same scheduler")
_FILLS = ("fill", "original", "noise", "noise")  # "latent nothing" is what begins from the noise alone
_RESIZE = ("stretch", "crop", "pad", "stretch")
LATENT, LANCZOS = "Latent", "Lanczos"  # second passes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of A1111's dialect.

    Attributes:
        wanted: the job.
        fields: what was sent, over the defaults.
        ignored: what isn't followed -> why.
        hints: PNG of what ControlNets are shown, which follow the pictures.
        format: of the answer's pictures: "png", "jpg" or "webp".
    """

    wanted: Wanted
    fields: Fields
    ignored: Mapping[str, str]
    hints: tuple[bytes, ...] = ()
    format: str = "png"


def settings_of(given: Mapping[str, Any], preferences: Mapping[str, Any]) -> dict[str, Any]:
    """A1111's settings for a request: the caller's, and over them those of the request. Raises Refused (422)."""
    overridden = Fields("txt2img", given).object("override_settings")
    return {**preferences, **{name: value for name, value in overridden.items() if value is not None}}


def with_infotext(given: Mapping[str, Any], ignored: dict[str, str]) -> dict[str, Any]:
    """Fields with those of `infotext` where they leave something open (A1111's rule)."""
    given = {name: value for name, value in given.items() if value is not None}
    text = given.get("infotext")
    if not isinstance(text, str) or not text.strip():
        return given
    found = recognise({"parameters": text})
    recipe: Mapping[str, Any] = {} if found is None else found.recipe
    for name in {} if found is None else found.ignored:
        ignored[f"infotext: {name}"[:200]] = "it is not followed"
    names = {
        "prompt": "prompt", "negative_prompt": "negative_prompt", "steps": "steps", "seed": "seed",
        "guidance_scale": "cfg_scale", "width": "width", "height": "height", "sampler": "sampler_name",
        "schedule": "scheduler", "strength": "denoising_strength", "variation_seed": "subseed",
        "variation_strength": "subseed_strength", "image_guidance_scale": "image_cfg_scale", "mask_blur": "mask_blur",
    }  # fmt: skip
    told: dict[str, Any] = {theirs: recipe[ours] for ours, theirs in names.items() if recipe.get(ours) is not None}
    if isinstance(hires := recipe.get("hires"), Mapping):
        told |= {"enable_hr": True, "hr_scale": hires["scale"], "denoising_strength": hires["strength"]}
        how = {"latent": LATENT, "lanczos": LANCZOS}.get(hires["upscaler"], hires["upscaler"])
        told |= {"hr_upscaler": how, "hr_second_pass_steps": hires.get("steps") or 0}
    settings = {"CLIP_stop_at_last_layers": recipe.get("clip_skip"), "randn_source": recipe.get("noise")}
    settings |= {"eta_noise_seed_delta": recipe.get("ensd"), "token_merging_ratio": recipe.get("token_merging")}
    overridden = given.get("override_settings") or {}
    if isinstance(overridden, Mapping):
        given["override_settings"] = {k: v for k, v in settings.items() if v is not None} | dict(overridden)
    return {**told, **given}


def read(
    kind: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
    index: ModelIndex,
    max_pixels: int,
    ignored: dict[str, str],
) -> Asked:
    """A request as a job.

    Args:
        kind: "txt2img" or "img2img".
        settings: `settings_of`'s.
        description: of the model that draws it.

    Raises Refused, RequestError and ImageError.
    """
    f = Fields(kind, given, ignored)
    if f.text("script_name"):
        raise Refused(422, f"Script {shown(f.text('script_name'))} not found", field="script_name")
    sampler, schedule = _sampler(f)
    styles = _styles(f, index)
    fields: dict[str, Any] = {
        "prompt": styled(f.text("prompt"), [style[0] for style in styles]),
        "negative_prompt": styled(f.text("negative_prompt"), [style[1] for style in styles]),
        "steps": f.whole("steps"),
        "guidance_scale": f.number("cfg_scale"),
        "seed": -1 if f["seed"] == "" else f.whole("seed"),
        "sampler": sampler,
        "schedule": schedule,
        "width": f.whole("width"),
        "height": f.whole("height"),
    }
    fields |= _settings(f, settings, sampler)
    fields |= _noise(f, sampler)
    pictures: dict[str, bytes] = {}
    if kind == "img2img":
        fields |= _image(f, pictures, description, max_pixels)
    elif f.flag("enable_hr"):
        fields["hires"] = _hires(f, fields, index)
    size = (fields.get("width"), fields.get("height"))
    units = read_units(f, size, pictures.get("image"), index, max_pixels)
    pictures |= {f"control.{i}": unit.hint for i, unit in enumerate(units)}
    _name_the_rest(f)
    wanted = Wanted(
        request=Request(**fields),
        n=whole("batch_size x n_iter", f.whole("batch_size") * f.whole("n_iter"), 1, MAX_IMAGES),
        model=description["name"],
        controls=tuple(unit.control for unit in units),
        pictures=pictures,
    )
    return Asked(wanted, f, f.ignored, tuple(unit.hint for unit in units), str(settings.get("samples_format", "png")))


def _styles(f: Fields, index: ModelIndex) -> list[tuple[str, str]]:
    """The texts of the styles that are named."""
    named = f.texts("styles")
    known = read_styles(index) if named else {}
    for style in named:
        if style not in known:
            f.ignore(f"styles: {style}", "there is no style of this name")
    return [known[style] for style in named if style in known]


def _sampler(f: Fields) -> tuple[str, str | None]:
    """Our ids of sampler and schedule: the one asked for, that of the sampler's name, or A1111's own for it."""
    sampler, ending = read_sampler(f.text("sampler_name") or f.text("sampler_index"))
    if sampler not in names():
        raise Refused(400, "Sampler not found", field="sampler_name")
    schedule, own = f.text("scheduler"), own_schedule(sampler)
    if own == "leading":
        return sampler, own  # A1111's samplers over timesteps have no other
    if schedule.casefold() in ("", "automatic"):
        return sampler, ending or own
    return sampler, spacing_name(read_schedule(schedule))


def _settings(f: Fields, settings: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """What A1111's settings say of a picture."""
    of = Fields(f.kind, settings)
    fields: dict[str, Any] = {}
    if "CLIP_stop_at_last_layers" in settings:
        layers = of.whole("CLIP_stop_at_last_layers")
        fields["clip_skip"] = layers if layers > 1 else 0
    if str(settings.get("randn_source", "CPU")).upper() in ("NV", "GPU"):
        fields["noise"] = "nv"
        if draws_of(sampler) == "brownian":
            if has_torchsde():
                fields["brownian"] = True
            else:
                f.ignore("randn_source", "the SDE samplers' Brownian noise needs torchsde; independent draws are taken")
    if "eta_noise_seed_delta" in settings:
        fields["ensd"] = of.whole("eta_noise_seed_delta")
    if "token_merging_ratio" in settings:
        fields["token_merging"] = min(of.number("token_merging_ratio"), MAX_MERGING)
    for name, ours in (
        ("always_discard_next_to_last_sigma", "discard_penultimate"),
        ("sgm_noise_multiplier", "sgm_noise_multiplier"),
    ):
        if name in settings and of.flag(name):
            fields[ours] = True
    return fields


def _noise(f: Fields, sampler: str) -> dict[str, Any]:
    """Variations, the size that the noise is of, and how much of it there is on the way."""
    fields: dict[str, Any] = {}
    if (strength := f.number("subseed_strength")) > 0:
        fields |= {"variation_strength": strength, "variation_seed": f.whole("subseed")}
    resized = f.whole("seed_resize_from_w"), f.whole("seed_resize_from_h")
    if min(resized) > 0:
        fields["seed_resize"] = resized
    if f["eta"] is not None and entry(sampler).eta not in (None, f.number("eta")):
        fields["eta"] = f.number("eta")
    return fields


def _hires(f: Fields, fields: Mapping[str, Any], index: ModelIndex) -> Hires:
    """A second pass."""
    scale, wide, high = f.number("hr_scale"), f.whole("hr_resize_x"), f.whole("hr_resize_y")
    if wide or high:
        scale = max(wide / max(fields["width"], 1), high / max(fields["height"], 1))
        if wide and high and wide * fields["height"] != high * fields["width"]:
            f.ignore("hr_resize_x, hr_resize_y", "the second pass has the first one's shape, and is not cut to another")
    upscaler = f.text("hr_upscaler") or LATENT
    how = "latent" if upscaler.startswith(LATENT) else "lanczos"
    if upscaler not in (LATENT, LANCZOS):
        try:
            how = index.upscaler(upscaler).name
        except RequestError:
            f.ignore("hr_upscaler", f"there is no {upscaler[:60]}; {LATENT if how == 'latent' else LANCZOS} is taken")
    for name in ("hr_prompt", "hr_negative_prompt"):
        if f.text(name) not in ("", f.text(name.removeprefix("hr_"))):
            f.ignore(name, "the second pass has the first one's prompts")
    return Hires(
        scale=scale,
        strength=f.number("denoising_strength"),
        steps=f.whole("hr_second_pass_steps") or None,
        upscaler=how,
    )


def _image(f: Fields, pictures: dict[str, bytes], description: Mapping[str, Any], max_pixels: int) -> dict[str, Any]:
    """What img2img says of the picture and its mask; both go into `pictures`."""
    init = f.texts("init_images")
    if not init or not init[0]:
        raise Refused(404, "Init image not found", field="init_images")
    if len(init) > 1:
        f.ignore("init_images", "the first of them is taken")
    size = f.whole("width"), f.whole("height")
    mode = f.whole("resize_mode")
    if not 0 <= mode < len(_RESIZE):
        raise Refused(422, f"resize_mode is {mode}; give 0, 1, 2 or 3", field="resize_mode")
    if mode == 3:
        f.ignore("resize_mode", "the picture is made larger, not its latent")
    strength = f.number("denoising_strength")
    fields: dict[str, Any] = {"strength": strength}
    if 0 < strength * f.whole("steps") < 1:  # A1111 takes a step then, and the engine refuses
        fields["strength"] = min(1.0, 1 / max(f.whole("steps"), 1) + 1e-6)
    if description["task"] == "edit":
        fields["image_guidance_scale"] = f["image_cfg_scale"] and f.number("image_cfg_scale")
    pictures["image"] = bytes_of("init_images[0]", init[0])
    mask = f["mask"] or None
    # A picture that is only stretched the engine makes the right size; one of whose parts are drawn keeps its own.
    resized = _RESIZE[mode] != "stretch" and not (mask and f.flag("inpaint_full_res"))
    if resized:
        pictures["image"] = png(fitted(opened(pictures["image"], "init_images[0]", max_pixels), _RESIZE[mode], size))
    if mask is None:
        return fields
    drawn = mask_from(bytes_of("mask", mask), f.flag("inpainting_mask_invert"), max_pixels)
    fields |= {"mask_blur": _blur(f), "fill": _fill(f)}
    if f.flag("inpaint_full_res"):
        fields |= {"only_masked": True, "mask_padding": f.whole("inpaint_full_res_padding")}
        fields |= {"width": None, "height": None}
        if list(size) != list(description["size"]):
            f.ignore("width, height", "only the masked part is drawn, at about the model's own size")
    pictures["mask"] = png(fitted(drawn, _RESIZE[mode], size) if resized else drawn)
    return fields


def _blur(f: Fields) -> int:
    if f["mask_blur"] is not None:
        return f.whole("mask_blur")
    across, down = f.whole("mask_blur_x"), f.whole("mask_blur_y")
    if across != down:
        f.ignore("mask_blur_x, mask_blur_y", "the larger one is taken for both")
    return max(across, down)


def _fill(f: Fields) -> str:
    fill = f.whole("inpainting_fill")
    if not 0 <= fill < len(_FILLS):
        raise Refused(422, f"inpainting_fill is {fill}; give 0, 1, 2 or 3", field="inpainting_fill")
    return _FILLS[fill]


def _name_the_rest(f: Fields) -> None:
    """Say what else was sent and isn't followed."""
    known = DEFAULTS[f.kind]
    for name, value in f.given.items():
        nothing = value in (None, "", False, 0, [], {}, -1) or value == known.get(name)
        if name not in known:
            if not nothing and not (f.kind == "txt2img" and name in DEFAULTS["img2img"]):
                f.ignore(name, "it is not known here")
        elif name in _NOT_DONE and not nothing and value not in _SAME:
            if name.startswith(("hr_", "firstphase_")) and not f.flag("enable_hr"):
                continue
            f.ignore(name, _NOT_DONE[name])
    for name in f.object("override_settings"):
        if name not in FOLLOWED:
            f.ignore(f"override_settings: {name}", "it is not followed")
    for name in f.object("alwayson_scripts"):
        if name.casefold() != "controlnet":
            f.ignore(f"alwayson_scripts: {name}", "there is no script of this name")
