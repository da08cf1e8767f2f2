"""A loaded model: its pieces to look at and call, moved to a device, copied, pickled, saved.

`pipeline.Pipeline` is one that draws.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from .accelerate.compiled import compile_blocks, is_compiled
from .adapters import Adapter, Lora, Merged, Scaled
from .devices import check_dtype, device_named, dtype_named, dtype_within
from .diffusion.denoiser import Denoiser
from .engine.decode import Previewer, decode, finite
from .engine.enlarge import Upscaler, load_upscaler
from .engine.job import LoadedControlNet
from .errors import CheckpointError, RequestError, nearest
from .formats.control import PART as CONTROLNET
from .formats.control import open_controlnet
from .formats.embedding import Embedding, learned_words
from .formats.lora_store import LoraStore
from .formats.save import save_folder, save_single_file
from .formats.writer import saved_type
from .images import Picture, open_picture, pad_to_grid, to_pil, to_tensor
from .model import Model
from .models.autoencoder import Autoencoder
from .models.controlnet import ControlNet
from .names import A1111_UPSCALERS, DType
from .prompts.encoder import encoder_of
from .prompts.explain import Explanation
from .prompts.explain import explain as explain_prompt
from .request import EMBEDDED_UPSCALER, MAX_STEPS, whole
from .samplers import STEPS


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a pipeline was loaded, and how it is loaded again: what a pickle keeps instead of its weights.

    Attributes:
        again: (arguments, changes) -> the same pipeline.
        arguments: `load`'s, by name.
    """

    again: Callable[[Mapping[str, Any], Changes], Any]
    arguments: Mapping[str, Any]

    @property
    def fixed(self) -> str | None:
        """What was asked for that holds the networks where they are: "compile=True"; None: nothing."""
        usual = {"compile": (False,), "quantize": (None,), "backend": ("auto", "native")}
        told = ((name, self.arguments.get(name, plain[0]), plain) for name, plain in usual.items())
        return next((f"{name}={value!r}" for name, value, plain in told if value not in plain), None)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What of a pipeline is otherwise than `load` has left it."""

    model_hash: str | None  # of the file that it was loaded from
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # of networks with other weights
    merged: tuple[Scaled, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    lora_folder: Path | None = None


# What of a pipeline a user may set, and a copy has its own of.
_ATTRIBUTES = ("name", "zero_negative", "scheduler_config", "schedule", "low_res_schedule")
_MADE = "dataclasses.replace(pipe.model, unet=...), darkroom.Pipeline(model)"


class Pieces:
    """A loaded model: its networks, tokenizers and noise schedule, all open to a curious person.

    Attributes:
        model: all of it as one value.
        unet, autoencoder, text_encoder: the networks, in evaluation mode; all is open to a curious person.
        tokenizer: text to token ids.
        text_encoder_2, tokenizer_2: SDXL's second text encoder and its tokenizer; None where there is none.
        zero_negative: an empty negative prompt means zeros (SDXL).
        schedule: the noise levels the U-Net was trained at, t <-> sigma.
        scheduler_config: the checkpoint's scheduler_config.json, which sampler and spacing follow if no other is asked.
        denoiser: D(x; sigma, conditions), the U-Net as x = x0 + sigma * noise sees it.
        prompts: texts to embeddings.
        previewer: latents to rough pictures, without a network.
        upscalers: networks that enlarge pictures, read by `upscaler`.
        loras: LoRA files read for these networks; `loras.folder` is where <lora:name:weight> in a prompt is looked up.
        checkpoint: where it all came from; None for networks made by hand.
        origin: how `load` made it; None: it didn't.
    """

    origin: Origin | None = None

    def __init__(self, model: Model | None = None, **parts: Any) -> None:
        """`model`, or the fields of one: Pipeline(unet=..., autoencoder=..., ...)."""
        self.model = model = Model(**parts) if model is None else model
        for network in model.networks.values():
            network.eval().requires_grad_(False)
        self.unet = model.unet
        self.autoencoder = model.autoencoder
        self.text_encoder = model.text_encoder
        self.tokenizer = model.tokenizer
        self.text_encoder_2 = model.text_encoder_2
        self.tokenizer_2 = model.tokenizer_2
        self.zero_negative = model.zero_negative
        self.scheduler_config = dict(model.scheduler_config)
        self.schedule = model.schedule
        self.low_res_schedule = model.low_res_schedule
        self.checkpoint = model.checkpoint
        self.name = model.name
        self.denoiser = Denoiser(model.unet, model.schedule)
        texts = [(model.tokenizers[part], encoder) for part, encoder in model.text_encoders.items()]
        self.prompts = encoder_of(texts, penultimate=model.unet.config.size_conditioning)
        self.previewer = Previewer(model.autoencoder)
        self.controlnets: dict[str, LoadedControlNet] = {}
        self.upscalers: dict[str, Upscaler] = {}
        self.loras = LoraStore({"unet": model.unet, **model.text_encoders})
        self._merged: list[Merged] = []  # one at most; shallow copies share it, as they share the weights

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the U-Net computes in. Pictures in progress are float32 whatever it is."""
        return next(self.unet.parameters()).dtype

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was trained at."""
        side = self.unet.config.sample_size * self.autoencoder.config.downscale
        return side, side

    @property
    def defaults(self) -> Mapping[str, float]:
        """What suits this model, where its folder says so (`darkroom.json`): steps, guidance_scale, refine_strength."""
        return self.model.defaults or {}

    @property
    def model_hash(self) -> str | None:
        """Ten hexadecimal digits of the weights' SHA-256, as A1111 writes them; read from disk on first use."""
        return self.checkpoint.hash() if self.checkpoint else None

    @property
    def vae(self) -> str | None:
        """The name of the autoencoder that was put in place of the model's own, if there is one."""
        return self.checkpoint.vae.name if self.checkpoint and self.checkpoint.vae else None

    @property
    def vae_hash(self) -> str | None:
        """Ten hexadecimal digits of its SHA-256."""
        return self.checkpoint.hash("autoencoder") if self.checkpoint and self.checkpoint.vae else None

    def find_lora(self, name: str) -> Adapter:
        """The LoRA that prompts call `name`, from the folder `loras.folder`. Raises RequestError if there is none."""
        return self.loras.find(name)

    def controlnet(self, source: str | Path | ControlNet) -> LoadedControlNet:
        """A ControlNet on the U-Net's device: from a folder, a file or the hub, in its dtype; read once and kept in
        `controlnets` (clear that to free the memory); or one that is loaded already. Raises CheckpointError.
        """
        if isinstance(source, ControlNet):
            return LoadedControlNet(source.to(self.device), "given", None)
        key = str(source)
        if key not in self.controlnets:
            found = open_controlnet(source)
            net = found.build(CONTROLNET, self.device, self.dtype)
            if is_compiled(self.unet):
                compile_blocks(net)  # they are blocks of the U-Net's kinds
            self.controlnets[key] = LoadedControlNet(net, found.name, found.hash())
        return self.controlnets[key]

    def upscaler(self, source: str | Path) -> Upscaler:
        """A network that enlarges, on the U-Net's device: a file, "org/name" on the hub, or "embedded:upscaler"; read
        once and kept in `upscalers`, where requests and recipes find it by its name. Raises CheckpointError.
        """
        key = str(source)
        if key not in self.upscalers:
            self.upscalers[key] = load_upscaler(source, self.device)
        return self.upscalers[key]

    def find_upscaler(self, name: str, hash: str | None = None) -> Upscaler:
        """The network that a request or a recipe means, of those that `upscaler` has read: by its hash where one is
        told, else by its name, its file, or what A1111 calls it. A recipe is data from anywhere: no other file is
        opened but what comes with the package. Raises RequestError.
        """
        known = list(self.upscalers.values())
        for found in known:
            if hash is not None and found.hash == hash[:10]:
                return found
        if name in self.upscalers:
            return self.upscalers[name]
        called = {found.name: found for found in known}
        if name in called or A1111_UPSCALERS.get(name) in called:
            return called[name] if name in called else called[A1111_UPSCALERS[name]]
        if name == EMBEDDED_UPSCALER:
            return self.upscaler(name)
        raise RequestError(
            f"there is no upscaler {name[:100]!r} here{nearest(name[:100], called)}; give its file (--upscaler, or "
            "Pipeline.upscaler), or enlarge by 'lanczos'"
        )

    @property
    def merged_loras(self) -> tuple[Scaled, ...]:
        """What `merge_loras` added to the weights."""
        return self._merged[0].scaled if self._merged else ()

    def merge_loras(self, *loras: Lora | str | Path) -> None:
        """Add LoRAs to the weights, in place of those merged before, until `unmerge_loras`: no step costs more then.

        All pictures, and `save`, have them. Nothing may be in progress. The original weights of the touched layers are
        kept, so memory holds these twice. Raises CheckpointError for a file that can't be used; then nothing changes.
        """
        scaled = [self.loras.get(lora) for lora in loras]
        self.unmerge_loras()
        self._merge(scaled)

    def _merge(self, scaled: Sequence[Scaled]) -> None:
        self._merged.append(Merged(self.loras.networks, scaled))
        self.prompts.clear()

    def unmerge_loras(self) -> None:
        """Bring the original weights back, bit for bit."""
        if self._merged:
            self._merged[0].undo()
            self._merged.clear()
            self.prompts.clear()

    def encode_prompt(self, text: str, style: str = "a1111", clip_skip: int = 0) -> Tensor:
        """A prompt as the U-Net sees it: [1, 77 k, D] float32 (k chunks of 75 tokens, with their begin and end)."""
        return self.prompts.encode(text, style=style, clip_skip=clip_skip)[None]

    def explain(
        self,
        prompt: str,
        style: str = "a1111",
        steps: int | None = None,
        *,
        embeddings: Sequence[Embedding | str | Path] = (),
        negative: bool = False,
    ) -> Explanation:
        """What the model will read of a prompt: parts, steps, chunks, tokens, ids, weights. Print it.

        Args:
            steps: the picture's; None: what the model's folder recommends, or 30.
            embeddings: as in `generate`.
            negative: whether it is a negative prompt.

        Raises RequestError for a prompt that can't be drawn.
        """
        return explain_prompt(
            prompt,
            self.tokenizer,
            style,
            whole("steps", steps, 1, MAX_STEPS) if steps is not None else int(self.defaults.get("steps", STEPS)),
            words=learned_words(embeddings),
            negative=negative,
            length=self.prompts.length,
            widths=self.prompts.widths,
        )

    @torch.no_grad()
    def encode_image(self, image: Picture) -> Tensor:
        """A PIL picture or a path as a scaled latent mean [1, C, H/8, W/8] float32.

        Sizes that are no multiple of 8 are continued with their last row and column. Raises ImageError.
        """
        picture = pad_to_grid(to_tensor(open_picture(image)), self.autoencoder.config.downscale)

        def encoded(network: Autoencoder) -> Tensor:
            return network.encode(picture.to(next(network.parameters()))).float()

        moments = finite(self.autoencoder, encoded, "encoding")
        return self.autoencoder.scale(moments.chunk(2, dim=1)[0])

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents [N, C, h, w] (or one, [C, h, w]) as PIL pictures of 8 w x 8 h pixels."""
        channels = self.autoencoder.config.latent_channels
        if not isinstance(latents, Tensor) or latents.ndim not in (3, 4) or latents.shape[-3] != channels:
            shape = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise RequestError(f"latents are {shape}; decode takes a tensor [N, {channels}, h, w]")
        latents = latents if latents.ndim == 4 else latents[None]
        return [to_pil(decode(self.autoencoder, latent[None])[0]) for latent in latents]

    def add_noise(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        """What training shows the U-Net at timestep t (0..999): x0 + sigma(t) * noise, in Darkroom's coordinates.

        The U-Net itself is given this divided by sqrt(1 + sigma^2) (`denoiser.scaling.c_in`), which keeps its variance.
        """
        return latents + self.schedule.t_to_sigma(t) * noise

    def save(self, path: str | Path, dtype: str | None = None, defaults: Mapping[str, float] | None = None) -> Path:
        """Write the model: one LDM-layout file if the name ends in .safetensors, else a diffusers folder.

        dtype: what to convert to: "float32", "bfloat16", "float16", or 8 bits, "float8_e4m3" or "float8_e5m2" (its
        vectors then in float16); None keeps each network's own. `defaults`: the steps and the guidance scale to
        recommend; None: as this model does. Raises CheckpointError.
        """
        path = Path(path)
        write = save_single_file if path.suffix == ".safetensors" else save_folder
        model = self.model if defaults is None else replace(self.model, defaults=defaults)
        try:
            return write(path, model.contents, None if dtype is None else saved_type(dtype))
        except OSError as error:
            raise CheckpointError(f"{str(path)!r} can't be written ({error.strerror}); choose another place") from error

    # --- moved, copied, pickled

    def to(self, device: str | torch.device | None = None, dtype: DType | torch.dtype | None = None) -> Self:
        """Move it to a device, and let it compute in other numbers; the same pipeline, as of a torch module.

        Args:
            device: as in `load`; None: where it is.
            dtype: as in `load`; None: what it is. Numbers that were rounded stay so: load it anew for finer ones.

        Nothing may be in progress. Raises RequestError for a device or dtype that can't be, and for a pipeline that was
        loaded compiled, rounded to 8 bits or for another library.
        """
        if isinstance(device, torch.dtype):  # torch modules take it there, too
            device, dtype = None, device
        if (fixed := self.origin and self.origin.fixed) or is_compiled(self.unet):
            raise RequestError(
                f"a pipeline that was loaded with {fixed or 'compile=True'} can't be moved; "
                "load it where it shall be: darkroom.load(..., device=..., dtype=...)"
            )
        place = self.device if device is None else device_named(str(device))
        name = str(self.dtype if dtype is None else dtype).removeprefix("torch.")
        check_dtype(name, place)
        numbers = dtype_named(name, place, self.unet.config)
        merged = self.merged_loras
        self.unmerge_loras()
        extra = {} if self.previewer.network is None else {"preview": self.previewer.network}
        for network in {**self.model.networks, **extra}.values():
            network.to(place, dtype_within(network.config, numbers))
        self.prompts.clear()
        self.controlnets.clear()
        self.upscalers = {key: load_upscaler(key, place) for key in self.upscalers}
        self.loras = LoraStore(self.loras.networks, self.loras.folder)
        if merged:
            self._merge([replace(one, adapter=one.adapter.to(place)) for one in merged])
        if self.origin is not None:
            told = {"device": str(place), "dtype": str(numbers).removeprefix("torch.")}
            self.origin = replace(self.origin, arguments={**self.origin.arguments, **told})
        return self

    def __copy__(self) -> Self:
        """Another pipeline with the same networks: its scheduler_config and its LoRA folder are its own."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.scheduler_config = dict(self.scheduler_config)
        made.controlnets = dict(self.controlnets)
        made.upscalers = dict(self.upscalers)
        made.loras = LoraStore(self.loras.networks, self.loras.folder)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another pipeline with networks of its own."""
        if (fixed := self.origin and self.origin.fixed) or is_compiled(self.unet):
            raise RequestError(f"a pipeline that was loaded with {fixed or 'compile=True'} has no copy; load it again")
        networks: dict[str, Any] = {part: copy.deepcopy(network, memo) for part, network in self.model.networks.items()}
        made = type(self)(replace(self.model, **networks))
        for name, value in self._set().items():
            setattr(made, name, copy.deepcopy(value, memo))
        made.origin, made.loras.folder = self.origin, self.loras.folder
        if self.previewer.network is not None:
            made.previewer = Previewer(made.autoencoder, copy.deepcopy(self.previewer.network, memo))
        made._merged = copy.deepcopy(self._merged, memo)  # with the original weights, and the copied layers
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle says how it was loaded, and what has changed since: weights too, if they have."""
        if self.origin is None:
            raise RequestError(
                "this pipeline was made of networks, and nothing says where they are; save it (pipe.save(FOLDER)), and "
                "pickle what darkroom.load(FOLDER) gives"
            )
        changes = Changes(
            model_hash=self.model_hash,
            states=self._changed_weights(),
            merged=self.merged_loras,
            attributes=self._set(),
            lora_folder=self.loras.folder,
        )
        return self.origin.again, (self.origin.arguments, changes)

    def _set(self) -> dict[str, Any]:
        """What a user has set of it."""
        own = {name: getattr(self, name) for name in _ATTRIBUTES}
        return {name: value for name, value in own.items() if value != getattr(self.model, name)}

    def _changed_weights(self) -> dict[str, dict[str, Tensor]]:
        """The networks whose weights aren't those of the files any more."""
        assert self.checkpoint is not None
        merged = self.merged_loras
        self.unmerge_loras()
        try:
            found = {}
            networks: dict[Any, Any] = self.model.networks
            for part, network in networks.items():
                if getattr(self, part) is not network:
                    raise RequestError(
                        f"the pipeline's {part} was replaced; make it of a model with that ({_MADE}), and save it"
                    )
                state = network.state_dict()
                if not self.checkpoint.holds(part, state):
                    found[part] = {name: tensor.cpu() for name, tensor in state.items()}
            return found
        finally:
            if merged:
                self._merge(merged)

    def change(self, changes: Changes) -> None:
        """Make it what a pickled pipeline was, which was loaded as this one."""
        for part, state in changes.states.items():
            self.model.networks[part].load_state_dict(state)
        for name, value in changes.attributes.items():
            setattr(self, name, value)
        self.loras.folder = changes.lora_folder
        if changes.merged:
            self._merge([replace(one, adapter=one.adapter.to(self.device)) for one in changes.merged])

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {self.size[0]}x{self.size[1]}, {self.device}, {str(self.dtype)[6:]})"
