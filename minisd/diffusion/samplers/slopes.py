"""One look per step and a memory of slopes: x' = x + the integral over sigma of a polynomial through the last ones.

In: denoise(x, sigma) -> estimate of x0, a start x (b, c, h, w) float32 at plan.sigmas[0], a `Plan`. Out: `Step`s.
slope = (x - denoised) / sigma, which is the noise the model sees (eps). As weights on x and denoised:
x' = euler's x' + sum of w_k * (slope_k - slope), the weights from `lagrange`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ..denoise import Denoise
from ..schedule import Plan
from .step import Noise, Step, has_signal, towards

Weights = Callable[[Tensor, Tensor, Sequence[Tensor]], list[float]]  # sigma, sigma_next, levels -> weights of values


def plms(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None) -> Iterator[Step]:
    """Pseudo linear multistep, second order at one look per step; Liu et al. 2022, https://arxiv.org/abs/2202.09778.

    Euler's step along a mean of the last four slopes, with the Adams-Bashforth weights of evenly spaced times (eq. 12).
    The first step has no past and looks ahead as heun does: n steps take n + 1 looks. For this second look diffusers'
    PNDMScheduler (skip_prk_steps) lists the second time twice; here that is the solver's own matter, and the plan is
    ddim's, each level once. The two agree on `leading`, and on `trailing` where the steps divide the table's length.
    Elsewhere diffusers contradicts itself: other spacings (it leaves x at the level of t - 1000 // n and takes it up
    at the level of the next t), v-prediction (it adds the v of several levels before they become slopes), and img2img
    (it cuts the list of times between the two looks).
    """
    slopes: list[Tensor] = []  # the newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / float(sigma)
        slopes = [slope, *slopes[:3]]
        mean = sum(weight * past for weight, past in zip(ADAMS_BASHFORTH[len(slopes)], slopes, strict=True))
        # Not on to the run's end, where no look follows, and not from "no signal", for heun's reason.
        if i == 0 and len(plan.t) > 1 and has_signal(sigma):
            there = towards(denoised, x, sigma_next / sigma)
            mean = (slope + (there - denoise(there, sigma_next)) / float(sigma_next)) / 2
        x = towards(denoised - float(sigma) * (mean - slope), x, sigma_next / sigma)
        yield Step(i, sigma, x, denoised)


def lms(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, order: int = 4) -> Iterator[Step]:
    """Linear multistep: the polynomial is in sigma (Adams-Bashforth on uneven levels), of k-diffusion's order 4;
    named among the ODE solvers of Karras et al. 2022, https://arxiv.org/abs/2206.00364.
    """
    return by_slopes(denoise, x, plan, in_sigma, lambda i: order)


def deis(denoise: Denoise, x: Tensor, plan: Plan, noise: Noise | None = None, order: int = 2) -> Iterator[Step]:
    """DEIS in log(rho): the polynomial is in log(sigma); Zhang & Chen 2022, https://arxiv.org/abs/2204.13902.

    As in diffusers, runs of fewer than 15 steps end with lower orders, the last step with Euler's.
    """
    n = len(plan.t)
    return by_slopes(denoise, x, plan, in_log_sigma, lambda i: order if n >= 15 else min(order, n - i))


def by_slopes(denoise: Denoise, x: Tensor, plan: Plan, weights: Weights, order: Callable[[int], int]) -> Iterator[Step]:
    """One formula behind two names. order(i): how many slopes step i looks back on."""
    past: list[tuple[Tensor, Tensor]] = []  # level and slope, the newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(plan.sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / float(sigma)
        past = [(sigma, slope), *past][: order(i)]
        _, *others = weights(sigma, sigma_next, [level for level, _ in past])
        x = towards(denoised, x, sigma_next / sigma)
        for weight, (_, older) in zip(others, past[1:], strict=True):
            x = x + weight * (older - slope)
        yield Step(i, sigma, x, denoised)


def in_sigma(sigma: Tensor, sigma_next: Tensor, levels: Sequence[Tensor]) -> list[float]:
    """Weights of the integral over sigma from s to s' of a polynomial in u = level - s."""
    nodes, end = [float(level - sigma) for level in levels], float(sigma_next - sigma)
    return lagrange(nodes, [end ** (k + 1) / (k + 1) for k in range(len(nodes))])


def in_log_sigma(sigma: Tensor, sigma_next: Tensor, levels: Sequence[Tensor]) -> list[float]:
    """Weights of the integral over sigma from s to s' of a polynomial in u = log(level / s).

    By parts: the integral of u^k is s' * log(s' / s)^k - k * that of u^(k - 1); at s' = 0 the first term is 0.
    """
    nodes = [math.log(level / sigma) for level in levels]
    moments = [float(sigma_next - sigma)]
    for k in range(1, len(nodes)):
        end = float(sigma_next * (sigma_next / sigma).log() ** k) if sigma_next > 0 else 0.0
        moments.append(end - k * moments[-1])
    return lagrange(nodes, moments)


def lagrange(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of values at the nodes: the integral of the polynomial through them, given those of 1, u, u^2 ..."""
    weights = []
    for k, node in enumerate(nodes):
        basis = [1.0]  # of the polynomial that is 1 at this node and 0 at the others, the constant first
        for other in (*nodes[:k], *nodes[k + 1 :]):
            shifted = zip([0.0, *basis], [*basis, 0.0], strict=True)
            basis = [(lower - other * same) / (node - other) for lower, same in shifted]
        weights.append(sum(b * moment for b, moment in zip(basis, moments, strict=True)))
    return weights


ADAMS_BASHFORTH = {  # by number of slopes: their weights, the newest first
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
