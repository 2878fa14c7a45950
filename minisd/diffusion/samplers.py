"""Solvers: from noise to a latent, one step after another.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], and a `Plan`.
Out: an iterator of `Step`s. A sampler is a plain generator function; write your own and pass it by itself.
x lives in sigma space, x = x0 + sigma * noise. Every update is a weighted sum of x and an estimate of x0,
never x + slope * d_sigma, so that a step down from sigma 2 ** 20 (zero-terminal SNR) loses no digits.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from ..config import one_of
from .denoise import Denoise
from .schedule import SIGMA_MAX, Plan

Noise = Callable[[Tensor, Tensor], Tensor]  # sigma (), sigma_next () -> unit-variance noise like x
Sampler = Callable[..., Iterator["Step"]]  # sampler(denoise, x, plan, noise=None, **options)


class Step(NamedTuple):
    """What one step leaves behind."""

    i: int  # from 0
    sigma: Tensor  # () on the CPU: plan.sigmas[i], the level `denoised` was estimated at
    x: Tensor  # (b, c, h, w) after the step, at plan.sigmas[i + 1]
    denoised: Tensor  # (b, c, h, w) estimate of x0


def final(x: Tensor, plan: Plan) -> Tensor:
    """The latent a run ends with: x of its last step, scaled down where the last sigma is not 0."""
    return x / math.sqrt(1 + float(plan.sigmas[-1]) ** 2)


def ddim(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 0.0) -> Iterator[Step]:
    """Song et al. 2020, https://arxiv.org/abs/2010.02502. In sigma space euler's step; at eta 1 ddpm's."""
    return ancestral(denoise, x, plan, noise, eta)


def ddpm(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 6 and 7, over the plan's levels."""
    return ancestral(denoise, x, plan, noise, eta=1.0)


def euler(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """First order and deterministic; Karras et al. 2022, https://arxiv.org/abs/2206.00364."""
    return ancestral(denoise, x, plan, noise, eta=0.0)


def euler_a(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0) -> Iterator[Step]:
    """Euler with fresh noise in every step ("Euler a"); ddpm's step on euler's levels."""
    return ancestral(denoise, x, plan, noise, eta)


def ancestral(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None, eta: float) -> Iterator[Step]:
    """Go down below the next level, then back up to it with fresh noise. The one formula behind four names.

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta} must be in 0..1: 0 adds no noise, 1 as much as ddpm")
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise: pass noise(sigma, sigma_next), or choose eta 0")
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
        down = (sigma_next**2 - up**2).sqrt()
        x = towards(denoised, x, down / sigma)
        if up > 0:
            x = x + float(up) * noise(sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def heun(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Second order with two looks per step; Karras et al. 2022, alg. 1. The mean slope, as weights:

    x + (s' - s) * (slope + slope') / 2  =  euler's x' + (s / s' - 1) / 2 * (denoised' - denoised)
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        x = towards(denoised, x, sigma_next / sigma)
        # From the level that stands for "no signal", s is a number of our choosing (alpha-bar's floor), and
        # s / s' would blow up the change of denoised with all its error: there, as to 0, euler's step stands.
        if sigma_next > 0 and sigma < 0.999 * SIGMA_MAX:
            x = x + float(sigma / sigma_next - 1) / 2 * (denoise(x, sigma_next) - denoised)
        yield Step(i, sigma, x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M), second order at one look per step; Lu et al. 2022, https://arxiv.org/abs/2211.01095.

    Euler's step towards an estimate carried on, over half the step in log(sigma), along its last change.
    """
    previous, h_previous = None, None
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        h = (sigma / sigma_next).log()  # infinite in a step to 0, which is Euler's
        ahead = denoised
        if previous is not None and sigma_next > 0:
            ahead = denoised + float(h / h_previous) / 2 * (denoised - previous)
        x = towards(ahead, x, sigma_next / sigma)
        previous, h_previous = denoised, h
        yield Step(i, sigma, x, denoised)


def plms(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Pseudo linear multistep, second order at one look per step; Liu et al. 2022, https://arxiv.org/abs/2202.09778.

    Euler's step along a mean of the last four slopes, with the Adams-Bashforth weights of evenly spaced times (eq. 12).
    The first step has no past and looks ahead as heun does: n steps take n + 1 looks. For this second look diffusers'
    PNDMScheduler (skip_prk_steps) lists the second time twice; here that is the solver's own matter, and the plan is
    ddim's, each level once. The two agree on `leading`, and on `trailing` where the steps divide the table's length.
    Elsewhere diffusers contradicts itself: other spacings (it leaves x at the level of t - 1000 // n and takes it up
    at the level of the next t), v-prediction (it adds the v of several levels before they become slopes), and img2img
    (it cuts the list of times between the two looks).
    """
    slopes: list[Tensor] = []  # the newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / float(sigma)
        slopes = [slope, *slopes[:3]]
        mean = sum(weight * past for weight, past in zip(ADAMS_BASHFORTH[len(slopes)], slopes, strict=True))
        # Not on to the run's end, where no look follows, and not from "no signal", for heun's reason.
        if i == 0 and len(plan.t) > 1 and sigma < 0.999 * SIGMA_MAX:
            there = towards(denoised, x, sigma_next / sigma)
            mean = (slope + (there - denoise(there, sigma_next)) / float(sigma_next)) / 2
        x = towards(denoised - float(sigma) * (mean - slope), x, sigma_next / sigma)
        yield Step(i, sigma, x, denoised)


def towards(denoised: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
    """The point on the line from denoised (ratio 0) to x (ratio 1); ratio () is next level / level."""
    return denoised + float(ratio) * (x - denoised)


def get_sampler(sampler: str | Sampler) -> Sampler:
    """The sampler of a name; a function is handed back as it is.

    Raises:
        ValueError: no such name; the message lists them.
    """
    if callable(sampler):
        return sampler
    one_of("sampler", sampler, SAMPLERS)
    return SAMPLERS[sampler]


ADAMS_BASHFORTH = {  # by number of slopes: their weights, the newest first
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "plms": plms,
}
