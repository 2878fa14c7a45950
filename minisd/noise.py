"""The noise of each image: every draw from the image's own seed, on the CPU, whatever stands beside it.

In: seeds, one per image, and the latents' shape (c, h, w). Out: unit-variance noise (b, c, h, w) float32 on the device,
the same on every device. `ImageNoise` draws afresh each time. `Brownian` reads one path per image, for samplers whose
intervals lie inside each other: the virtual Brownian tree of Li et al. 2020, https://arxiv.org/abs/2001.01328
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

RANGE = 32.0  # a path covers the levels 2 ** -32 to 2 ** 32
DEPTH = 18  # halvings of that range: levels more than 0.02 % apart are told apart


class ImageNoise:
    """Every draw of a batch, each image from its own CPU generator: image i never feels its neighbours.

    Call it as a sampler does, `noise(sigma, sigma_next)`: unit-variance noise (b, c, h, w) on the device.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.seeds, self.shape, self.device = list(seeds), shape, device
        self.generators = [torch.Generator().manual_seed(signed(seed)) for seed in seeds]

    def __call__(self, sigma: Tensor | None = None, sigma_next: Tensor | None = None) -> Tensor:
        return self.draw().to(self.device)

    def draw(self) -> Tensor:
        """The next draw, still on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=g, dtype=torch.float32) for g in self.generators])


class Brownian:
    """One Brownian path W per image, from its seed; `noise(sigma, sigma_next)` is its increment there, at variance 1.

    An interval's parts add up to it, intervals that share no part are independent, and neither
    the number of steps nor the order of the questions changes W. Its clock is 1 / sigma ** 2, that of ddpm's own noise:
    a step of `ancestral` at eta 1 is (x' - d) / s' ** 2 = (x - d) / s ** 2 + W(s') - W(s), so where the estimate d
    stays the same, two steps end where one does.
    W is nowhere stored: the range of log2(sigma) is halved down to a level, W bridged at each half with noise keyed by
    seed and half. Back up in noise, W has no answer: the draw is fresh, and a new path begins.
    """

    def __init__(self, noise: ImageNoise) -> None:
        self.noise, self.path = noise, 0
        self.value = lru_cache(maxsize=4)(self.walk)  # the next step starts where this one ends

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        here, there = place(sigma), place(sigma_next)
        if leaf(there) <= leaf(here):  # up, or less far down than the tree tells apart
            self.path += 1
            return self.noise()
        increment = self.value(self.path, there) - self.value(self.path, here)
        return (increment / math.sqrt(clock(there) - clock(here))).to(self.noise.device)

    def walk(self, path: int, at: float) -> Tensor:
        """W (b, c, h, w) at a place, on the CPU; 0 where the range starts."""
        low, high, node = -RANGE, RANGE, 1
        left, right = torch.zeros(()), self.draw(path, 0) * math.sqrt(clock(high) - clock(low))
        for _ in range(DEPTH):
            middle = (low + high) / 2
            value = bridge(low, middle, high, left, right, self.draw(path, node))
            if at < middle:
                high, right, node = middle, value, 2 * node
            else:
                low, left, node = middle, value, 2 * node + 1
        return bridge(low, at, high, left, right, self.draw(path, node))

    def draw(self, path: int, node: int) -> Tensor:
        """Each image's own noise (b, c, h, w) for one node of its tree."""
        draws = []
        for seed in self.noise.seeds:
            key = hashlib.blake2b(f"{seed} {path} {node}".encode(), digest_size=4).digest()  # torch reads 32 bits
            generator = torch.Generator().manual_seed(int.from_bytes(key))
            draws.append(torch.randn(self.noise.shape, generator=generator, dtype=torch.float32))
        return torch.stack(draws)


def place(sigma: Tensor) -> float:
    """Where a level lies in the tree: -log2(sigma), so that it rises with the clock."""
    return min(max(-math.log2(max(float(sigma), 2.0**-RANGE)), -RANGE), RANGE)


def leaf(at: float) -> int:
    """Number of the tree's smallest part in which a place lies."""
    return math.floor((at + RANGE) / (2 * RANGE) * 2**DEPTH)


def clock(at: float) -> float:
    """1 / sigma ** 2 at a place."""
    return 4.0**at


def bridge(low: float, at: float, high: float, left: Tensor, right: Tensor, noise: Tensor) -> Tensor:
    """W between two places where it is known: on the line between them, and off it by a Brownian bridge's variance."""
    before, after = clock(at) - clock(low), clock(high) - clock(at)
    whole = before + after
    return left + (right - left) * (before / whole) + noise * math.sqrt(before / whole * after)


def toward(noise: Tensor, other: Tensor, strength: float) -> Tensor:
    """From noise (b, c, h, w) to other noise along the arc between them: at strength 0 the one, at 1 the other.

    On the arc (slerp; Shoemake 1985, https://doi.org/10.1145/325165.325242) noise keeps its length and so its variance,
    which half-way on the straight line is half. The angle is that of the whole image; AUTOMATIC1111 takes one per
    column of latents, so between the ends its noise differs by some percent.
    """
    return torch.stack([slerp(a, b, strength) for a, b in zip(noise.double(), other.double(), strict=True)]).float()


def slerp(a: Tensor, b: Tensor, part: float) -> Tensor:
    """From a (part 0) to b (part 1) with even steps of the angle between them."""
    cosine = ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)
    angle = float(cosine.acos().clamp(min=1e-6))  # the same noise twice: there the arc is the line
    return (math.sin((1 - part) * angle) * a + math.sin(part * angle) * b) / math.sin(angle)


def signed(seed: int) -> int:
    """A seed of 64 bits as torch takes it."""
    return seed - 2**64 if seed >= 2**63 else seed
