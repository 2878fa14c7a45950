"""Data N(MEAN, STD ** 2), of which the exact denoiser, path and result are known: what a solver should end with.

The denoiser is affine in x, and so is every step of a sampler: what it ends with is a constant and a weighted sum of
independent draws. `spread` runs those weights through the sampler in place of numbers, the first for the constant, the
second for the noise it starts from, one more for each draw. Mean and standard deviation come out without sampling.
"""

from itertools import pairwise

import torch
from torch import Tensor

from minisd.config import NoiseConfig
from minisd.diffusion.samplers import SAMPLERS
from minisd.diffusion.schedule import Plan, noise_table

TABLE = noise_table(NoiseConfig())
MEAN, STD = 0.7, 0.5


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact estimate of x0, of numbers or, along the last dimension, of weights."""
    mean = torch.zeros_like(x)
    mean[..., 0] = MEAN
    variance = float(sigma) ** 2
    return (STD**2 * x + variance * mean) / (STD**2 + variance)


def karras(n: int, high: float = 14.6146, low: float = 0.02917) -> Tensor:
    """n levels (arXiv 2206.00364, eq. 5)."""
    first, last = high ** (1 / 7), low ** (1 / 7)
    return (first + torch.linspace(0, 1, n, dtype=torch.float64) * (last - first)) ** 7


def bare_plan(sigmas: Tensor) -> Plan:
    """A plan of these levels, for solvers that ask no network."""
    return Plan(sigmas, TABLE.t(sigmas[:-1]), 1.0, TABLE)


class Draws:
    """noise(sigma, sigma_next) as weights of independent draws.

    One for each piece of the path down: a longer piece is made of its parts, as of Brownian motion over sigma. On the
    way up each is a new one.
    """

    def __init__(self, sigmas: Tensor, rises: int = 4) -> None:
        between = [(a * b).sqrt() for a, b in pairwise(sigmas) if b > 0]
        self.levels = torch.stack([*sigmas, *between]).sort(descending=True).values
        self.size = 2 + len(self.levels) + rises
        self.fresh = 2 + len(self.levels)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        weights = torch.zeros(1, 1, 1, self.size, dtype=torch.float64)
        if sigma_next > sigma:
            weights[..., self.fresh] = 1
            self.fresh += 1
            return weights
        high, low = (int((self.levels - level).abs().argmin()) for level in (sigma, sigma_next))
        pieces = -self.levels[high : low + 1].diff()
        weights[0, 0, 0, 2 + high : 2 + low] = (pieces / pieces.sum()).sqrt()
        return weights


def spread(sampler: str, plan: Plan, **options: float) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler ends with, from the exact ones at the plan's first level."""
    noise = Draws(plan.sigmas)
    x = torch.zeros(1, 1, 1, noise.size, dtype=torch.float64)
    x[..., 0], x[..., 1] = MEAN, (STD**2 + plan.sigmas[0] ** 2).sqrt()
    *_, step = SAMPLERS[sampler](gaussian, x, plan, noise, **options)
    constant, weights = step.x.flatten()[0], step.x.flatten()[1:]
    return constant.item(), weights.norm().item()


def misses(sampler: str, plan: Plan, **options: float) -> float:
    """How far mean and standard deviation are from the exact ones at the plan's last level, in units of the latter."""
    mean, std = spread(sampler, plan, **options)
    wanted = float((STD**2 + plan.sigmas[-1] ** 2).sqrt())
    return max(abs(mean - MEAN), abs(std - wanted)) / wanted
