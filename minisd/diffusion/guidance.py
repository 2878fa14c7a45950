"""Classifier-free guidance: all that is said through the UNet in one batch, mixed on its raw output.

In: a UNet and what it is told. Out: predict(scaled x (b, c, h, w), t (b,)) -> F (b, c, h, w).
Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; several prompts at once: Liu et al. 2022, eq. 11,
https://arxiv.org/abs/2206.01714; rescale: Lin et al. 2023, https://arxiv.org/abs/2305.08891;
interval: Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..config import check
from ..nn.conditioning import Conditioning, Prepared, join_prepared
from ..nn.unet import UNet
from .denoise import Predict

Interval = tuple[float, float]
Said = Conditioning | Prepared
Composed = Sequence[tuple[Said, float | Sequence[float]]]  # parts and their weights, one for all items or one each


def guided(
    unet: UNet,
    cond: Said | Composed,
    uncond: Said | None = None,
    scale: float = 1.0,
    rescale: float = 0.0,
    interval: Interval | None = None,
) -> Predict:
    """A network that follows its prompts more closely: F = F_u + scale * sum of w_i * (F_i - F_u).

    For one part of weight 1 this is F_u + scale * (F_1 - F_u), and at scale 1 the conditional alone. What is not
    prepared yet is prepared here, once; the result serves x of the same batch, at every step.

    Args:
        cond: one conditional, or several parts with their weights; a weight below 0 leads away.
        uncond: as many items as each part; None: no guidance. One part of weight 1 does without it at scale 1.
        rescale: 0..1, how far the result's contrast is pulled back to the conditional's (see `conditional`).
        interval: (low, high) in table times (see `table_times`); outside it only the conditional is computed.

    Raises:
        ValueError: numbers of items that differ, or rescale outside 0..1.
    """
    parts = [(cond, 1.0)] if isinstance(cond, Said) else list(cond)
    b, p = len(parts[0][0]), len(parts)
    weights = torch.stack([torch.tensor(weight, dtype=torch.float32).expand(b) for _, weight in parts])
    alone = uncond is None or (scale == 1 and p == 1 and bool((weights == 1).all()))
    said = [part for part, _ in parts] + ([] if alone else [uncond])
    check(all(len(one) == b for one in said), f"cond has {b} items, uncond another number: give each item its own")
    check(0 <= rescale <= 1, f"guidance rescale {rescale} must be in 0..1")
    prepared = join_prepared([one if isinstance(one, Prepared) else unet.prepare(one) for one in said])
    prepared_conds = prepared[: p * b]
    low, high = interval or (float("-inf"), float("inf"))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        check(len(x) == b, f"x has {len(x)} items, its conditioning {b}")
        w = rearrange(weights.to(x.device, non_blocking=True), "p b -> p b 1 1 1")
        if alone or not low <= float(t[0]) <= high:
            return conditional(ask(unet, x, t, prepared_conds, p), w)
        f, f_uncond = ask(unet, x, t, prepared, p + 1).split([p, 1])
        f_guided = f_uncond.squeeze(0) + scale * (w * (f - f_uncond)).sum(0)
        return match_std(f_guided, conditional(f, w), rescale) if rescale else f_guided

    return predict


def ask(unet: UNet, x: Tensor, t: Tensor, prepared: Prepared, n: int) -> Tensor:
    """One UNet call on n times the same x (b, c, h, w), each told another thing: F (n, b, c, h, w), float32."""
    copies = (repeat(part, "b ... -> (n b) ...", n=n) for part in (x, t.to(x.device, non_blocking=True)))
    return rearrange(unet(*copies, prepared).float(), "(n b) ... -> n b ...", n=n)


def conditional(f: Tensor, w: Tensor) -> Tensor:
    """What holds without guidance, of F (p, b, c, h, w) and weights (p, b, 1, 1, 1): (b, c, h, w).

    One part is itself. Of several it is the mean by their weights; one that leads away has no say in it.
    """
    if len(f) == 1:
        return f[0]
    shares = w.clamp(min=1e-12)  # where no weight is above 0, all have the same say
    return (f * (shares / shares.sum(0))).sum(0)


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
