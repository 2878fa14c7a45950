"""Seeds one can trust: each image's own noise, the Brownian path, variations, and batches of any size."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import deviation
from torch import Tensor

import minisd
from minisd import pipeline
from minisd.config import SAMPLER_NAMES, NoiseConfig
from minisd.diffusion.samplers import Step, ddpm
from minisd.diffusion.schedule import Plan, noise_table
from minisd.image import recipe_text, to_pil
from minisd.noise import Brownian, ImageNoise, toward
from minisd.pipeline import Model
from minisd.settings import MAX_SEED, SDE_SAMPLERS

CPU = torch.device("cpu")
SHAPE = (4, 64, 64)
N = math.prod(SHAPE)
PROMPT = "a red circle"
LEVELS = torch.tensor([14.6, 9.0, 6.0, 2.5, 1.0, 0.3, 0.0292], dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, device="cpu")


def to_pixels(pixels: Tensor) -> Tensor:
    """The levels of a picture's file, 0 to 255."""
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in to_pil(pixels)]).int()


def latent(model: Model, **options: object) -> Tensor:
    return minisd.generate(model, PROMPT, output="latent", **options)


def brownian(*seeds: int, shape: tuple[int, int, int] = SHAPE) -> Brownian:
    return Brownian(ImageNoise(seeds, shape, CPU))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def clock(a: float, b: float) -> float:
    """Length of the interval from level a down to b."""
    return 1 / b**2 - 1 / a**2


def test_noise_is_each_images_own() -> None:
    together, alone = ImageNoise([3, MAX_SEED], (4, 8, 8), CPU), ImageNoise([MAX_SEED], (4, 8, 8), CPU)
    for _ in range(3):
        assert torch.equal(together()[1:], alone())
    x = ImageNoise(range(64), (4, 16, 16), CPU)()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01


def test_a_seeds_low_32_bits_are_its_first_noise_and_all_of_them_its_path() -> None:
    """What generate's docstring, --help and the README say of large seeds."""
    near, far = ImageNoise([7], (4, 8, 8), CPU), ImageNoise([7 + 2**32], (4, 8, 8), CPU)
    assert all(torch.equal(near(), far()) for _ in range(3))
    one, other = (brownian(seed, shape=(4, 8, 8))(*LEVELS[:2]) for seed in (7, 7 + 2**32))
    assert abs(correlation(one, other)) < 5 / math.sqrt(one.numel())


def test_increments_of_the_path_are_independent_and_of_unit_variance() -> None:
    """Within five standard errors: sqrt(2 / N) of a variance, 1 / sqrt(N) of a correlation."""
    noise = brownian(0)
    draws = [noise(a, b) for a, b in pairwise(LEVELS)] + [ImageNoise([0], SHAPE, CPU)()]  # and of the first noise
    for i, draw in enumerate(draws):
        assert draw.dtype == torch.float32 and draw.shape == (1, *SHAPE)
        assert abs(float(draw.var()) - 1) < 5 * math.sqrt(2 / N) and abs(float(draw.mean())) < 5 / math.sqrt(N)
        for other in draws[:i]:
            assert abs(correlation(draw, other)) < 5 / math.sqrt(N)


@pytest.mark.parametrize("a, b, c", [(14.6, 6.0, 2.5), (2.0**20, 11.0, 0.5), (1.0, 0.99, 0.98), (0.05, 0.04, 0.0292)])
def test_parts_of_an_interval_add_up_to_it(a: float, b: float, c: float) -> None:
    noise = brownian(7, 8)
    ab, bc, ac = (noise(*torch.tensor(ends, dtype=torch.float64)) for ends in ((a, b), (b, c), (a, c)))
    parts = ab * math.sqrt(clock(a, b)) + bc * math.sqrt(clock(b, c))
    assert deviation(parts, ac * math.sqrt(clock(a, c))) < 1e-6
    # A whole knows its part by the root of its share: that is the covariance of a Brownian path.
    share = math.sqrt(clock(a, b) / clock(a, c))
    assert abs(correlation(ab, ac) - share) < 5 * (1 - share**2) / math.sqrt(2 * N)


def test_the_path_does_not_depend_on_what_was_asked_before() -> None:
    """Nor on the number of steps, nor on who stands beside."""
    forward, backward, alone = brownian(1, 2**63, 3), brownian(1, 2**63, 3), brownian(2**63)
    intervals = list(pairwise(LEVELS))
    first = [forward(a, b) for a, b in intervals]
    again = [backward(a, b) for a, b in reversed(intervals)][::-1]
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert all(torch.equal(x[1:2], alone(a, b)) for x, (a, b) in zip(first, intervals, strict=True))
    assert abs(correlation(first[0][0], first[0][1])) < 5 / math.sqrt(N)


def test_back_up_in_noise_the_draw_is_fresh_and_a_new_path_begins() -> None:
    noise = brownian(4)
    down = noise(LEVELS[0], LEVELS[3])
    up = noise(LEVELS[3], LEVELS[0])
    assert torch.equal(up, ImageNoise([4], SHAPE, CPU)())  # the image's own generator
    draws = [down, up, noise(LEVELS[0], LEVELS[3]), noise(LEVELS[3], LEVELS[0])]
    for i, draw in enumerate(draws):
        assert all(abs(correlation(draw, other)) < 5 / math.sqrt(N) for other in draws[:i])


@pytest.mark.parametrize("a, b", [(0.7, 0.7 - 1e-6), (0.7, 0.0), (1e12, 1e11), (0.7, 0.6999)])
def test_any_interval_gives_unit_variance(a: float, b: float) -> None:
    """Nearer than the tree tells apart, down to 0, beyond its range."""
    draw = brownian(5)(*torch.tensor([a, b], dtype=torch.float64))
    assert abs(float(draw.var()) - 1) < 5 * math.sqrt(2 / N)


def test_with_a_constant_estimate_the_number_of_steps_does_not_matter() -> None:
    """ddpm's own noise runs on the path's clock: one step or fifty end at the same x. With fresh draws they do not."""
    d, table = ImageNoise([0], SHAPE, CPU)(), noise_table(NoiseConfig())

    def run(steps: int, noise: Brownian | ImageNoise) -> Tensor:
        sigmas = torch.linspace(math.log(14.6), math.log(0.5), steps + 1, dtype=torch.float64).exp()
        x = 14.6 * ImageNoise([9], SHAPE, CPU)()
        *_, step = ddpm(lambda x, sigma: d, x, Plan(sigmas, table.t(sigmas[:-1]), 14.6, table), noise)
        return step.x

    assert deviation(run(50, brownian(6)), run(1, brownian(6))) < 2e-6
    assert deviation(run(50, ImageNoise([6], SHAPE, CPU)), run(1, ImageNoise([6], SHAPE, CPU))) > 0.1


def test_noise_of_another_device_is_drawn_on_the_cpu() -> None:
    meta = ImageNoise([1, 2], (4, 8, 8), torch.device("meta"))
    assert meta().is_meta and Brownian(meta)(LEVELS[0], LEVELS[1]).is_meta and not meta.draw().is_meta


def test_the_arc_keeps_the_length_and_turns_evenly() -> None:
    a, b = (ImageNoise(seeds, SHAPE, CPU)() for seeds in ([1, 2], [3, 4]))
    assert torch.equal(toward(a, b, 0.0), a) and torch.equal(toward(a, b, 1.0), b)
    assert deviation(toward(a, a, 0.5), a) < 1e-6
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None, None]  # exact for equal lengths
    angle = torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).acos()
    for strength in (0.1, 0.5, 0.75):
        c = toward(a, b, strength)
        assert torch.allclose(c.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-6)
        turned = torch.cosine_similarity(a.flatten(1).double(), c.flatten(1).double()).acos()
        assert torch.allclose(turned, strength * angle, rtol=1e-5)
        assert torch.equal(toward(a[1:], b[1:], strength), c[1:])
    assert abs(float(((a + b) / 2).var()) - 0.5) < 0.02  # the straight line's half-way


def test_which_sampler_gets_which_noise(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def spy(denoise: object, x: Tensor, plan: Plan, noise: object = None) -> Iterator[Step]:
        given.append(type(noise))
        yield Step(0, plan.sigmas[0], x, x)

    monkeypatch.setattr(pipeline, "get_sampler", lambda name: spy)
    for name in SAMPLER_NAMES:
        latent(model, sampler=name)
    assert given == [Brownian if name in SDE_SAMPLERS else ImageNoise for name in SAMPLER_NAMES]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_image_i_of_eight_is_the_picture_of_seed_plus_i(model: Model, sampler: str) -> None:
    """Bit for bit, whatever stands beside it; drawn all at once, but for the last bits. Three of them tell: each is
    drawn by itself, after as many others as its number says.
    """
    eight, at_once = (latent(model, seed=5, num_images=8, batch_size=n, sampler=sampler, steps=3) for n in (1, 8))
    assert len(eight) == 8 and deviation(at_once, eight) < 3e-5  # 6.7e-6 measured, of dpm2_a
    for i in (0, 3, 7):
        assert torch.equal(eight[i : i + 1], latent(model, seed=5 + i, sampler=sampler, steps=3))


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_sde"])
def test_drawn_all_at_once_few_values_change_and_by_one_level(model: Model, sampler: str) -> None:
    """Alone and one by one the pixels are the same to the bit. The decoder knows no sampler: two of them tell."""
    options = {"sampler": sampler, "steps": 3, "output": "tensor"}
    eight = minisd.generate(model, PROMPT, seed=5, num_images=8, **options)
    assert torch.equal(eight[3:4], minisd.generate(model, PROMPT, seed=8, **options))
    at_once = minisd.generate(model, PROMPT, seed=5, num_images=8, batch_size=8, **options)
    levels = (to_pixels(eight) - to_pixels(at_once)).abs()
    assert levels.max() <= 1
    assert levels.count_nonzero() <= 1e-3 * levels.numel()  # random weights are rough: 3e-4; the bundled model: 1e-4


@pytest.mark.parametrize("count", [2, 3, 4])
def test_image_i_of_any_number_is_the_picture_of_seed_plus_i(model: Model, count: int) -> None:
    many = latent(model, num_images=count, seed=5, sampler="euler_a")
    assert torch.equal(many, torch.cat([latent(model, seed=5 + i, sampler="euler_a") for i in range(count)]))


def test_variations_share_the_seed_and_count_their_own(model: Model) -> None:
    """AUTOMATIC1111's rule, recorded in each picture, which then draws itself again."""
    said = {"seed": 3, "variation_seed": 20, "variation_strength": 0.3, "sampler": "euler_a"}
    pictures = minisd.generate(model, PROMPT, num_images=3, **said)
    for i, picture in enumerate(pictures):
        recipe = json.loads(picture.info["minisd"])
        assert [recipe[key] for key in said] == [3, 20 + i, 0.3, "euler_a"]
        assert "Seed: 3, Size: 64x64, " in recipe_text(recipe)
        assert f"Model: tiny, Variation seed: {20 + i}, Variation seed strength: 0.3, RNG" in recipe_text(recipe)
        (again,) = minisd.generate(model, PROMPT, **{key: recipe[key] for key in said})
        assert again.tobytes() == picture.tobytes()
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_a_variation_leads_from_the_seeds_picture_to_the_others(model: Model) -> None:
    plain, other = latent(model, seed=3, sampler="ddim"), latent(model, seed=20, sampler="ddim")
    assert "Variation" not in recipe_text(json.loads(minisd.generate(model, PROMPT)[0].info["minisd"]))
    far = []
    for strength in (0.0, 0.1, 0.5, 1.0):
        z = latent(model, seed=3, variation_seed=20, variation_strength=strength, sampler="ddim")
        far.append(float((z - plain).norm()))
    assert torch.equal(z, other)  # at 1
    assert far[0] == 0 and far == sorted(far)
    unvaried = latent(model, seed=3, num_images=2, variation_seed=20, variation_strength=0.0, sampler="ddim")
    assert torch.equal(unvaried, latent(model, seed=3, num_images=2, sampler="ddim"))


def test_own_latents_leave_the_other_draws_as_they_are(model: Model) -> None:
    """The seed's own first noise, handed in, draws the seed's own picture; and it can be varied."""
    noise = ImageNoise([7], (4, 16, 16), CPU)()
    for sampler, seed in (("euler_a", 7), ("ddim", 99)):  # ddim draws no more than the first
        options = {"sampler": sampler, "variation_seed": 1, "variation_strength": 0.4}
        assert torch.equal(latent(model, seed=seed, latents=noise, **options), latent(model, seed=7, **options))
    assert torch.equal(
        latent(model, seed=7, latents=noise, sampler="euler_a"), latent(model, seed=7, sampler="euler_a")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variation_strength": 0.5}, "variation_strength 0.5 needs a variation_seed"),
        ({"variation_seed": 5}, "variation_seed 5 needs a variation_strength"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation_seed -1 must be a whole number"),
        ({"variation_seed": 5, "variation_strength": 1.5}, r"variation_strength 1.5 must be a number in 0\.\.1"),
        ({"variation_seed": MAX_SEED, "variation_strength": 0.1, "num_images": 2}, f"variation_seed {MAX_SEED} [+] 2"),
        ({"seed": MAX_SEED, "num_images": 2}, f"seed {MAX_SEED} [+] 2 images goes beyond"),
        ({"start_scale": "sigm"}, "unknown start_scale 'sigm': did you mean sigma[?] choose from sigma, total"),
    ],
)
def test_what_means_nothing_is_refused(model: Model, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent(model, **options)


def test_start_scale_reaches_the_first_x(model: Model) -> None:
    """Told by name, both ways differ; DPM++ takes the total where nothing is said, euler sigma."""
    for sampler, own in (("euler", "sigma"), ("dpmpp_2m", "total")):
        z = {start: latent(model, sampler=sampler, start_scale=start) for start in ("sigma", "total", None)}
        assert torch.equal(z[None], z[own])
        assert 1e-4 < deviation(z["sigma"], z["total"]) < 0.1  # sqrt(1 + 1 / 14.6 ** 2) in the noise: 0.2 %
