"""One look per step and a memory of estimates: the integral over log(sigma) of a polynomial through the last ones.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], a `Plan`. Out: `Step`s.
The exact answer over a step of size h = log(s / s'), u being what of it is done, with noise eta:
x' = e^-(1 + eta)h * x + (1 + eta) * integral of e^-(1 + eta)(h - u) * denoised(u) + s' * sqrt(1 - e^(-2 eta h)) * noise
DPM-Solver++, Lu et al. 2022, https://arxiv.org/abs/2211.01095; with noise as k-diffusion has it. To 0: Euler's step.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ..denoise import Denoise
from ..schedule import Plan
from .slopes import lagrange
from .step import Noise, Step, check_noise, stirred, towards

Past = list[tuple[Tensor, Tensor]]  # level and estimate of x0 there, the newest first


def dpmpp_2m(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M), second order at one look per step; Lu et al. 2022, https://arxiv.org/abs/2211.01095, alg. 2."""
    return dpmpp_2m_sde(denoise, x, plan, noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """The same with noise ("DPM++ 2M SDE"); https://arxiv.org/abs/2211.01095 and k-diffusion ("midpoint").

    Euler's step towards the estimate that `half_ahead` gives, the ratio lower and noise in its place (`with_noise`).

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    past: Past = []
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        past = [(sigma, denoised), *past[:1]]
        ahead = half_ahead(past, sigma_next)
        ratio, up = with_noise(sigma, sigma_next, eta)
        x = stirred(towards(ahead, x, ratio), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 1.0, guard: bool = True
) -> Iterator[Step]:
    """DPM-Solver++ with noise through three estimates ("DPM++ 3M SDE"); https://arxiv.org/abs/2211.01095, third order
    at eta 0.

    The integral of the parabola is exact here. k-diffusion, and after it AUTOMATIC1111, take half of its quadratic
    part (phi_3 in place of 2 phi_3), which leaves second order; diffusers' third order has another sign there.

    Args:
        guard: leave out what lies too near for the step, see `far_enough`.

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    past: Past = []
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        past = [(sigma, denoised), *past[:2]]
        ratio, up = with_noise(sigma, sigma_next, eta)
        x = towards(denoised, x, ratio)
        if sigma_next > 0:
            known = far_enough(past, sigma_next) if guard else past
            x = bent(x, known, in_log_sigma(sigma, sigma_next, [level for level, _ in known], eta))
        x = stirred(x, up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def unipc(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """UniPC-2 with B2(h) on estimates of x0 ("bh2"); Zhao et al. 2023, https://arxiv.org/abs/2302.04867.

    UniP predicts with dpmpp_2m's step (the last one is Euler's). The look at the end of a step then serves twice: UniC
    takes that step once more, through the new estimate too, before the next one starts; that makes it third order.
    Step.x is what was predicted.
    """
    past: Past = []
    start = x  # where the last step set out
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        if past:
            (before, first), *_ = past
            x = towards(first, start, sigma / before)
            if len(past) == 1:
                x = x + float(1 - sigma / before) / 2 * (denoised - first)
            else:
                known = [*past, (sigma, denoised)]
                x = bent(x, known, in_log_sigma(before, sigma, [level for level, _ in known]))
        past, start = [(sigma, denoised), *past[:1]], x
        last = i + 1 == len(plan.t)
        x = towards(denoised if last else half_ahead(past, sigma_next), x, sigma_next / sigma)
        yield Step(i, sigma, x, denoised)


def far_enough(past: Past, sigma_next: Tensor) -> Past:
    """The estimates before the first one that is less than k - 1/2 steps back, k being its place in the past.

    Where levels fall more and more steeply, as on `normal` and `beta`, a parabola through three near looks swings far
    out over a long step: with 20 steps of `normal` the result's spread is 4 times too large. (AUTOMATIC1111 leaves out
    the next-to-last level instead.)
    """
    (sigma, _), *_ = past
    h = (sigma / sigma_next).log()
    near = [k for k, (level, _) in enumerate(past) if (level / sigma).log() < (k - 0.5) * h]
    return past[: near[0]] if near else past


def half_ahead(past: Past, sigma_next: Tensor) -> Tensor:
    """The estimate carried on over half the step in log(sigma), along its last change; the newest alone to 0."""
    (sigma, denoised), *older = past
    if not older or sigma_next == 0:
        return denoised
    ((before, previous),) = older
    return denoised + float((sigma / sigma_next).log() / (before / sigma).log()) / 2 * (denoised - previous)


def bent(x: Tensor, past: Past, weights: Sequence[float]) -> Tensor:
    """Euler's x with the change of the estimates added: weights as `lagrange` gives them, of past[0] not needed."""
    for weight, (_, estimate) in zip(weights[1:], past[1:], strict=True):
        x = x + weight * (estimate - past[0][1])
    return x


def with_noise(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """e^-(1 + eta)h, the part of x that stays, and the std of the noise; both ()."""
    ratio = sigma_next / sigma
    return ratio ** (1 + eta), sigma_next * (1 - ratio ** (2 * eta)).sqrt()


def in_log_sigma(sigma: Tensor, sigma_next: Tensor, levels: Sequence[Tensor], eta: float = 0.0) -> list[float]:
    """Weights of the integral above for the polynomial through estimates at these levels.

    By parts: the integral of u^k is h^k - k / (1 + eta) * that of u^(k - 1).
    """
    h = math.log(sigma / sigma_next)
    moments = [-math.expm1(-(1 + eta) * h)]
    for k in range(1, len(levels)):
        moments.append(h**k - k / (1 + eta) * moments[-1])
    return lagrange([math.log(sigma / level) for level in levels], moments)
