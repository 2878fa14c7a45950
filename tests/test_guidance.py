"""Guidance: one batch against two calls, what is computed when, rescale against diffusers, image batches."""

from collections.abc import Callable

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from oracles import deviation, perturb
from torch import Tensor, nn

from minisd.config import NoiseConfig, UNetConfig
from minisd.diffusion.denoise import Predict, denoiser
from minisd.diffusion.guidance import guided, table_times
from minisd.diffusion.samplers import euler
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
    assert UNET.items == items and UNET.prepared == 1
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


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: guided(UNET, COND, UNCOND[:1], 5.0), "cond has 3 items, uncond another number"),
        (lambda: guided(UNET, COND, UNCOND, 5.0)(X[:2], T[:2]), "x has 2 items, its conditioning 3"),
        (lambda: guided(UNET, COND, UNCOND, 5.0, rescale=1.5), r"rescale 1.5 must be in 0\.\.1"),
        (lambda: table_times((0.8, 0.2), 1000), r"interval 0\.8, 0\.2 must be 0 <= low < high <= 1"),
        (lambda: table_times((0.2, 800.0), 1000), "1: all noise"),
    ],
)
def test_refusals(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
