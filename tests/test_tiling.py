"""The VAE in tiles: the same picture as whole, and never more than a strip at a time."""

import math

import pytest
import torch
from oracles import TINY, close
from torch import Tensor

import minisd
from minisd import guards
from minisd.eval.evaluate import SHAPES
from minisd.nn.tiling import MIN_ROWS, Strips, decode_tiled
from minisd.nn.vae import VAE
from minisd.pipeline import Model
from minisd.settings import resolve
from minisd.world.world import World


@pytest.fixture(scope="module")
def bundled() -> Model:
    return minisd.load(device="cpu")


@pytest.fixture(scope="module")
def tiny() -> VAE:
    """Random weights, norms and biases too."""
    torch.manual_seed(0)
    vae = VAE(TINY["sd1"].vae).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def psnr(ours: Tensor, wanted: Tensor) -> float:
    """In dB, of pixels in [-1, 1]."""
    error = (ours.clamp(-1, 1) - wanted.clamp(-1, 1)).double().pow(2).mean().item()
    return 10 * math.log10(4 / max(error, 1e-20))


def scene(size: int, seed: int) -> Tensor:
    return World(SHAPES, size).pictures([seed])


def sheet(size: int, count: int) -> Tensor:
    """Many small scenes on one picture: each strip has colours and edges of its own."""
    scenes = iter(scene(size // count, seed) for seed in range(count * count))
    return torch.cat([torch.cat([next(scenes) for _ in range(count)], 3) for _ in range(count)], 2)


@pytest.mark.parametrize("picture", ["flat", "scene", "sheet", "noise"])
def test_no_seams_in_the_trained_vaes_pictures(bundled: Model, picture: str) -> None:
    """The issue asks for 35 dB; only rounding is left. A flat half is hardest for tiles with norms of their own."""
    pictures = {"scene": scene(256, 3), "sheet": sheet(256, 4), "noise": latents(1, 3, 128, 256).clamp(-1, 1)}
    pictures["flat"] = torch.cat([torch.full((1, 3, 128, 256), 0.5), sheet(256, 4)[:, :, :128]], 2)
    with torch.no_grad():
        z = bundled.vae.encode(pictures[picture])[0]
        whole, tiled = bundled.vae.decode(z), decode_tiled(bundled.vae, z, 256 * 32)
    assert psnr(tiled, whole) > 60
    assert (tiled - whole).abs().max() * 127.5 < 0.5


def test_no_seams_in_drawn_pictures(bundled: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"width": 160, "height": 128, "steps": 3, "seed": 5, "output": "tensor"}
    whole = minisd.generate(bundled, "a red circle", vae_tiling="off", **options)
    monkeypatch.setattr(guards, "PIXELS", 160 * 32)
    tiled = minisd.generate(bundled, "a red circle", vae_tiling="on", **options)
    assert psnr(tiled, whole) > 60
    assert not torch.equal(tiled, whole)  # it was decoded in tiles


@pytest.mark.parametrize("pixels", [1, 500, 2000])
@pytest.mark.parametrize("size", [(9, 33), (33, 9), (17, 16), (3, 40), (40, 1)])
def test_any_size_in_any_strips_is_the_whole(tiny: VAE, size: tuple[int, int], pixels: int) -> None:
    z = latents(2, 4, *size)
    assert close(decode_tiled(tiny, z, pixels), tiny.decode(z))


@pytest.mark.parametrize("name", ["sdxl", "mini"])
def test_other_depths_and_scale_factors(name: str) -> None:
    torch.manual_seed(1)
    vae = VAE(TINY[name].vae).eval().requires_grad_(False)
    z = latents(1, 4, 12, 20)
    assert close(decode_tiled(vae, z, 400), vae.decode(z))


@pytest.mark.parametrize("scale", [100, 0.01])
def test_norms_far_from_unit_variance(tiny: VAE, scale: float) -> None:
    z = scale * latents(1, 4, 24, 16)
    assert close(decode_tiled(tiny, z, 700), tiny.decode(z))


def test_a_picture_no_larger_than_a_tile_is_decoded_whole_bit_for_bit(tiny: VAE) -> None:
    z = latents(2, 4, 8, 6)
    assert torch.equal(decode_tiled(tiny, z, 32 * 24), tiny.decode(z))
    assert not torch.equal(decode_tiled(tiny, z, 32 * 24 - 1), tiny.decode(z))
    assert torch.equal(decode_tiled(tiny, z), tiny.decode(z))


def test_an_image_does_not_feel_its_neighbours(tiny: VAE) -> None:
    z = latents(3, 4, 20, 12)
    z[1] *= 50
    alone = torch.cat([decode_tiled(tiny, one, 600) for one in z.split(1)])
    assert close(decode_tiled(tiny, z, 600), alone, 1e-6)


def test_no_convolution_on_the_way_up_sees_more_than_a_strip(tiny: VAE) -> None:
    width, rows, seen = 64, 2 * MIN_ROWS, []
    convolutions = [m for m in tiny.decoder.up.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, args, y: seen.append(y.shape)) for m in convolutions]
    decode_tiled(tiny, latents(1, 4, 48, 16), rows * width)  # 192 x 64 pixels
    for hook in hooks:
        hook.remove()
    assert max(h * w for _, _, h, w in seen) == (rows + 4) * width  # and two rows of its neighbours on each side


def test_a_norm_of_strips_has_the_statistics_of_the_whole() -> None:
    """With a mean far from 0, where sums of squares would cancel."""
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = latents(2, 8, 50, 16) * 3 + torch.linspace(-300, 300, 50)[:, None]
    x[1] = x[1] * 0.01 + 200
    found = Strips(torch.device("cpu"), 16 * 8).norm(norm, x)
    assert close(found(x).detach(), norm.double()(x.double()).float().detach(), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_close_as_it_is_itself(bundled: Model, dtype: torch.dtype) -> None:
    """Whole and tiled differ from the fp32 decode alike."""
    vae = VAE(bundled.config.vae).requires_grad_(False)
    vae.load_state_dict(bundled.vae.state_dict())
    z = bundled.vae.encode(scene(128, 1))[0].detach()
    exact = vae.decode(z)
    vae.to(dtype)
    whole, tiled = vae.decode(z), decode_tiled(vae, z, 128 * 16)
    assert tiled.dtype == dtype
    assert psnr(tiled.float(), exact) > psnr(whole.float(), exact) - 1
    assert psnr(tiled.float(), whole.float()) > 35


def test_tiles_run_on_another_device() -> None:
    """On the meta device a stray CPU tensor raises."""
    with torch.device("meta"):
        vae = VAE(TINY["sd1"].vae)
    assert decode_tiled(vae, torch.empty(1, 4, 16, 16, device="meta"), 256).shape == (1, 3, 64, 64)


def test_auto_tiles_large_pictures_only(tiny: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    z = latents(1, 4, 12, 16)  # 48 x 64 pixels
    tiled = []
    monkeypatch.setattr(guards, "decode_tiled", lambda vae, z, pixels: tiled.append(pixels) or vae.decode(z))
    for tiling, border, wanted in (("auto", 48 * 64, 0), ("auto", 48 * 64 - 1, 1), ("off", 1, 0), ("on", 10**9, 1)):
        monkeypatch.setattr(guards, "TILE_FROM_CPU", border)
        tiled.clear()
        guards.decode(tiny, z, tiling, [0])
        assert len(tiled) == wanted, (tiling, border)


def test_the_option_is_checked_and_stands_in_the_recipe(bundled: Model) -> None:
    assert resolve(bundled.config).vae_tiling == "auto"
    assert resolve(bundled.config, vae_tiling="on").to_dict()["vae_tiling"] == "on"
    for wrong in ("On", "yes", True, 1):
        with pytest.raises(ValueError, match=r"unknown vae_tiling .* choose from auto, on, off"):
            resolve(bundled.config, vae_tiling=wrong)
