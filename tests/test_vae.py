"""The autoencoder against diffusers; latents are in the UNet's space, the scale factor inside."""

import copy
import functools
import math

import pytest
import torch
from oracles import TINY, close, twin, vae_oracle
from torch import Tensor

from minisd.config import VAEConfig
from minisd.nn.blocks import Downsample

FAMILIES = ["sd1", "sdxl", "mini"]  # three scale factors, two depths
SCALES = [1, 0.1, 0.01]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def pair(family: str) -> tuple[VAEConfig, torch.nn.Module, torch.nn.Module]:
    """The tiny config of a family; minisd's autoencoder and diffusers' with the same weights.

    Shared between tests: change a copy.
    """
    config = TINY[family].vae
    theirs = vae_oracle(config)
    return config, twin(config, theirs), theirs


@pytest.mark.parametrize("size", [(16, 16), (20, 36), (32, 12)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", FAMILIES)
def test_encode_equals_diffusers(family: str, scale: float, size: tuple[int, int]) -> None:
    config, ours, theirs = pair(family)
    image = scale * randn(2, 3, *size)
    mean, logvar = ours.encode(image)
    wanted = theirs.encode(image).latent_dist
    assert mean.shape == (2, 4, size[0] // config.factor, size[1] // config.factor)
    assert close(mean, wanted.mean * config.scale_factor)
    assert close(logvar, wanted.logvar + 2 * math.log(config.scale_factor))
    assert close((0.5 * logvar).exp(), wanted.std * config.scale_factor)


@pytest.mark.parametrize("size", [(22, 31), (17, 17)])
def test_encode_equals_diffusers_where_the_factor_does_not_divide_the_picture(size: tuple[int, int]) -> None:
    config, ours, theirs = pair("sd1")
    image = randn(1, 3, *size)
    assert close(ours.encode(image)[0], theirs.encode(image).latent_dist.mean * config.scale_factor)


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (8, 3)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", FAMILIES)
def test_decode_equals_diffusers(family: str, scale: float, size: tuple[int, int]) -> None:
    config, ours, theirs = pair(family)
    z = scale * randn(2, 4, *size)
    image = ours.decode(z)
    assert image.shape == (2, 3, size[0] * config.factor, size[1] * config.factor)
    assert close(image, theirs.decode(z / config.scale_factor).sample)


def test_the_log_variance_is_clamped_before_it_is_scaled() -> None:
    config, ours, theirs = copy.deepcopy(pair("sd1"))
    for model in (ours.quant, theirs.quant_conv):
        model.bias[4:] = torch.tensor([-90.0, 90.0, 0.0, -29.0])
    image = randn(1, 3, 16, 16)
    logvar = ours.encode(image)[1]
    assert close(logvar, theirs.encode(image).latent_dist.logvar + 2 * math.log(config.scale_factor))
    assert (logvar[:, 1] == torch.tensor(20.0) + 2 * math.log(config.scale_factor)).all()


@pytest.mark.parametrize(("skewed", "corners"), [(True, (9, 6, 6, 4)), (False, (4, 6, 6, 9))])
def test_downsampling_pads_below_and_right_in_the_vae_and_on_all_sides_in_the_unet(
    skewed: bool, corners: tuple[int, ...]
) -> None:
    layer = Downsample(1, skewed)
    layer.conv.weight.data.fill_(1)
    layer.conv.bias.data.fill_(0)
    out = layer(torch.ones(1, 1, 6, 6))[0, 0]  # how many real pixels each window holds
    assert out.shape == (3, 3)
    assert (out[0, 0], out[0, -1], out[-1, 0], out[-1, -1]) == corners


def test_the_factor_follows_the_levels() -> None:
    for channels, factor in (((8,), 1), ((8, 16), 2), ((8, 8, 16, 16), 8)):
        config = VAEConfig(channels=channels, groups=8, blocks_per_level=1)
        ours = twin(config, vae_oracle(config))
        assert config.factor == factor
        mean, _ = ours.encode(randn(1, 3, 2 * factor, 3 * factor))
        assert mean.shape == (1, 4, 2, 3)
        assert ours.decode(mean).shape == (1, 3, 2 * factor, 3 * factor)
