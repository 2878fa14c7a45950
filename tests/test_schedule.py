"""The noise table, the plan of levels and the prediction types, against diffusers and their own algebra."""

from copy import deepcopy
from functools import cache
from inspect import signature

import diffusers
import pytest
import torch
from torch import Tensor

from minisd.config import PREDICTION_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES, NoiseConfig
from minisd.diffusion.denoise import PREDICTION, c_in, denoiser
from minisd.diffusion.schedule import ALPHA_BAR_FLOOR, SIGMA_MAX, NoiseTable, Plan, make_plan, noise_table

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TABLE = noise_table(NoiseConfig())
ZERO_SNR = noise_table(NoiseConfig(zero_snr=True))
FLOAT32 = 3e-5  # diffusers multiplies 1000 float32 alphas: its first sigma is 1.3e-5 off

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"set_alpha_to_one": False, "clip_sample": False}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "plms": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpmpp_sde": (diffusers.DPMSolverSDEScheduler, {}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),  # solver_order 2, bh2
    "deis": (diffusers.DEISMultistepScheduler, {}),  # solver_order 2
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}
FEW = ("lcm", "tcd")  # their classes have one grid of their own, and take no spacing
SPACED = ("linspace", "leading", "trailing")
FLAGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
CELLS = [  # samplers and the schedules that their classes have
    *((s, name) for s in SCHEDULERS for name in SPACED if s not in FEW),
    *((s, name) for s, (kind, _) in SCHEDULERS.items() for name in FLAGS if FLAGS[name] in signature(kind).parameters),
    *((s, "lcm") for s in FEW),
]
EXTRA = ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis")  # one point more on linspace and leading
TWICE_SEEN = (
    *(diffusers.HeunDiscreteScheduler, diffusers.KDPM2DiscreteScheduler, diffusers.KDPM2AncestralDiscreteScheduler),
    diffusers.DPMSolverSDEScheduler,
)
ALIKE = ("dpm2", "dpm2_a", "lms", "dpmpp_sde", "dpmpp_2m_sde", "unipc", "deis")  # in their times as euler or dpmpp_2m
# Where diffusers' own times cannot be used. Everywhere else ours equal them, for every n from 2 to 1000.
EXTRA_POINT = "where 1000 / n is rounded down, numpy's arange gives n + 1 points: a last time of -1"
BEYOND = "steps_offset lifts the first time to 1000, beyond the table"
NO_STRIDE = "1000 // (n + 1) = 0: every time is steps_offset"
TRUNCATED = "it rounds the times of karras, and cuts those of exponential and beta: sigma_max is told as 998"
TWICE = "1001 rounded points on 0..999: one time comes twice"


def off(sampler: str, schedule: str, n: int, times: Tensor) -> str | None:
    """The reason why diffusers' times cannot be used, or None."""
    if schedule == "trailing" and len(times) > n:
        return EXTRA_POINT
    if sampler in EXTRA and n == 1000 and schedule != "trailing":
        return NO_STRIDE if schedule == "leading" else TWICE
    return BEYOND if times[0] > 999 else None


def theirs(sampler: str, schedule: str, n: int, **changes: object) -> diffusers.SchedulerMixin:
    """diffusers' scheduler, its times set. Its karras, exponential, beta range as linspace does: the whole table."""
    kind, options = SCHEDULERS[sampler]
    if schedule in FLAGS:
        options, schedule = options | {FLAGS[schedule]: True}, "linspace"
    schedule = "leading" if schedule == "lcm" else schedule  # which those classes do not look at
    scheduler = deepcopy(made(kind, **SD, **options, timestep_spacing=schedule, **changes))
    if make_plan(TABLE, 1, sampler).whole and hasattr(scheduler, "_sigma_to_t"):  # TRUNCATED: round before it cuts
        cut = scheduler._sigma_to_t
        scheduler._sigma_to_t = lambda *levels: cut(*levels).round()
    scheduler.set_timesteps(n)
    return scheduler


@cache
def made(kind: type, **fields: object) -> diffusers.SchedulerMixin:
    """Some classes take a second to be made."""
    return kind(**fields)


def once(scheduler: diffusers.SchedulerMixin) -> Tensor:
    """The times of the steps: PNDM lists the second twice, a class that looks twice per step all but the first."""
    times = scheduler.timesteps.double()
    if isinstance(scheduler, diffusers.PNDMScheduler):
        assert times[1] == times[2]
        return torch.cat([times[:1], times[2:]])
    return times[::2] if isinstance(scheduler, TWICE_SEEN) else times


@pytest.mark.parametrize("sampler, schedule", [cell for cell in CELLS if cell[1] not in FLAGS])
def test_times_equal_diffusers(sampler: str, schedule: str) -> None:
    scheduler = theirs(sampler, schedule, 2)
    some = [*range(2, 12), 20, 61, 333, 999, 1000]
    for n in range(2, 51) if schedule == "lcm" else some if sampler in ALIKE else range(2, 1001):
        scheduler.set_timesteps(n)
        times = once(scheduler)
        plan = make_plan(TABLE, n, sampler, schedule)
        assert plan.t.shape == (n,) and (plan.t.diff() < 0).all()
        reason = off(sampler, schedule, n, times)
        if reason == EXTRA_POINT:
            assert len(times) == n + 1 and times[-1] == -1
            times = times[:-1]
        elif reason:
            assert not torch.equal(plan.t, times)
            continue
        tol = 0 if plan.whole else 1e-4  # Euler's are float32
        assert torch.allclose(plan.t, times, rtol=0, atol=tol), (n, plan.t, times)


@pytest.mark.parametrize("sampler, schedule", CELLS)
def test_sigmas_and_start_equal_diffusers(sampler: str, schedule: str) -> None:
    scheduler = theirs(sampler, schedule, 20)
    plan = make_plan(TABLE, 20, sampler, schedule)
    knows_alpha = sampler in ("ddim", "ddpm", "plms", "lcm", "tcd")  # and x as sqrt(alpha_bar) * our x
    if knows_alpha:
        alpha_bar = scheduler.alphas_cumprod[once(scheduler).long()]
        sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
        ends = {"ddpm": torch.ones(()), "lcm": torch.ones(()), "tcd": scheduler.alphas_cumprod[0]}
        last = ends.get(sampler, getattr(scheduler, "final_alpha_cumprod", None))
        sigmas = torch.cat([sigmas, ((1 - last) / last).sqrt()[None]])
    else:
        twice = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])[:21]
        sigmas = twice if isinstance(scheduler, TWICE_SEEN) else scheduler.sigmas
    assert torch.allclose(plan.sigmas, sigmas.double(), rtol=FLOAT32, atol=0)
    in_vp = knows_alpha or sampler in EXTRA
    scale = float((1 + plan.sigmas[0] ** 2).sqrt()) if in_vp else 1.0
    assert plan.start == pytest.approx(float(scheduler.init_noise_sigma) * scale, rel=FLOAT32)


@pytest.mark.parametrize("sampler, schedule", [cell for cell in CELLS if cell[1] in FLAGS])
def test_times_of_sigmas_are_rounded_for_whole_families_only(sampler: str, schedule: str) -> None:
    plan = make_plan(TABLE, 20, sampler, schedule)
    times = once(theirs(sampler, schedule, 20))
    whole = plan.whole or (sampler in ("dpm2", "dpm2_a") and schedule == "karras")  # they round no other
    assert torch.allclose(plan.t, times, rtol=0, atol=0 if whole else 2e-3)  # 1.2e-3: their float32 logarithm
    assert torch.equal(plan.t, plan.t.round()) == whole


@pytest.mark.parametrize("schedule", ["exponential", "beta"])
def test_where_diffusers_cuts_times(schedule: str) -> None:
    """TRUNCATED: its own words for the first level, and for half of the others, are one step too low."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, **{FLAGS[schedule]: True}, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    off = make_plan(TABLE, 20, "dpmpp_2m", schedule).t - scheduler.timesteps
    assert off[0] == 1 and set(off.tolist()) == {0, 1}


def test_conventions_of_the_design() -> None:
    first = {s: make_plan(TABLE, 20, s, "leading").t[0] for s in SAMPLER_NAMES}
    assert first == dict.fromkeys(SAMPLER_NAMES, 951) | dict.fromkeys((*EXTRA, "dpmpp_3m_sde"), 941)
    for sampler in SAMPLER_NAMES:
        for said in (True, False, None):  # None: as diffusers' DDIM and PNDM do where nothing is said
            always = sampler in ("deis", "tcd")
            ends_on_table = {"ddim": said or False, "plms": said is not False}.get(sampler, always)
            last = make_plan(TABLE, 20, sampler, final_table_sigma=said).sigmas[-1]
            assert last == (TABLE.sigmas[0] if ends_on_table else 0)
    assert make_plan(TABLE, 20, "dpmpp_2m", start="sigma").start == TABLE.sigmas[-1]
    assert make_plan(TABLE, 1, "euler", "linspace").t == 999  # diffusers starts, and ends, at time 0
    assert make_plan(TABLE, 4, "lcm", "lcm").t.tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("table", [TABLE, ZERO_SNR, noise_table(NoiseConfig("linear", 1e-4, 0.02, 50))])
def test_t_is_the_exact_inverse_of_sigma(table: NoiseTable) -> None:
    t = torch.linspace(0, len(table) - 1, 4001, dtype=torch.float64)
    assert torch.allclose(table.t(table.sigma(t)), t, rtol=0, atol=1e-8)
    assert torch.allclose(table.sigma(table.t(table.sigmas)), table.sigmas, rtol=1e-12, atol=0)
    assert torch.equal(table.t(torch.tensor([0.0, 1e9])), torch.tensor([0, len(table) - 1.0]).double())


def test_zero_snr_table_is_finite_and_ends_at_the_floor() -> None:
    assert ZERO_SNR.sigmas.isfinite().all()
    assert ZERO_SNR.sigmas[0] == pytest.approx(float(TABLE.sigmas[0]), rel=1e-12)
    assert ZERO_SNR.sigmas[-1] == SIGMA_MAX
    assert abs((1 + SIGMA_MAX**2) * ALPHA_BAR_FLOOR - 1) < 1e-12
    scheduler = diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True)
    alpha_bar = 1 / (1 + ZERO_SNR.sigmas**2)
    assert torch.allclose(alpha_bar, scheduler.alphas_cumprod.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("table", [TABLE, ZERO_SNR])
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("sampler", [*SAMPLER_NAMES, lambda denoise, x, plan, noise=None: None])
def test_every_plan_falls_and_is_finite(sampler: str, schedule: str, table: NoiseTable) -> None:
    for n in (1, 2, 3, 61, 999, 1000):
        plan = make_plan(table, n, sampler, schedule)
        assert plan.sigmas.shape == (n + 1,) and plan.t.shape == (n,)
        assert plan.sigmas.dtype == plan.t.dtype == torch.float64
        assert plan.sigmas.isfinite().all() and (plan.sigmas[:-1].diff() < 0).all() and plan.sigmas[-1] >= 0
        assert (plan.t >= 0).all() and (plan.t <= 999).all()
        assert plan.start >= plan.sigmas[0]


def test_time_is_the_plans_own_else_the_tables() -> None:
    plan = make_plan(TABLE, 20, "dpmpp_2m", "karras")
    for sigma, t in zip(plan.sigmas[:-1], plan.t, strict=True):
        assert plan.time(sigma) == t
    between = (plan.sigmas[4] + plan.sigmas[5]) / 2
    assert plan.time(between) == TABLE.t(between).round()
    free = make_plan(TABLE, 20, "euler", "linspace")
    assert torch.equal(torch.stack([free.time(s) for s in free.sigmas[:-1]]), free.t)
    assert free.time(between) == TABLE.t(between)
    assert free.time(free.sigmas[3] * (1 + 1e-12)) == free.t[3]  # worked out, and the level it is meant to be


def test_tail_is_the_end_of_the_plan() -> None:
    plan = make_plan(TABLE, 20, "ddim", "leading")
    tail = plan.tail(5)
    assert torch.equal(tail.sigmas, plan.sigmas[15:]) and torch.equal(tail.t, plan.t[15:])
    assert tail.whole and tail.time(tail.sigmas[0]) == 201


def test_own_schedule_and_own_sampler() -> None:
    def halves(table: NoiseTable, steps: int) -> Tensor:
        return table.sigmas[-1] * 0.5 ** torch.arange(steps)

    def my_sampler() -> None: ...

    plan = make_plan(TABLE, 5, my_sampler, halves)
    assert torch.equal(plan.sigmas, torch.cat([halves(TABLE, 5), torch.zeros(1)]))
    assert torch.equal(plan.t, TABLE.t(plan.sigmas[:-1])) and plan.start == plan.sigmas[0]
    for bad in (
        lambda table, n: table.sigmas[:n],
        lambda table, n: halves(table, n + 1),
        lambda table, n: [0.0] * n,
    ):
        with pytest.raises(ValueError, match="schedule"):
            make_plan(TABLE, 5, my_sampler, bad)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "steps 0 must be in 1..1000"),
        ((1001,), "steps 1001 must be in 1..1000"),
        ((20, "eulr"), "unknown sampler 'eulr': did you mean euler[?] choose from ddim, ddpm"),
        ((20, "euler", "karas"), "unknown schedule 'karas': did you mean karras[?] choose from linspace, leading"),
        ((20, "euler", "karras", 1, True, "none"), "unknown start 'none': choose from sigma, total"),
    ],
)
def test_refusals_name_the_way_out(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(TABLE, *arguments)


@pytest.mark.parametrize("betas", [(1e-19, 1e-18), (0.5, 0.9)])
def test_a_table_that_does_not_rise_is_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="give two steps one noise level"):
        noise_table(NoiseConfig("linear", *betas))


def test_unit_variance_and_plan_names() -> None:
    for sigma in (*TABLE.sigmas[::99], *ZERO_SNR.sigmas[-2:]):
        variance = float(c_in(sigma)) ** 2 * (1 + float(sigma) ** 2)  # of c_in * (x0 + sigma * noise)
        assert variance == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", PREDICTION_NAMES)
def test_exact_networks_agree(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    plan = make_plan(ZERO_SNR if kind != "eps" else TABLE, 20, "dpmpp_2m")  # eps says nothing where no signal is
    for sigma, time in zip(plan.sigmas[:-1], plan.t, strict=True):
        alpha = float(c_in(sigma))
        answer = {"eps": noise, "v": alpha * noise - float(sigma) * alpha * x0, "x0": x0}[kind]

        def exact(x: Tensor, t: Tensor, answer: Tensor = answer, time: Tensor = time) -> Tensor:
            assert x.std() < 1.2 and t.shape == (2,) and (t == time).all()
            return answer

        x = x0 + float(sigma) * noise
        tol = 1e-6 * (1 + float(sigma)) if kind == "eps" else 2e-6  # eps: x0 is what is left of x - sigma * noise
        assert (denoiser(exact, plan, kind)(x, sigma) - x0).abs().max() < tol


def test_prediction_names() -> None:
    assert tuple(PREDICTION) == PREDICTION_NAMES
    plan = Plan(torch.ones(2), torch.ones(1), 1.0, TABLE)
    with pytest.raises(ValueError, match=r"unknown prediction 'epsilon': did you mean eps[?] choose from eps, v, x0"):
        denoiser(lambda x, t: x, plan, "epsilon")
