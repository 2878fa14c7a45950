"""What all solvers share: the step they yield, and the move each of them is made of.

x (b, c, h, w) lives in sigma space, x = x0 + sigma * noise. Every update is a weighted sum of x and estimates of x0,
never x + slope * d_sigma, so that a step down from sigma 2 ** 20 (zero-terminal SNR) loses no digits.
Levels are () float64 on the CPU and enter the device's work as plain numbers: no step waits for the device.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from ..schedule import SIGMA_MAX, Plan

Noise = Callable[[Tensor, Tensor], Tensor]  # sigma (), sigma_next () -> unit-variance noise like x
Sampler = Callable[..., Iterator["Step"]]  # sampler(denoise, x, plan, noise=None, **options)


class Step(NamedTuple):
    """What one step leaves behind."""

    i: int  # from 0
    sigma: Tensor  # () on the CPU: plan.sigmas[i], the level `denoised` was estimated at
    x: Tensor  # (b, c, h, w) after the step, at plan.sigmas[i + 1]
    denoised: Tensor  # (b, c, h, w) estimate of x0; where a step looks twice, its first


def final(x: Tensor, plan: Plan) -> Tensor:
    """The latent a run ends with: x of its last step, scaled down where the last sigma is not 0."""
    return x / math.sqrt(1 + float(plan.sigmas[-1]) ** 2)


def towards(denoised: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
    """The point on the line from denoised (ratio 0) to x (ratio 1); ratio () is next level / level."""
    return denoised + float(ratio) * (x - denoised)


def has_signal(sigma: Tensor) -> bool:
    """False at the level that stands for "no signal" (alpha-bar's floor).

    There s is a number of our choosing: weights that grow with s / s' would blow up the change of denoised with all
    its error, and Euler's step stands, as it does to 0.
    """
    return bool(sigma < 0.999 * SIGMA_MAX)


def down_and_up(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """An ancestral step to s' in two parts: the level () to go down to, and the std () of fresh noise back up to s'.

    up = eta * s' * sqrt(1 - (s' / s) ** 2), down ** 2 + up ** 2 = s' ** 2 (arXiv 2010.02502, eq. 16).
    """
    ratio = sigma_next / sigma
    up = eta * sigma_next * (1 - ratio**2).sqrt()
    return sigma_next * (1 - eta**2 + (eta * ratio) ** 2).sqrt(), up


def stirred(x: Tensor, up: Tensor, noise: Noise | None, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x with noise of std up () added; none is drawn where up is 0."""
    return x + float(up) * noise(sigma, sigma_next) if up > 0 else x


def check_noise(noise: Noise | None, eta: float = 1.0) -> None:
    """Refuse a run that would lack noise.

    Raises:
        ValueError: eta outside 0..1, or above 0 with no noise to draw from.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta} must be in 0..1: 0 adds no noise, 1 as much as ddpm")
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise: pass noise(sigma, sigma_next), or choose eta 0")
