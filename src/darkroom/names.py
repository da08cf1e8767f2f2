"""Names that can be asked for, as types: an editor offers them, and a type checker refuses one that there isn't.

    from darkroom.names import SamplerName
    def draw(sampler: SamplerName) -> None: ...

The short ones are the registries themselves: their values are taken from here (`typing.get_args`). The tables of
samplers, schedules, hints, metrics and trainings have more to say of each; a test holds these beside them. A text that
comes from outside becomes a name by `samplers.canonical`, or is checked where it is used all the same. No torch.
"""

from __future__ import annotations

from typing import Literal

Output = Literal["pil", "pt", "latent"]
PromptStyle = Literal["a1111", "comfy", "plain"]
Fill = Literal["original", "fill", "noise"]  # what a masked part begins as
NoiseSource = Literal["cpu", "nv"]
HiresUpscaler = Literal["latent", "lanczos"]

DType = Literal["auto", "float32", "bfloat16", "float16"]
Backend = Literal["auto", "native", "openvino"]
Quantization = Literal["int8", "fp8"]

Hint = Literal["canny", "soft-edges", "line-art", "scribble", "tile", "palette", "depth", "recolour", "invert"]
Metric = Literal["adherence", "reconstruction", "fid", "kid", "cmmd", "clip", "memorisation"]
Training = Literal[
    "embedded",
    "autoencoder",
    "text-encoder",
    "unet",
    "finetune",
    "dreambooth",
    "dreambooth-lora",
    "lora",
    "textual-inversion",
    "distill",
    "controlnet",
    "upscaler",
    "inpainting",
]

# Schedules: ours (ComfyUI's where there is one), then A1111's.
ScheduleName = Literal[
    "automatic",
    "linspace",
    "leading",
    "trailing",
    "normal",
    "sgm_uniform",
    "simple",
    "karras",
    "exponential",
    "ddim_uniform",
    "linear_quadratic",
    "beta",
    "beta_timesteps",
    "kl_optimal",
    "align_your_steps",
    "Automatic",
    "Uniform",
    "SGM Uniform",
    "Simple",
    "Karras",
    "Exponential",
    "DDIM",
    "Beta",
    "KL Optimal",
    "Align Your Steps",
]

# Samplers: ours (ComfyUI's where there is one).
SamplerId = Literal[
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "ddim",
    "ddpm",
    "plms",
    "pndm",
    "uni_pc",
    "uni_pc_bh2",
    "deis",
    "sa_solver",
    "ipndm",
    "tcd",
    "lcm",
]

# Theirs, A1111's names (older ones with the schedule's at the end), and diffusers' classes.
SamplerName = Literal[
    SamplerId,
    "Euler",
    "Euler a",
    "Heun",
    "DPM2",
    "DPM2 a",
    "LMS",
    "DPM++ 2S a",
    "DPM++ 2M",
    "DPM++ 2S",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 3M SDE",
    "DDIM",
    "DDPM",
    "PLMS",
    "PNDM",
    "UniPC",
    "UniPC bh2",
    "DEIS",
    "SA Solver",
    "iPNDM",
    "TCD",
    "LCM",
    "DPM2 Karras",
    "DPM2 a Karras",
    "DPM++ 2S a Karras",
    "DPM++ 2M Karras",
    "DPM++ SDE Karras",
    "DPM++ 2M SDE Karras",
    "DPM++ 2M SDE Exponential",
    "DPM++ 2M SDE Heun Karras",
    "DPM++ 2M SDE Heun Exponential",
    "DPM++ 3M SDE Karras",
    "DPM++ 3M SDE Exponential",
    "LMS Karras",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "IPNDMScheduler",
    "TCDScheduler",
    "LCMScheduler",
]

# What A1111 calls the networks that it downloads by itself -> their files' names.
A1111_UPSCALERS = {
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
}
