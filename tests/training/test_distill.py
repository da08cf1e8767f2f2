"""Distillation: loss and gradients of diffusers' LCM scripts, exact resume, results that diffusers draws with."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for peers
import peers

import darkroom
from darkroom.adapters import TrainableLora
from darkroom.errors import TrainingError
from darkroom.pipeline import Pipeline
from darkroom.training.distill import DistillRecipe, DistillStage, lcm_scheduler, student_of
from darkroom.training.finetune import rebuilt, rescheduled
from darkroom.training.kinds import KINDS, Source
from darkroom.training.loop import train
from darkroom.training.objective import noise_of, times_of
from darkroom.training.parallel import Rank
from darkroom.training.recipe import check, override
from darkroom.training.run import run as tune

FULL = DistillRecipe(**peers.PLAIN, guidance=(3.0, 9.0), grid=20)
FIXED = replace(FULL, guidance=(5.0,), target_ema=0.0)
LORA = replace(FIXED, student="lora", rank=2, alpha=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.write_pictures(tmp_path_factory.mktemp("pictures"))


def fresh(tiny_folder: Path, **scheduler: Any) -> Pipeline:
    pipe = darkroom.load(tiny_folder, device="cpu", dtype="float32")
    return rebuilt(pipe, scheduler_config={**pipe.scheduler_config, **scheduler})


def shaken(module: torch.nn.Module, seed: int, amount: float = 0.05) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=g)


def their_unet(pipe: Pipeline, folder: Path) -> Any:
    from diffusers import UNet2DConditionModel

    pipe.save(folder, dtype="float32")
    return UNet2DConditionModel.from_pretrained(folder / "unet")


class Script:
    """One step of diffusers' examples/consistency_distillation/train_lcm_distill_*.py, with diffusers' own parts."""

    def __init__(self, scheduler: Any, grid: int) -> None:
        self.alphas, self.prediction = scheduler.alphas_cumprod, scheduler.config.prediction_type
        self.stride = len(self.alphas) // grid
        self.scheduler = scheduler

    def column(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def predict(self, unet: Any, z: Tensor, t: Tensor, text: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x0, noise) as the network sees them."""
        from diffusers import LatentConsistencyModelPipeline as Lcm

        embedding = None if w is None else Lcm.get_guidance_scale_embedding(None, w, embedding_dim=256)
        answer = unet(z, t, encoder_hidden_states=text, timestep_cond=embedding).sample
        a, s = self.column(t)
        if self.prediction == "v_prediction":
            return a * z - s * answer, a * answer + s * z
        return (z - s * answer) / a, answer

    def boundary(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        scaled = 10.0 * t.float().view(-1, 1, 1, 1)
        return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25) ** 0.5 * x0

    def loss(
        self, student: Any, teacher: Any, target: Any, draw: tuple[Tensor, ...], text: Tensor, empty: Tensor, told: bool
    ) -> Tensor:
        x0, noise, index, w = draw
        start = (index + 1) * self.stride - 1
        end = (start - self.stride).clamp(min=0)
        z = self.scheduler.add_noise(x0, noise, start)
        given = w if told else None
        answer = self.boundary(z, self.predict(student, z, start, text, given)[0], start)
        with torch.no_grad():
            cond, uncond = (self.predict(teacher, z, start, t, None) for t in (text, empty))
            guided = [c + w.view(-1, 1, 1, 1) * (c - u) for c, u in zip(cond, uncond, strict=True)]
            a, s = self.column(end)
            further = a * guided[0] + s * guided[1]
            aim = self.boundary(further, self.predict(target, further, end, text, given)[0], end)
        return (((answer - aim) ** 2 + 0.001**2).sqrt() - 0.001).mean()


@pytest.mark.parametrize(
    ("recipe", "scheduler"),
    [(FULL, {}), (FIXED, {"prediction_type": "v_prediction"}), (replace(FIXED, chunks=2), {})],
    ids=["told-epsilon-ema", "fixed-v-self", "long"],
)
def test_a_steps_loss_and_gradients_are_those_of_diffusers_script(
    recipe: DistillRecipe, scheduler: dict[str, Any], tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    from diffusers import DDPMScheduler

    pipe = fresh(tiny_folder, **scheduler)
    stage = peers.stage_over(recipe, pipe, folder)
    assert isinstance(stage, DistillStage)
    stage.dataset.captions[0] = "a red fox, " * 30  # the empty caption has fewer chunks, where several are read
    teacher = their_unet(pipe, tmp_path / "teacher")
    shaken(stage.student, 1)
    student = target = their_unet(stage.pipe, tmp_path / "student")
    if stage.target is not None:
        shaken(stage.target, 2)
        target = their_unet(rebuilt(stage.pipe, unet=stage.target), tmp_path / "target")  # type: ignore[arg-type]
        stage.student.requires_grad_(True)

    batch = stage.batch(0, Rank())
    torch.manual_seed(7)
    ours, _ = stage.loss(batch, 0, Rank())
    ours.backward()

    latents, rows, captions = batch
    torch.manual_seed(7)  # the same draws
    noise = noise_of(recipe, latents, Rank())
    script = Script(DDPMScheduler.from_config(dict(pipe.scheduler_config)), recipe.grid)
    index = (times_of(recipe, pipe.schedule, 4) / script.stride).long()
    assert len(set(index.tolist())) == 4
    low, high = min(recipe.guidance), max(recipe.guidance)
    w = low + (high - low) * torch.rand(4) - 1
    text, empty = (stage.condition(texts, rows, 0).text for texts in (captions, [""] * 4))
    theirs = script.loss(student, teacher, target, (latents, noise, index, w), text, empty, stage.told)
    theirs.backward()
    assert abs(ours.item() - theirs.item()) < 1e-4 * theirs.item()
    peers.assert_same_gradients(peers.gradients("unet", stage.pipe.unet), student)


def test_the_lowest_level_aims_at_the_picture_itself(tiny_folder: Path, folder: Path) -> None:
    """At timestep 0 the boundary condition gives the input back, whatever the network says."""
    stage = peers.stage_over(FULL, fresh(tiny_folder), folder)
    assert isinstance(stage, DistillStage)
    x0, zero = torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long)
    condition = replace(stage.condition(["a fox", "a car"], [0, 1], 0), guidance_scales=torch.tensor([3.0, 4.0]))
    with torch.no_grad():
        found = stage._answer(stage.pipe.denoiser, x0, zero, condition)
    sigma = stage.pipe.schedule.t_to_sigma(0.0)
    torch.testing.assert_close(found, x0 / (1 + sigma**2) ** 0.5)


def test_a_student_begins_as_its_teacher(tiny_folder: Path) -> None:
    pipe = fresh(tiny_folder)
    student = student_of(pipe.unet, True).eval().requires_grad_(False)  # as the teacher, so that both compute alike
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0]), torch.randn(2, 77, 32)
    with torch.no_grad():
        told = student(x, t, text, time_cond=torch.randn(2, 256))
        assert torch.equal(told, pipe.unet(x, t, text))
        student.conv_in.weight += 1  # a copy
        assert torch.equal(told, pipe.unet(x, t, text))


@pytest.mark.parametrize("recipe", [FULL, replace(LORA, target_ema=0.5)], ids=["full", "lora"])
def test_a_resumed_run_is_an_uninterrupted_one(
    recipe: DistillRecipe, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    """The target that follows the student included."""

    def run(place: Path, *stops: int) -> dict[str, Tensor]:
        for stop in stops:
            stage = peers.stage_over(recipe, fresh(tiny_folder), folder)
            train(stage, place, until=stop)
        return {f"{m}.{n}": t for m, module in stage.modules.items() for n, t in module.state_dict().items()}

    whole, parts = run(tmp_path / "whole", 3), run(tmp_path / "parts", 1, 2, 3)
    assert whole.keys() == parts.keys()
    assert any(name.startswith("target.") for name in whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    moved = [n for n in whole if n.startswith("target.") and not torch.equal(whole[n], whole["student" + n[6:]])]
    assert moved, "the target is the student"


def same_picture(ours: Pipeline, theirs: Any, scale: float, **more: Any) -> None:
    theirs.set_progress_bar_config(disable=True)
    for steps, seed in ((4, 1), (2, 5)):
        options = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt"}
        expected = theirs("a red fox", generator=torch.Generator().manual_seed(seed), **options).images
        drawn = ours.generate("a red fox", steps=steps, seed=seed, guidance_scale=scale, output="pt", **more).images
        assert isinstance(drawn, Tensor)
        assert (drawn - expected).abs().max() < 1e-3
        assert expected.std() > 1e-3


def test_diffusers_draws_the_same_picture_with_a_student(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    """By the pipeline for LCMs and by the ordinary one; the network is told the scale by both."""
    from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

    recipe = replace(FULL, save_dtype="float32", lr=0.02)
    made = tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "run")
    assert made == tmp_path / "run" / "model"
    assert tune(recipe, Source(str(tiny_folder), str(folder)), tmp_path / "run") == made  # nothing is done again
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    ours = darkroom.load(made, device="cpu", dtype="float32")
    assert ours.unet.config.time_cond_proj_dim == 256
    assert dict(ours.defaults) == {"steps": 4, "guidance_scale": 6.0}
    assert ours.generate("a fox", seed=1).requests[0].sampler == "lcm"
    apart = [ours.generate("a fox", seed=1, guidance_scale=s, output="pt").images for s in (3.0, 9.0)]
    assert not torch.equal(*apart)  # type: ignore[arg-type]
    for kind in (LatentConsistencyModelPipeline, StableDiffusionPipeline):
        theirs = kind.from_pretrained(made, safety_checker=None)
        assert theirs.scheduler.config.original_inference_steps == 20
        same_picture(ours, theirs, 8.0)


def test_a_distilled_lora_draws_the_same_picture_in_diffusers(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    from diffusers import LCMScheduler, StableDiffusionPipeline

    before = darkroom.load(tiny_folder).unet.state_dict()
    made = tune(replace(LORA, save_dtype="float32", lr=0.05), Source(str(tiny_folder), str(folder)), tmp_path / "run")
    assert made == tmp_path / "run" / "lora.safetensors"
    ours = darkroom.load(tiny_folder, device="cpu", dtype="float32")
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.unet.state_dict().items())
    theirs = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config, original_inference_steps=50)
    plain = ours.generate("a red fox", steps=4, seed=1, guidance_scale=1, sampler="lcm", output="pt").images
    theirs.load_lora_weights(str(made.parent), weight_name=made.name)
    same_picture(ours, theirs, 1.0, loras=[darkroom.Lora(made)], sampler="lcm")
    changed = ours.generate(
        "a red fox", steps=4, seed=1, guidance_scale=1, sampler="lcm", output="pt", loras=[darkroom.Lora(made)]
    ).images
    assert (changed - plain).abs().max() > 1e-2  # type: ignore[operator]


def test_only_the_student_answers_with_its_lora(tiny_folder: Path, folder: Path) -> None:
    pipe = fresh(tiny_folder)
    stage = peers.stage_over(replace(LORA, target_ema=0.5), pipe, folder)
    assert isinstance(stage, DistillStage)
    assert isinstance(stage.target, TrainableLora)
    for number, lora in enumerate((stage.lora, stage.target)):
        assert lora is not None
        shaken(lora, number, 0.3)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 32)
    with torch.no_grad():
        student = pipe.unet(x, t, text)
        with stage._only(None):
            teacher = pipe.unet(x, t, text)
        with stage._only(stage.target):
            target = pipe.unet(x, t, text)
        assert torch.equal(pipe.unet(x, t, text), student)
    plain = darkroom.load(tiny_folder).unet(x, t, text)
    torch.testing.assert_close(teacher, plain)
    assert not torch.allclose(student, teacher)
    assert not torch.allclose(target, teacher)
    assert not torch.allclose(target, student)


def test_what_cant_be_distilled_is_said(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    pipe = fresh(tiny_folder)
    with pytest.raises(TrainingError, match="distilled already"):
        DistillStage.check_model(rebuilt(pipe, unet=student_of(pipe.unet, True)))
    flow = rebuilt(pipe, scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(TrainingError, match="is a flow model"):
        DistillStage.check_model(flow)
    edm = rebuilt(pipe, scheduler_config={"_class_name": "EDMEulerScheduler"})
    with pytest.raises(TrainingError, match="is an EDM model"):
        DistillStage.check_model(edm)
    with pytest.raises(TrainingError, match="is an EDM model: prediction and zero_snr are for the others"):
        rescheduled(edm, "v_prediction", False)
    assert rescheduled(edm, "", False) is edm
    recipe = KINDS["distill"].recipe_of()
    assert isinstance(recipe, DistillRecipe)
    for setting, told in (
        ("student=half", "student is 'half'; it must be 'full' or 'lora'"),
        ("guidance=0.5", "guidance is '0.5'; give a scale from 1 to 100"),
        ("guidance=1,2,3", "guidance is '1,2,3'"),
        ("guidance=", "guidance is ''"),
        ("grid=0", "grid is 0"),
        ("target_ema=1", "target_ema is 1"),
        ("huber=0", "huber is 0"),
        ("weight=min-snr", "weight is 'min-snr'; a distillation has none"),
        ("rank=0", "rank is 0"),
    ):
        with pytest.raises(TrainingError, match=told):
            check(override(recipe, [setting]))
    short = rebuilt(pipe, scheduler_config={**pipe.scheduler_config, "num_train_timesteps": 10})
    with pytest.raises(TrainingError, match="grid is 20; this model has 1 to 10"):
        peers.stage_over(FULL, short, folder)


def test_the_scheduler_keeps_the_models_levels() -> None:
    """Those that its class assumes where its file says nothing, too."""
    from darkroom.diffusion.schedule import Schedule

    for config in ({"_class_name": "DDIMScheduler"}, {"_class_name": "HeunDiscreteScheduler", "beta_end": 0.013}):
        found = Schedule.from_config(lcm_scheduler(config, 50))
        assert found.training_sigmas.tolist() == Schedule.from_config(config).training_sigmas.tolist()
    zero = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert json.loads(json.dumps(lcm_scheduler(zero, 50)))["rescale_betas_zero_snr"] is True
