"""What moves the weights: AdamW or Muon, the learning rate over the steps, and the average that is drawn from.

In: parameters with gradients. Out: their new values, in place; the state by the parameters' own names.
AdamW: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; Muon: Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; power-function EMA: Karras et al. 2024, https://arxiv.org/abs/2312.02696
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from .recipe import StageRecipe

MOMENTUM = 0.95  # of Muon
THIN = 16  # a matrix with a side shorter than this has no spectrum worth evening out: AdamW takes it


def flat_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """One tensor (all,) for every gradient: the `grad` of each parameter is made a view of it, in the parameter's own
    layout. What many processes have to agree on is then one message, and no gradient is copied."""
    parameters = list(parameters)
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].as_strided(p.shape, p.stride())
        start += p.numel()
    return flat


def schedule(step: int, recipe: StageRecipe) -> float:
    """Learning rate at a step, as a part of the full one: linear warm-up, flat, linear decay to 0."""
    tail = recipe.decay * recipe.steps
    return min((step + 1) / max(recipe.warmup, 1), 1.0, (recipe.steps - step) / tail if tail else 1.0)


class Muon(torch.optim.Optimizer):
    """Momentum, each step of which is a matrix with all singular values near 1, scaled to the size of AdamW's steps.

    In bf16 it is torch's own, which knows nothing else. In fp32 rounding stays rounding: in bf16 that of fp32
    gradients, another one when processes share a batch, came to 1e-4 of the loss within 50 steps.
    """

    def __init__(self, params: list[dict], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                memory = state["momentum_buffer"]
                memory.lerp_(p.grad, 1 - MOMENTUM)
                direction = evened(p.grad.lerp(memory, MOMENTUM).to(self.dtype))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"] * (0.2 * math.sqrt(max(p.shape))))


def evened(x: Tensor) -> Tensor:
    """A matrix with the singular vectors of x, which is overwritten, and singular values of 0.7 to 1.2: five steps of
    Newton and Schulz, by a polynomial that is steep at 0."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide.div_(wide.norm().clamp(min=1e-7))
    a, b, c = 3.4445, -4.775, 2.0315
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Optimizer:
    """AdamW for all parameters, or Muon for the matrices of linear layers and convolutions and AdamW for the rest.

    Muon evens out the spectrum of a matrix's step, so it works on matrices alone: a convolution's weight is one of
    (out, everything else), a view of the same memory. One learning rate fits both.
    """

    def __init__(self, groups: list[dict], named: dict[str, nn.Parameter], module: nn.Module, recipe: StageRecipe):
        names = {p: name for name, p in named.items()}
        layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        weights = {layer.weight for layer in layers} if recipe.optimizer == "muon" else set()
        chosen = {p: m for p in weights if p in names and min((m := matrix(p)).shape) >= THIN}
        rest = [g | {"params": [p for p in g["params"] if p not in chosen]} for g in groups]
        decay = recipe.weight_decay
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=decay, fused=True)
        ]
        if chosen:
            matrices = [g | {"params": [chosen[p] for p in g["params"] if p in chosen]} for g in groups]
            dtype = torch.bfloat16 if recipe.autocast else torch.float32
            self.parts.append(Muon([g for g in matrices if g["params"]], recipe.lr, decay, dtype))
        # name -> its optimizer, and the parameter as that one knows it
        self.known = {name: (self.parts[p in chosen], chosen.get(p, p)) for p, name in names.items()}

    def step(self, rate: float) -> None:
        """Move all parameters along their gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["scale"]
            part.step()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Everything it remembers, as (kind.name of the parameter, tensor)."""
        for name, (part, p) in self.known.items():
            for kind, tensor in part.state.get(p, {}).items():
                yield f"{kind}.{name}", tensor

    def load(self, kind: str, name: str, tensor: Tensor) -> None:
        """Remember what `state` told. The fused step walks through memory: a moment must lie as its parameter does."""
        part, p = self.known[name]
        same = tensor.shape == p.shape and tensor.dim() > 0
        part.state[p][kind] = torch.empty_like(p).copy_(tensor) if same else tensor.to(p.device)


def matrix(p: nn.Parameter) -> nn.Parameter:
    """A weight and its gradient as (out, rest), in the memory they lie in: a step on it moves the weight."""

    def view(t: Tensor) -> Tensor:
        # channels_last keeps the channels innermost. `view` refuses where it would have to copy.
        return (t if t.is_contiguous() else t.permute(0, 2, 3, 1)).view(len(t), -1)

    flat = nn.Parameter(view(p.detach()))
    flat.grad = view(p.grad)
    return flat


@cache
def exponent(width: float) -> float:
    """gamma of the power-function average whose weights over the training so far, t ** gamma on 0..1, have `width` as
    their standard deviation (the paper's sigma_rel): (g + 1) / ((g + 2)² (g + 3)) = width²."""
    inverse = float(width) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update_ema(ema: dict[str, Tensor], named: dict[str, nn.Parameter], step: int, gamma: float) -> None:
    """One step of the power-function average; at the first step it is the weights themselves."""
    keep = (1 - 1 / (step + 1)) ** (gamma + 1)
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in named.values()], 1 - keep)
