"""Two looks per step: the second one further down tells how the estimate changes on the way.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], a `Plan`. Out: `Step`s.
Karras et al. 2022, https://arxiv.org/abs/2206.00364; DPM-Solver, Lu et al. 2022, https://arxiv.org/abs/2206.00927;
as k-diffusion has them, https://github.com/crowsonkb/k-diffusion. A step that ends at 0 is Euler's.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ...config import check
from ..denoise import Denoise
from ..schedule import Plan
from .step import Noise, Step, check_noise, down_and_up, has_signal, stirred, towards


def heun(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Second order: the mean of the slopes at both ends; https://arxiv.org/abs/2206.00364, alg. 1."""
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        x, denoised = heun_step(denoise, x, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, c, h, w) at sigma_next, and the estimate of x0 seen at sigma. The mean slope, as weights:

    x + (s' - s) * (slope + slope') / 2  =  euler's x' + (s / s' - 1) / 2 * (denoised' - denoised)
    """
    denoised = denoise(x, sigma)
    x = towards(denoised, x, sigma_next / sigma)
    if sigma_next > 0 and has_signal(sigma):
        x = x + float(sigma / sigma_next - 1) / 2 * (denoise(x, sigma_next) - denoised)
    return x, denoised


def restart(
    denoise: Denoise,
    x: Tensor,
    plan: Plan,
    noise: Noise | None = None,
    rounds: int = 1,
    low: float = 0.1,
    high: float = 2.0,
) -> Iterator[Step]:
    """Heun's steps, and once down there back up with fresh noise and down again: Xu et al. 2023,
    https://arxiv.org/abs/2306.14878. The noise on the way up forgets errors made before, the steps stay second order.

    The interval is AUTOMATIC1111's: from the plan's level nearest to `low` up to its level nearest to `high`, `rounds`
    times. All of it belongs to the step that arrives at `low`: a plan of n steps yields n, and the way back down goes
    over the plan's own levels, on top of the n (AUTOMATIC1111 takes it out of them, and has no restart below 20 steps).

    Args:
        noise: asked as noise(low, high) for the way up; each answer must be fresh, no piece of the path down.

    Raises:
        ValueError: no noise to draw from, or an interval that is none.
    """
    check(0 < low < high and rounds >= 0, f"restart {rounds} times from {low} to {high}: low must be below high")
    check_noise(noise, float(rounds > 0))
    bottom, top = (nearest(plan.sigmas, level) for level in (low, high))
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        x, denoised = heun_step(denoise, x, sigma, sigma_next)
        for _ in range(rounds if i + 1 == bottom else 0):
            up = (plan.sigmas[top] ** 2 - sigma_next**2).sqrt()  # 0 where one level is nearest to both
            x = stirred(x, up, noise, sigma_next, plan.sigmas[top])
            for here, there in pairwise(plan.sigmas[top : bottom + 1]):
                x, _ = heun_step(denoise, x, here, there)
        yield Step(i, sigma, x, denoised)


def nearest(sigmas: Tensor, level: float) -> int:
    """The index of the sigma above 0 that is nearest to a level, in log(sigma)."""
    return int((sigmas[sigmas > 0] / level).log().abs().argmin())


def dpm2(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver-2, second order: the slope midway in log(sigma); https://arxiv.org/abs/2206.00927, in sigma space as
    k-diffusion has it. dpm2_a without noise.
    """
    return dpm2_a(denoise, x, plan, noise, eta=0.0)


def dpm2_a(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0) -> Iterator[Step]:
    """Down along the slope midway, then up with fresh noise ("DPM2 a"); https://arxiv.org/abs/2206.00927 and
    k-diffusion. Midway is m = sqrt(s * down); as weights:

    x + (down - s) * slope_m  =  euler's x' + (s - down) / m * (denoised_m - denoised)

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        down, up = down_and_up(sigma, sigma_next, eta)
        middle, there = (sigma * down).sqrt(), towards(denoised, x, down / sigma)
        if down > 0 and has_signal(sigma):
            seen = denoise(towards(denoised, x, middle / sigma), middle)
            there = there + float((sigma - down) / middle) * (seen - denoised)
        x = stirred(there, up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def dpmpp_2s_a(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0) -> Iterator[Step]:
    """DPM-Solver++(2S) with fresh noise ("DPM++ 2S a"); Lu et al. 2022, https://arxiv.org/abs/2211.01095, alg. 1.

    Euler's step down towards the estimate midway, at m = sqrt(s * down), then up with noise:

    x' = denoised_m + down / s * (x - denoised_m) + up * noise

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = ahead = denoise(x, sigma)
        down, up = down_and_up(sigma, sigma_next, eta)
        if down > 0:
            middle = (sigma * down).sqrt()
            ahead = denoise(towards(denoised, x, middle / sigma), middle)
        x = stirred(towards(ahead, x, down / sigma), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def dpmpp_sde(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, single step ("DPM++ SDE"); https://arxiv.org/abs/2211.01095 and k-diffusion.

    As dpmpp_2s_a, but the look midway, at m = sqrt(s * s'), is reached with noise too. Both draws belong to one path:
    noise(s, m) is the first part of noise(s, s').

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = ahead = denoise(x, sigma)
        if sigma_next > 0:
            middle = (sigma * sigma_next).sqrt()
            down, up = down_and_up(sigma, middle, eta)
            ahead = denoise(stirred(towards(denoised, x, down / sigma), up, noise, sigma, middle), middle)
        down, up = down_and_up(sigma, sigma_next, eta)
        x = stirred(towards(ahead, x, down / sigma), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)
