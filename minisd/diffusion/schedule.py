"""Noise levels: the table a model was trained on, and the plan of levels one run visits (chosen in `spacing.py`).

In: a `NoiseConfig` and a number of steps. Out: a `Plan`. Convention everywhere: x = x0 + sigma * noise, and
alpha_bar = 1 / (1 + sigma ** 2). Levels are float64 on the CPU, so that a step never waits for the device.
Ho et al. 2020, https://arxiv.org/abs/2006.11239; Karras et al. 2022, https://arxiv.org/abs/2206.00364
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import SAMPLER_NAMES, SCHEDULE_NAMES, NoiseConfig, check, one_of
from .spacing import GRIDS, SPACINGS, NoiseTable, Spacing, interpolate

ALPHA_BAR_FLOOR = 2.0**-40  # stands for "no signal left", finite and exact enough
SIGMA_MAX = (1 / ALPHA_BAR_FLOOR - 1) ** 0.5  # its sigma, about 2 ** 20
BLIND = 100.0  # above this sigma a picture is lost in its noise: many steps there are lost as well

log = logging.getLogger("minisd")


@dataclass(frozen=True, eq=False)
class Plan:
    """The levels one run visits: step i goes from sigmas[i] to sigmas[i + 1].

    sigmas (n + 1,) float64 on the CPU, falling; t (n,) float64, what the network is told at the first n.
    A run starts from x = noise * start. `whole`: the network is only ever told whole times.
    """

    sigmas: Tensor
    t: Tensor
    start: float
    table: NoiseTable
    whole: bool = False

    def tail(self, steps: int) -> "Plan":
        """The plan's last steps alone, to start from a picture with noise added."""
        first = len(self.t) - steps
        return replace(self, sigmas=self.sigmas[first:], t=self.t[first:])

    def time(self, sigma: Tensor) -> Tensor:
        """t () of a level (): the plan's own where the level is one of its own, else the table's."""
        own = self.sigmas[:-1].isclose(sigma.double(), rtol=1e-9, atol=0).nonzero()  # also of one that was worked out
        if len(own):
            return self.t[own[0, 0]]
        t = self.table.t(sigma)
        return t.round() if self.whole else t


@dataclass(frozen=True)
class Family:
    """How a family of solvers reads the table in diffusers, so that a stored model draws the same picture."""

    whole: bool  # times are rounded, on a grid, for karras and of levels between
    extra: int  # points of a grid beyond the steps; the lowest are dropped
    start: str  # key of STARTS; on `leading` every family starts at "total"
    table_end: bool | None = None  # the last sigma is the table's first instead of 0, if not told; None: never
    always: bool = False  # ends on the table, told or not (`table_end` then plays no part)
    whole_karras: bool = False  # times of karras levels are rounded, all others not

    def times(self, t: Tensor, schedule: str | Callable) -> Tensor:
        """What the network is told of times t of a schedule."""
        return t.round() if self.whole or (self.whole_karras and schedule == "karras") else t


def make_plan(
    table: NoiseTable,
    steps: int,
    sampler: str | Callable = "dpmpp_2m",
    schedule: str | Spacing = "trailing",
    steps_offset: int = 1,
    final_table_sigma: bool | None = True,
    start: str | None = None,
) -> Plan:
    """Choose the levels of a run.

    Args:
        sampler: a name, or a function of your own (read like euler, unless it bears a known family's name).
        schedule: a name, or a function of your own like `karras`.
        steps_offset: added to the times of `leading`.
        final_table_sigma: ddim and plms end on the table's first sigma instead of 0; None: plms alone, as in
            diffusers where nothing is said.
        start: "sigma" (AUTOMATIC1111) or "total"; None: as the family does in diffusers.

    Raises:
        ValueError: an unknown name, steps outside the table's length, or sigmas that do not fall.
    """
    length = len(table)
    check(1 <= steps <= length, f"steps {steps} must be in 1..{length}, the length of the noise table")
    family = family_of(sampler)
    sigmas, t = levels(table, steps, family, schedule, steps_offset)
    blind = int((sigmas > BLIND).sum())
    if blind > 1 + steps // 4:
        why = "this model's table ends in no signal: try trailing or kl_optimal"
        name = getattr(schedule, "__name__", schedule)
        log.warning("%d of %d steps of %s see nothing but noise, as %s", blind, steps, name, why)
    last = torch.zeros(())
    ends_on_table = family.table_end if final_table_sigma is None else final_table_sigma
    if family.always or (family.table_end is not None and ends_on_table):
        last = min(table.sigmas[0], sigmas[-1])  # never above a schedule that goes below the table
    start = start or ("total" if schedule == "leading" else family.start)
    one_of("start", start, STARTS)
    return Plan(torch.cat([sigmas, last[None]]), t, STARTS[start](float(sigmas[0])), table, family.whole)


def family_of(sampler: str | Callable) -> Family:
    """The family a sampler's plan is made for: its name's, its name's up to the first underscore, or euler's."""
    if isinstance(sampler, str):
        one_of("sampler", sampler, SAMPLER_NAMES)
    name = sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "")
    return FAMILIES.get(name) or FAMILIES.get(name.split("_")[0], FAMILIES["euler"])


def levels(
    table: NoiseTable, steps: int, family: Family, schedule: str | Spacing, offset: int
) -> tuple[Tensor, Tensor]:
    """Sigmas (steps,) and times (steps,) of a schedule."""
    if schedule in GRIDS:
        t = family.times(GRIDS[schedule](len(table), steps, family.extra, offset), schedule)
        return interpolate(t, table.index, table.sigmas), t  # linear in sigma: diffusers' way on a grid
    name = schedule
    if isinstance(schedule, str):
        one_of("schedule", schedule, SCHEDULE_NAMES)
        schedule = SPACINGS[schedule]
    sigmas = torch.as_tensor(schedule(table, steps), dtype=torch.float64)
    check(sigmas.shape == (steps,), f"the schedule gave {list(sigmas.shape)} sigmas instead of [{steps}]")
    falling = bool((sigmas.diff() < 0).all()) and 0 < sigmas[-1] <= sigmas[0] < torch.inf
    check(falling, f"the schedule's sigmas must fall and be above 0 (the last is added): {sigmas.tolist()}")
    return sigmas, family.times(table.t(sigmas), name)  # linear in log(sigma): diffusers' way back


def noise_table(config: NoiseConfig) -> NoiseTable:
    """The table of a config: betas -> alpha_bar -> sigma = sqrt((1 - alpha_bar) / alpha_bar).

    Raises:
        ValueError: the betas are so small or so large that two steps share one noise level.
    """
    betas = BETAS[config.schedule](config.beta_start, config.beta_end, config.steps)
    alpha_bar = (1 - betas).cumprod(0)
    if config.zero_snr:
        alpha_bar = zero_terminal_snr(alpha_bar)
    alpha_bar = alpha_bar.clamp(min=ALPHA_BAR_FLOOR)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    rising = sigmas[0] > 0 and bool((sigmas.diff() > 0).all())
    where = f"betas {config.beta_start}..{config.beta_end} over {config.steps} steps"
    check(rising, f"{where} give two steps one noise level: choose betas nearer to 0.00085..0.012 over 1000")
    return NoiseTable(sigmas)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha_bar) to end at 0 and start where it did (arXiv 2305.08891, alg. 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def linear(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


BETAS = {"linear": linear, "scaled_linear": scaled_linear}
STARTS = {  # std of x at the first level: of its noise alone, or with a latent of unit variance
    "sigma": lambda sigma: sigma,
    "total": lambda sigma: (1 + sigma**2) ** 0.5,
}
FAMILIES = {  # by a sampler's name, or its name up to the first underscore; as euler what is not here
    "ddim": Family(whole=True, extra=0, start="total", table_end=False),
    "ddpm": Family(whole=True, extra=0, start="total"),
    "deis": Family(whole=True, extra=1, start="total", always=True),
    "dpm2": Family(whole=False, extra=0, start="sigma", whole_karras=True),
    "dpmpp": Family(whole=True, extra=1, start="total"),
    "dpmpp_2s_a": Family(whole=False, extra=0, start="sigma"),  # k-diffusion's alone, and read as there
    "dpmpp_sde": Family(whole=False, extra=0, start="sigma"),
    "euler": Family(whole=False, extra=0, start="sigma"),
    "lcm": Family(whole=True, extra=0, start="total"),
    "plms": Family(whole=True, extra=0, start="total", table_end=True),  # ddim's plan
    "tcd": Family(whole=True, extra=0, start="total", always=True),
    "unipc": Family(whole=True, extra=1, start="total"),
}
