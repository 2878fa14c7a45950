"""The schedules one by one: against scipy, diffusers' tables, figures worked out by hand, and what each is even in."""

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from diffusers.schedulers import AysSchedules
from test_schedule import FLOAT32, SD, TABLE, ZERO_SNR

from minisd.config import SCHEDULE_NAMES, Config, NoiseConfig, TextConfig, UNetConfig
from minisd.diffusion.schedule import make_plan, noise_table
from minisd.diffusion.spacing import SPACINGS, NoiseTable, beta_quantile, even, polyexponential
from minisd.settings import resolve

TABLES = {
    "sd": TABLE,
    "zero_snr": ZERO_SNR,
    "50": noise_table(NoiseConfig("linear", 1e-4, 0.02, 50)),
    "3 to no signal": noise_table(NoiseConfig("linear", 0.1, 0.2, 3, zero_snr=True)),
    "2": noise_table(NoiseConfig("linear", 0.1, 0.2, 2)),
    "5000": noise_table(NoiseConfig("linear", 1e-6, 4e-3, 5000)),
}
LOW, HIGH = (float(sigma) for sigma in TABLE.sigmas[[0, -1]])
BY_HAND = {  # times on a table of 1000
    ("normal", 4): [999, 666, 333, 0],
    ("normal", 1): [999],
    ("sgm_uniform", 3): [999, 666, 333],
    ("sgm_uniform", 4): [999, 749.25, 499.5, 249.75],
    ("sgm_uniform", 1): [999],
    ("simple", 3): [999, 666, 333],
    ("simple", 4): [999, 749, 499, 249],
    ("simple", 6): [999, 833, 666, 499, 333, 166],  # 1000 / 6 * (1, 2, 3, 4, 5) = 166.7, 333.3, 500, 666.7, 833.3
    ("ddim_uniform", 4): [751, 501, 251, 1],
    ("ddim_uniform", 7): [853, 711, 569, 427, 285, 143, 1],  # peers go on to 995, an eighth step
    ("ddim_uniform", 1): [1],
}
EVEN_IN = {
    "karras": lambda s: s ** (1 / 7),
    "exponential": np.log,
    "polyexponential": np.log,
    "normal": lambda s: np.interp(np.log(s), np.log(TABLE.sigmas), np.arange(1000)),
    "kl_optimal": np.arctan,
    "beta": lambda s: scipy.stats.beta.cdf((s - LOW) / (HIGH - LOW), 0.6, 0.6),
}


@pytest.mark.parametrize("a", [0.3, 0.6, 1.0])
def test_beta_quantile_equals_scipy(a: float) -> None:
    p = torch.cat([even(1, 0, 1001), torch.tensor([1e-9, 1 - 1e-9, 0.4999999, 0.5000001], dtype=torch.float64)])
    x, reference = beta_quantile(p, a), torch.from_numpy(scipy.stats.beta.ppf(p.numpy(), a, a))
    assert torch.allclose(x, reference, rtol=1e-12, atol=0)  # 2e-15 measured


@pytest.mark.parametrize("name", EVEN_IN)
def test_each_is_even_in_its_own_measure(name: str) -> None:
    sigmas = SPACINGS[name](TABLE, 40)
    assert torch.allclose(sigmas[[0, -1]], TABLE.sigmas[[-1, 0]], rtol=1e-12)
    places = EVEN_IN[name](sigmas.numpy())
    assert np.allclose(np.diff(places), (places[-1] - places[0]) / 39, rtol=1e-8, atol=0)


def test_polyexponential_bends_with_rho() -> None:
    assert torch.equal(polyexponential(TABLE, 20), SPACINGS["exponential"](TABLE, 20))
    low, high = TABLE.sigmas[[0, -1]].log()
    ways = (polyexponential(TABLE, 20, rho=3.0).log() - low) / (high - low)
    assert np.allclose(np.cbrt(ways), np.linspace(1, 0, 20), rtol=0, atol=1e-5)  # a cube root near 0


@pytest.mark.parametrize(("name", "steps"), BY_HAND)
def test_times_worked_out_by_hand(name: str, steps: int) -> None:
    times = np.array(BY_HAND[name, steps])
    sigmas = np.exp(np.interp(times, np.arange(1000), np.log(TABLE.sigmas.numpy())))
    assert np.allclose(SPACINGS[name](TABLE, steps).numpy(), sigmas, rtol=1e-12, atol=0)
    assert np.allclose(make_plan(TABLE, steps, "euler", name).t, times, rtol=0, atol=1e-8)
    assert np.array_equal(make_plan(TABLE, steps, "dpmpp_2m", name).t, times.round())


def test_which_schedules_equal_each_other() -> None:
    """In what they say of themselves."""
    for n in (n for n in range(1, 1001) if 1000 % n == 0):
        assert torch.equal(make_plan(TABLE, n, "ddim", "simple").t, make_plan(TABLE, n, "ddim", "trailing").t)
    for n in (1, 2, 7, 20, 300, 1000):
        ours, theirs = make_plan(TABLE, n, "euler", "ddim_uniform"), make_plan(TABLE, n, "euler", "leading")
        assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-12, atol=0)
        ours, theirs = make_plan(TABLE, n, "euler", "normal"), make_plan(TABLE, n, "euler", "linspace")
        assert torch.allclose(ours.t, theirs.t, rtol=0, atol=1e-8)
        if n <= 20:  # linear against log: more only where two points lie between the lowest times
            assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=5e-5, atol=0)
    for n in (7, 20):
        more = SPACINGS["normal"](TABLE, n + 1)
        assert torch.equal(SPACINGS["sgm_uniform"](TABLE, n), more[:-1])


@pytest.mark.parametrize(
    ("name", "published"), [("align_your_steps", "StableDiffusion"), ("align_your_steps_sdxl", "StableDiffusionXL")]
)
def test_align_your_steps_is_the_published_table(name: str, published: str) -> None:
    times, rounded = AysSchedules[published + "Timesteps"], AysSchedules[published + "Sigmas"]
    plan = make_plan(TABLE, 10, "dpmpp_2m", name)
    assert plan.t.tolist() == times
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD)
    scheduler.set_timesteps(timesteps=times)
    assert torch.allclose(plan.sigmas, scheduler.sigmas.double(), rtol=FLOAT32, atol=0)
    assert np.allclose(plan.sigmas, rounded, rtol=0.015, atol=0)  # two or three digits; SDXL's 0.113 is 0.1114
    knots = np.log([*plan.sigmas[:-1], TABLE.sigmas[0]])
    for n in (1, 2, 5, 9, 11, 20, 37):
        between = np.exp(np.interp(np.arange(n) / n, np.arange(11) / 10, knots))
        assert np.allclose(SPACINGS[name](TABLE, n), between, rtol=1e-12, atol=0)


def test_align_your_steps_knows_the_model() -> None:
    pair = (TextConfig(), TextConfig(width=1280, heads=20, hidden=5120))
    sdxl = Config("sdxl", pair, UNetConfig(context_dim=2048, vector_dim=2816))
    for config, found in ((Config("sd"), "align_your_steps"), (sdxl, "align_your_steps_sdxl")):
        assert resolve(config, schedule="align_your_steps").schedule == found
        assert resolve(config, schedule="align_your_steps_sdxl").schedule == "align_your_steps_sdxl"


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_n_levels_that_fall_on_any_table(name: str, table: NoiseTable) -> None:
    """Down to the last step a table has room for, whatever is even in what."""
    length = len(table)
    for n in sorted({1, 2, 3, 7, length // 2, length - 1, length} & set(range(1, length + 1))):
        for sampler in ("euler", "dpmpp_2m"):  # a family that takes fractions, and one that does not
            plan = make_plan(table, n, sampler, name)
            assert plan.sigmas.shape == (n + 1,) and plan.sigmas[-1] == 0
            assert (plan.sigmas.diff() < 0).all()
            low, high = table.sigmas[[0, -1]] * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=torch.float64)
            assert low <= plan.sigmas[-2] and plan.sigmas[0] <= high
            seen = plan.sigmas[0] >= high * (1 - 1e-8)
            assert seen or name in ("leading", "lcm", "ddim_uniform"), "the first level is the table's last"


def test_steps_lost_in_noise_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """On a table that ends in no signal; never on another."""
    told = set()
    for name in SCHEDULE_NAMES:
        for n in (1, 2, 3, 12, 20, 50):
            make_plan(TABLE, n, "euler", name)
            assert not caplog.text
            make_plan(ZERO_SNR, n, "euler", name)
            told |= {name for _ in caplog.records}
            caplog.clear()
    assert told == {"karras", "exponential", "polyexponential", "beta"}
    make_plan(ZERO_SNR, 12, "euler", "karras")
    assert "9 of 12 steps of karras see nothing but noise, as this model's table ends in no signal" in caplog.text


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_start_by_name(name: str) -> None:
    """AUTOMATIC1111 starts from sigma whatever the sampler."""
    for sampler in ("euler", "ddim", "dpmpp_2m"):
        plans = {start: make_plan(TABLE, 20, sampler, name, start=start) for start in ("sigma", "total", None)}
        sigma = float(plans[None].sigmas[0])
        assert plans["sigma"].start == sigma and plans["total"].start == pytest.approx(np.hypot(1, sigma), rel=1e-12)
        assert plans[None].start == plans["sigma" if sampler == "euler" and name != "leading" else "total"].start
