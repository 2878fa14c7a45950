"""Which levels of a noise table a run visits: fifteen ways to choose n of them.

In: a `NoiseTable` (or its length) and a number of steps n. Out: n times or n sigmas, falling, above 0; the run's end is
added in `schedule.py`. Two kinds, by what they are even in:
GRIDS choose times, as diffusers does: Lin et al. 2023, table 2, https://arxiv.org/abs/2305.08891. A family of solvers
takes them with its own rounding and, where it asks for them, extra points.
SPACINGS choose sigmas, and the network is told the time of each. They are the schedules of k-diffusion, AUTOMATIC1111
and ComfyUI, with n steps whatever n is. They follow the table's ends, so on a table that ends in "no signal"
(sigma 2 ** 20) those even in sigma (`beta`) or log sigma (`exponential`) spend most steps where nothing is to be seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """sigma of every training step; between two steps log(sigma) is linear in t."""

    sigmas: Tensor  # (steps,) float64, rising

    def __len__(self) -> int:
        return len(self.sigmas)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level of times t (any shape), float64."""
        return interpolate(t, self.index, self.sigmas.log()).exp()

    def t(self, sigma: Tensor) -> Tensor:
        """The exact inverse of `sigma`, clamped to the table's ends."""
        return interpolate(sigma.double().log(), self.sigmas.log(), self.index)

    @property
    def index(self) -> Tensor:
        """The whole times 0, 1, ... as float64."""
        return torch.arange(len(self), dtype=torch.float64)


Spacing = Callable[[NoiseTable, int], Tensor]  # table, steps -> sigmas (steps,), falling, above 0


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising; constant beyond the ends."""
    x = x.double().clamp(xs[0], xs[-1])
    high = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    low = high - 1
    return ys[low] + (ys[high] - ys[low]) * ((x - xs[low]) / (xs[high] - xs[low]))


def even(start: Tensor | float, end: Tensor | float, points: int) -> Tensor:
    """Evenly from start to end, both among them (points,), float64; of one point the start."""
    return torch.linspace(float(start), float(end), points, dtype=torch.float64)


def linspace(length: int, steps: int, extra: int, offset: int) -> Tensor:
    """Times (steps,) from the table's last down to its first, evenly."""
    points = max(2, min(steps + extra, length))  # more than `length` would round to one time twice
    return torch.arange(points, dtype=torch.float64).flip(0)[:steps] * ((length - 1) / (points - 1))


def leading(length: int, steps: int, extra: int, offset: int) -> Tensor:
    """Times (steps,) with a whole stride, counted up from `offset`: the table's last times are never seen."""
    points = min(steps + extra, length)
    times = torch.arange(points, dtype=torch.float64).flip(0)[:steps] * (length // points)
    highest = length - 1 - int(times[0])  # the offset gives way where it would leave the table
    return times + min(offset, highest)


def trailing(length: int, steps: int, extra: int, offset: int) -> Tensor:
    """Whole times (steps,), evenly down from the table's last."""
    # length / steps with the rounding of numpy's arange, so that halves fall as in diffusers
    stride = length - (length - length / steps)
    return (length - torch.arange(steps, dtype=torch.float64) * stride).round() - 1


def lcm(length: int, steps: int, extra: int, offset: int) -> Tensor:
    """Whole times (steps,) of models distilled to few steps: some of the 50 they were taught, spread evenly.

    999, 759, 499, 259 for 4 of 1000 (arXiv 2310.04378, as diffusers has it); for more than 50 all of as many.
    """
    taught = min(max(50, steps), length)
    times = torch.arange(taught, 0, -1, dtype=torch.float64) * (length // taught) - 1
    return times[torch.arange(steps) * taught // steps]


def normal(table: NoiseTable, steps: int) -> Tensor:
    """Even in t, fractions and all, from the table's last to its first: the "Uniform" and the "Normal" of peers.

    `linspace` without a family's ways: for euler the same times, with sigmas read in log (1.5e-5 apart at 20 steps).
    """
    return table.sigma(even(len(table) - 1, 0, steps))


def sgm_uniform(table: NoiseTable, steps: int) -> Tensor:
    """`normal` of one more point, the last left out, so that the step to 0 is as long as any."""
    return table.sigma(even(len(table) - 1, 0, steps + 1)[:-1])


def simple(table: NoiseTable, steps: int) -> Tensor:
    """Whole times down from the table's last, the fraction cut off; where the steps divide the table, `trailing`."""
    back = (torch.arange(steps, dtype=torch.float64) * (len(table) / steps)).long()  # in floating point as peers do
    return table.sigmas[len(table) - 1 - back]


def ddim_uniform(table: NoiseTable, steps: int) -> Tensor:
    """CompVis' DDIM times, 1 and up by a whole stride: `leading` with offset 1 and no family's ways.

    Where the steps do not divide the table, peers go on to its end and run a step more (8 for 7); here n are n.
    """
    return table.sigmas[leading(len(table), steps, extra=0, offset=1).long()]


def karras(table: NoiseTable, steps: int, rho: float = 7.0) -> Tensor:
    """Even in sigma ** (1 / rho); Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364."""
    low, high = table.sigmas[[0, -1]] ** (1 / rho)
    return even(high, low, steps) ** rho


def exponential(table: NoiseTable, steps: int) -> Tensor:
    """Even in log(sigma)."""
    return polyexponential(table, steps, rho=1.0)


def polyexponential(table: NoiseTable, steps: int, rho: float = 1.0) -> Tensor:
    """k-diffusion's: log(sigma) falls as a power of the way left; at its default, rho 1, it is `exponential`."""
    low, high = table.sigmas[[0, -1]].log()
    return (low + even(1, 0, steps) ** rho * (high - low)).exp()


def beta(table: NoiseTable, steps: int, a: float = 0.6) -> Tensor:
    """Quantiles of Beta(a, a) over sigma, crowded at both ends, as diffusers and AUTOMATIC1111 have it.

    The paper, and ComfyUI, lay them over t; Lee et al. 2024, https://arxiv.org/abs/2407.12173.
    """
    low, high = table.sigmas[[0, -1]]
    return low + beta_quantile(even(1, 0, steps), a) * (high - low)


def beta_quantile(p: Tensor, a: float) -> Tensor:
    """The x in 0..1 (any shape, float64) below which Beta(a, a), 0 < a <= 1, falls with probability p.

    For x <= 1/2 the probability is a power series, y * sum_k c_k * x ** k / (a * B) with y = x ** a. Its terms are
    all positive, so in y it is convex: Newton's method comes down to the root from where the first term alone puts it.
    Its slope in y sums to (1 - x) ** (a - 1). Beyond 1/2: by symmetry.
    """
    target = torch.minimum(p, 1 - p) * a * math.gamma(a) ** 2 / math.gamma(2 * a)
    k = torch.arange(1, 80, dtype=torch.float64)
    c = ((k - a) / k).cumprod(0) * a / (a + k)
    y = target
    for _ in range(8):
        x = y ** (1 / a)
        y = y - (y * (1 + (c * x[..., None] ** k).sum(-1)) - target) * (1 - x) ** (1 - a)
    x = y ** (1 / a)
    return torch.where(p <= 0.5, x, 1 - x)


def kl_optimal(table: NoiseTable, steps: int) -> Tensor:
    """Even in arctan(sigma), best in KL for Gaussian data; Sabour et al. 2024, https://arxiv.org/abs/2404.14507.

    AUTOMATIC1111 takes n + 1 points and ends on the table's first; here, as in ComfyUI, n points and then 0.
    """
    low, high = table.sigmas[[0, -1]].atan()
    return even(high, low, steps).tan()


def align_your_steps(table: NoiseTable, steps: int) -> Tensor:
    """The ten levels that suit SD 1.x best; Sabour et al. 2024, https://arxiv.org/abs/2404.14507."""
    return through(table, AYS_SD, steps)


def align_your_steps_sdxl(table: NoiseTable, steps: int) -> Tensor:
    """The same for SDXL; what `align_your_steps` means for a model that takes a pooled vector."""
    return through(table, AYS_SDXL, steps)


def through(table: NoiseTable, knots: tuple[int, ...], steps: int) -> Tensor:
    """The knots' sigmas, n + 1 of them drawn out evenly in log(sigma), the last left out for 0: ten are the knots' own.

    The knots are times of a table of 1000; a shorter or longer one is read at the same parts of it, one of other betas
    at the same times. (AUTOMATIC1111 draws out n and keeps the table's first; its figures are rounded to 1e-3.)
    """
    times = torch.tensor(knots, dtype=torch.float64) * ((len(table) - 1) / 999)
    places = torch.arange(len(knots), dtype=torch.float64)
    return interpolate(even(0, len(knots) - 1, steps + 1)[:-1], places, table.sigma(times).log()).exp()


# https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html, and the table's first time
AYS_SD = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
AYS_SDXL = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)
GRIDS = {"linspace": linspace, "leading": leading, "trailing": trailing, "lcm": lcm}  # which times
SPACINGS: dict[str, Spacing] = {  # which sigmas
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "align_your_steps_sdxl": align_your_steps_sdxl,
}
