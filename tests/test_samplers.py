"""Whole runs of every sampler: against diffusers' schedulers, on the meta device, step by step.

How the runs are made stands in sampler_runs.py, the table of all cells in sampler_table.py, what is known exactly in
test_samplers_exact.py.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import diffusers
import pytest
import torch
from oracles import deviation
from sampler_runs import KINDS, LATENTS, draws, network, on_levels, on_table, ours, run, single_steps
from sampler_table import (
    CONTRADICTIONS,
    EXACT,
    EXACTLY,
    PLMS_V,
    SOLVER,
    STEPS,
    TWO_TIMES,
    on_its_own,
    on_our_levels,
)
from test_schedule import CELLS, FLAGS, TABLE, ZERO_SNR, theirs
from torch import Tensor

from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES, UNetConfig
from minisd.diffusion.denoise import denoiser
from minisd.diffusion.guidance import guided
from minisd.diffusion.samplers import SAMPLERS, Step, final, get_sampler
from minisd.diffusion.schedule import ALPHA_BAR_FLOOR, NoiseTable, Plan, make_plan
from minisd.nn.conditioning import Conditioning
from minisd.nn.unet import UNet

ZERO_SNR_V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
STOCHASTIC = (
    *("ddpm", "euler_a", "restart", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "tcd"),
)
DETERMINISTIC = [name for name in SAMPLER_NAMES if name not in STOCHASTIC]
TWO_LOOKS = ("heun", "restart", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde")
MIDWAY = ("dpm2", "dpm2_a", "dpmpp_sde")  # of those the ones that look at levels that are not the plan's
OWN = 1e-5  # against diffusers as it is, float32 tables and all: 2.4e-6 measured
COARSE = 3e-4  # its t of a sigma of FLAGS or a level midway is from float32 logarithms: 1e-3 of a step off
ON_TABLE = 2e-5  # against diffusers' arithmetic on our float64 table: 1.2e-5 measured, of dpm2_a, exponential
# From "no signal" the first do not look twice; diffusers' euler works in float32, which is held to ddim's below.
APART = ("heun", "dpm2", "dpm2_a", "plms", "euler", "euler_a", "dpmpp_3m_sde", *EXACT)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_cell_of_the_table(sampler: str, schedule: str) -> None:
    assert on_our_levels(sampler, schedule) < (EXACTLY if sampler in EXACT else SOLVER)


@pytest.mark.parametrize("sampler, schedule", CELLS)
def test_equals_diffusers(sampler: str, schedule: str) -> None:
    whole = make_plan(TABLE, 2, sampler).whole
    if sampler in MIDWAY or (schedule in FLAGS and not whole):
        assert on_its_own(sampler, schedule) < COARSE
        near = (sampler, schedule) == ("dpm2_a", "linspace")  # its TWO_TIMES of a level: here 3e-3 of a step apart
        assert on_its_own(sampler, schedule, exact=True) < (COARSE if near else ON_TABLE)
    else:
        assert on_its_own(sampler, schedule) < OWN


@pytest.mark.parametrize(
    "sampler, schedule, n, kind", [(*c, k) for c in CONTRADICTIONS for k in KINDS if (c[0], k) != PLMS_V]
)
def test_where_diffusers_contradicts_itself(sampler: str, schedule: str, n: int, kind: str) -> None:
    plan, reason = make_plan(TABLE, n, sampler, schedule), CONTRADICTIONS[sampler, schedule, n]
    result = ours(sampler, plan, kind)
    make = lambda: theirs(sampler, schedule, n, prediction_type=KINDS[kind])  # noqa: E731
    assert deviation(result, run(make())) > 1e-3, reason
    mended = on_levels(sampler, plan, kind) if reason == TWO_TIMES else run(make(), follow=True)
    assert deviation(result, mended) < OWN


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_eta_equals_diffusers(eta: float) -> None:
    for n in STEPS:
        plan = make_plan(TABLE, n, "ddim", "leading")
        reference = run(theirs("ddim", "leading", n), eta=eta)
        assert deviation(ours("ddim", plan, "eps", eta=eta), reference) < OWN


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_tcd_eta_equals_diffusers(eta: float) -> None:
    """Over its own times, and over times of ours that it is handed."""
    for schedule in ("lcm", "leading", "trailing"):
        plan, scheduler = make_plan(TABLE, 6, "tcd", schedule), theirs("tcd", "lcm", 6)
        scheduler.set_timesteps(timesteps=[int(t) for t in plan.t])
        assert deviation(ours("tcd", plan, "v", eta=eta), run_v(scheduler, eta)) < OWN


def run_v(scheduler: diffusers.SchedulerMixin, eta: float) -> Tensor:
    scheduler.register_to_config(prediction_type="v_prediction")
    return run(scheduler, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_eta_of_dpmpp_2s_a_equals_diffusers(eta: float) -> None:
    plan = make_plan(TABLE, 9, "dpmpp_2s_a", "karras")
    assert deviation(ours("dpmpp_2s_a", plan, "v", eta=eta), single_steps("dpmpp_2s_a", plan, "v", eta=eta)) < OWN


@pytest.mark.parametrize("sampler, order", [("deis", 3), ("lms", 1), ("lms", 2), ("lms", 3)])
def test_other_orders_equal_diffusers(sampler: str, order: int) -> None:
    for n in (8, 17):
        plan = make_plan(TABLE, n, sampler, "leading")
        scheduler = theirs(sampler, "leading", n, **({"solver_order": order} if sampler == "deis" else {}))
        reference = run(scheduler, **({"order": order} if sampler == "lms" else {}))
        # deis of order 3: 1.8e-5, from its weights in float32
        assert deviation(ours(sampler, plan, "eps", order=order), reference) < (3e-5 if sampler == "deis" else OWN)


CAPPED = {  # the classes that know zero-terminal SNR, and the alpha-bar they are given there
    **{"ddim": 0.0, "ddpm": 0.0, "lcm": 0.0, "tcd": 0.0, "euler": 2.0**-24, "euler_a": 2.0**-24},
    **dict.fromkeys(("dpmpp_2m", "dpmpp_2m_sde", "unipc"), ALPHA_BAR_FLOOR),
}


@pytest.mark.parametrize("sampler, schedule", [cell for cell in CELLS if cell[0] in CAPPED])
def test_zero_terminal_snr_equals_diffusers(sampler: str, schedule: str) -> None:
    """The same cap on both sides: 0 where alpha-bar is all it knows, 2 ** -40 in DPM++, its own 2 ** -24 in Euler."""
    cap, tol, table = CAPPED[sampler], OWN, ZERO_SNR
    if sampler in ("euler", "euler_a"):
        # Its x + slope * (s' - s) in float32 loses half an ulp of x at s = 4096, 5e-4, at s' near 10: 1.8e-5
        # at n = 7, and 3.2e-5 with beta. From our 2 ** 20 it loses 3e-3; there ours is held to DDIM's arithmetic,
        # in the next test.
        tol, table = 5e-5, NoiseTable(ZERO_SNR.sigmas.clamp(max=(2.0**24 - 1) ** 0.5))
    for n in STEPS:
        if (sampler, schedule, n) not in CONTRADICTIONS:
            scheduler = theirs(sampler, schedule, n, **ZERO_SNR_V)
            result = ours(sampler, make_plan(table, n, sampler, schedule), "v")
            assert deviation(result, run(on_table(scheduler, table, cap))) < tol, n


@pytest.mark.parametrize("schedule", ["trailing", "karras"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLER_NAMES if name not in APART])
def test_zero_terminal_snr_on_our_levels(sampler: str, schedule: str) -> None:
    """From 2 ** 20, also of classes that do not know it: their updates are taken in float64 there."""
    plan, options = make_plan(ZERO_SNR, 12, sampler, schedule), {"eta": 0.0} if sampler == "tcd" else {}
    oracle = single_steps if sampler == "dpmpp_2s_a" else on_levels
    # 1.1e-5 of deis with karras: slopes times levels near 2 ** 20, in float32
    assert deviation(ours(sampler, plan, "v", **options), oracle(sampler, plan, "v", **options)) < 2e-5


@pytest.mark.parametrize("sampler, same_step", [("euler", "ddim"), ("euler_a", "ddpm")])
def test_zero_terminal_snr_of_euler_is_ddims(sampler: str, same_step: str) -> None:
    """On whole trailing times the steps are the same; diffusers' DDIM and DDPM take them from alpha_bar 0."""
    for n in (10, 20):
        scheduler = theirs(same_step, "trailing", n, **ZERO_SNR_V)
        reference = on_table(scheduler, ZERO_SNR, last=0.0)
        reference.final_alpha_cumprod = torch.ones(())
        assert deviation(ours(sampler, make_plan(ZERO_SNR, n, sampler), "v"), run(reference)) < OWN


def nothing(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that sees no picture."""
    return torch.zeros_like(x)


@pytest.mark.parametrize("table", [TABLE, ZERO_SNR], ids=["sd", "zero_snr"])
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_any_sampler_runs_with_any_schedule(sampler: str, schedule: str, table: NoiseTable) -> None:
    for n, kind in ((1, "v"), (2, "eps"), (3, "x0")):
        assert ours(sampler, make_plan(table, n, sampler, schedule), kind).isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_steps_tell_what_happened(sampler: str) -> None:
    plan, calls = make_plan(TABLE, 6, sampler), []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return denoiser(network, plan, "v")(x, sigma)

    steps = list(SAMPLERS[sampler](denoise, LATENTS * plan.start, plan, draws()))
    assert [step.i for step in steps] == list(range(6))
    assert [step.sigma for step in steps] == list(plan.sigmas[:-1])
    again = 4 if sampler == "restart" else 0  # two steps back down from 1.6 to 0.3
    assert len(calls) == again + (11 if sampler in TWO_LOOKS else 7 if sampler == "plms" else 6)
    before = [LATENTS * plan.start] + [step.x for step in steps[:-1]]
    for x, step in zip(before, steps, strict=True):
        assert torch.equal(step.denoised, denoiser(network, plan, "v")(x, step.sigma))
        assert step.x.dtype == torch.float32
    if plan.sigmas[-1] == 0 and sampler not in ("lms", "lcm"):  # theirs is no Euler's step; lcm bends its estimate
        assert torch.equal(steps[-1].x, steps[-1].denoised) and torch.equal(final(steps[-1].x, plan), steps[-1].x)


def test_one_formula_behind_four_names() -> None:
    plan = make_plan(TABLE, 10, "euler")
    results = {name: ours(name, plan, "v") for name in ("ddim", "ddpm", "euler", "euler_a")}
    assert torch.equal(results["ddim"], results["euler"])
    assert torch.equal(results["ddpm"], results["euler_a"])
    assert torch.equal(results["ddpm"], ours("ddim", plan, "v", eta=1.0))
    assert torch.equal(results["euler"], ours("euler_a", plan, "v", eta=0.0))
    assert deviation(results["ddpm"], results["ddim"]) > 0.1


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_need_noise_and_repeat_with_it(sampler: str) -> None:
    plan = make_plan(TABLE, 5, sampler)
    with pytest.raises(ValueError, match="pass noise"):
        next(SAMPLERS[sampler](nothing, LATENTS, plan))
    assert torch.equal(ours(sampler, plan, "v"), ours(sampler, plan, "v"))
    asked = []

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros_like(LATENTS)

    list(SAMPLERS[sampler](nothing, LATENTS, plan, noise))
    steps = [(float(s), float(s_next)) for s, s_next in pairwise(plan.sigmas[:5])]  # none to the end
    if sampler == "dpmpp_sde":
        steps = [draw for s, s_next in steps for draw in ((s, pytest.approx((s * s_next) ** 0.5)), (s, s_next))]
    if sampler == "restart":
        steps = [(float(plan.sigmas[4]), float(plan.sigmas[2]))]  # from 0.4 back up to 2.6
    assert asked == steps


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta .* must be in 0\.\.1"):
        next(SAMPLERS["ddim"](nothing, LATENTS, make_plan(TABLE, 5, "ddim"), draws(), eta=eta))


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_permuting_the_batch_permutes_the_output(sampler: str) -> None:
    plan = make_plan(TABLE, 10, sampler)
    assert deviation(ours(sampler, plan, "v", LATENTS.flip(0)), ours(sampler, plan, "v").flip(0)) < 1e-6


@pytest.fixture(scope="module")
def meta_unet() -> UNet:
    with torch.device("meta"):
        return UNet(UNetConfig(4, 4, (32,), 1, (1,), 1, heads=(2,), context_dim=24, vector_dim=12, groups=8))


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_step_runs_on_the_meta_device(meta_unet: UNet, sampler: str) -> None:
    """A stray CPU tensor, or a wait for the device (.item()), raises there."""
    with torch.device("meta"):
        x, cond = torch.empty(2, 4, 8, 8), Conditioning(torch.empty(2, 6, 24), torch.empty(2, 12))
    plan = make_plan(TABLE, 5, sampler)  # times 999, 799 ... 199: without and with guidance
    predict = guided(meta_unet, cond, cond, 5.0, rescale=0.7, interval=(300.0, 800.0))
    noise = lambda sigma, sigma_next: torch.empty_like(x)  # noqa: E731
    steps = list(SAMPLERS[sampler](denoiser(predict, plan, "v"), x * plan.start, plan, noise))
    assert len(steps) == 5
    assert all(part.is_meta and part.shape == x.shape for step in steps for part in (step.x, step.denoised))
    assert final(steps[-1].x, plan).is_meta and not any(step.sigma.is_meta for step in steps)


def test_names() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    assert get_sampler("heun") is SAMPLERS["heun"]
    with pytest.raises(
        ValueError, match=r"unknown sampler 'dpmm': did you mean dpm2[?] choose from ddim, ddpm, euler, euler_a, heun"
    ):
        get_sampler("dpmm")


def test_a_sampler_of_ones_own() -> None:
    def jump(denoise: Callable, x: Tensor, plan: Plan, noise: Callable | None = None) -> Iterator[Step]:
        denoised = denoise(x, plan.sigmas[0])
        yield Step(0, plan.sigmas[0], denoised, denoised)

    plan = make_plan(TABLE, 1, jump)
    (step,) = get_sampler(jump)(denoiser(network, plan, "v"), LATENTS * plan.start, plan)
    assert torch.equal(step.x, ours("euler", plan, "v"))
