"""What A1111, diffusers, ComfyUI, kohya's scripts and stable-diffusion.cpp call our settings. No torch.

A name is taken for ours where it means the same, unit and order included; where it doesn't, a sentence says what to do
instead. The command line, `Pipeline`'s keywords, axes of sweeps and `--set` read the same table: a name that is missing
is added here and nowhere else. Names are compared in lower case, with dashes and spaces as underscores.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from .errors import RequestError, closest


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one field of use.

    Attributes:
        same: our name -> theirs that mean the same.
        other: their name -> what to do instead.
    """

    same: Mapping[str, tuple[str, ...]]
    other: Mapping[str, str]

    def of(self, ours: str) -> tuple[str, ...]:
        """What a setting is called elsewhere."""
        return self.same.get(ours, ())

    def ours(self, name: str) -> str | None:
        """Our name for theirs, if it means the same."""
        return _reverse(id(self)).get(plain(name))

    def near(self, name: str, known: Iterable[str]) -> str:
        """A sentence's tail: which of the known names was meant, by that or by another of its names; or which there
        are."""
        ours = list(known)
        theirs = {other: each for each in ours for other in self.of(each)}
        found = closest(plain(name)[:100], [*ours, *theirs])
        return f"; did you mean {theirs.get(found, found)!r}?" if found else f"; there are {', '.join(ours)}"

    def instead(self, name: str) -> str:
        """What to do instead of a setting that means something else there; "" for a name that isn't known."""
        return self.other.get(plain(name), "")


def plain(name: str) -> str:
    """A name as the tables have it."""
    return re.sub(r"[\s\-]+", "_", name.strip().lstrip("-").lower())


@functools.cache
def _reverse(table: int) -> dict[str, str]:
    names = next(each for each in (DRAWING, TRAINING) if id(each) == table)
    return {other: ours for ours, others in names.same.items() for other in others}


_CROP = "write it as crop (left, top); there it is (top, left)"
_CONTROL = "give net and picture together: --control NET=IMAGE:SCALE, or darkroom.Control(net, image, scale)"
_LORA = "attach one with --lora FILE:SCALE, loras=[darkroom.Lora(file, scale)] in Python, or <lora:name:scale>"
_SEAMLESS = "pictures that tile seamlessly can't be drawn yet; --tile draws large pictures in windows"
_MEMORY = "attention takes little memory without being told"

DRAWING = Names(
    same={
        "prompt": ("prompt_s/r",),
        "negative_prompt": ("negative", "neg_prompt", "negative_prompts"),
        "num_images": (
            "num_images_per_prompt", "n_samples", "num_outputs", "images_per_prompt", "batch_count", "n_iter",
        ),
        "steps": ("num_inference_steps", "sampling_steps", "sample_steps", "ddim_steps", "inference_steps"),
        "guidance_scale": ("guidance", "cfg", "cfg_scale", "unconditional_guidance_scale"),
        "guidance_rescale": ("cfg_rescale", "rescale_cfg"),
        "sampler": ("sampler_name", "sampling_method", "sampler_index"),
        "schedule": ("scheduler", "schedule_type", "noise_schedule"),
        "seed": ("noise_seed", "manual_seed"),
        "variation_seed": ("subseed",),
        "variation_strength": ("subseed_strength", "variation_seed_strength"),
        "ensd": ("eta_noise_seed_delta",),
        "clip_skip": ("clip_stop_at_last_layers",),
        "strength": ("denoise", "denoising", "denoising_strength", "img2img_strength"),
        "image": ("init_image", "init_img", "input_image"),
        "mask": ("mask_image", "image_mask"),
        "depth": ("depth_map",),
        "only_masked": ("inpaint_full_res",),
        "mask_padding": ("inpaint_full_res_padding",),
        "hires": ("hr_scale", "hires_scale", "hires_upscale"),
        "hires_steps": ("hr_second_pass_steps",),
        "hires_upscaler": ("hr_upscaler",),
        "hires_strength": ("hr_denoising_strength",),
        "threshold": ("dynamic_thresholding_ratio",),
        "pag_scale": ("pag",),
        "image_guidance_scale": ("image_guidance", "image_cfg_scale"),
        "token_merging": ("token_merging_ratio", "tome_ratio"),
        "tile": ("tile_size",),
        "overlap": ("tile_overlap",),
        # options of commands, and arguments of calls
        "output": ("output_dir", "outdir", "output_folder", "outpath"),
        "prompts": ("prompts_from_file", "from_file", "prompt_file", "prompts_file"),
        "model": ("ckpt", "checkpoint", "model_path", "pretrained_model_name_or_path"),
        "vae": ("vae_path",),
        "dtype": ("torch_dtype",),
        "lora": ("lora_path", "lora_file"),
        "lora_dir": ("lora_model_dir", "lora_folder", "loras_dir"),
        "embedding_dir": ("embeddings_dir", "embd_dir"),
    },
    other={
        "generator": "give the seed itself: seed=7",
        "batch_size": "say how many pictures of each prompt with -n, num_images in Python; they share the work anyway",
        "guess_mode": "say it with --control-guess, or darkroom.Control(..., guess=True)",
        "control_image": _CONTROL,
        "controlnet": _CONTROL,
        "controlnet_conditioning_scale": "the scale comes after the picture: --control NET=IMAGE:0.8",
        "control_guidance_start": "start and end come after the scale: --control NET=IMAGE:0.8:0-0.5",
        "control_guidance_end": "start and end come after the scale: --control NET=IMAGE:0.8:0-0.5",
        "control_net": _CONTROL,
        "control_strength": "the scale comes after the picture: --control NET=IMAGE:0.8",
        "crops_coords_top_left": _CROP,
        "negative_crops_coords_top_left": _CROP,
        "cross_attention_kwargs": _LORA,
        "lora_weights": _LORA,
        "lora_scale": _LORA,
        "network_weights": _LORA,
        "network_mul": _LORA,
        "padding_mask_crop": "say --only-masked and --mask-padding N",
        "inpainting_fill": "say --fill original, fill or noise; there it is a number",
        "inpainting_mask_invert": "white is drawn anew; invert the mask's picture",
        "enable_hr": "say how many times larger: --hires 2",
        "hires_fix": "say how many times larger: --hires 2",
        "highres_fix": "say how many times larger: --hires 2",
        "hr_resize_x": "say how many times larger: --hires 2",
        "hr_resize_y": "say how many times larger: --hires 2",
        "restore_faces": "faces can't be restored here",
        "tiling": _SEAMLESS,
        "seamless": _SEAMLESS,
        "rng": "say whose random numbers: --noise cpu or nv (a GPU's)",
        "randn_source": "say whose random numbers: --noise cpu or nv (a GPU's)",
        "prompt_embeds": "prompts are given as texts",
        "negative_prompt_embeds": "prompts are given as texts",
        "callback": "say on_progress=function",
        "callback_on_step_end": "say on_progress=function",
        "callback_steps": "say on_progress=function; it is called after every step",
        "output_type": 'say output="pil", "pt" or "latent"',
        "return_dict": "a Result is returned",
        "ip_adapter_image": "image prompts (IP-Adapter) can't be drawn with yet",
        "denoising_start": "say noise=darkroom.Noise(start=...)",
        "denoising_end": "say noise=darkroom.Noise(stop=...)",
        "safety_checker": "there is none",
        "xformers": _MEMORY,
        "opt_sdp_attention": _MEMORY,
        "medvram": "say --dtype bfloat16 or float16 for less memory",
        "lowvram": "say --dtype bfloat16 or float16 for less memory",
        "no_half": "say --dtype float32",
        "no_half_vae": "a decode that overflows in half precision is repeated in float32 by itself",
        "use_safetensors": "files are told by their content",
        "verbose": "DARKROOM_DEBUG=1 in the environment shows where an error came from",
    },
)  # fmt: skip

TRAINING = Names(
    same={
        "steps": ("max_train_steps", "max_steps", "train_steps", "num_train_steps"),
        "batch_size": ("train_batch_size",),
        "lr": ("learning_rate", "unet_lr"),
        "text_lr": ("text_encoder_lr", "learning_rate_te", "text_encoder_learning_rate"),
        "optimizer": ("optimizer_type",),
        "weight_decay": ("adam_weight_decay",),
        "schedule": ("lr_scheduler", "lr_scheduler_type"),
        "cycles": ("lr_scheduler_num_cycles", "lr_num_cycles"),
        "warmup": ("lr_warmup_steps", "warmup_steps"),
        "clip": ("max_grad_norm",),
        "ema": ("ema_decay",),
        "checkpointing": ("gradient_checkpointing",),
        "sample_every": ("sample_every_n_steps", "validation_steps"),
        "prompts": ("sample_prompts", "validation_prompts", "validation_prompt"),
        "rank": ("network_dim", "lora_rank", "lora_r", "lora_dim", "network_rank"),
        "alpha": ("network_alpha", "lora_alpha"),
        "conv_rank": ("conv_dim",),
        "lora_dropout": ("network_dropout",),
        "init": ("network_weights",),
        "size": ("resolution",),
        "buckets": ("enable_bucket",),
        "flip": ("flip_aug", "random_flip"),
        "shuffle": ("shuffle_caption", "shuffle_tags"),
        "keep_tags": ("keep_tokens",),
        "prefix": ("caption_prefix",),
        "tag_dropout": ("caption_tag_dropout_rate",),
        "dropout": ("caption_dropout_rate", "proportion_empty_prompts", "caption_dropout"),
        "caption": ("instance_prompt",),
        "class_data": ("class_data_dir",),
        "class_pictures": ("num_class_images",),
        "prior_weight": ("prior_loss_weight",),
        "perturbation": ("ip_noise_gamma", "input_perturbation"),
        "prediction": ("prediction_type",),
        "zero_snr": ("zero_terminal_snr", "rescale_betas_zero_snr"),
        "save_dtype": ("save_precision",),
        "log_every": ("logging_steps",),
        "keep": ("checkpoints_total_limit", "save_total_limit"),
        "word": ("placeholder_token", "token_string"),
        "initial": ("initializer_token", "init_word"),
        "vectors": ("num_vectors", "num_vectors_per_token"),
        "trigger": ("trigger_word", "trigger_words"),
        # options of the command
        "data": ("train_data_dir", "instance_data_dir", "dataset", "data_dir"),
        "output": ("output_dir", "outdir"),
        "model": ("pretrained_model_name_or_path", "ckpt", "base_model"),
        "workers": ("num_processes", "nproc_per_node"),
    },
    other={
        "gradient_accumulation_steps": "batch_size is of a whole step here: set batch_size=ALL and accumulate=PARTS",
        "max_train_epochs": "say steps: pictures x repeats x epochs / batch_size",
        "num_train_epochs": "say steps: pictures x repeats x epochs / batch_size",
        "num_epochs": "say steps: pictures x repeats x epochs / batch_size",
        "epochs": "say steps: pictures x repeats x epochs / batch_size",
        "mixed_precision": "set precision=bfloat16, float16 or float32",
        "full_fp16": "weights and optimizer are float32; set precision=float16 for the products",
        "min_snr_gamma": "set weight=min-snr gamma=5",
        "snr_gamma": "set weight=min-snr gamma=5",
        "debiased_estimation_loss": "set weight=debiased",
        "v_parameterization": "a model's own prediction is kept; set prediction=v to change it",
        "network_module": "set kind=lora, dora, loha or lokr",
        "network_args": "set its settings themselves, such as conv_rank=8",
        "optimizer_args": "set the optimizer's settings themselves, such as weight_decay=0.01",
        "train_unet_only": "set train=unet",
        "network_train_unet_only": "set train=unet",
        "network_train_text_encoder_only": "set train=text",
        "train_text_encoder": "set train=both",
        "save_every_n_steps": "save_every is in seconds, and a run that is interrupted saves by itself",
        "save_every_n_epochs": "save_every is in seconds, and a run that is interrupted saves by itself",
        "checkpointing_steps": "save_every is in seconds, and a run that is interrupted saves by itself",
        "save_steps": "save_every is in seconds, and a run that is interrupted saves by itself",
        "sample_every_n_epochs": "set sample_every=STEPS",
        "output_name": "the result's name is the kind's, in the run's folder",
        "save_model_as": "results are .safetensors or diffusers folders; set form=kohya for kohya's names",
        "report_to": "set tensorboard=true",
        "log_with": "set tensorboard=true",
        "logging_dir": "the log is in the run's folder; set tensorboard=true for TensorBoard",
        "max_token_length": "set chunks=1, 2, 3 or 4: 75 tokens each",
        "clip_skip": "text encoders are trained and read to their end, or as the model does it",
        "num_repeats": "name folders as kohya does: 10_name",
        "center_crop": "set cut=centre",
        "random_crop": "set cut=random",
        "min_bucket_reso": "set buckets=true and aspect=2",
        "max_bucket_reso": "set buckets=true and aspect=2",
        "bucket_no_upscale": "set enlarge=false",
        "cache_latents": "latents are always kept",
        "cache_latents_to_disk": "latents are always kept, on disk",
        "use_8bit_adam": "set optimizer=adamw8bit",
        "resume_from_checkpoint": "the same command goes on by itself; --no-resume forbids it",
        "xformers": _MEMORY,
        "sdpa": _MEMORY,
        "enable_xformers_memory_efficient_attention": _MEMORY,
        "use_ema": "weights are averaged without being told; set ema=0.999 for how long",
    },
)  # fmt: skip


def by_our_names(given: Mapping[str, Any], known: AbstractSet[str], names: Names = DRAWING) -> dict[str, Any]:
    """Arguments with other programs' names among them, by ours; what is unknown to both stays as it is.

    Raises RequestError for one that is told of twice, and for one that means something else there.
    """
    found = {name: value for name, value in given.items() if name in known}
    for name in given.keys() - found.keys():
        ours = names.ours(name)
        if ours is not None and ours in known:
            if ours in found:
                raise RequestError(f"{name} is {ours}, which is given too; give one of them")
            found[ours] = given[name]
        elif sentence := names.instead(name):
            raise RequestError(f"there is no argument {name!r}: {sentence}")
        else:
            found[name] = given[name]
    return found
