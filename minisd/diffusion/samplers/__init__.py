"""Solvers: from noise to a latent, one step after another.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], and a `Plan`.
Out: an iterator of `Step`s. A sampler is a plain generator function; write your own and pass it by itself.
Read them in this order: step, first, second, slopes, estimates, few.
"""

from ...config import one_of
from .estimates import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc
from .few import lcm, tcd
from .first import ddim, ddpm, euler, euler_a
from .second import dpm2, dpm2_a, dpmpp_2s_a, dpmpp_sde, heun, restart
from .slopes import deis, lms, plms
from .step import Noise, Sampler, Step, final

__all__ = ["SAMPLERS", "Noise", "Sampler", "Step", "final", "get_sampler"]


def get_sampler(sampler: str | Sampler) -> Sampler:
    """The sampler of a name; a function is handed back as it is.

    Raises:
        ValueError: no such name; the message lists them.
    """
    if callable(sampler):
        return sampler
    one_of("sampler", sampler, SAMPLERS)
    return SAMPLERS[sampler]


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "restart": restart,
    "dpm2": dpm2,
    "dpm2_a": dpm2_a,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_sde": dpmpp_sde,
    "plms": plms,
    "lms": lms,
    "deis": deis,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "lcm": lcm,
    "tcd": tcd,
}
