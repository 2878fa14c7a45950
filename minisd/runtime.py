"""The one device and dtype policy.

In: "auto", or what the user asks for. Out: a `Runtime` with its reason in words.
"""

from dataclasses import dataclass

import torch

from .config import check, one_of

SMALL = 100_000_000  # parameters; below this a CPU gains nothing from bf16


@dataclass(frozen=True)
class Runtime:
    """Where and in which precision the networks run, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def pick(device: str = "auto", dtype: str = "auto", parameters: int = 0) -> Runtime:
    """Choose a device and a dtype.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: "auto", "fp32", "bf16" or "fp16".
        parameters: how large the model is; a small one is fp32 on a CPU.

    Raises:
        ValueError: there is no such device, or it cannot run that dtype.
    """
    one_of("dtype", dtype, DTYPE_NAMES)
    chosen, why = pick_device(device)
    if dtype != "auto":
        cpu_half = chosen.type == "cpu" and dtype == "fp16"
        check(not cpu_half, "dtype fp16 is not for the CPU: choose fp32 or bf16")
        return Runtime(chosen, DTYPES[dtype], f"{chosen} {dtype}: {why}, dtype as asked")
    if chosen.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return Runtime(chosen, DTYPES[name], f"{chosen} {name}: {why}")
    if parameters >= SMALL and cpu_bf16():
        return Runtime(chosen, torch.bfloat16, f"cpu bf16: {why}, a large model and a CPU with bf16")
    kind = "a small model" if parameters < SMALL else "a CPU without fast bf16"
    return Runtime(chosen, torch.float32, f"cpu fp32: {why}, {kind}")


def pick_device(device: str) -> tuple[torch.device, str]:
    """The device and why."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is there"
        return torch.device("cpu"), "no CUDA device"
    kind, _, index = device.partition(":")
    ok = device == "cpu" or (kind == "cuda" and (not index or index.isdecimal()))
    check(ok, f"unknown device {device!r}: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        check(int(index or 0) < count, f"device {device} is not there: torch sees {count} CUDA devices")
    return torch.device(device), "device as asked"


def cpu_bf16() -> bool:
    """The CPU has bf16 arithmetic and gets a small convolution right with it.

    Some builds of torch have returned wrong values here; no timing is taken, so the answer never wavers.
    """
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None) or getattr(torch.cpu, "_is_amx_tile_supported", None)
    if probe is None or not probe():
        return False
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 16, 8, 8, generator=draw), torch.randn(16, 16, 3, 3, generator=draw)
    exact = torch.nn.functional.conv2d(x, w)
    rough = torch.nn.functional.conv2d(x.bfloat16(), w.bfloat16()).float()
    return bool((exact - rough).abs().max() < 0.02 * exact.abs().max())


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = ("auto", *DTYPES)
