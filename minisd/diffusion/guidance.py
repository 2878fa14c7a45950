"""Classifier-free guidance: cond and uncond through the UNet in one batch, mixed on its raw output.

In: a UNet and two `Conditioning`s. Out: predict(scaled x (b, c, h, w), t (b,)) -> F (b, c, h, w).
Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; rescale: Lin et al. 2023, https://arxiv.org/abs/2305.08891;
interval: Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724
"""

from einops import rearrange, repeat
from torch import Tensor

from ..config import check
from ..nn.conditioning import Conditioning, join
from ..nn.unet import UNet
from .denoise import Predict

Interval = tuple[float, float]


def guided(
    unet: UNet,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    scale: float = 1.0,
    rescale: float = 0.0,
    interval: Interval | None = None,
) -> Predict:
    """A network that follows its prompts more closely: F = uncond + scale * (cond - uncond).

    The conditionings are prepared here, once; the result serves x of the same batch, at every step.

    Args:
        uncond: as many items as cond; None, or scale 1: the conditional alone, at half the cost.
        rescale: 0..1, how far the result's contrast is pulled back to the conditional's.
        interval: (low, high) in table times (see `table_times`); outside it only the conditional is computed.

    Raises:
        ValueError: numbers of items that differ, or rescale outside 0..1.
    """
    alone = uncond is None or scale == 1
    b = len(cond)
    check(alone or len(uncond) == b, f"cond has {b} items, uncond another number: give each item its own")
    check(0 <= rescale <= 1, f"guidance rescale {rescale} must be in 0..1")
    prepared = unet.prepare(cond if alone else join([cond, uncond]))
    prepared_cond = prepared[:b]
    low, high = interval or (float("-inf"), float("inf"))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        check(len(x) == b, f"x has {len(x)} items, its conditioning {b}")
        t_device = t.to(x.device, non_blocking=True)
        if alone or not low <= float(t[0]) <= high:
            return unet(x, t_device, prepared_cond)
        twice = (repeat(part, "b ... -> (two b) ...", two=2) for part in (x, t_device))
        both = unet(*twice, prepared)
        f_cond, f_uncond = rearrange(both.float(), "(two b) ... -> two b ...", two=2)
        f = f_uncond + scale * (f_cond - f_uncond)
        return match_std(f, f_cond, rescale) if rescale else f

    return predict


def match_std(f: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Pull the standard deviation of each item of f (b, c, h, w) to its reference's (2305.08891, eq. 15)."""
    std, wanted = (rearrange(part, "b c h w -> b (c h w)").std(dim=1) for part in (f, reference))
    ratio = wanted / std.clamp(min=1e-12)  # a network that answers a constant has none
    return f * rearrange(amount * ratio + (1 - amount), "b -> b 1 1 1")


def table_times(interval: Interval | None, steps: int) -> Interval | None:
    """An interval in parts of the noise table (0 clean, 1 all noise) as times of a table of `steps`.

    Raises:
        ValueError: not 0 <= low < high <= 1.
    """
    if interval is None:
        return None
    low, high = interval
    check(0 <= low < high <= 1, f"guidance interval {low}, {high} must be 0 <= low < high <= 1 (1: all noise)")
    return low * steps, high * steps
