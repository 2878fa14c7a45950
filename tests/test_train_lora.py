"""A LoRA of one's own pictures: only the factors move, and every program draws the same with them.

The oracle is diffusers' load_lora_weights on tiny random pipelines, and its schedulers for the loss.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import POOLED, deviation
from own_pictures import folder_of, noise
from PIL import Image
from safetensors.torch import load_file
from test_folders import BETAS, Case, case  # noqa: F401  (case is a fixture)
from test_lora import ours, state, theirs
from torch import Tensor

import minisd
from minisd.cli import main
from minisd.nn.conditioning import Conditioning
from minisd.pipeline import Model
from minisd.train import stages
from minisd.train.folder import Folder
from minisd.train.listing import list_folder
from minisd.train.loop import run
from minisd.train.lora import LoraStage, LowRank, write_lora
from minisd.train.recipe import LoraRecipe
from minisd.train.start import start_from
from minisd.train.unet import UnetStage
from minisd.weights.load import load
from minisd.weights.lora import load_loras
from minisd.weights.lora_names import places

TOL = 1e-5
SHORT = ["lora.steps=3", "lora.batch=2", "lora.warmup=1", "lora.lr=0.02", "lora.ema=0.28", "lora.autocast=false"]
SHORT += ["lora.unseen=2", "lora.shown=1", "size=16", "lora.rank=3", "lora.alpha=2.0", "lora.base=fp32"]
ALL_UNET = '["to_q", "to_k", "to_v", "to_out", "ff.proj_in", "ff.proj_out", "proj_in", "proj_out", "time"]'
WITH_TEXT = ["lora.text_lr=1.0", "lora.layers=" + ALL_UNET[:-1] + ', "fc1", "fc2"]']


def train(model: object, data: Path, out: Path, *changes: str, flags: Sequence[str] = ()) -> Path:
    """`minisd train lora`; returns the LoRA's file."""
    sets = [word for change in [*SHORT, *changes] for word in ("--set", change)]
    argv = ["train", "lora", "-m", str(model), "--data", str(data), "--out", str(out), "--device", "cpu", *sets, *flags]
    assert main(argv) == 0
    return out / "model" / f"{out.name}.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of noise."""
    return folder_of(tmp_path_factory.mktemp("pictures"), [noise(i, 16, 16) for i in range(3)])


@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl"])
def test_a_trained_lora_draws_what_diffusers_draws(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    data: Path,
    tmp_path: Path,
) -> None:
    """Factors in every kind of linear layer of the UNet and the text encoders, alpha other than the rank."""
    one = case(family)
    model = load(one.folder, dtype="fp32")
    plain = ours(one, model)
    path = train(one.folder, data, tmp_path / "run", *WITH_TEXT)
    load_loras(model, [(path, 1.0)])
    drawn = ours(one, model)
    assert deviation(drawn, plain) > 0.01
    assert deviation(drawn, theirs(one, [(path, 1.0)])[0]) < TOL


def stage_of(model: Model, data: Path, size: int = 16, **options: object) -> LoraStage:
    """A LoRA stage on a folder, its up factors random where they would be zero."""
    examples = Folder(list_folder(data), size)
    latents = model.vae.encode(examples.pictures(range(3)))[0].half()
    short = {"steps": 2, "batch": 2, "warmup": 1, "autocast": False, "unseen": 2, "shown": 1}
    return LoraStage(LoraRecipe(**{**short, **options}), model, latents, examples)


def step_of(stage: UnetStage) -> tuple[Tensor, Tensor, Conditioning]:
    """Inputs of the UNet."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, *stage.latents.shape[1:], generator=draw)
    return x, torch.tensor([901.0, 17.0]), stage.told(stage.ids(["a red circle", "blue"]))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_it_starts_as_the_model_and_is_told_what_is_told_in_drawing(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    data: Path,
) -> None:
    model = load(case(family).folder, dtype="fp32")
    texts = ["a (red:1.3) circle", "blue"]
    cond = model.encode(texts, emphasis="off", size=(16, 16))
    with torch.no_grad():
        before = model.unet(torch.ones(2, 4, 8, 8), torch.tensor([500.0, 3.0]), cond)
        stage = stage_of(model, data, text_lr=1.0)
        told = stage.told(stage.ids(texts))
        after = model.unet(torch.ones(2, 4, 8, 8), torch.tensor([500.0, 3.0]), told)
    assert deviation(told.context, cond.context) < TOL and deviation(after, before) < TOL
    assert family == "sd1" or deviation(told.vector, cond.vector) < TOL


def test_only_the_factors_move_and_their_file_is_what_was_trained(
    case: Callable[[str], Case],  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    class Kept(LoraStage):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(stages, "LoraStage", Kept)
    one = case("sd1")
    train(one.folder, data, tmp_path / "run", *WITH_TEXT)
    stage = kept[0]
    before = state(load(one.folder, dtype="fp32"))
    after = {
        f"{k}.{n}".replace(".base.", "."): t for k, part in stage.module.items() for n, t in part.state_dict().items()
    }
    assert before.keys() - after.keys() == {k for k in before if k.startswith("vae.")}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() & after.keys())
    moved = after.keys() - before.keys()
    assert moved and all(name.endswith((".up", ".down")) for name in moved)
    named, ema = dict(stage.module.named_parameters()), load_file(tmp_path / "run/lora.safetensors")
    assert all(ema[f"ema.{name}"].abs().max() > 0 for name in moved)
    fresh = load(one.folder, dtype="fp32")
    load_loras(fresh, [(write_lora(tmp_path / "run", torch.float32), 1.0)])
    with torch.no_grad():
        for name in moved:
            named[name].copy_(ema[f"ema.{name}"])
        x, t, cond = step_of(stage)
        with_factors = stage.module["unet"](x, t, cond)
        merged = fresh.unet(x, t, fresh.encode(["a red circle", "blue"], emphasis="off"))
    assert deviation(with_factors, merged) < TOL


def test_a_run_cut_off_goes_on_exactly(
    case: Callable[[str], Case],  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit as one that was never cut off; and only as the LoRA it was."""
    folder, more = case("sd1").folder, ["lora.steps=4", "lora.save_every=2"]
    train(folder, data, tmp_path / "whole", *more)

    class Cut(Exception):
        pass

    def cut(stage: LoraStage, *args: object) -> None:
        original, steps = stage.loss, []

        def loss(*prepared: object) -> tuple[Tensor, dict[str, Tensor]]:
            steps.append(1)
            if len(steps) == 4:
                raise Cut
            return original(*prepared)

        stage.loss = loss
        run(stage, *args)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "run", cut)
        with pytest.raises(AssertionError):
            train(folder, data, tmp_path / "parts", *more)
    path = train(folder, data, tmp_path / "parts", *more, flags=["--resume"])
    whole, parts = (load_file(tmp_path / name / "lora.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert load_file(path).keys() == load_file(tmp_path / "whole/model/whole.safetensors").keys()
    with pytest.raises(AssertionError):
        train(folder, data, tmp_path / "parts", *more, flags=["--resume", "--rank", "4"])


def test_a_run_that_failed_before_its_first_step_can_begin_as_another(
    data: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    damaged = folder_of(tmp_path / "pictures", [noise(i, 64, 64) for i in range(2)])
    whole = (damaged / "1.png").read_bytes()
    (damaged / "1.png").write_bytes(whole[:5000])
    argv = ["train", "lora", "-m", str(tiny_model), "--data", str(damaged), "--out", str(tmp_path / "run"), "-q"]
    argv += [word for change in SHORT for word in ("--set", change)] + ["--device", "cpu"]
    assert main([*argv, "--rank", "2"]) == 2
    assert "1.png cannot be read as a picture" in capsys.readouterr().err
    assert main(["train", "export", "--out", str(tmp_path / "run")]) == 2
    assert "lora.safetensors: run minisd train lora first" in capsys.readouterr().err
    (damaged / "1.png").write_bytes(whole)
    assert main([*argv, "--rank", "3", "--set", "lora.latents=1", "--set", "data.random_crop=true"]) == 0
    assert capsys.readouterr().err == ""
    assert len(load_file(tmp_path / "run/latents/00000000.safetensors")["latents"]) == 1


def test_an_unseen_picture_that_is_damaged_is_named_before_the_first_step(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """Not when the first grid is drawn, hundreds of steps later."""
    folder = folder_of(
        tmp_path / "pictures", [noise(i, 32, 32) for i in range(130)]
    )  # of these names one is never trained on
    unseen = list_folder(folder).split("test")[0].path
    unseen.write_bytes(unseen.read_bytes()[:2000])
    argv = ["train", "lora", "-m", str(tiny_model), "--data", str(folder), "--out", str(tmp_path / "run")]
    assert main([*argv, *(word for change in SHORT for word in ("--set", change)), "--device", "cpu"]) == 2
    assert f"minisd: {unseen} cannot be read as a picture" in capsys.readouterr().err
    assert not (tmp_path / "run/lora.jsonl").exists()


def test_pictures_cut_anywhere_are_cut_in_a_few_places(
    data: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where their latents are made once; all of them: the recipe's limit is for an endless world, and is told."""
    train(tiny_model, data, tmp_path / "run", "data.random_crop=true", "lora.latents=47")
    assert "only 47 of 48 cut pictures are trained on" in capsys.readouterr().err
    train(tiny_model, data, tmp_path / "all", "data.random_crop=true")
    assert len(load_file(tmp_path / "all/latents/00000000.safetensors")["latents"]) == 48
    assert "are trained on" not in capsys.readouterr().err


def test_a_lora_and_a_model_in_training_do_not_share_a_folder(
    data: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """Each has its own config.json, which the other would train by."""
    lora, whole = tmp_path / "lora", tmp_path / "whole"
    train(tiny_model, data, lora)
    start_from(str(tiny_model), whole)
    before = (whole / "config.json").read_bytes()
    for stage, out, said in [("vae", lora, "a LoRA"), ("all", lora, "a LoRA"), ("lora", whole, "a model in training")]:
        argv = ["train", stage, "--data", str(data), "--out", str(out), "-q", "--device", "cpu"]
        capsys.readouterr()
        assert main([*argv, "--resume"]) == 2
        assert f"{out} holds {said}: choose another --out" in capsys.readouterr().err
    assert (whole / "config.json").read_bytes() == before
    assert not (whole / "lora.json").exists() and not (lora / "vae.safetensors").exists()


def test_eight_pictures_of_one_colour_pull_the_bundled_models_pictures_there(tmp_path: Path) -> None:
    teal, prompt = (0, 128, 128), "a large red circle on a white background"
    folder_of(tmp_path, [Image.new("RGB", (64, 64), teal)] * 8, [prompt] * 8)
    model = minisd.load(device="cpu")

    def far() -> float:
        """Mean distance of the pixels from the colour."""
        pixels = np.asarray(minisd.generate(model, prompt, seed=1, steps=6)[0], float)
        return np.linalg.norm(pixels - teal, axis=-1).mean()

    before = far()
    stage = stage_of(model, tmp_path, size=64, lr=1e-2, rank=4)
    optimizer = torch.optim.AdamW(stage.groups(), lr=stage.recipe.lr)
    for step in range(16):
        optimizer.zero_grad()
        stage.loss(*stage.prepare(step, slice(0, 2)))[0].backward()
        optimizer.step()
    assert far() < 0.6 * before


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("gamma", [1e8, 5.0])
def test_the_loss_is_the_error_of_what_the_network_predicts(
    case: Callable[[str], Case],  # noqa: F811
    kind: str,
    gamma: float,
    data: Path,
) -> None:
    """As diffusers' training scripts have it; min-SNR is theirs for eps, and for v capped at the same SNR + 1."""
    model = load(case("sd1" if kind == "eps" else "sd2-v").folder, dtype="fp32")
    stage = stage_of(model, data, snr_gamma=gamma)
    draw = torch.Generator().manual_seed(1)
    x0, noises = (torch.randn(4, *stage.latents.shape[1:], generator=draw) for _ in range(2))
    t = torch.tensor([0, 100, 500, 999])
    scheduler = diffusers.DDPMScheduler(**BETAS)
    x = scheduler.add_noise(x0, noises, t)
    target = noises if kind == "eps" else scheduler.get_velocity(x0, noises, t)
    with torch.no_grad():
        ids = stage.ids(["a red circle"] * 4)
        loss = stage.denoising_loss(x0, ids, t, noises)
        f = model.unet(x, t.float(), stage.told(ids))
    snr = diffusers.training_utils.compute_snr(scheduler, t) + (kind == "v")
    wanted = F.mse_loss(f, target, reduction="none").mean(dim=(1, 2, 3)) * snr.clamp(max=gamma) / snr
    assert ((loss - wanted).abs() / wanted).max() < 1e-4  # at t = 0 and 999 one of the two is a small difference


@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl"])
def test_a_steps_gradients_are_those_of_peft(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    data: Path,
    tmp_path: Path,
) -> None:
    """From the same file as diffusers reads it: the loss of its training scripts, through PEFT's own layers."""
    one = case(family)
    path, config = train(one.folder, data, tmp_path / "run", "lora.layers=" + ALL_UNET), load(one.folder).config
    write_lora(tmp_path / "run", torch.float32)
    stage = stage_of(load(one.folder, dtype="fp32"), data, rank=3, alpha=2.0, layers=tuple(json.loads(ALL_UNET)))
    named = dict(stage.module.named_parameters())
    trained = {k.removeprefix("ema."): v for k, v in load_file(tmp_path / "run/lora.safetensors").items()}
    with torch.no_grad():
        for name in (name for name, p in named.items() if p.requires_grad):
            named[name].copy_(trained[name])
    x0, ids, t, noises, _ = stage.prepare(0, slice(0, 2))
    loss, _ = stage.loss(x0, ids, t, noises, None)
    loss.backward()

    one.pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    unet, scheduler = one.pipe.unet, diffusers.DDPMScheduler(**BETAS)
    factors = {name: p.requires_grad_() for name, p in unet.named_parameters() if ".lora_" in name}
    told = stage.told(ids)
    more = (
        {}
        if told.vector is None
        else {"text_embeds": told.vector[:, :POOLED], "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)}
    )
    f = unet(scheduler.add_noise(x0, noises, t), t, told.context, added_cond_kwargs=more).sample
    eps = config.noise.prediction == "eps"
    target = noises if eps else scheduler.get_velocity(x0, noises, t)
    snr = diffusers.training_utils.compute_snr(scheduler, t) + (not eps)
    theirs = (F.mse_loss(f, target, reduction="none").mean(dim=(1, 2, 3)) * snr.clamp(max=5.0) / snr).mean()
    theirs.backward()
    assert abs(loss - theirs) < TOL * theirs
    assert len(factors) == sum(p.requires_grad for p in named.values())
    for name, p in factors.items():
        stem, _, role = name.removesuffix(".default_0.weight").rpartition(".lora_")
        ours = named[places(config)[f"unet.{stem}"].removesuffix("weight") + {"A": "down", "B": "up"}[role]]
        assert deviation(ours.grad.view(p.shape), p.grad) < TOL, name
    one.pipe.unload_lora_weights()


def test_activations_computed_twice_give_the_same_gradients(case: Callable[[str], Case], data: Path) -> None:  # noqa: F811
    gradients = []
    for twice in (False, True):
        stage = stage_of(load(case("sd1").folder, dtype="fp32"), data, checkpointing=twice, text_lr=0.5)
        stage.loss(*stage.prepare(0, slice(0, 2)))[0].backward()
        gradients.append({name: p.grad for name, p in stage.module.named_parameters() if p.requires_grad})
    once, twice = gradients
    assert once.keys() == twice.keys() and len(once) > 20
    assert all(deviation(twice[name], once[name]) < 1e-6 for name in once if name.endswith(".up"))


def test_no_time_lies_beyond_the_noise_table(
    case: Callable[[str], Case],  # noqa: F811
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """63 + the largest number below 1 is 64 in fp32: once in 100,000 steps a run would stop there for good."""
    stage = stage_of(load(case("sd1").folder, dtype="fp32"), data, batch=64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 2**-24))
    assert stage.prepare(0, slice(0, 64))[2].max() == 999


def test_a_frozen_half_precision_base_trains_fp32_factors(case: Callable[[str], Case], data: Path) -> None:  # noqa: F811
    stage = stage_of(load(case("sd1").folder, dtype="bf16"), data)
    loss, _ = stage.loss(*stage.prepare(0, slice(0, 2)))
    loss.backward()
    same = stage_of(load(case("sd1").folder, dtype="fp32"), data)
    exact, _ = same.loss(*same.prepare(0, slice(0, 2)))
    assert abs(loss.item() - exact.item()) < 0.05 * exact.item()
    for layer in stage.module.modules():
        if isinstance(layer, LowRank):
            assert layer.base.weight.dtype == torch.bfloat16 and layer.up.grad.dtype == torch.float32
            assert layer.up.grad.abs().max() > 0
