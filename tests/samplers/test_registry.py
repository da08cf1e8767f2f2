"""Samplers by the names that other tools give them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import pytest

import darkroom.samplers as samplers
from darkroom.errors import RequestError
from darkroom.samplers import canonical, entries, entry, get, names

# conventions.md, section 3: A1111 name, alias, ComfyUI id, diffusers class
TABLE = [
    ("DPM++ 2M", "k_dpmpp_2m", "dpmpp_2m", "DPMSolverMultistepScheduler"),
    ("DPM++ 2S", "dpmpp_2s", "dpmpp_2s", "DPMSolverSinglestepScheduler"),
    ("SA Solver", "sa_solver", "sa_solver", "SASolverScheduler"),
    ("DPM++ SDE", "k_dpmpp_sde", "dpmpp_sde", "DPMSolverSDEScheduler"),
    ("DPM++ 2M SDE", "k_dpmpp_2m_sde", "dpmpp_2m_sde", None),
    ("DPM++ 2S a", "k_dpmpp_2s_a", "dpmpp_2s_ancestral", None),
    ("DPM++ 3M SDE", "k_dpmpp_3m_sde", "dpmpp_3m_sde", None),
    ("Euler a", "k_euler_a", "euler_ancestral", "EulerAncestralDiscreteScheduler"),
    ("Euler", "k_euler", "euler", "EulerDiscreteScheduler"),
    ("LMS", "k_lms", "lms", "LMSDiscreteScheduler"),
    ("Heun", "k_heun", "heun", "HeunDiscreteScheduler"),
    ("DPM2", "k_dpm_2", "dpm_2", "KDPM2DiscreteScheduler"),
    ("DPM2 a", "k_dpm_2_a", "dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    ("DDIM", "ddim", "ddim", "DDIMScheduler"),
    ("PLMS", "plms", "plms", "PNDMScheduler"),
    ("UniPC", "unipc", "uni_pc", None),
    ("UniPC bh2", "unipc_bh2", "uni_pc_bh2", "UniPCMultistepScheduler"),
    ("LCM", "lcm", "lcm", "LCMScheduler"),
    ("TCD", "tcd", "tcd", "TCDScheduler"),
    ("DDPM", "ddpm", "ddpm", "DDPMScheduler"),
    ("DEIS", "deis", "deis", "DEISMultistepScheduler"),
    ("iPNDM", "ipndm", "ipndm", "IPNDMScheduler"),
]


@pytest.mark.parametrize("row", TABLE)
def test_every_name_of_a_sampler(row) -> None:
    label, alias, identity, diffusers = row
    for name in filter(None, (label, alias, identity, diffusers, label.upper(), f" {label.lower()} ")):
        assert canonical(name) == (identity, None)
    assert entry(identity).label == label
    assert identity in names()
    assert get(label) == get(identity)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2S a Karras", ("dpmpp_2s_ancestral", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde_heun", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("k_dpmpp_2m_ka", ("dpmpp_2m", "karras")),
        ("dpmpp_sde_karras", ("dpmpp_sde", "karras")),
        ("k_dpmpp_3m_sde_exp", ("dpmpp_3m_sde", "exponential")),
    ],
)
def test_old_names_with_a_schedule_in_them(name, expected) -> None:
    assert canonical(name) == expected


def test_options() -> None:
    assert get("DPMSolverMultistepScheduler", algorithm="sde-dpmsolver++") == get("dpmpp_2m_sde")
    assert get("euler_a", eta=0.5).eta == 0.5
    assert get("dpmpp_3m_sde").order == 3


@pytest.mark.parametrize("name", ["", " ", "eular", "karras", "DPM adaptive Karras", "x" * 1_000_000, None, 3, ["lms"]])
def test_unknown_names(name) -> None:
    with pytest.raises(RequestError) as caught:
        get(name)
    message = str(caught.value)
    assert len(message) < 700
    assert ("did you mean 'euler'" if name == "eular" else "dpmpp_2m") in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [("DPM++ 2M Karas", "DPM++ 2M Karras"), ("dpm++ 2m karas", "DPM++ 2M Karras"), ("DPM++ 2N", "DPM++ 2M")],
)
def test_a_slip_in_a_long_name_is_read_with_its_schedule(name: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"(?i)did you mean {meant!r}".replace("+", "[+]")):
        get(name)
    assert canonical(meant)


def test_names_cost_no_torch_and_the_package_is_callable() -> None:
    code = "import sys, darkroom.samplers as s; s.canonical('lms'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert samplers() == names()


def test_the_table_says_what_share_of_noise_a_sampler_draws() -> None:
    shares = {row.id: row.eta for row in entries() if row.eta is not None}
    assert {id: asdict(get(id))["eta"] for id in shares} == shares
    # The ODEs draw none, and TCD's is distilled into its network.
    assert {id for id in names() if hasattr(get(id), "eta")} - shares.keys() == {"dpmpp_2m", "dpmpp_2s", "tcd"}
