"""Guidance: one batch against single calls, what is computed when, rescale and thresholds against diffusers."""

from collections.abc import Callable
from statistics import NormalDist

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from oracles import deviation, perturb
from torch import Tensor, nn

from minisd.config import NoiseConfig, UNetConfig
from minisd.diffusion.denoise import Predict, changing, denoiser, thresholded
from minisd.diffusion.guidance import guided, table_times
from minisd.diffusion.samplers import SAMPLERS, euler, final
from minisd.diffusion.schedule import make_plan, noise_table
from minisd.nn.conditioning import Conditioning, Prepared
from minisd.nn.unet import UNet

BATCHED = 2e-6  # the same sums in another batch size
CONFIG = UNetConfig(4, 4, (16, 32), 1, (1, 0), 1, heads=(2, 2), context_dim=24, vector_dim=12, groups=4)
TABLE = noise_table(NoiseConfig())
T = torch.full((3,), 500.0)


class Counting(nn.Module):
    """A UNet that keeps count of its calls to `prepare` and of the items of every forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = perturb(UNet(CONFIG), seed=0)
        self.prepared, self.items = 0, []

    def prepare(self, cond: Conditioning) -> Prepared:
        self.prepared += 1
        return self.unet.prepare(cond)

    def forward(self, x: Tensor, t: Tensor, cond: Prepared) -> Tensor:
        self.items.append(len(x))
        return self.unet(x, t, cond)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(seed: int, length: int = 6, b: int = 3) -> Conditioning:
    return Conditioning(random(b, length, 24, seed=seed), random(b, 12, seed=seed + 1))


UNET = Counting()
X = random(3, 4, 8, 8, seed=1)
COND, UNCOND = conditioning(2), conditioning(4)


def two_calls(x: Tensor, t: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The guided output and the conditional one, by the formula, each network call on its own."""
    f_cond, f_uncond = UNET.unet(x, t, COND), UNET.unet(x, t, UNCOND)
    return f_uncond + scale * (f_cond - f_uncond), f_cond


@pytest.mark.parametrize("scale", [7.5, 0.0, -1.0])
def test_one_batch_equals_two_calls(scale: float) -> None:
    assert deviation(guided(UNET, COND, UNCOND, scale)(X, T), two_calls(X, T, scale)[0]) < BATCHED


@pytest.mark.parametrize("length", [2, 4, 9])
def test_contexts_of_different_length(length: int) -> None:
    other = conditioning(4, length)
    f_cond, f_uncond = UNET.unet(X, T, COND), UNET.unet(X, T, other)
    assert deviation(guided(UNET, COND, other, 5.0)(X, T), f_uncond + 5.0 * (f_cond - f_uncond)) < BATCHED


@pytest.mark.parametrize("predict", [guided(UNET, COND, UNCOND, 1.0, rescale=0.7), guided(UNET, COND, None, 9.0)])
def test_scale_1_is_the_conditional_alone(predict: Predict) -> None:
    UNET.items.clear()
    assert torch.equal(predict(X, T), UNET.unet(X, T, COND))
    assert UNET.items == [3]


@pytest.mark.parametrize("amount", [0.3, 0.7, 1.0])
def test_rescale_equals_diffusers(amount: float) -> None:
    f, f_cond = two_calls(X, T, 7.5)
    result = guided(UNET, COND, UNCOND, 7.5, rescale=amount)(X, T)
    assert deviation(result, rescale_noise_cfg(f, f_cond, amount)) < BATCHED
    if amount == 1:
        assert torch.allclose(result.std(dim=(1, 2, 3)), f_cond.std(dim=(1, 2, 3)), rtol=1e-5)


def test_rescale_of_a_silent_network_is_finite() -> None:
    class Silent(Counting):
        def forward(self, x: Tensor, t: Tensor, cond: Prepared) -> Tensor:
            return torch.zeros_like(x)

    assert (guided(Silent(), COND, UNCOND, 7.5, rescale=1.0)(X, T) == 0).all()


def sample(predict: Predict, x: Tensor = X) -> Tensor:
    plan = make_plan(TABLE, 10, "euler", "trailing")
    return list(euler(denoiser(predict, plan, "v"), x * plan.start, plan))[-1].x


@pytest.mark.parametrize(
    "interval, items",
    [
        (None, [6] * 10),
        ((0.0, 1.0), [6] * 10),
        ((0.2, 0.8), [3, 3] + [6] * 6 + [3, 3]),  # times 999, 899, ..., 99
        ((0.899, 1.0), [6, 6] + [3] * 8),  # both ends belong to it
        ((0.0, 0.05), [3] * 10),
    ],
)
def test_interval_counts_and_prepares_once(interval: tuple | None, items: list[int]) -> None:
    UNET.items.clear()
    UNET.prepared = 0
    result = sample(guided(UNET, COND, UNCOND, 5.0, interval=table_times(interval, len(TABLE))))
    assert UNET.items == items and UNET.prepared == 2  # cond and uncond
    same = guided(UNET, COND, UNCOND if max(items) == 6 else None, 5.0)
    assert (deviation(result, sample(same)) < 1e-5) == (len(set(items)) == 1)


def test_outside_the_interval_the_conditional_is_exact() -> None:
    predict = guided(UNET, COND, UNCOND, 5.0, interval=(0.0, 499.0))
    assert torch.equal(predict(X, T), UNET.unet(X, T, COND))


def test_images_one_by_one_equal_the_batch() -> None:
    together = sample(guided(UNET, COND, UNCOND, 5.0, rescale=0.5))
    for i in range(3):
        one = slice(i, i + 1)
        alone = sample(guided(UNET, COND[one], UNCOND[one], 5.0, rescale=0.5), X[one])
        assert deviation(alone, together[one]) < 1e-5


def test_permuting_the_batch_permutes_the_output() -> None:
    def flip(cond: Conditioning) -> Conditioning:
        return Conditioning(cond.context.flip(0), cond.vector.flip(0))

    flipped = guided(UNET, flip(COND), flip(UNCOND), 5.0, rescale=0.5)(X.flip(0), T)
    assert deviation(flipped.flip(0), guided(UNET, COND, UNCOND, 5.0, rescale=0.5)(X, T)) < BATCHED


PARTS = [(conditioning(2), 1.0), (conditioning(6, 4), 0.7), (conditioning(8), (-0.5, 0.0, 1.2))]


def single_calls(parts: list, scale: float) -> Tensor:
    """F_u + scale * sum of w_i * (F_i - F_u), each network call on its own."""
    f_uncond = UNET.unet(X, T, UNCOND)
    weights = [torch.tensor(w).expand(3).view(3, 1, 1, 1) for _, w in parts]
    pulls = [w * (UNET.unet(X, T, cond) - f_uncond) for (cond, _), w in zip(parts, weights, strict=True)]
    return f_uncond + scale * sum(pulls)


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_composition_equals_single_calls(count: int, scale: float) -> None:
    """In one batched call; at scale 1 too, where one part of weight 1 would do without the uncond.

    The sums of another batch size differ by 1e-6, and guidance makes that larger as it does all else.
    """
    UNET.items.clear()
    parts = PARTS[-count:]
    assert deviation(guided(UNET, parts, UNCOND, scale)(X, T), single_calls(parts, scale)) < 1e-6 * max(scale, 1)
    assert UNET.items == [3 * (count + 1)]


def test_one_part_of_weight_1_is_the_plain_case_bit_for_bit() -> None:
    for scale in (7.5, 1.0):
        plain = guided(UNET, COND, UNCOND, scale, rescale=0.5)(X, T)
        assert torch.equal(guided(UNET, [(COND, 1.0)], UNCOND, scale, rescale=0.5)(X, T), plain)
        assert torch.equal(guided(UNET, [(COND, [1.0] * 3)], UNCOND, scale, rescale=0.5)(X, T), plain)
        f_cond, f_uncond = (f.squeeze(0) for f in halves())
        assert scale == 1 or torch.equal(
            guided(UNET, COND, UNCOND, scale)(X, T), f_uncond + scale * (f_cond - f_uncond)
        )


def halves() -> tuple[Tensor, ...]:
    """F of cond and of uncond out of one call on both."""
    twice = Conditioning(*(torch.cat(pair) for pair in zip(COND.parts[:2], UNCOND.parts[:2], strict=True)))
    return UNET.unet(torch.cat([X, X]), torch.cat([T, T]), twice).split(3)


def test_what_is_prepared_already_is_taken_as_it_is() -> None:
    prepared = [(UNET.prepare(cond), w) for cond, w in PARTS]
    UNET.prepared = 0
    result = guided(UNET, prepared, UNET.unet.prepare(UNCOND), 5.0)(X, T)
    assert UNET.prepared == 0
    assert torch.equal(result, guided(UNET, PARTS, UNCOND, 5.0)(X, T))


def test_outside_the_interval_the_parts_alone_are_computed_and_their_mean_taken() -> None:
    """By their weights; one that leads away has no say. The same mean is what rescale looks at."""
    UNET.items.clear()
    mean = guided(UNET, PARTS, UNCOND, 5.0, interval=(0.0, 499.0))(X, T)
    assert UNET.items == [9]
    f = [UNET.unet(X, T, cond) for cond, _ in PARTS]
    shares = torch.tensor([[1, 0.7, 0], [1, 0.7, 0], [1, 0.7, 1.2]]) / torch.tensor([[1.7], [1.7], [2.9]])
    wanted = sum(share.view(3, 1, 1, 1) * one for share, one in zip(shares.T, f, strict=True))
    assert deviation(mean, wanted) < BATCHED
    full = guided(UNET, PARTS, UNCOND, 5.0, rescale=1.0)(X, T)
    assert torch.allclose(full.std(dim=(1, 2, 3)), wanted.std(dim=(1, 2, 3)), rtol=1e-5)
    away = guided(UNET, [(cond, -1.0) for cond, _ in PARTS], None)(X, T)
    assert deviation(away, sum(f) / 3) < BATCHED


def test_a_changing_denoiser_goes_by_the_level() -> None:
    levels = torch.tensor([14.0, 3.0, 3.0 / 7, 0.1], dtype=torch.float64)
    stages = [(float(level), lambda x, sigma, i=i: x + i) for i, level in enumerate(levels)]
    seen = {14.0: 0, 20.0: 0, 13.9: 0, 3.0: 1, 2.99: 1, 3.0 / 7: 2, 0.4: 2, 0.1: 3, 0.01: 3, 0.0: 3}
    for sigma, stage in seen.items():
        for dtype in (torch.float32, torch.float64):  # a level of the plan stays itself in float32
            assert changing(stages)(torch.zeros(1), torch.tensor(sigma, dtype=dtype)) == stage


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}


def scheduler(kind: str, percentile: float) -> diffusers.SchedulerMixin:
    """diffusers' own thresholds; its floor is 1, and the ceiling out of the way."""
    options = {"thresholding": True, "dynamic_thresholding_ratio": percentile, "sample_max_value": 1e9}
    more = {"clip_sample": False, "set_alpha_to_one": True} if kind == "DDIMScheduler" else {}
    return getattr(diffusers, kind)(**BETAS, **options, **more, prediction_type="epsilon")


@pytest.mark.parametrize("percentile", [0.9, 0.995, 1.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_thresholds_equal_diffusers(percentile: float, scale: float) -> None:
    """For its floor, and for ours: in units of the floor it is the same formula."""
    x = scale * random(3, 4, 8, 8, seed=9) * torch.tensor([0.5, 1, 3]).view(3, 1, 1, 1)  # each image by itself
    theirs = scheduler("DDIMScheduler", percentile)._threshold_sample
    given = thresholded(lambda x, sigma: x, percentile, floor=1.0)(x, TABLE.sigmas[5])
    assert deviation(given, theirs(x)) < 1e-6
    floor = NormalDist().inv_cdf((1 + min(percentile, 0.9999)) / 2)
    own = thresholded(lambda x, sigma: x, percentile)(x, TABLE.sigmas[5])
    assert deviation(own, floor * theirs(x / floor)) < 1e-6
    assert own.abs().max() <= floor * (1 + 1e-6)


def test_latents_of_unit_variance_pass_the_threshold_as_they_are() -> None:
    x = random(1, 4, 64, 64, seed=3)
    assert ((thresholded(lambda x, sigma: x, 0.995)(x, TABLE.sigmas[5]) - x).abs() > 0.05).float().mean() < 0.006


@pytest.mark.parametrize("kind, name", [("DPMSolverMultistepScheduler", "dpmpp_2m"), ("DDIMScheduler", "ddim")])
def test_whole_runs_with_thresholds_equal_diffusers(kind: str, name: str) -> None:
    """DDIM as in Imagen: the noise is what x and the cut estimate say (`use_clipped_model_output`)."""
    theirs = scheduler(kind, 0.9)
    theirs.set_timesteps(10)
    net = guided(UNET, COND, UNCOND, 30.0)
    x = X
    for t in theirs.timesteps:
        options = {"use_clipped_model_output": True} if name == "ddim" else {}
        x = theirs.step(net(x, t.float().expand(3)), t, x, **options).prev_sample
    plan = make_plan(TABLE, 10, name, "trailing", final_table_sigma=False)
    denoise = thresholded(denoiser(net, plan, "eps"), 0.9, floor=1.0)
    steps = list(SAMPLERS[name](denoise, X * plan.start, plan))
    assert deviation(final(steps[-1].x, plan), x) < 1e-4
    free = list(SAMPLERS[name](denoiser(net, plan, "eps"), X * plan.start, plan))
    assert deviation(final(free[-1].x, plan), x) > 0.1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: guided(UNET, COND, UNCOND[:1], 5.0), "cond has 3 items, uncond another number"),
        (lambda: guided(UNET, [(COND, 1.0), (COND[:1], 1.0)], UNCOND, 5.0), "cond has 3 items"),
        (lambda: guided(UNET, COND, UNCOND, 5.0)(X[:2], T[:2]), "x has 2 items, its conditioning 3"),
        (lambda: guided(UNET, COND, UNCOND, 5.0, rescale=1.5), r"rescale 1.5 must be in 0\.\.1"),
        (lambda: table_times((0.8, 0.2), 1000), r"interval 0\.8, 0\.2 must be 0 <= low < high <= 1"),
        (lambda: table_times((0.2, 800.0), 1000), "1: all noise"),
    ],
)
def test_refusals(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
