"""A few steps, for models distilled to jump: each step is a leap to the clean latent and noise back up.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], a `Plan`. Out: `Step`s.
Their own times are the schedule `lcm`. Such a model holds its guidance inside: cfg_scale stays near 1.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..denoise import Denoise, c_in
from ..schedule import Plan
from .step import Noise, Step, check_noise, stirred, towards


def lcm(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Latent consistency models; Luo et al. 2023, https://arxiv.org/abs/2310.04378.

    x' = f(x) + s' * noise, where f is the estimate, bent so that at t = 0 it is x itself (in unit variance):
    f = c_skip * x / sqrt(1 + s^2) + c_out * denoised, c_skip = d^2 / (T^2 + d^2), c_out = T / sqrt(T^2 + d^2),
    with T = 10 t and d = 0.5.

    Raises:
        ValueError: no noise to draw from.
    """
    check_noise(noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        t = 10 * plan.time(sigma)
        c_skip, c_out = 0.25 / (t**2 + 0.25), t / (t**2 + 0.25).sqrt()
        clean = float(c_skip * c_in(sigma)) * x + float(c_out) * denoised
        x = stirred(clean, sigma_next, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def tcd(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, eta: float = 0.3) -> Iterator[Step]:
    """Trajectory consistency distillation; Zheng et al. 2024, https://arxiv.org/abs/2402.19159, alg. 4.

    An ancestral step whose lower level is told in time: down is the table's sigma at floor((1 - eta) * t').

    Args:
        eta: the paper's gamma: 0 goes straight to t', 1 down to the table's end and back up.

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    check_noise(noise, eta)
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        down = sigma_next
        if eta > 0:
            down = torch.minimum(plan.table.sigma(((1 - eta) * plan.time(sigma_next)).floor()), sigma_next)
        up = (sigma_next**2 - down**2).sqrt()
        x = stirred(towards(denoised, x, down / sigma), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)
