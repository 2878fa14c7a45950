"""Many processes that train as one: who has which part of a batch, and what they tell each other.

`torchrun` starts the processes and names them by environment variables; without it there is one, and every function
here returns what it was given. The run folder must be one that all of them see; only the chief writes to it.
Averaged gradients: Li et al. 2020, https://arxiv.org/abs/2006.15704
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=6)  # the others wait so long for one that saves, draws a grid or learns a tokenizer


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes of this job, if there are any, and leave them again."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if not alone:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        if not alone:
            dist.destroy_process_group()


def count() -> int:
    """How many processes train as one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def chief() -> bool:
    """This is the process that writes and prints."""
    return rank() == 0


def wait() -> None:
    """Go on when all processes are here: what the chief wrote before is there for everyone after."""
    together(False)


def together(flag: bool) -> bool:
    """True on all processes where it is true on any."""
    if count() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    answer = torch.tensor(int(flag), device=device)
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer.item())


def average(x: Tensor) -> None:
    """Put the mean over all processes into x."""
    if count() > 1:
        dist.all_reduce(x)
        x /= count()


def part(batch: int) -> slice:
    """This process's part of a batch.

    Raises:
        ValueError: the batch cannot be shared evenly.
    """
    if batch % count():
        raise ValueError(f"a batch of {batch} cannot be shared by {count()} processes: choose a multiple of {count()}")
    share = batch // count()
    return slice(rank() * share, (rank() + 1) * share)


def share(items: Sequence) -> list:
    """This process's part of some items; every part has the same length, so the last item may be there more often."""
    size = -(-len(items) // count())
    return [items[min(rank() * size + i, len(items) - 1)] for i in range(size)]


def gather(x: Tensor) -> Tensor:
    """All processes' x (n, ...), one after another (count * n, ...). The gradient finds its way back."""
    return Gather.apply(x) if count() > 1 else x


class Gather(torch.autograd.Function):
    """Every process has its own loss on what all gave: the gradient of what one gave is the sum of theirs."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(count())[rank()]
