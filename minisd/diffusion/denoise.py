"""From a network's raw output to an estimate of x0: the only place that knows what the network predicts.

In: predict(scaled x, t) -> F. Out: denoise(x, sigma) -> x0 estimate, with
denoised = c_skip * x + c_out * F(c_in * x, t), c_in = 1 / sqrt(1 + sigma ** 2).
Karras et al. 2022, https://arxiv.org/abs/2206.00364; v: Salimans & Ho 2022, https://arxiv.org/abs/2202.00512;
thresholds: Saharia et al. 2022, https://arxiv.org/abs/2205.11487
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from einops import rearrange
from torch import Tensor

from ..config import one_of
from .schedule import Plan

Predict = Callable[[Tensor, Tensor], Tensor]  # scaled input (b, c, h, w), t (b,) on the CPU -> raw output F
Denoise = Callable[[Tensor, Tensor], Tensor]  # x (b, c, h, w), sigma () on the CPU -> estimate of x0


def c_in(sigma: Tensor) -> Tensor:
    """Scales x to unit variance before the network sees it."""
    return (1 + sigma**2) ** -0.5


def eps(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of a network that predicts the noise."""
    return torch.ones_like(sigma), -sigma


def v(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of a network that predicts v = alpha * noise - sigma_vp * x0."""
    return 1 / (1 + sigma**2), -sigma * c_in(sigma)


def x0(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of a network that predicts the clean latent itself."""
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def denoiser(predict: Predict, plan: Plan, kind: str) -> Denoise:
    """Wrap a network into denoise(x, sigma).

    Levels stay on the CPU and enter the device's work as plain numbers, so that no step waits for the device.

    Args:
        predict: scaled input and t (b,) -> F; guidance is already inside. t comes on the CPU, so that predict
            can look at it without waiting for the device, and predict moves it to its network.
        plan: gives the t of its own sigmas; any other sigma is looked up in its table.
        kind: a key of PREDICTION.
    """
    one_of("prediction", kind, PREDICTION)
    scalings = PREDICTION[kind]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out = (float(c) for c in scalings(sigma))
        t = plan.time(sigma).float().expand(len(x))
        return c_skip * x + c_out * predict(float(c_in(sigma)) * x, t).float()

    return denoise


def changing(stages: Sequence[tuple[float, Denoise]]) -> Denoise:
    """Another denoiser further down: the prompt follows the noise level, whatever way a sampler takes through it.

    Args:
        stages: (level, denoiser), levels falling. Each holds from its level, that level included, down to above the
            next one's; the first also above its own. A second look that lands on the next stage's level belongs to
            that stage: heun's last step before a change already sees what comes.
    """

    levels = [-level * (1 + SAME_LEVEL) for level, _ in stages]  # rising, as bisect wants them

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        reached = bisect_right(levels, -float(sigma))
        return stages[max(reached, 1) - 1][1](x, sigma)

    return denoise


def thresholded(denoise: Denoise, percentile: float, floor: float | None = None) -> Denoise:
    """Dynamic thresholding (§2.3): no image's estimate of x0 grows beyond what latents are, however high the scale.

    Per image, over all its values: s = max(percentile of |x0|, floor); what is beyond s is cut, and s becomes floor.

    Args:
        percentile: in (0, 1], 0.995 in the paper.
        floor: 1 for pixels, as in the paper. None, for latents: they are scaled to unit variance, so the same
            percentile of a normal distribution, 2.8 for 0.995 (and never more than 3.9, at 0.9999).
    """
    if floor is None:
        floor = NormalDist().inv_cdf((1 + min(percentile, 0.9999)) / 2)

    def cut(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoise(x, sigma)
        s = rearrange(denoised.abs(), "b ... -> b (...)").quantile(percentile, dim=1).clamp(min=floor)
        s = rearrange(s, "b -> b 1 1 1")
        return denoised.clamp(-s, s) * (floor / s)

    return cut


SAME_LEVEL = 1e-6  # relative; a sampler may compute a level of the plan anew, in float32 at worst
PREDICTION = {"eps": eps, "v": v, "x0": x0}
