"""From a network's raw output to an estimate of x0: the only place that knows what the network predicts.

In: predict(scaled x, t) -> F. Out: denoise(x, sigma) -> x0 estimate, with
denoised = c_skip * x + c_out * F(c_in * x, t), c_in = 1 / sqrt(1 + sigma ** 2).
Karras et al. 2022, https://arxiv.org/abs/2206.00364; v: Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
"""

from collections.abc import Callable

import torch
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


PREDICTION = {"eps": eps, "v": v, "x0": x0}
