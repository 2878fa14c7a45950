"""Whole runs of one sampler: ours, and diffusers' on its own levels or on ours.

The network is a small random one, not linear in x and quick in t (one step of the table changes its answer),
so that a wrong level, time, start or weight shows. Both sides get the same network and the same noise.
"""

from collections.abc import Callable
from itertools import pairwise

import diffusers
import torch
import torch.nn.functional as F
from einops import rearrange
from test_schedule import SCHEDULERS
from torch import Tensor

from minisd.diffusion.denoise import denoiser
from minisd.diffusion.samplers import SAMPLERS, final
from minisd.diffusion.schedule import NoiseTable, Plan
from minisd.nn.blocks import sinusoids

KINDS = {"eps": "epsilon", "v": "v_prediction"}
VP = (  # the classes whose x is ours / sqrt(1 + sigma ** 2)
    *(diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.PNDMScheduler, diffusers.LCMScheduler),
    *(diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler, diffusers.DEISMultistepScheduler),
    *(diffusers.TCDScheduler, diffusers.DPMSolverSinglestepScheduler),
)
DRAWING = (  # the classes that draw from a generator they are handed
    *(diffusers.DDPMScheduler, diffusers.EulerAncestralDiscreteScheduler, diffusers.LCMScheduler),
    *(diffusers.KDPM2AncestralDiscreteScheduler, diffusers.TCDScheduler),
)

GENERATOR = torch.Generator().manual_seed(0)
CONV_IN = torch.randn(16, 4, 3, 3, generator=GENERATOR) / 6
TIME = torch.randn(16, 16, generator=GENERATOR) / 4
CONV_OUT = torch.randn(4, 16, 3, 3, generator=GENERATOR) / 8
LATENTS = torch.randn(2, 4, 8, 8, generator=GENERATOR)


def network(x: Tensor, t: Tensor) -> Tensor:
    """F (b, 4, h, w) of x (b, 4, h, w) and t (b,)."""
    temb = rearrange(sinusoids(t, 16) @ TIME, "b c -> b c 1 1")
    return F.conv2d(F.silu(F.conv2d(x, CONV_IN, padding=1) + temb), CONV_OUT, padding=1)


def draws(seed: int = 5) -> Callable[..., Tensor]:
    """The same noise for both sides, one draw after another."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *levels: torch.randn(LATENTS.shape, generator=generator)


def ours(sampler: str, plan: Plan, kind: str, latents: Tensor = LATENTS, **options: float) -> Tensor:
    """The final latent of a run."""
    denoise = denoiser(network, plan, kind)
    *_, step = SAMPLERS[sampler](denoise, latents * plan.start, plan, draws(), **options)
    return final(step.x, plan)


def run(
    scheduler: diffusers.SchedulerMixin,
    follow: bool = False,
    start: Tensor | None = None,
    told: Callable[[Tensor], Tensor] = lambda t: t,
    **options: object,
) -> Tensor:
    """diffusers' final x.

    Args:
        follow: hand its DDIM or PNDM the true distance to the next time.
        start: x to start from; None: LATENTS as its class scales them.
        told: what the network is told of one of its times.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as its SDXL pipeline does: else it skips a first time that comes twice
    x = LATENTS * scheduler.init_noise_sigma if start is None else start
    noise, times, distance = draws(), scheduler.timesteps, 0
    if isinstance(scheduler, DRAWING) or str(scheduler.config.get("algorithm_type")).startswith("sde"):
        options["generator"] = torch.Generator().manual_seed(5)  # draws the same
    if isinstance(scheduler, diffusers.TCDScheduler):
        options.setdefault("eta", 0.3)  # which its pipeline would not
    if isinstance(scheduler, diffusers.DPMSolverSDEScheduler):
        scheduler.noise_sampler = noise  # in place of a Brownian tree
    for t, t_next in zip(times, [*times[1:], -1], strict=True):
        distance = int(t - t_next) or distance  # PNDM's second look comes to one time twice
        f = network(scheduler.scale_model_input(x, t).float(), told(t).float().expand(len(x)))
        if follow:
            scheduler.register_to_config(num_train_timesteps=distance)
            scheduler.num_inference_steps = 1
        if isinstance(scheduler, diffusers.DDIMScheduler) and "eta" in options:
            options["variance_noise"] = noise()
        x = scheduler.step(f, t, x, **options).prev_sample
    return x.float()


def on_table(scheduler: diffusers.SchedulerMixin, table: NoiseTable, last: float | None = None) -> object:
    """Put our float64 table under diffusers' arithmetic; `last` is the alpha_bar to end with."""
    alpha_bar, n = 1 / (1 + table.sigmas**2), scheduler.num_inference_steps
    alpha_bar[-1] = alpha_bar[-1] if last is None else last
    scheduler.alphas_cumprod = alpha_bar
    if isinstance(scheduler, diffusers.DDIMScheduler | diffusers.PNDMScheduler):
        scheduler.final_alpha_cumprod = alpha_bar[0]
    times = {"timesteps": scheduler.timesteps.tolist()} if getattr(scheduler, "custom_timesteps", False) else {}
    scheduler.set_timesteps(**times or {"num_inference_steps": n})
    return scheduler


def on_levels(sampler: str, plan: Plan, kind: str, **options: float) -> Tensor:
    """diffusers' final latent over the plan's own levels, whatever schedule made them.

    Its class is given a noise table that holds these levels and nothing else, so that each of them is one whole time;
    the network is told the plan's. Of TCD the table begins with the last level, its time 0.
    """
    kind_of, fields = SCHEDULERS[sampler]
    n, last = len(plan.t), plan.sigmas[-1]
    first = [last[None]] if sampler == "tcd" else []
    table = NoiseTable(torch.cat([*first, plan.sigmas[:-1].flip(0)]))
    told = {"num_train_timesteps": len(table), "prediction_type": KINDS[kind], "timestep_spacing": "trailing"}
    scheduler = kind_of(**fields, **told, **({"original_inference_steps": n} if sampler in ("lcm", "tcd") else {}))
    scheduler.alphas_cumprod = 1 / (1 + table.sigmas**2)
    if sampler in ("ddim", "plms"):
        scheduler.final_alpha_cumprod = 1 / (1 + last**2)
    times = {"timesteps": [*range(len(table))][: -n - 1 : -1]} if sampler in ("lcm", "tcd") else {}
    scheduler.set_timesteps(**times or {"num_inference_steps": n})
    if sampler == "deis":
        scheduler.sigmas = plan.sigmas  # in float64, and with our last

    def time(t: Tensor) -> Tensor:
        """The plan's time of one of these; its levels come back from float32."""
        sigma = table.sigma(t)
        own = plan.sigmas[:-1].isclose(sigma, rtol=1e-5, atol=0).nonzero()
        return plan.t[own[0, 0]] if len(own) else plan.time(sigma)

    if sampler == "lcm":
        bend = scheduler.get_scalings_for_boundary_condition_discrete
        scheduler.get_scalings_for_boundary_condition_discrete = lambda t: bend(float(time(t)))
    vp = isinstance(scheduler, VP)
    away = float((1 + plan.sigmas[0] ** 2).sqrt()) if vp else 1.0
    # Its updates lose digits in float32, most from sigma 2 ** 20. LCM draws in the dtype of x.
    start = LATENTS.to(torch.float32 if sampler == "lcm" else torch.float64) * plan.start / away
    x = run(scheduler, start=start, told=time, **options)
    return x if vp else final(x, plan)


def single_steps(sampler: str, plan: Plan, kind: str, eta: float = 1.0) -> Tensor:
    """dpmpp_2s_a by diffusers' DPMSolverSinglestepScheduler: one run of it for each step down, over the level midway;
    the way up with the std of DDIM's eq. 16.
    """
    x, noise = LATENTS * plan.start, draws()
    for sigma, sigma_next in pairwise(plan.sigmas):
        up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
        down = (sigma_next**2 - up**2).sqrt()
        scheduler = diffusers.DPMSolverSinglestepScheduler(prediction_type=KINDS[kind])
        scheduler.set_timesteps(2)
        levels = [sigma, (sigma * down).sqrt()] if sigma_next > 0 else [sigma]
        scheduler.sigmas, scheduler.order_list = torch.stack([*levels, down]).float(), [1, 2]
        scheduler.timesteps = torch.arange(len(levels))
        away, home = (float((1 + level**2).sqrt()) for level in (sigma, down))
        there = run(scheduler, start=x / away, told=lambda t, levels=levels: plan.time(levels[int(t)]))
        x = there * home + (float(up) * noise() if up > 0 else 0.0)
    return final(x, plan)


def three_estimates(plan: Plan, kind: str) -> tuple[Tensor, Tensor]:
    """dpmpp_3m_sde, no noise and no guard, at the plan's last level above 0: ours, and by diffusers' UniPC-3 predictor.

    That one solves a linear system for the weights of its third order. Its first two steps differ: they are ours.
    """
    n = len(plan.t)
    steps = list(
        SAMPLERS["dpmpp_3m_sde"](denoiser(network, plan, kind), LATENTS * plan.start, plan, eta=0.0, guard=False)
    )
    told = {"prediction_type": KINDS[kind], "solver_order": 3, "lower_order_final": False}
    scheduler = diffusers.UniPCMultistepScheduler(**told, disable_corrector=[*range(n)])
    scheduler.set_timesteps(n)
    scheduler.sigmas, scheduler.lower_order_nums, scheduler._step_index = plan.sigmas, 2, 2
    scheduler.model_outputs = [steps[0].denoised, *(step.denoised for step in steps[:2])]  # the first is pushed out
    scale = (1 + plan.sigmas**2).rsqrt().tolist()
    x = steps[1].x * scale[2]
    for i in range(2, n - 1):
        x = scheduler.step(network(x, plan.t[i].float().expand(len(x))), i, x).prev_sample
    return steps[n - 2].x * scale[n - 1], x
