"""Samplers against what is known exactly: order of convergence, mean and spread of the result, one path's end point.

The data is Gaussian (see gaussian.py), or a mixture of two where the denoiser shall not be linear.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import scipy.integrate
import scipy.interpolate
import torch
from gaussian import Draws, bare_plan, gaussian, karras, misses, spread
from test_schedule import TABLE, ZERO_SNR
from torch import Tensor

from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES
from minisd.diffusion.samplers import SAMPLERS, estimates, final, slopes
from minisd.diffusion.schedule import SIGMA_MAX, make_plan

JUMPING = ("lcm", "tcd")  # made for distilled models: with an exact denoiser they end with too little spread


def unit(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(0, 1); on its path x / sqrt(1 + sigma ** 2) does not change."""
    return x / float(1 + sigma**2)


def misses_unit(sampler: str, n: int, **options: float) -> float:
    """Relative error of the end point on n Karras levels from 14.6146 to 0.02917."""
    plan = bare_plan(karras(n))
    x = torch.full((1, 1, 1, 1), float((1 + plan.sigmas[0] ** 2).sqrt()), dtype=torch.float64)
    *_, step = SAMPLERS[sampler](unit, x, plan, **options)
    return abs(final(step.x, plan).item() - 1)


@pytest.mark.parametrize(
    "sampler, errors",
    [
        ("euler", (7.67e-2, 3.81e-2, 1.90e-2)),
        ("heun", (1.19e-2, 2.73e-3, 6.55e-4)),
        ("dpmpp_2m", (1.24e-2, 2.78e-3, 6.58e-4)),
        ("plms", (4.11e-3, 9.07e-4, 2.165e-4)),
    ],
)
def test_errors_are_those_of_plain_sums(sampler: str, errors: tuple[float, ...]) -> None:
    """Figures from plain sums in float64."""
    for n, error in zip((20, 40, 80), errors, strict=True):
        assert misses_unit(sampler, n) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize(
    "sampler, options, order",
    [
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("dpm2", {}, 2),
        ("dpm2_a", {"eta": 0.0}, 2),
        ("dpmpp_2s_a", {"eta": 0.0}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("restart", {"rounds": 0}, 2),
        ("plms", {}, 2),
        ("lms", {"order": 2}, 2),
        ("lms", {}, 3.5),  # of 4: its first steps look back on fewer
        ("deis", {}, 2),
        ("deis", {"order": 3}, 3),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2m_sde", {"eta": 0.0}, 2),
        ("dpmpp_3m_sde", {"eta": 0.0}, 3),  # with half the quadratic part, as k-diffusion has it, 1.8
        ("unipc", {}, 3),
    ],
)
def test_order_of_convergence(sampler: str, options: dict, order: float) -> None:
    coarse, fine = (misses_unit(sampler, n, **options) for n in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.26)
    assert fine < {1: 2e-2, 2: 2e-3}.get(order, 1e-4)


@pytest.mark.parametrize(
    "sampler, options, order",
    [
        ("ddpm", {}, 1),
        ("ddim", {"eta": 1.0}, 1),
        ("euler_a", {}, 1),
        ("euler_a", {"eta": 0.5}, 1),
        ("dpm2_a", {}, 2),
        ("dpm2_a", {"eta": 0.5}, 2),
        ("dpmpp_2s_a", {}, 2),
        ("dpmpp_2s_a", {"eta": 0.5}, 2),
        ("dpmpp_sde", {}, 2),
        ("dpmpp_sde", {"eta": 0.5}, 2),
        ("dpmpp_2m_sde", {}, 2),
        ("dpmpp_2m_sde", {"eta": 0.5}, 2),
        ("restart", {}, 2),
        ("restart", {"rounds": 3}, 2),
    ],
)
def test_mean_and_spread_converge(sampler: str, options: dict, order: float) -> None:
    coarse, fine = (misses(sampler, bare_plan(karras(n)), **options) for n in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.26)
    assert fine < {1: 5e-2, 2: 3e-3}[order]


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_mean_and_spread_of_three_estimates(eta: float) -> None:
    """The noise between the looks holds it to second order, but it starts far below: dpmpp_2m_sde is at 8.8e-3."""
    errors = [misses("dpmpp_3m_sde", bare_plan(karras(n)), eta=eta) for n in (40, 160)]
    assert errors[0] < 1.3e-3 and errors[1] < 1.2e-4


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_three_estimates_do_not_swing_out(schedule: str) -> None:
    """Where the last levels fall steeply an unguarded parabola leaves any bound: 4.4 on `normal`."""
    plan = bare_plan(make_plan(TABLE, 20, "dpmpp_3m_sde", schedule).sigmas)
    assert misses("dpmpp_3m_sde", plan) < (0.6 if schedule == "beta" else 0.15)
    if schedule in ("normal", "ddim_uniform", "beta"):
        assert misses("dpmpp_3m_sde", plan, guard=False) > 2


@pytest.mark.parametrize("sampler", [name for name in SAMPLER_NAMES if name not in JUMPING])
def test_the_spread_is_the_datas_on_any_path(sampler: str) -> None:
    """No sampler loses or adds variance where steps are small, whatever noise it draws."""
    mean, std = spread(sampler, bare_plan(karras(300, 80.0, 0.01)))
    assert mean == pytest.approx(0.7, abs=1e-3) and std == pytest.approx(0.5, rel=2e-2)


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of N(-0.8, 0.16) and N(0.8, 0.16) in equal parts."""
    variance = 0.16 + float(sigma) ** 2
    return (0.16 * x + float(sigma) ** 2 * 0.8 * torch.tanh(0.8 * x / variance)) / variance


FINE, PATHS = 4096, 64
LEVELS = torch.logspace(math.log10(14.6), math.log10(0.03), FINE + 1, dtype=torch.float64)


def brownian() -> tuple[Tensor, object]:
    """A start and noise(sigma, sigma_next): PATHS Brownian motions over sigma, on LEVELS."""
    generator = torch.Generator().manual_seed(0)
    start, *pieces = torch.randn(FINE + 1, PATHS, generator=generator, dtype=torch.float64)
    pieces = torch.stack(pieces) * (-LEVELS.diff()).sqrt()[:, None]
    path = torch.cat([torch.zeros(1, PATHS, dtype=torch.float64), pieces.cumsum(0)])
    whole = float((LEVELS[0] / LEVELS[-1]).log())

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        high, low = (round(float((LEVELS[0] / level).log()) / whole * FINE) for level in (sigma, sigma_next))
        return ((path[low] - path[high]) / (LEVELS[high] - LEVELS[low]).sqrt()).view(1, 1, 1, PATHS)

    return start.view(1, 1, 1, PATHS) * LEVELS[0], noise


def test_all_go_to_one_end_point_on_one_path() -> None:
    """Strong convergence: finer steps over the same Brownian path, a second look inside a step included, and every
    solver of the stochastic equation ends where ddpm does in 4096 steps; half the steps are twice as far off.
    """
    start, noise = brownian()

    def end(sampler: str, n: int) -> Tensor:
        *_, step = SAMPLERS[sampler](mixture, start, bare_plan(LEVELS[:: FINE // n]), noise)
        return step.x

    there = end("ddpm", FINE)
    for sampler in ("euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"):
        coarse, fine = (float((end(sampler, n) - there).square().mean().sqrt()) for n in (64, 256))
        assert fine < 2e-2 and coarse / fine > 3, sampler


def test_restart_forgets_what_was_wrong_before() -> None:
    """What is left of the noise it started from shrinks in each round as the exact path does from `high` to `low`."""
    plan = bare_plan(karras(80))
    low, high = (plan.sigmas[(plan.sigmas / level).log().abs().argmin()] for level in (0.1, 2.0))
    shrinks = ((0.25 + low**2) / (0.25 + high**2)).sqrt()
    left = []
    for rounds in (0, 1, 2):
        noise = Draws(plan.sigmas)
        x = torch.zeros(1, 1, 1, noise.size, dtype=torch.float64)
        x[..., 1] = 14.6
        *_, step = SAMPLERS["restart"](gaussian, x, plan, noise, rounds=rounds)
        left.append(step.x[0, 0, 0, 1] / 14.6)
    assert left[1] / left[0] == pytest.approx(float(shrinks), rel=2e-3)
    assert left[2] / left[0] == pytest.approx(float(shrinks) ** 2, rel=4e-3)


def test_restart_keeps_to_its_plan() -> None:
    """n steps of n + 1 levels; it looks at the levels between once more, and asks for noise on the way up alone."""
    plan, looks, asked = make_plan(TABLE, 20, "restart", "karras"), [], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        looks.append(float(sigma))
        return unit(x, sigma)

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros(1, 1, 1, 1)

    steps = list(SAMPLERS["restart"](denoise, torch.ones(1, 1, 1, 1), plan, noise, rounds=2))
    assert [step.i for step in steps] == list(range(20))
    assert [step.sigma for step in steps] == list(plan.sigmas[:-1])
    ((low, high), again) = asked
    assert (low, high) == again and set(looks) == {float(s) for s in plan.sigmas[:-1]}
    assert low == plan.sigmas[16] and high == plan.sigmas[8]  # 0.121 and 1.99: the nearest to 0.1 and 2
    between = [float(s) for s in plan.sigmas if low < s <= high]
    assert len(looks) == 39 + 2 * 2 * len(between)
    assert sorted(set(looks), reverse=True) == [float(s) for s in plan.sigmas[:-1]]
    with pytest.raises(ValueError, match="low must be below high"):
        next(SAMPLERS["restart"](denoise, torch.ones(1, 1, 1, 1), plan, noise, low=3.0))


ETA, H = 0.4, math.log(1.3 / 0.9)
INTEGRALS = {  # by the function of weights: nodes of levels, the ends of the integral and its density
    slopes.in_sigma: (lambda level: level, (1.3, 0.9), lambda u: 1.0),
    slopes.in_log_sigma: (math.log, (math.log(1.3), math.log(0.9)), math.exp),
    partial(estimates.in_log_sigma, eta=ETA): (
        lambda level: math.log(1.3 / level),
        (0.0, H),
        lambda u: (1 + ETA) * math.exp(-(1 + ETA) * (H - u)),
    ),
}


@pytest.mark.parametrize("weights", INTEGRALS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_are_the_integrals_of_lagranges_polynomials(weights: Callable, count: int) -> None:
    """scipy builds the polynomials and integrates by quadrature."""
    node, ends, density = INTEGRALS[weights]
    s_next, *levels = (torch.tensor(level, dtype=torch.float64) for level in (0.9, 1.3, 1.9, 3.1, 5.0)[: count + 1])
    nodes = [node(float(level)) for level in levels]
    for k, weight in enumerate(weights(levels[0], s_next, levels)):
        basis = scipy.interpolate.lagrange(nodes, [float(j == k) for j in range(count)])
        wanted, _ = scipy.integrate.quad(lambda u, basis=basis: basis(u) * density(u), *ends, epsabs=1e-13)
        assert weight == pytest.approx(wanted, abs=1e-10), k


@pytest.mark.parametrize("sampler", [name for name in SAMPLER_NAMES if name not in JUMPING])
def test_no_signal_start_is_sane(sampler: str) -> None:
    """From sigma 2 ** 20 what a sampler ends with has the data's spread, but for its own error: 0.12 for ddpm."""
    plan = make_plan(ZERO_SNR, 40, sampler, "trailing")
    assert plan.sigmas[0] == SIGMA_MAX
    assert misses(sampler, plan) < 0.13
