"""Image-to-image, inpainting, outpainting and two runs: against diffusers' pipelines, and by what they promise."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from oracles import deviation
from PIL import Image
from scipy.ndimage import gaussian_filter
from test_folders import BETAS, PROMPTS, SCHEDULERS, Case, case  # noqa: F401
from torch import Tensor

import minisd
from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES, NoiseConfig
from minisd.diffusion.samplers import SAMPLERS, final
from minisd.diffusion.schedule import make_plan, noise_table
from minisd.guards import encode
from minisd.hires import enlarge
from minisd.image import to_pil, to_tensor
from minisd.inpaint import soften
from minisd.noise import ImageNoise
from minisd.picture import outpaint
from minisd.pipeline import Model, generate
from minisd.weights.load import load

PROMPT = "a red circle"
TOL = 2e-5  # of the largest value; 6.7e-6 measured
MORE = {  # schedulers of diffusers that folders are seldom written with
    "heun": (diffusers.HeunDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1}),
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A scene of 64 x 64: edges, flat parts and noise."""
    picture = Image.effect_noise((64, 64), 40).convert("RGB")
    picture.paste((200, 30, 60), (10, 20, 40, 50))
    return picture


def latent(model: Model, prompt: str | list[str] = PROMPT, **options: object) -> Tensor:
    return generate(model, prompt, output="latent", **options)


def drawn(model: Model, **options: object) -> Image.Image:
    return generate(model, PROMPT, **options)[0]


def recipe(picture: Image.Image) -> dict:
    return json.loads(picture.info["minisd"])


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def right_half() -> Image.Image:
    """A mask of 64 x 64: the right half is drawn anew."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    return mask


# ---------------------------------------------------------------------------------------------- against diffusers


def theirs(one: Case, kind: str, name: str) -> diffusers.DiffusionPipeline:
    """Another pipeline of diffusers over the same networks, with a scheduler by its name."""
    scheduler, options = {**SCHEDULERS, **MORE}[name]
    prediction = {"eps": "epsilon", "v": "v_prediction"}[one.config.noise.prediction]
    parts = one.pipe.components | {"scheduler": scheduler(**BETAS, **options, prediction_type=prediction)}
    more = {"requires_safety_checker": False}
    if "XL" in type(one.pipe).__name__:
        kind, more = f"XL{kind}", {"add_watermarker": False}
        parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own(name: str) -> dict[str, object]:
    """The same scheduler by minisd's names."""
    options = {**SCHEDULERS, **MORE}[name][1]
    schedule = "karras" if "karras" in name else options.get("timestep_spacing", "linspace")
    schedule = "leading" if name in ("ddim", "ddpm") else schedule
    return {"sampler": name.split()[0], "schedule": schedule}


def noisy_pixels() -> Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def mean(pipe: diffusers.DiffusionPipeline, image: Tensor) -> Tensor:
    """diffusers draws from the VAE's posterior; both sides start from its mean, each by its own VAE."""
    return pipe.vae.encode(image).latent_dist.mode() * pipe.vae.config.scaling_factor


CELLS = [("sd1", name) for name in ("ddim", "euler", "dpmpp_2m karras", "heun", "euler_a", "ddpm")]
CELLS += [("sd2-v", "euler linspace"), ("sdxl", "dpmpp_2m")]


@pytest.mark.parametrize("family, name", CELLS)
def test_equals_diffusers(case: Callable[[str], Case], family: str, name: str) -> None:  # noqa: F811
    """The seed's first noise is the one that is added, the next ones are the sampler's: on both sides."""
    one, image = case(family), noisy_pixels()
    model, pipe = load(one.folder, dtype="fp32"), theirs(one, "Img2Img", name)
    for steps, strength in ((4, 0.5), (10, 0.7)):  # 10 * 0.7 is 7, not 6.999
        options = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
        seed = torch.Generator().manual_seed(3)
        wanted = pipe(**PROMPTS, image=mean(pipe, image), strength=strength, generator=seed, **options).images
        given = {"image": image, "strength": strength, "steps": steps, "cfg_scale": 4.0, "seed": 3}
        assert deviation(latent(model, **PROMPTS, **given, **own(name)), wanted) < TOL


@pytest.mark.parametrize("name, strength", [("ddim", 0.5), ("euler", 0.875), ("dpmpp_2m", 0.75)])
def test_inpainting_by_blending_equals_diffusers(case: Callable[[str], Case], name: str, strength: float) -> None:  # noqa: F811
    """diffusers blends x after each step, here the estimate of x0 is: the same, as long as no noise is added again.

    Not at strength 1, where it starts from the noise alone outside the mask too, until its first step is done.
    """
    one, image = case("sd1"), noisy_pixels()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:14] = 1
    model, pipe = load(one.folder, dtype="fp32"), theirs(one, "Inpaint", name)
    original = mean(pipe, image)
    options = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "latent", "strength": strength}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "_encode_vae_image", lambda image, generator: original)
        given = {"image": image, "mask_image": mask, "masked_image_latents": original, "height": 16, "width": 16}
        wanted = pipe(**PROMPTS, **given, generator=torch.Generator().manual_seed(3), **options).images
    given = {"image": image, "mask": mask, "strength": strength, "steps": 8, "cfg_scale": 4.0, "seed": 3}
    result = latent(model, **PROMPTS, **given, **own(name))
    assert torch.equal(result[..., :2], encode(model.vae, image)[..., :2])
    assert deviation(result, wanted) < TOL


# ---------------------------------------------------------------------------------------------- image-to-image


def test_strength_zero_is_the_round_trip_through_the_vae(model: Model, picture: Image.Image) -> None:
    z = model.vae.encode(to_tensor(picture))[0]
    for sampler in SAMPLER_NAMES:
        assert torch.equal(latent(model, image=picture, strength=0.0, sampler=sampler), z)
    assert drawn(model, image=picture, strength=0.0).tobytes() == to_pil(model.vae.decode(z))[0].tobytes()
    two = latent(model, image=picture, strength=0.0, num_images=2)
    assert torch.equal(two, torch.cat([z, z]))
    assert list(minisd.sample(model, PROMPT, image=picture, strength=0.0)) == []


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_strength_one_is_text_to_image(model: Model, picture: Image.Image, sampler: str) -> None:
    options = {"sampler": sampler, "seed": 5, "steps": 3}
    assert torch.equal(latent(model, image=picture, strength=1.0, **options), latent(model, **options))


# lcm and tcd do not take an estimate as it is: at low noise they mix x into it (their boundary condition), and tcd ends
# with noise of its own.
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", [name for name in SAMPLER_NAMES if name not in ("lcm", "tcd")])
def test_every_end_of_a_run_leads_to_the_picture(sampler: str, schedule: str) -> None:
    """Told by an exact denoiser of one picture, a run ends in it, and in so much noise as its last level: from any
    level of any schedule, by any sampler, whatever it does to the noise on the way."""
    z0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fresh = ImageNoise([1], (4, 8, 8), torch.device("cpu"))
    for steps in (1, 2, 3, 6):
        plan = make_plan(noise_table(NoiseConfig()), 6, sampler, schedule).tail(steps)
        first, last = float(plan.sigmas[0]), float(plan.sigmas[-1])  # 0, but for ddim and plms
        *_, step = SAMPLERS[sampler](lambda x, sigma: z0, z0 + first * noise, plan, noise=fresh)
        assert step.i == steps - 1
        assert deviation(final(step.x, plan), (z0 + last * noise) / (1 + last**2) ** 0.5) < 2e-6


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_image_i_from_a_picture_is_that_of_seed_plus_i(model: Model, picture: Image.Image, sampler: str) -> None:
    options = {"image": picture, "strength": 0.5, "sampler": sampler}
    assert torch.equal(latent(model, num_images=2, seed=5, **options)[1:], latent(model, seed=6, **options))


@pytest.mark.parametrize("steps, strength", [(4, 0.75), (10, 0.7), (50, 0.58), (3, 0.3), (7, 0.999)])
def test_so_many_steps_are_run(model: Model, picture: Image.Image, steps: int, strength: float) -> None:
    whole, run = (
        [float(step.sigma) for step in minisd.sample(model, PROMPT, steps=steps, cfg_scale=1.0, **given)]
        for given in ({}, {"image": picture, "strength": strength})
    )
    assert len(run) == int(steps * strength)
    assert run == whole[len(whole) - len(run) :]  # the last ones


def test_a_strength_that_runs_no_step_is_said(model: Model, picture: Image.Image, caplog) -> None:
    with caplog.at_level(logging.INFO, "minisd"):
        latent(model, image=picture, strength=0.2)
        assert "strength 0.2 of 4 steps runs none" in caplog.text
        caplog.clear()
        latent(model, image=picture, strength=0.25)
        latent(model, image=picture, strength=0.0)
    assert caplog.text == ""


def test_more_strength_goes_further_from_the_picture(model: Model, picture: Image.Image) -> None:
    z0 = encode(model.vae, to_tensor(picture))
    away = [float((latent(model, image=picture, strength=s, steps=8) - z0).std()) for s in (0.0, 0.25, 0.5, 0.875)]
    assert away == sorted(away) and away[0] == 0 < away[1]


def test_a_picture_its_pixels_and_its_latents_are_one_start(model: Model, picture: Image.Image) -> None:
    z0 = encode(model.vae, to_tensor(picture))
    by_picture = latent(model, image=picture, strength=0.5)
    assert torch.equal(by_picture, latent(model, image=to_tensor(picture), strength=0.5))
    assert torch.equal(by_picture, latent(model, image=z0, strength=0.5))
    assert torch.equal(by_picture, latent(model, image=picture.convert("RGBA"), strength=0.5))


def test_each_of_several_starts_goes_to_its_own_image(model: Model, picture: Image.Image) -> None:
    starts = torch.cat([to_tensor(picture), to_tensor(picture.rotate(90))])
    for image in (starts, encode(model.vae, starts)):
        both = latent(model, [PROMPT, "a blue square"], image=image, strength=0.5, seed=4)
        for i, prompt in enumerate((PROMPT, "a blue square")):
            assert torch.equal(both[i : i + 1], latent(model, prompt, image=image[i : i + 1], strength=0.5, seed=4 + i))
    with pytest.raises(ValueError, match=r"1 or 3 of the shape \[3, 64, 64\] in pixels, or \[4, 16, 16\] in latents"):
        latent(model, image=starts, num_images=3)


def test_a_picture_brings_its_size_along(model: Model, picture: Image.Image) -> None:
    for size, drawn_at in (((80, 48), (80, 48)), ((83, 50), (80, 48)), ((1000, 800), (68, 56)), ((16, 16), (64, 64))):
        assert drawn(model, image=picture.resize(size), strength=0.25).size == drawn_at
    assert drawn(model, image=picture, width=48, strength=0.25).size == (48, 64)
    assert latent(model, image=torch.zeros(1, 3, 48, 32), strength=0.25).shape == (1, 4, 12, 8)
    turned = picture.resize((80, 48))
    turned.getexif()[0x0112] = 6  # held upright, as phones say it
    assert drawn(model, image=turned, strength=0.25).size == (48, 80)


def test_the_recipe_names_picture_and_mask(model: Model, picture: Image.Image) -> None:
    said = recipe(drawn(model, image=picture, mask=right_half(), strength=0.5, mask_blur=2.0))
    assert (said["strength"], said["mask_blur"], said["width"]) == (0.5, 2.0, 64)
    again = recipe(drawn(model, image=picture.copy(), mask=right_half(), strength=0.5))
    assert again["image"] == said["image"] and again["mask"] == said["mask"] and len(said["image"]["sha256"]) == 64
    other = recipe(drawn(model, image=picture.rotate(90), strength=0.5))
    assert other["image"] != said["image"] and "mask" not in other and "mask_blur" not in other
    plain = recipe(drawn(model))
    assert not {"image", "mask", "strength", "mask_blur", "hires", "hires_strength", "outpaint"} & set(plain)
    assert "sha256" in recipe(drawn(model, image=to_tensor(picture), strength=0.5))["image"]


# ---------------------------------------------------------------------------------------------- inpainting


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_outside_the_mask_nothing_changes(model: Model, picture: Image.Image, sampler: str) -> None:
    options = {"image": picture, "mask": right_half(), "sampler": sampler, "seed": 2}
    before, after = pixels(picture), pixels(drawn(model, strength=1.0, **options))
    assert (before[:, :32] == after[:, :32]).all()
    assert np.abs(before[:, 32:] - after[:, 32:]).mean() > 1
    z0, z = encode(model.vae, to_tensor(picture)), latent(model, strength=0.5, **options)
    assert torch.equal(z[..., :8], z0[..., :8])
    assert not torch.isclose(z[..., 8:], z0[..., 8:], atol=1e-3).all(1).any()  # no latent of the mask is as it was


def test_a_white_mask_is_image_to_image_and_a_black_one_the_picture(model: Model, picture: Image.Image) -> None:
    white, black = Image.new("L", (64, 64), 255), Image.new("L", (64, 64))
    for strength in (0.5, 1.0):
        options = {"image": picture, "strength": strength, "sampler": "euler_a"}
        assert drawn(model, mask=white, **options).tobytes() == drawn(model, **options).tobytes()
        assert torch.equal(latent(model, mask=white, **options), latent(model, **options))
        assert drawn(model, mask=black, **options).tobytes() == picture.tobytes()


def test_a_single_pixel_of_the_mask_is_drawn_anew_alone(model: Model, picture: Image.Image) -> None:
    """The one latent that it lies in is drawn anew as a whole; its other pixels are put back."""
    pixel, cell = Image.new("L", (64, 64)), Image.new("L", (64, 64))
    pixel.putpixel((13, 37), 255)
    cell.paste(255, (12, 36, 16, 40))
    z0, z = encode(model.vae, to_tensor(picture)), latent(model, image=picture, mask=pixel)
    assert (z != z0).any(1).nonzero().tolist() == [[0, 9, 3]]
    assert torch.equal(latent(model, image=picture, mask=cell), z)
    changed = (pixels(picture) != pixels(drawn(model, image=picture, mask=pixel))).any(2).nonzero()
    assert [list(axis) for axis in changed] == [[37], [13]]


def test_mask_blur_is_a_gaussian() -> None:
    area = torch.from_numpy(np.random.default_rng(0).random((1, 1, 40, 56)) > 0.7).float()
    for deviation_ in (0.5, 2.0, 7.5):
        wanted = gaussian_filter(
            area[0, 0].double().numpy(), deviation_, mode="nearest", radius=int(np.ceil(3 * deviation_))
        )
        assert deviation(soften(area, deviation_)[0, 0], torch.from_numpy(wanted).float()) < 1e-6
    assert (soften(torch.ones(1, 1, 8, 8), 3.0) - 1).abs().max() < 1e-6
    start = time.process_time()
    soften(area, 1000.0)
    assert time.process_time() - start < 1  # 0.03 s; 4 s where both sides are padded at once


def test_a_soft_edge_mixes_the_two(model: Model, picture: Image.Image) -> None:
    options = {"image": picture, "mask": right_half(), "strength": 1.0}
    hard, soft = (pixels(drawn(model, **options, mask_blur=blur)) for blur in (0.0, 2.0))
    before = pixels(picture)
    assert (soft[:, :26] == before[:, :26]).all()  # beyond three deviations
    assert (soft[:, 28:32] != hard[:, 28:32]).any()


def test_masks_that_do_not_fit(model: Model, picture: Image.Image) -> None:
    for mask, said in (
        (Image.new("L", (64, 60)), "the mask has 64 x 60 pixels, the image 64 x 64 pixels"),
        (torch.zeros(1, 3, 64, 64), r"the mask must have the shape \[1, 1, 64, 64\], not \[1, 3, 64, 64\]"),
        (torch.full((1, 1, 64, 64), 255.0), r"the mask must be in 0\.\.1"),
        ("mask.png", "mask must be a PIL image or a tensor, not str"),
    ):
        with pytest.raises(ValueError, match=said):
            latent(model, image=picture, mask=mask)
    with pytest.raises(ValueError, match="a mask goes with one image, in pixels"):
        latent(model, image=torch.zeros(1, 4, 16, 16), mask=right_half())


def test_tensors_that_are_no_picture(model: Model) -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    for image, said in (
        (torch.full((1, 3, 64, 64), 255, dtype=torch.uint8), "image must be a tensor of floats, not of torch.uint8"),
        (pixels + 255, r"the image must be in -1\.\.1, black to white, and goes to 255: 0\.\.255 is x / 127\.5 - 1"),
        (pixels * torch.nan, "there are numbers in image that are not finite"),
        (torch.full((1, 4, 16, 16), torch.inf), "there are numbers in image that are not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            latent(model, image=image)
    assert latent(model, image=pixels - 1.2, strength=0.25).isfinite().all()  # as a VAE decodes black
    assert latent(model, image=torch.full((1, 4, 16, 16), 9.0), strength=0.25).isfinite().all()  # latents may be large


def test_what_means_nothing_is_refused(model: Model, picture: Image.Image) -> None:
    for options, said in (
        ({"strength": 0.5}, "strength means nothing without an image"),
        ({"image": picture, "mask_blur": 2.0}, "mask_blur means nothing without a mask"),
        ({"mask": right_half()}, "give the image too"),
        ({"image": "picture.png"}, "image must be a PIL image or a tensor"),
        ({"image": picture, "strength": 1.1}, r"strength 1\.1 must be a number in 0\.\.1"),
        ({"image": picture, "mask": right_half(), "hires": 2.0}, "does not go with a mask"),
        ({"hires_strength": 0.5}, "hires_strength means nothing without hires"),
        ({"hires": 0.5}, r"hires 0\.5 must be a number in 1\.\.8"),
        ({"hires": 8.0, "width": 4096, "steps": 1}, "makes a side of 32768 pixels: 16384 are the most"),
        ({"hires": 2.0, "hires_upscale": "lanczos"}, "unknown hires_upscale 'lanczos'"),
    ):
        with pytest.raises(ValueError, match=said):
            latent(model, **options)
    with pytest.raises(ValueError, match="sample shows one run"):
        minisd.sample(model, PROMPT, hires=2.0)


def test_an_image_that_overflows_is_encoded_again_in_fp32(tiny_model: Path, picture: Image.Image, caplog) -> None:
    """bf16 is stood in for by an encoder that fails unless it runs in fp32."""
    model = minisd.load(tiny_model, device="cpu", dtype="fp32")
    wanted, true = encode(model.vae, to_tensor(picture)), type(model.vae).encode
    model.vae.to(torch.bfloat16)

    def fragile(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = true(self, image)
        return (mean if next(self.parameters()).dtype == torch.float32 else mean * torch.nan), logvar

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.vae), "encode", fragile)
        assert deviation(encode(model.vae, to_tensor(picture)), wanted) < 0.02  # its weights were rounded to bf16
        assert "encoding again in fp32" in caplog.text and next(model.vae.parameters()).dtype == torch.bfloat16
        patch.setattr(type(model.vae), "encode", lambda self, image: (image * torch.nan, image))
        with pytest.raises(FloatingPointError, match="not finite for the image"):
            encode(model.vae, to_tensor(picture))


# ---------------------------------------------------------------------------------------------- outpainting


def test_outpainting_keeps_the_picture_and_draws_around_it(model: Model, picture: Image.Image) -> None:
    large, mask = outpaint(picture, 8, 4, 16, 0)
    after = drawn(model, image=large, mask=mask)
    assert after.size == (88, 68)
    assert (pixels(after)[4:, 8:72] == pixels(picture)).all()
    for part in (pixels(large)[:4], pixels(large)[:, :8], pixels(large)[:, 72:]):
        assert part.std() > 0
    assert np.abs(pixels(after) - pixels(large))[:, 72:].mean() > 1
    said = recipe(after)
    assert (said["outpaint"], said["strength"], said["width"]) == ([8, 4, 16, 0], 1.0, 88)
    assert "mask" not in said and said["image"] == recipe(drawn(model, image=picture))["image"]


def test_the_padding_carries_the_edge_on(picture: Image.Image) -> None:
    large, mask = outpaint(picture, 3, 0, 5, 2)
    a, m = pixels(large), np.asarray(mask)
    assert (a[:64, 3:67] == pixels(picture)).all() and a.shape == (66, 72, 3)
    assert (a[:64, :3] == pixels(picture)[:, :1]).all() and (a[64:, 3:67] == pixels(picture)[-1:]).all()
    assert (m == 0).sum() == 64 * 64 and (m[:64, 3:67] == 0).all() and set(m.flat) == {0, 255}
    for margins in ((0, 0, 0, 0), (-4, 0, 0, 4)):
        with pytest.raises(ValueError, match="pixels to add, 0 or more"):
            outpaint(picture, *margins)


# ---------------------------------------------------------------------------------------------- two runs


@pytest.mark.parametrize("sampler", ["euler_a", "plms"])
def test_hires_is_two_runs_one_after_the_other(model: Model, sampler: str) -> None:
    options = {"seed": 3, "sampler": sampler, "negative_prompt": "blue"}
    second = {"steps": 6, "strength": 0.5, "width": 96, "height": 72}
    small = {"width": 64, "height": 48}
    for way, output in (("picture", "pil"), ("latent", "latent")):
        hires = {"hires": 1.5, "hires_steps": 6, "hires_upscale": way}
        result = latent(model, **options, **small, **hires)
        first = generate(model, PROMPT, output=output, **options, **small)
        if way == "picture":
            start = first[0].resize((96, 72), Image.Resampling.LANCZOS)
        else:
            start = torch.nn.functional.interpolate(first, scale_factor=1.5, mode="bilinear")
        assert torch.equal(result, latent(model, image=start, **options, **second))


@pytest.mark.parametrize("way", ["picture", "latent"])
def test_image_i_of_two_runs_is_the_picture_of_seed_plus_i(model: Model, way: str) -> None:
    options = {"hires": 1.5, "hires_upscale": way, "sampler": "euler_a", "steps": 2}
    many = generate(model, [PROMPT, "a blue square"], num_images=2, seed=7, **options)
    assert len(many) == 4
    for i, prompt in ((1, PROMPT), (2, "a blue square")):
        (alone,) = generate(model, prompt, seed=7 + i, **options)
        assert alone.tobytes() == many[i].tobytes() and alone.size == (96, 96)
        assert recipe(alone) == recipe(many[i])


def test_the_recipe_of_two_runs_draws_them_again(model: Model) -> None:
    picture = drawn(model, hires=1.3, hires_strength=0.75, hires_steps=8, hires_upscale="latent", seed=9)
    said = recipe(picture)
    names = ("seed", "steps", "width", "height", "hires", "hires_strength", "hires_steps", "hires_upscale")
    assert [said[name] for name in names] == [9, 4, 64, 64, 1.3, 0.75, 8, "latent"]
    assert picture.size == (84, 84)  # 83.2 in whole latents
    assert drawn(model, **{name: said[name] for name in names}).tobytes() == picture.tobytes()


def test_hires_starts_from_a_picture_too(model: Model, picture: Image.Image) -> None:
    result = drawn(model, image=picture, strength=0.5, hires=2.0, hires_strength=0.0, hires_upscale="latent")
    first = latent(model, image=picture, strength=0.5)
    assert result.tobytes() == to_pil(model.vae.decode(enlarge(first, 128, 128, 4)))[0].tobytes()
    assert recipe(result)["strength"] == 0.5 and recipe(result)["image"] == recipe(drawn(model, image=picture))["image"]
