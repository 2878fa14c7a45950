"""The sampler plms against diffusers' PNDMScheduler, and the places where that one contradicts itself."""

from collections.abc import Sequence
from dataclasses import replace

import diffusers
import pytest
import torch
from oracles import deviation
from sampler_runs import LATENTS, network, ours
from test_samplers import OWN
from test_schedule import SD, TABLE
from torch import Tensor

from minisd.diffusion.denoise import denoiser
from minisd.diffusion.samplers import SAMPLERS
from minisd.diffusion.schedule import make_plan


def pndm(n: int, **changes: object) -> diffusers.PNDMScheduler:
    """diffusers' scheduler as SD 1.x folders have it, its times set."""
    scheduler = diffusers.PNDMScheduler(**{**SD, "skip_prk_steps": True, **changes})
    scheduler.set_timesteps(n)
    return scheduler


def run(scheduler: diffusers.PNDMScheduler, times: Sequence[int], v: bool = False) -> Tensor:
    """diffusers' final latent over these times. `v`: the network's v, made eps at the level it was seen at."""
    x = LATENTS
    for t in times:
        f = network(x, torch.full((len(x),), float(t)))
        alpha_bar = scheduler.alphas_cumprod[t]
        x = scheduler.step(alpha_bar**0.5 * f + (1 - alpha_bar) ** 0.5 * x if v else f, t, x).prev_sample
    return x


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_leading_equals_diffusers(offset: int, to_zero: bool) -> None:
    for n in (1, 2, 3, 4, 5, 11, 20, 50):
        scheduler = pndm(n, steps_offset=offset, set_alpha_to_one=to_zero)
        plan = make_plan(TABLE, n, "plms", "leading", offset, final_table_sigma=not to_zero)
        assert deviation(ours("plms", plan, "eps"), run(scheduler, scheduler.timesteps)) < OWN, n


def test_the_second_time_is_looked_at_twice() -> None:
    plan, asked = make_plan(TABLE, 20, "plms", "leading"), []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return network(x, t)

    assert len(list(SAMPLERS["plms"](denoiser(watched, plan, "eps"), LATENTS * plan.start, plan))) == 20
    assert asked == pndm(20).timesteps.tolist()
    assert asked[:4] == [951, 901, 901, 851] and len(asked) == 21


@pytest.mark.parametrize("n", [5, 10, 20])
def test_v_prediction_is_eps_of_each_look(n: int) -> None:
    """diffusers adds the v of up to four levels, then makes eps of the sum with the x and the level of one."""
    result = ours("plms", make_plan(TABLE, n, "plms", "leading"), "v")
    assert deviation(result, run(pndm(n), pndm(n).timesteps, v=True)) < OWN
    mixed = pndm(n, prediction_type="v_prediction")
    assert deviation(result, run(mixed, mixed.timesteps)) > 5e-2


def test_a_tail_is_a_run_of_its_own() -> None:
    """img2img. diffusers cuts its list after the repeated time, and takes the next one for the second look."""
    n, steps = 20, 12
    tail = make_plan(TABLE, n, "plms", "leading").tail(steps)
    result = ours("plms", replace(tail, start=float((1 + tail.sigmas[0] ** 2).sqrt())), "eps")
    times = [int(t) for t in tail.t]
    assert deviation(result, run(pndm(n), [*times[:2], *times[1:]])) < OWN
    cut = pndm(n).timesteps[n - steps :].tolist()
    assert cut == [times[0] + 1000 // n, *times] and deviation(result, run(pndm(n), cut)) > 1e-2
