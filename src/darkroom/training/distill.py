"""Distillation to a few steps: a student that says at once where the guided teacher's way would end.

Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378) of a model that needs many steps and two answers in
each: the student's answer at a noise level shall be the same as at the next lower one on the teacher's way (Song et al.
2023, arXiv 2303.01469), which then holds all along it. The student is a whole U-Net, told how strongly it is guided
where that is a range, or a LoRA (LCM-LoRA: Luo et al. 2023, arXiv 2311.05556).

Shapes: N rows, C latent channels, h w latent size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import TrainableLora, init_lora
from ..diffusion.condition import Batch, alike
from ..diffusion.denoiser import Denoiser
from ..diffusion.schedule import levels_of
from ..errors import TrainingError
from ..formats.lora_save import save_lora
from ..models.unet import UNet
from ..pipeline import Pipeline
from ..settings import setting
from .finetune import FinetuneRecipe, rebuilt
from .kinds import Report
from .lora import RANK, TARGETS, chooser
from .objective import DenoisingRecipe, noise_of, times_of
from .parallel import Rank
from .pictures import PictureRecipe, PictureStage
from .recipe import ABOVE_ZERO, BELOW_ONE, again, named, number, on, several, whole
from .sheets import Use

STUDENTS = ("full", "lora")
STEPS = 4  # that the result recommends
SIGMA_DATA = 0.5  # of the boundary condition; diffusers' LCMScheduler has the same
TIMESTEP_SCALING = 10.0
GUIDANCE_WIDTH = 256  # of the embedding of a guidance scale, as in published LCMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe(PictureRecipe):
    """A student of few steps. The noise of the batch and its times are drawn as in other trainings."""

    student: str = setting(
        "full", named(STUDENTS), 'A whole U-Net; or "lora": a small file for the model and its relatives.'
    )
    guidance: tuple[float, ...] = setting(
        (3.0, 13.0),
        several(number("a number", lambda v: True)),
        "The teacher's scale: a range, which a whole U-Net is told; or one scale.",
    )
    grid: int = setting(
        50,
        whole("between 1 and 1000", lambda v: 1 <= v <= 1000),
        "Noise levels that the solver goes by, and that the student can be asked at.",
    )
    target_ema: float = setting(
        0.95, BELOW_ONE, "Decay of the student that is aimed at; 0: the student itself, without gradients."
    )
    huber: float = setting(0.001, ABOVE_ZERO, "Below differences of this size the loss is a square, above a distance.")
    rank: int = setting(64, RANK, 'Of "lora".', beside=(("student", "lora"),))
    alpha: float = setting(
        64.0, ABOVE_ZERO, 'Of "lora": the difference is multiplied by alpha / rank.', beside=(("student", "lora"),)
    )
    targets: tuple[str, ...] = setting(
        ("all",), TARGETS, 'Of "lora": the layers it changes (`lora.chooser`).', beside=(("student", "lora"),)
    )
    save_dtype: str = again(FinetuneRecipe, "save_dtype")

    @property
    def stage(self) -> type[DistillStage]:
        return DistillStage

    def check(self, workers: int) -> None:
        PictureRecipe.check(self, workers)
        if len(self.guidance) not in (1, 2) or not all(1 <= scale <= 100 for scale in self.guidance):
            scales = ",".join(f"{scale:g}" for scale in self.guidance)
            raise TrainingError(f"guidance is {scales!r}; give a scale from 1 to 100, or two for a range, such as 3,13")
        usual = {field.name: field.default for field in dataclasses.fields(DenoisingRecipe)}
        for name in ("weight", "perturbation"):
            if getattr(self, name) != usual[name]:
                raise TrainingError(f"{name} is {getattr(self, name)!r}; a distillation has none, so leave it out")


def distill(preset: str = "cpu") -> DistillRecipe:
    """A thousand steps of eight pictures."""
    recipe = DistillRecipe(
        steps=1000, batch_size=8, lr=1e-5, optimizer="adamw", warmup=50, cooldown=0.2, ema=0.95, dropout=0.0
    )
    return on(recipe, preset)


class DistillStage(PictureStage):
    """A distillation. `pipe` is the student's; the teacher's answers are `teacher`'s."""

    config: DistillRecipe

    @classmethod
    def check_model(cls, pipe: Pipeline) -> None:
        super().check_model(pipe)
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise TrainingError(f"{pipe.name!r} takes its guidance scale as an input: it is distilled already")
        if pipe.schedule.prediction_type == "flow":
            raise TrainingError(f"{pipe.name!r} is a flow model; the samplers of distilled models know none")
        if pipe.schedule.sigma_data is not None:
            raise TrainingError(f"{pipe.name!r} is an EDM model; the samplers of distilled models know none")

    def begin(self) -> None:
        c, pipe = self.config, self.pipe
        if not 1 <= c.grid <= pipe.schedule.steps:
            raise TrainingError(f"grid is {c.grid}; this model has 1 to {pipe.schedule.steps} noise levels to choose")
        self.low, self.high = min(c.guidance), max(c.guidance)
        self.told = c.student == "full" and self.low < self.high
        self.teacher = pipe.denoiser
        config = lcm_scheduler(pipe.scheduler_config, c.grid)
        self.lora: TrainableLora | None = None
        self.target: nn.Module | None = None
        if c.student == "lora":
            self.pipe = rebuilt(pipe, scheduler_config=config)
            self.lora = init_lora(pipe.unet, c.rank, c.alpha, chooser(c.targets, "unet", pipe.unet))
            self.hooks.callback(self.lora.attach(pipe.unet))
            self.student: nn.Module = self.lora
        else:
            self.pipe = rebuilt(pipe, unet=student_of(pipe.unet, self.told), scheduler_config=config)
            self.student = self.pipe.unet.requires_grad_(True)
        self.aim = self.pipe.denoiser
        self.modules["student"] = self.student
        if c.target_ema:
            if self.lora is None:
                self.target = student_of(self.pipe.unet, self.told)
            else:
                self.target = TrainableLora(self.lora.updates())
            self.target.requires_grad_(False)
            self.modules["target"] = self.target
            if isinstance(self.target, TrainableLora):
                self.target.on = False
                self.hooks.callback(self.target.attach(pipe.unet))
            else:
                self.aim = Denoiser(self.target, pipe.schedule)
        self._followed = 0

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        """Consistency of the student's answer with the target's, one solver step of the guided teacher further down."""
        latents, rows, captions = batch
        c, device = self.config, self.pipe.device
        self._follow(step)
        x0, count = latents.to(device), len(rows) * rank.world_size
        condition, empty = (self.condition(texts, rows, step) for texts in (captions, [""] * len(rows)))
        schedule = self.teacher.schedule
        stride = schedule.steps // c.grid
        noise = noise_of(c, x0, rank)
        start = rank.of((times_of(c, schedule, count) / stride).long().clamp(max=c.grid - 1)) * stride + stride - 1
        scale = rank.of(self.low + (self.high - self.low) * torch.rand(count)).to(device)
        start = start.to(device)
        end = (start - stride).clamp(min=0)
        x = x0 + _column(schedule.t_to_sigma(start)) * noise
        told = replace(condition, guidance_scales=scale) if self.told else condition
        answer = self._answer(self.pipe.denoiser, x, start, told)
        with torch.no_grad():
            with self._only(None):
                further = self._solver_step(x, start, end, condition, empty, scale)
            with self._only(self.target or self.student):
                aim = self._answer(self.aim, further, end, told)
        distance = ((answer - aim).square() + c.huber**2).sqrt() - c.huber
        loss = distance.mean(dim=(1, 2, 3))
        if (weights := self._row_weights(rows)) is not None:
            loss = weights.to(loss) * loss
        return loss.mean(), {"error": (answer - aim).detach().square().mean()}

    def _answer(self, denoiser: Denoiser, x: Tensor, t: Tensor, condition: Batch) -> Tensor:
        """f(x, t) = c_skip(t) x_vp + c_out(t) D(x), where x_vp is x of unit variance: at t = 0 it is x itself, nearly
        (arXiv 2303.01469, eq. 5)."""
        sigma = denoiser.schedule.t_to_sigma(t).float()
        denoised = denoiser(x, sigma, condition, t=t.float())
        scaled = t.float() * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
        out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
        unit = x / _column(torch.hypot(torch.ones_like(sigma), sigma))
        return _column(skip) * unit + _column(out) * denoised

    def _solver_step(
        self, x: Tensor, start: Tensor, end: Tensor, condition: Batch, empty: Batch, scale: Tensor
    ) -> Tensor:
        """A DDIM step of the guided teacher from one timestep to a lower one (arXiv 2310.04378, eq. 13, app. D)."""
        sigma, after = (self.teacher.schedule.t_to_sigma(t).float() for t in (start, end))
        both = self.teacher(torch.cat([x, x]), torch.cat([sigma, sigma]), _joined(condition, empty), t=_twice(start))
        positive, negative = both.chunk(2)
        guided = negative + _column(scale) * (positive - negative)
        return guided + _column(after / sigma) * (x - guided)

    @contextmanager
    def _only(self, module: nn.Module | None) -> Iterator[None]:
        """While this lasts, no LoRA acts but `module`, if it is one."""
        with ExitStack() as stack:
            for lora in (self.lora, self.target):
                if isinstance(lora, TrainableLora):
                    stack.enter_context(lora.switched(lora is module))
            yield

    def _follow(self, step: int) -> None:
        """Move the target towards the student as the last step left it: once a step, however many parts it has."""
        if self.target is None or step <= self._followed or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            ours: list[Tensor] = list(self.target.parameters())
            theirs: list[Tensor] = list(self.student.parameters())
            torch._foreach_lerp_(ours, theirs, 1 - self.config.target_ema)
        self._followed = step

    @property
    def suggested(self) -> dict[str, float]:
        """Steps and guidance scale that suit the student."""
        middle = round((self.low + self.high) / 2, 1)
        return {"steps": STEPS, "guidance_scale": middle if self.told else 1.0}

    def write(self, output: Path, report: Report) -> Path:
        if self.lora is None:
            return self.pipe.save(
                output / "model", dtype=self.config.save_dtype, defaults={**self.pipe.defaults, **self.suggested}
            )
        networks = {"unet": self.pipe.unet}
        about = {"darkroom_sampler": "lcm", "darkroom_grid": str(self.config.grid)}
        dtype = getattr(torch, self.config.save_dtype)
        return save_lora(output / "lora.safetensors", self.lora.adapter(name=output.name), networks,
                         dtype=dtype, metadata=about)  # fmt: skip

    @classmethod
    def use(cls, recipe: Any, made: Path) -> Use:
        if recipe.student == "full":
            return Use(model=made)
        return Use(lora=made, options={"sampler": "lcm", "steps": STEPS, "guidance_scale": 1.0})

    @contextmanager
    def drawing(self) -> Iterator[Mapping[str, Any]]:
        with super().drawing() as told:
            yield {**told, **self.suggested}


def student_of(teacher: UNet, told: bool) -> UNet:
    """A copy of a U-Net; one that is to be `told` its guidance scale answers as the teacher does at first."""
    config = dataclasses.replace(teacher.config, time_cond_proj_dim=GUIDANCE_WIDTH if told else None)
    with torch.device("meta"):
        student = UNet(config)
    state = {name: tensor.detach().clone() for name, tensor in teacher.state_dict().items()}
    weight = teacher.conv_in.weight
    for name, tensor in student.state_dict().items():
        if name not in state:
            state[name] = torch.zeros(tensor.shape, dtype=weight.dtype, device=weight.device)
    student.load_state_dict(state, assign=True)
    return student


def lcm_scheduler(config: Mapping[str, Any], grid: int) -> dict[str, Any]:
    """The `scheduler_config.json` of a model distilled on a grid of so many levels of another's."""
    return {
        "_class_name": "LCMScheduler",
        **levels_of(config),
        "clip_sample": False,
        "original_inference_steps": grid,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_scaling": TIMESTEP_SCALING,
        "timestep_spacing": "leading",
    }


def _column(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


def _twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])


def _joined(first: Batch, second: Batch) -> Batch:
    """The rows of one batch, then those of another."""

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    text = torch.cat(alike([first.text, second.text]))
    return Batch(text, pooled=both(first.pooled, second.pooled), sizes=both(first.sizes, second.sizes))
