"""One look per step and no memory: Euler's step, and the same with fresh noise.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], a `Plan`. Out: `Step`s.
Song et al. 2020, https://arxiv.org/abs/2010.02502; Karras et al. 2022, https://arxiv.org/abs/2206.00364
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ..denoise import Denoise
from ..schedule import Plan
from .step import Noise, Step, check_noise, down_and_up, stirred, towards


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
    """Euler with fresh noise in every step ("Euler a"); ddpm's step on euler's levels. k-diffusion's,
    https://github.com/crowsonkb/k-diffusion
    """
    return ancestral(denoise, x, plan, noise, eta)


def ancestral(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None, eta: float) -> Iterator[Step]:
    """Go down below the next level, then back up to it with fresh noise. The one formula behind four names.

    x' = denoised + down / s * (x - denoised) + up * noise

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        down, up = down_and_up(sigma, sigma_next, eta)
        x = stirred(towards(denoised, x, down / sigma), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)
