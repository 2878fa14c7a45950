"""The whole path on a tiny random model: what `generate`, `sample` and `encode` promise."""

import json
import logging
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from oracles import shallow
from PIL import Image

import minisd
from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES, Config
from minisd.diffusion.denoise import changing, denoiser, thresholded
from minisd.diffusion.guidance import guided
from minisd.diffusion.samplers import euler_a, final
from minisd.diffusion.schedule import make_plan, noise_table
from minisd.image import to_pil, to_tensor
from minisd.noise import ImageNoise
from minisd.pipeline import Model
from minisd.runtime import pick
from minisd.text.encode import encode
from minisd.weights.folder import WEIGHTS, modules

CONFIGS = Path(__file__).parent.parent / "configs"
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, device="cpu")


def latent(model: Model, prompt: str | list[str] = PROMPT, **options: object) -> torch.Tensor:
    return minisd.generate(model, prompt, output="latent", **options)


def test_outputs_are_one_picture_in_three_forms(model: Model) -> None:
    z = latent(model, seed=1)
    pixels = minisd.generate(model, PROMPT, seed=1, output="tensor")
    (image,) = minisd.generate(model, PROMPT, seed=1)
    assert z.dtype == pixels.dtype == torch.float32
    assert z.shape == (1, 4, 16, 16)
    assert pixels.shape == (1, 3, 64, 64)
    assert torch.equal(model.vae.decode(z), pixels)
    assert image.tobytes() == to_pil(pixels)[0].tobytes()
    assert not pixels.requires_grad


@pytest.mark.parametrize(
    "sampler, schedule", [*((s, "karras") for s in SAMPLER_NAMES), *(("euler_a", s) for s in SCHEDULE_NAMES)]
)
def test_any_sampler_runs_with_any_schedule(model: Model, sampler: str, schedule: str) -> None:
    z = latent(model, sampler=sampler, schedule=schedule)
    assert torch.isfinite(z).all()
    assert torch.equal(z, latent(model, sampler=sampler, schedule=schedule))


def test_seed_zero_is_a_seed(model: Model) -> None:
    assert torch.equal(latent(model), latent(model, seed=0))
    assert not torch.equal(latent(model, seed=0), latent(model, seed=1))


def test_scale_one_is_the_prompt_alone(model: Model) -> None:
    z = latent(model, cfg_scale=1.0)
    assert torch.equal(z, latent(model, cfg_scale=1.0, negative_prompt="a blue square"))
    assert not torch.equal(z, latent(model, cfg_scale=2.0))


def test_dynamic_threshold_bounds_every_estimate(model: Model) -> None:
    options = {"cfg_scale": 40.0, "seed": 1}
    free, bound = (
        max(float(step.denoised.abs().max()) for step in minisd.sample(model, PROMPT, dynamic_threshold=p, **options))
        for p in (None, 0.995)
    )
    assert free > 4
    assert bound <= 2.8071  # of a normal distribution 99.5 % are nearer to 0
    assert torch.equal(latent(model, dynamic_threshold=None), latent(model))


def test_the_guidance_interval_is_told_in_parts_of_the_noise(model: Model) -> None:
    whole = latent(model, guidance_interval=(0.0, 1.0))
    assert torch.equal(whole, latent(model))
    assert torch.equal(latent(model, guidance_interval=(0.0, 0.1)), latent(model, cfg_scale=1.0))  # times 999 to 249


def test_the_prompt_and_the_negative_prompt_matter(model: Model) -> None:
    z = latent(model)
    assert not torch.equal(z, latent(model, "a blue square"))
    assert not torch.equal(z, latent(model, negative_prompt="a blue square"))
    assert torch.equal(z, latent(model, negative_prompt=""))


def test_lists_pair_up(model: Model) -> None:
    both = latent(model, ["a red circle", "a blue square"], negative_prompt=["", "a star"], seed=3)
    assert torch.equal(both[1:], latent(model, "a blue square", negative_prompt="a star", seed=4))
    with pytest.raises(ValueError, match="2 prompts and 1 negative prompts"):
        latent(model, ["a", "b"], negative_prompt=["c"])
    for prompt, negative, said in (
        ([], None, "prompt is an empty list"),
        (None, None, "prompt must be text or a list of texts, not None"),
        (b"ab", None, "prompt must be text or a list of texts, not b'ab'"),
        ({"a": "b"}, None, "prompt must be text or a list of texts, not {'a': 'b'}"),
        (["a", 1], None, "prompt must be text or a list of texts, not a list with 1"),
        ("a", 3, "negative_prompt must be text or a list of texts, not 3"),
        ("a", [None], "negative_prompt must be text or a list of texts, not a list with None"),
    ):
        with pytest.raises(ValueError, match=said):
            latent(model, prompt, negative_prompt=negative)


def test_sample_is_generate_seen_from_inside(model: Model) -> None:
    steps = list(minisd.sample(model, PROMPT, seed=2, schedule="karras"))
    assert [step.i for step in steps] == [0, 1, 2, 3]
    assert all(a.sigma > b.sigma for a, b in pairwise(steps))
    assert torch.equal(steps[-1].x, latent(model, seed=2, schedule="karras"))
    assert not any(step.x.requires_grad or step.denoised.requires_grad for step in steps)
    assert torch.is_grad_enabled()


def test_own_latents_take_the_place_of_the_seed(model: Model) -> None:
    noise = ImageNoise([7], (4, 16, 16), torch.device("cpu"))()
    assert torch.equal(latent(model, seed=7), latent(model, latents=noise, seed=99))
    with pytest.raises(ValueError, match=r"\[1, 4, 16, 16\]"):
        latent(model, latents=noise[:, :3])
    for wrong, said in (
        (noise.numpy(), "latents must be a tensor, not ndarray"),
        (noise.tolist(), "latents must be a tensor, not list"),
        (noise.long(), "latents must be a tensor of floats"),
        (noise * torch.nan, "there are numbers in latents that are not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            latent(model, latents=wrong)


def test_other_sizes(model: Model) -> None:
    assert latent(model, width=72, height=52).shape == (1, 4, 13, 18)
    with pytest.raises(ValueError, match="the nearest are 64 and 68"):
        latent(model, width=66)


def test_a_researchers_own_sampler_and_schedule(model: Model) -> None:
    def euler_by_hand(denoise, x, plan, noise=None):
        for i, (s, s_next) in enumerate(pairwise(plan.sigmas)):
            denoised = denoise(x, s)
            x = x + (x - denoised) / s * (s_next - s)
            yield minisd.diffusion.samplers.Step(i, s, x, denoised)

    ours = latent(model, sampler="euler", schedule="karras")
    theirs = latent(model, sampler=euler_by_hand, schedule="karras")
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    assert latent(model, schedule=lambda table, steps: torch.linspace(9, 0.1, steps)).isfinite().all()

    def idle(denoise, x, plan, noise=None):
        yield from ()

    with pytest.raises(ValueError, match="the sampler idle yielded no step"):
        latent(model, sampler=idle)


def test_clip_skip_changes_the_picture_and_is_checked(model: Model) -> None:
    assert torch.equal(latent(model), latent(model, clip_skip=1))
    assert not torch.equal(latent(model), latent(model, clip_skip=2))
    with pytest.raises(ValueError, match="clip_skip 3 is out of range: tiny takes 1"):
        latent(model, clip_skip=3)


def test_encode(model: Model) -> None:
    cond = model.encode(["a red circle", "a (red) circle"], emphasis="off")
    assert cond.context.shape == (2, 16, 32)
    assert cond.vector is None
    assert not torch.equal(cond.context[0], cond.context[1])  # "off" reads brackets literally
    for wrong, said in (("a red circle", "a list of prompts"), ([], "empty list"), ([1], "not a list with 1")):
        with pytest.raises(ValueError, match=said):
            model.encode(wrong)


def test_what_does_not_fit_is_named(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    room = model.tokenizers[0].room
    long = "a " * room + "zebra"
    with caplog.at_level(logging.WARNING, "minisd"):
        cut = model.encode([long], long_prompt="truncate")
    assert "zebra" in caplog.text
    assert torch.equal(cut.context, model.encode(["a " * room]).context)
    with pytest.raises(ValueError, match="zebra"):
        model.encode([long], long_prompt="error")


def test_the_recipe_travels_with_the_picture(model: Model) -> None:
    pictures = minisd.generate(model, PROMPT, negative_prompt="a star", num_images=2, seed=4, sampler="ddim", eta=0.5)
    recipe = json.loads(pictures[1].info["minisd"])
    names = ("prompt", "negative_prompt", "seed", "steps", "sampler", "eta", "clip_skip", "model", "dtype")
    assert [recipe[n] for n in names] == [PROMPT, "a star", 5, 4, "ddim", 0.5, 1, "tiny", "float32"]
    options = {k: recipe[k] for k in ("seed", "steps", "sampler", "eta", "cfg_scale", "schedule", "clip_skip")}
    (again,) = minisd.generate(model, recipe["prompt"], negative_prompt=recipe["negative_prompt"], **options)
    assert again.tobytes() == pictures[1].tobytes()


def test_numbers_that_are_not_finite_make_no_picture(model: Model, tiny_model: Path) -> None:
    for part, where in (("unet.conv_in", "UNet"), ("vae.post_quant", "VAE")):
        broken = minisd.load(tiny_model, device="cpu")
        attrgetter(part)(broken).weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=where):
            minisd.generate(broken, PROMPT)


def test_device_policy_gives_its_reason() -> None:
    small, large = pick("cpu", "auto", 10_000_000), pick("cpu", "auto", 900_000_000)
    assert (small.dtype, small.reason) == (torch.float32, "cpu fp32: device as asked, a small model")
    assert large.dtype in (torch.float32, torch.bfloat16)
    assert pick("cpu", "bf16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="fp16 is not for the CPU"):
        pick("cpu", "fp16")
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        pick("tpu")
    with pytest.raises(ValueError, match="unknown dtype 'fp8'"):
        pick("cpu", "fp8")


def test_a_model_folder_that_does_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(tiny_model)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["unet"]["channels"] = [16, 48]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config: .* mis-shaped \(unet"):
        minisd.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"<html>")
    with pytest.raises(ValueError, match="this is a web page"):
        minisd.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        minisd.load(tmp_path)
    with pytest.raises(ValueError, match="the model's name is empty"):
        minisd.load("")
    with pytest.raises(ValueError, match="there is no model at"):
        minisd.load(tmp_path / "nowhere")


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_the_whole_path_runs_on_another_device(preset: str, model: Model) -> None:
    """On the meta device a stray CPU tensor raises: CUDA kept honest where there is none."""
    config = shallow(Config.load(CONFIGS / f"{preset}.json"))
    with torch.device("meta"):
        parts = modules(config)
    tokenizers = [model.tokenizers[0]] * len(config.text)  # only the numbers matter, and those are not there
    cond = encode(parts["text"], tokenizers, [PROMPT, ""], config, config.default_clip_skip, "truncate", (64, 64))
    assert cond.context.shape == (2, model.tokenizers[0].config.max_length, config.unet.context_dim)
    plan = make_plan(noise_table(config.noise), 2, "euler_a", "trailing")
    said = guided(parts["unet"], [(cond[:1], 1.0), (cond[1:], [0.5])], cond[1:], 5.0, rescale=0.5)
    denoise = thresholded(changing([(1.0, denoiser(said, plan, config.noise.prediction))]), 0.995)
    x = torch.empty(1, 4, 8, 8, device="meta")
    for step in euler_a(denoise, x, plan, noise=lambda *_: torch.empty(1, 4, 8, 8, device="meta")):
        x = step.x
    assert parts["vae"].decode(final(x, plan)).shape == (1, 3, 64, 64)
    assert parts["vae"].encode(torch.empty(1, 3, 64, 64, device="meta"))[0].shape == (1, 4, 8, 8)


def test_pixels_round_and_clamp() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0])
    pixels = values.view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert [p[0] for p in to_pil(pixels)[0].getdata()] == [0, 0, 128, 255, 255, 255]
    picture = Image.effect_noise((8, 8), 50).convert("RGB")
    assert to_pil(to_tensor(picture))[0].tobytes() == picture.tobytes()
