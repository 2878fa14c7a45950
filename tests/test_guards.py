"""When numbers overflow or memory runs out: the stage and the seeds are named, and the pictures stay the same."""

import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import TINY, close
from torch import Tensor, nn

import minisd
from minisd import guards
from minisd.cli import main
from minisd.config import Config
from minisd.diffusion.denoise import Denoise
from minisd.diffusion.samplers import Step
from minisd.diffusion.schedule import Plan
from minisd.nn.tiling import decode_tiled
from minisd.nn.unet import UNet
from minisd.nn.vae import VAE
from minisd.pipeline import Model
from minisd.runtime import Runtime
from minisd.weights.diffusers import vae_config
from minisd.weights.folder import modules, place
from minisd.weights.foreign import Fields

PROMPT = "a red circle"
CUDA_SAYS = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_SAYS = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture
def model(tiny_model: Path) -> Model:
    """One of its own for each test: tests break it."""
    return minisd.load(tiny_model, device="cpu")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "minisd")
    return caplog


def latent(model: Model, **options: object) -> Tensor:
    return minisd.generate(model, PROMPT, output="latent", **options)


def tensor(model: Model, **options: object) -> Tensor:
    return minisd.generate(model, PROMPT, output="tensor", **options)


def fits(monkeypatch: pytest.MonkeyPatch, error: Exception, largest: int, kind: type[nn.Module], method: str) -> list:
    """Let a method of a network raise `error` for more than `largest` images; returns the batches it was given."""
    true, seen = getattr(kind, method), []

    def limited(self: nn.Module, x: Tensor, *rest: object) -> Tensor:
        seen.append(len(x))
        if len(x) > largest:
            raise error
        return true(self, x, *rest)

    monkeypatch.setattr(kind, method, limited)
    return seen


def half_vae(gain: float) -> VAE:
    """A VAE in fp16 whose decoder multiplies its latents by `gain` before the first norm takes that out again."""
    torch.manual_seed(3)
    vae = VAE(TINY["sd1"].vae).requires_grad_(False)
    vae.decoder.conv_in.weight *= gain
    return vae.to(torch.float16)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one)


def test_a_decode_that_overflows_in_fp16_is_done_again_in_fp32(log: pytest.LogCaptureFixture) -> None:
    """Only where it overflows: the first image is the one it would be alone. The weights come back bit for bit."""
    vae = half_vae(gain=8)
    before, z = state(vae), torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    z[1] *= 20_000
    assert vae.decode(z[:1]).isfinite().all() and not vae.decode(z[1:]).isfinite().any()
    pixels = guards.decode(vae, z, "auto", [7, 8])
    assert same(state(vae), before)
    assert log.messages == ["the VAE gave numbers that are not finite (seeds 8): decoding again in fp32"]
    assert torch.equal(pixels[:1], vae.decode(z[:1]).float())
    assert torch.equal(pixels[1:], vae.float().decode(z[1:]))
    assert pixels.isfinite().all() and pixels[1].std() > 0.01


def test_the_second_decode_may_need_tiles_too(monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    vae = half_vae(gain=8)
    z = 20_000 * torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    exact = half_vae(gain=8).float().decode(z)
    true = VAE.decode

    def only_half(self: VAE, z: Tensor) -> Tensor:
        if self.quant.weight.dtype == torch.float32:
            raise CUDA_SAYS
        return true(self, z)

    monkeypatch.setattr(VAE, "decode", only_half)
    assert close(guards.decode(vae, z, "auto", [0]), exact)
    assert [message.split(": ")[-1] for message in log.messages] == ["decoding again in fp32", "decoding in tiles"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_decode_that_stays_broken_is_refused(dtype: torch.dtype, log: pytest.LogCaptureFixture) -> None:
    vae = half_vae(gain=1).to(dtype)
    vae.post_quant.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the VAE .* not finite \(seeds 3, 4\)"):
        guards.decode(vae, torch.zeros(2, 4, 4, 4), "auto", [3, 4])
    assert {p.dtype for p in vae.parameters()} == {dtype}
    assert len(log.messages) == (dtype != torch.float32)


def test_the_retry_gives_the_picture_of_a_model_in_fp32(model: Model, log: pytest.LogCaptureFixture) -> None:
    """The whole path: a VAE in bf16 that breaks once, as by a monkey."""
    model.vae.to(torch.bfloat16)
    true = model.vae.decode
    model.vae.decode = lambda z: true(z) * (torch.nan if model.vae.quant.weight.dtype != torch.float32 else 1)
    (picture,) = minisd.generate(model, PROMPT, seed=2)
    assert len(set(picture.getdata())) > 100  # not black
    assert "seeds 2): decoding again in fp32" in log.text
    assert model.vae.quant.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("part", "stage"), [("text", "the text encoder"), ("unet", "the UNet"), ("vae", "the VAE")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_weights_are_found_in_their_stage(model: Model, part: str, stage: str, value: float) -> None:
    last = {"text": model.text[0].final_norm, "unet": model.unet.conv_in, "vae": model.vae.decoder.conv_out}[part]
    last.bias[0] = value
    with pytest.raises(FloatingPointError, match=rf"^{stage} gave numbers that are not finite \(seeds 6\)"):
        minisd.generate(model, PROMPT, seed=6)


def test_only_the_seeds_that_break_are_named(model: Model) -> None:
    def breaking(denoise: Denoise, x: Tensor, plan: Plan, noise: object = None) -> Iterator[Step]:
        x[1, 0, 0, 0], x[3] = torch.inf, torch.nan
        yield Step(0, plan.sigmas[0], x, x)

    with pytest.raises(FloatingPointError, match=r"^the UNet .* \(seeds 11, 13\)"):
        tensor(model, num_images=4, batch_size=4, seed=10, sampler=breaking)


def test_a_step_that_breaks_is_found_at_the_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = UNet.forward, []

    def breaks(self: UNet, x: Tensor, *rest: object) -> Tensor:
        calls.append(None)
        return true(self, x, *rest) * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(UNet, "forward", breaks)
    with pytest.raises(FloatingPointError, match="the UNet"):
        latent(model)


@pytest.mark.parametrize("error", [CUDA_SAYS, CPU_SAYS, MemoryError()], ids=["cuda", "cpu", "python"])
def test_sampling_falls_back_to_half_the_batch(
    model: Model, error: Exception, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Stochastic noise too is each image's own: the pictures are those of a small batch, bit for bit."""
    options = {"num_images": 7, "seed": 3, "sampler": "euler_a"}
    wanted = latent(model, batch_size=2, **options)
    seen = fits(monkeypatch, error, 4, UNet, "forward")  # guidance doubles what the UNet sees
    assert torch.equal(latent(model, batch_size=4, **options), wanted)
    assert seen == [8] + [4] * 4 * 3 + [2] * 4  # refused once, then 2 + 2 + 2 + 1 images
    assert log.messages == [
        "out of memory while drawing with 4 images at a time: going on with 2",
    ]


def test_the_bar_ends_full_after_a_batch_that_did_not_fit(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    true, calls = UNet.forward, []

    def third_fails(self: UNet, x: Tensor, *rest: object) -> Tensor:
        calls.append(None)
        if len(calls) == 3:
            raise CUDA_SAYS
        return true(self, x, *rest)

    monkeypatch.setattr(UNet, "forward", third_fails)
    latent(model, num_images=3, batch_size=2, progress=True)
    assert "12/12" in capsys.readouterr().err  # 3 images of 4 steps


def test_one_image_that_does_not_fit_is_one_clear_error(
    model: Model, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    seen = fits(monkeypatch, CPU_SAYS, 0, UNet, "forward")
    with pytest.raises(torch.OutOfMemoryError, match="one image at a time: try a smaller width and height"):
        latent(model, num_images=5, batch_size=5)
    assert seen == [10, 4, 2]
    assert [message[-7:] for message in log.messages] == [" with 2", " with 1"]


def test_the_command_line_says_out_of_memory_in_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fits(monkeypatch, CUDA_SAYS, 0, UNet, "forward")
    assert main(["generate", "x", "-q", "--seed", "1", "--model", str(tiny_model), "-o", "a.png"]) == 1
    assert "out of memory" in capsys.readouterr().err.splitlines()[1]
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_takes_the_option(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiled = []
    monkeypatch.setattr(guards, "decode_tiled", lambda vae, z, pixels: tiled.append(pixels) or vae.decode(z))
    argv = ["generate", "x", "-q", "--seed", "1", "--model", str(tiny_model), "--vae-tiling"]
    assert main([*argv, "on", "-o", "a.png"]) == 0 and len(tiled) == 1
    assert main([*argv, "off", "-o", "b.png"]) == 0 and len(tiled) == 1
    assert main([*argv, "of", "-o", "c.png"]) == 2
    assert "did you mean off?; choose from auto, on, off" in capsys.readouterr().err


def test_other_errors_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fits(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 0, UNet, "forward")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        latent(model, num_images=2, batch_size=2)
    assert seen == [4]


def test_what_a_failed_attempt_held_is_let_go() -> None:
    """Else the second attempt would have less memory than the first."""
    held = []

    def work() -> Tensor:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise CUDA_SAYS

    CUDA_SAYS.__traceback__ = None
    assert guards.attempt(work) is None
    CUDA_SAYS.__traceback__ = None  # this one is kept by the test itself
    assert held[0]() is None


@pytest.mark.parametrize("error", [CUDA_SAYS, CPU_SAYS], ids=["cuda", "cpu"])
def test_decoding_falls_back_to_tiles(
    model: Model, error: Exception, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    wanted = tensor(model, seed=4)
    fits(monkeypatch, error, 0, VAE, "decode")
    assert close(tensor(model, seed=4), wanted)
    assert log.messages == ["out of memory in the VAE: decoding in tiles"]


def test_then_to_fewer_images(model: Model, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    options = {"seed": 4, "num_images": 5, "batch_size": 5}
    wanted, seen = tensor(model, **options), []
    fits(monkeypatch, CUDA_SAYS, 0, VAE, "decode")

    def limited(vae: VAE, z: Tensor, pixels: int) -> Tensor:
        seen.append((len(z), pixels))
        if len(z) > 1:
            raise CUDA_SAYS
        return decode_tiled(vae, z, pixels)

    monkeypatch.setattr(guards, "decode_tiled", limited)
    assert close(tensor(model, **options), wanted)
    assert seen == [(n, 64 * 64 // 4) for n in (5, 2, 1, 1, 2, 1, 1, 1)]
    assert log.messages[:2] == [
        "out of memory in the VAE: decoding in tiles",
        "out of memory in the VAE with 5 images at a time: going on with 2",
    ]


def test_off_never_tiles(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"seed": 4, "num_images": 3, "batch_size": 3, "vae_tiling": "off"}
    monkeypatch.setattr(guards, "decode_tiled", lambda *_: pytest.fail("tiled"))
    wanted = tensor(model, **options)
    fits(monkeypatch, CUDA_SAYS, 1, VAE, "decode")
    assert close(tensor(model, **options), wanted)
    fits(monkeypatch, CUDA_SAYS, 0, VAE, "decode")
    with pytest.raises(torch.OutOfMemoryError, match="in the VAE with one image at a time: try vae_tiling auto"):
        tensor(model, **options)


@pytest.mark.parametrize(
    ("dtype", "force", "wanted"),
    [
        (torch.float16, True, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, False, torch.float32),
    ],
)
def test_force_upcast_keeps_the_vae_in_fp32_beside_fp16(dtype: torch.dtype, force: bool, wanted: torch.dtype) -> None:
    config = TINY["sdxl"]
    networks = modules(config)
    before = state(networks["vae"])
    place(networks, Runtime(torch.device("cpu"), dtype, ""), replace(config.vae, force_upcast=force))
    assert {p.dtype for p in networks["vae"].parameters()} == {wanted}
    assert {p.dtype for part in ("text", "unet") for p in networks[part].parameters()} == {dtype}
    assert wanted != torch.float32 or same(state(networks["vae"]), before)


@pytest.mark.parametrize(
    ("said", "pair", "wanted"),
    [
        ({}, True, True),  # the default of diffusers' class, which its SDXL pipelines alone look at
        ({}, False, False),
        ({"force_upcast": False}, True, False),
        ({"force_upcast": True}, False, True),
    ],
)
def test_force_upcast_of_a_diffusers_config(said: dict, pair: bool, wanted: bool) -> None:
    fields = Fields({"block_out_channels": [32, 64], **said}, "vae/config.json")
    config = vae_config(fields, pair)
    assert config.force_upcast is wanted
    assert fields.untaken() == []
    whole = replace(TINY["sd1"], vae=config)
    assert Config.from_json(whole.to_json()) == whole


@pytest.mark.parametrize("value", [None, 1, "true", [True]])
def test_force_upcast_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"force_upcast .* must be bool"):
        vae_config(Fields({"block_out_channels": [32, 64], "force_upcast": value}, "vae/config.json"))
    data = TINY["sd1"].to_dict()
    data["vae"]["force_upcast"] = value
    with pytest.raises(ValueError, match=r"vae\.force_upcast must be bool"):
        Config.from_dict(data)
