"""How sure a figure is: 95 % intervals.

In: counts, or one value a picture. Out: (low, high).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RESAMPLED = 2000


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a proportion; it stays inside 0..1 and is honest near both ends.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    p = right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (p * (1 - p) / count + z * z / (4 * count**2)) ** 0.5 / (1 + z * z / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def of_mean_share(parts: Sequence[tuple[int, int]], z: float = 1.96) -> tuple[float, float]:
    """The interval of the mean of proportions, each (right, count): on either side its width is the root of the sum of
    the squares of theirs, over their number (MOVER, Zou & Donner 2008, https://doi.org/10.1002/sim.3095)."""
    n, shares = len(parts), [right / count for right, count in parts]
    mean, ends = sum(shares) / n, [wilson(right, count, z) for right, count in parts]
    low = sum((p - end[0]) ** 2 for p, end in zip(shares, ends, strict=True)) ** 0.5 / n
    high = sum((p - end[1]) ** 2 for p, end in zip(shares, ends, strict=True)) ** 0.5 / n
    return mean - low, mean + high


def bootstrap(values: Tensor, seed: int = 0, median: bool = False) -> tuple[float, float]:
    """The interval of the mean of values (n,), or of their median, by resampling them.

    Efron 1979, https://doi.org/10.1214/aos/1176344552
    """
    draw = torch.Generator().manual_seed(seed)
    samples = values.double()[torch.randint(len(values), (RESAMPLED, len(values)), generator=draw)]
    found = samples.median(1).values if median else samples.mean(1)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def jackknife(
    figure: Callable[[Tensor], float], values: Tensor, groups: int = 20, z: float = 1.96
) -> tuple[float, float]:
    """The interval of a figure of all rows of values (n, ...), from what it is without each twentieth of them. It holds
    for figures that a resampling would shift, such as a Fréchet distance. Tukey 1958; Efron & Stein 1981,
    https://doi.org/10.1214/aos/1176345462
    """
    groups = min(groups, len(values))
    group = torch.arange(len(values)) % groups
    without = torch.tensor([figure(values[group != g]) for g in range(groups)], dtype=torch.float64)
    error = ((groups - 1) / groups * (without - without.mean()).square().sum()).sqrt().item()
    whole = figure(values)
    return whole - z * error, whole + z * error
