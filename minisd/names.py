"""The names of what can be chosen, and how a wrong one is refused.

They stand here and not beside the functions they name, so that the command line can check them without torch.
"""

import difflib
from collections.abc import Iterable

SAMPLER_NAMES = (
    *("ddim", "ddpm", "euler", "euler_a", "heun", "restart", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "plms"),
    *("lms", "deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "lcm", "tcd"),
)
SCHEDULE_NAMES = (
    *("linspace", "leading", "trailing", "lcm", "karras", "exponential", "polyexponential", "normal", "sgm_uniform"),
    *("simple", "ddim_uniform", "beta", "kl_optimal", "align_your_steps", "align_your_steps_sdxl"),
)
PREDICTION_NAMES = ("eps", "v", "x0")
NOISE_NAMES = ("linear", "scaled_linear")
ACTIVATION_NAMES = ("quick_gelu", "gelu")


def check(ok: bool, message: str) -> None:
    """Raise ValueError(message) unless `ok`."""
    if not ok:
        raise ValueError(message)


def shown(value: object) -> str:
    """A bad value for a message: as Python writes it, the middle of a long one left out."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-20:]}"


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError that shows the bad value, the nearest choice and all of them."""
    choices = tuple(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    check(value in choices, f"unknown {name} {shown(value)}: {hint}choose from {', '.join(choices)}")
