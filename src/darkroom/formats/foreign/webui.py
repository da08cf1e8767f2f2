"""What an infotext means by what it doesn't say: it depends on who wrote it.

A1111 and Forge leave out whose random numbers they took (a GPU's), and before version 1.9 a schedule that isn't in the
sampler's name (evenly spaced timesteps). "Automatic" is the sampler's own. stable-diffusion.cpp and ComfyUI's nodes
write the same form and mean other things. `as_comfyui` serves all readers of what ComfyUI drew.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..sampler_names import OWN_WAY, draws_of, eta_of, has_torchsde, own_schedule
from .found import Found, is_nothing

# Pairs that say nothing of how the picture was drawn, or nothing that the prompt doesn't say.
_NEUTRAL = frozenset(
    """
    Version|Hashes|TI hashes|TI|Lora hashes|Lora weights|Template|Negative Template|Text|User|Created Date|Created|
    Civitai resources|Civitai metadata|Time taken|Time|Batch size|Batch pos|Wildcard prompt|Wildcard negative prompt|
    File includes|Raw prompt|Styles|TE|Raw negative prompt|Performance|Refiner hash|Source Identifier|Guidance|Unet|
    Parser|App|Operations|Pipeline|Backend|Batch|Model type|Index|Date|Software|Negative prompt|Distilled CFG Scale|
    Lora|Vae|Dimensions|Workflow|workflow|Author|Title|Copyright
    """.replace("\n", "")
    .replace("    ", "")
    .split("|")
)
_USUAL = {  # and those that say what is so anyway
    "Emphasis": ("Original",),
    "VAE Encoder": ("Full",),
    "VAE Decoder": ("Full",),
    "Conditional mask weight": ("1", "1.0"),
    "Seed resize from": ("-1x-1", "0x0"),
    "Schedule max sigma": ("0", "0.0"),
    "Schedule min sigma": ("0", "0.0"),
    "Schedule rho": ("0", "0.0", "7", "7.0"),
    "ADM Guidance": ("(1.0, 1.0, 0.0)",),
    "Freeze": ("false",),
}
_WEBUI = re.compile(r"(v1\.|f\d|v\d+\.\d+\.\d+)")  # A1111's versions, Forge's, and forks' of them
_OTHERS = frozenset({"App", "Backend", "Civitai resources", "Created Date", "Parser", "Software", "Workflow"})
# Schedules of A1111's that end elsewhere than ours of the name, which are ComfyUI's.
_OTHER_LEVELS = {"kl_optimal": "KL Optimal", "align_your_steps": "Align Your Steps"}
_TWO_STAGE = ("dpm_2", "dpm_2_ancestral")  # without the last level but one in A1111, and elsewhere only partly
NO_TORCHSDE = "torchsde isn't installed: pip install 'darkroom-diffusion[torchsde]'"


def complete(found: Found) -> None:
    """Fill in what an infotext leaves to be known, and say what of it isn't followed."""
    extra = found.recipe.get("extra")
    extra = extra if isinstance(extra, Mapping) else {}
    version = str(extra.get("Version", ""))
    eta = found.recipe.get("eta")
    if eta is not None and eta_of(str(found.recipe.get("sampler"))) is None:
        del found.recipe["eta"]  # it says nothing of this sampler
    if "stable-diffusion.cpp" in version:
        _as_cpp(found)
    elif "ComfyUI" in version:
        as_comfyui(found, None)
    elif _WEBUI.match(version) or (not version and extra.keys().isdisjoint(_OTHERS)):
        _as_a1111(found)
    elif not version.startswith("darkroom") and "noise" not in found.recipe and "seed" in found.recipe:
        found.warn("it doesn't say whose random numbers it was drawn with; torch's on a processor are taken")
    found.ignored |= _not_followed(extra, found.recipe)


def _not_followed(extra: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an infotext says beyond the fields we follow, what changes the picture."""
    found = {
        key: value
        for key, value in extra.items()
        if key not in _NEUTRAL and value not in _USUAL.get(key, ()) and not is_nothing(value) and not _zero(value)
    }
    if "Hires upscaler" in found or "Hires upscale" in found:
        found.pop("Denoising strength", None)  # the second pass's
    return found


def _zero(value: object) -> bool:
    try:
        return isinstance(value, str) and float(value) == 0
    except ValueError:
        return False


def _as_a1111(found: Found) -> None:
    recipe = found.recipe
    if "seed" in recipe:
        recipe.setdefault("noise", "nv")
    sampler, told = recipe.get("sampler"), recipe.get("schedule")
    if isinstance(sampler, str):
        own = own_schedule(sampler)
        if own == "leading":  # its samplers over timesteps have no other
            recipe["schedule"] = own
            _whole_steps(found, sampler)
        elif told is None:
            recipe["schedule"] = "automatic" if own is None else "normal"
        elif told == "automatic" and own is not None:
            recipe["schedule"] = own
        elif told in _OTHER_LEVELS:
            found.ignored["Schedule type"] = _OTHER_LEVELS[told]
        _brownian(found, sampler)
        _own_way(found, sampler, "A1111")
    _prompts(found)
    _strength(found)


def _strength(found: Found) -> None:
    """A1111 takes int(strength * steps) + 1 steps of a given picture and of a second pass, one more than we do: the
    strength is told that means as many here."""
    recipe = found.recipe
    hires = recipe.get("hires")
    holder = hires if isinstance(hires, dict) else recipe
    what = "a second pass" if holder is hires else "a given picture"
    strength, steps = holder.get("strength"), holder.get("steps") or recipe.get("steps")
    if not isinstance(strength, float):
        return
    if recipe.get("schedule") == "leading" or not isinstance(steps, int) or not 0 < steps <= 1000:
        found.warn(f"A1111 takes other steps of {what} than 'strength' says here")
        return
    taken = int(min(strength, 0.999) * steps) + 1
    told = taken / steps
    holder["strength"] = told if int(told * steps) == taken else math.nextafter(told, 2.0)
    if recipe.get("noise") == "cpu" and not (holder is hires and hires.get("upscaler") == "latent"):
        found.warn(f"A1111 gives {what} the seed's first noise, which here goes into reading it")


_SCHEDULE = re.compile(r"\[[^\[\]]*(?::\s*[+-]?[0-9.]+\s*|\|[^\[\]]*)\]")
_BRACKET_OR_BREAK = re.compile(r"\\.|[()\[\]]|\bBREAK\b", re.DOTALL)


def _prompts(found: Found) -> None:
    """What A1111 reads otherwise in a prompt."""
    texts = [str(found.recipe.get(name) or "") for name in ("prompt", "negative_prompt")]
    if any(_SCHEDULE.search(text) for text in texts):
        found.warn("A1111 changes the words of [from:to:when] and [a|b] one step later")
    for text in texts:
        depth = 0
        for match in _BRACKET_OR_BREAK.finditer(text):
            if match.group() == "BREAK" and depth:
                found.warn("A1111 takes a BREAK between brackets for a word of the prompt")
                break
            depth = max(depth + {"(": 1, "[": 1, ")": -1, "]": -1}.get(match.group(), 0), 0)


def _whole_steps(found: Found, sampler: str) -> None:
    """A1111 steps by 1000 // steps, however many steps those are."""
    steps = found.recipe.get("steps")
    if isinstance(steps, int) and 0 < steps <= 1000 and (taken := math.ceil(1000 / (1000 // steps))) != steps:
        found.warn(f"A1111 takes {taken} steps where its {sampler} is asked for {steps}")


def _as_cpp(found: Found) -> None:
    recipe = found.recipe
    if "seed" in recipe and "RNG" not in recipe.get("extra", {}):
        recipe.setdefault("noise", "nv")
    sampler = recipe.get("sampler")
    if sampler != "ddim":
        recipe.pop("eta", None)  # 0 is written whatever the sampler does
    if isinstance(sampler, str):
        if recipe.get("schedule") in (None, "automatic", "default"):
            recipe["schedule"] = "automatic" if own_schedule(sampler) is None else "normal"
        if sampler in _TWO_STAGE:
            recipe["discard_penultimate"] = False
        _own_way(found, sampler, "stable-diffusion.cpp")


def as_comfyui(found: Found, named: object, custom: bool = False) -> None:
    """Fill in what ComfyUI does with every picture.

    named: the sampler as ComfyUI calls it, which tells where the noise is made. custom: the noise levels come from a
    node of their own, which leaves none out.
    """
    recipe = found.recipe
    sampler = recipe.get("sampler")
    if recipe.get("schedule") == "beta":
        recipe["schedule"] = "beta_timesteps"
    if not isinstance(sampler, str):
        return
    recipe["sgm_noise_multiplier"] = True
    if draws_of(sampler) == "ancestral" or (draws_of(sampler) == "brownian" and str(named).endswith("_gpu")):
        recipe["sampler_noise"] = "nv"
    if sampler in ("uni_pc", "uni_pc_bh2") and not custom:
        recipe["discard_penultimate"] = True
    if sampler == "dpmpp_3m_sde" or (custom and sampler in _TWO_STAGE):
        recipe["discard_penultimate"] = False
    _brownian(found, sampler)
    _own_way(found, sampler, "ComfyUI")


def _brownian(found: Found, sampler: str) -> None:
    if draws_of(sampler) == "brownian":
        if has_torchsde():
            found.recipe["brownian"] = True
        else:
            found.ignored["Brownian noise"] = NO_TORCHSDE


def _own_way(found: Found, sampler: str, tool: str) -> None:
    if sampler in OWN_WAY:
        found.warn(f"the {sampler} of {tool} goes a way of its own, and the picture will be another one")
