"""The UNet against diffusers, and what prepare, slice and join promise."""

import copy
import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from oracles import TINY, close, twin, unet_inputs, unet_oracle
from torch import Tensor

from minisd.config import UNetConfig
from minisd.nn.attention import Attention, explicit, sdpa
from minisd.nn.conditioning import Conditioning, join, join_prepared
from minisd.nn.unet import UNet

REORDERED = 3e-6  # the same sums in another order (batch size, length of the context): 1e-6 measured
SIZES = [(8, 8), (9, 7), (5, 12), (1, 1)]


@functools.cache
def pair(family: str, **changes: object) -> tuple[UNetConfig, UNet, torch.nn.Module]:
    """The tiny config of a family, with changes; minisd's network and diffusers' with the same weights.

    Shared between tests: change a copy.
    """
    config = dataclasses.replace(TINY[family].unet, **changes)
    theirs = unet_oracle(config, linear=family != "sd1")
    return config, twin(config, theirs), theirs


def ours_only(family: str, **changes: object) -> tuple[UNetConfig, UNet]:
    return pair(family, **changes)[:2]


@pytest.mark.parametrize("scale", [1, 0.1, 0.01])
@pytest.mark.parametrize("family", TINY)
def test_equals_diffusers(family: str, scale: float) -> None:
    config, ours, theirs = pair(family)
    x, t, cond, kwargs = unet_inputs(config, scale)
    assert close(ours(x, t, cond), theirs(x, t, **kwargs).sample)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", TINY)
def test_equals_diffusers_at_any_latent_size(family: str, size: tuple[int, int]) -> None:
    config, ours, theirs = pair(family)
    x, t, cond, kwargs = unet_inputs(config, size=size)
    assert close(ours(x, t, cond), theirs(x, t, **kwargs).sample)


@pytest.mark.parametrize("scale", [1, 0.1, 0.01])
def test_inpainting_takes_nine_channels_in_x_or_five_of_them_in_concat(scale: float) -> None:
    config, ours, theirs = pair("sd1", in_channels=9)
    x, t, cond, kwargs = unet_inputs(config, scale)
    wanted = theirs(x, t, **kwargs).sample
    assert wanted.shape[1] == 4
    assert close(ours(x, t, cond), wanted)
    split = Conditioning(cond.context, concat=x[:, 4:])
    assert torch.equal(ours(x[:, :4], t, split), ours(x, t, cond))
    assert torch.equal(ours(x[:, :4], t, ours.prepare(split)), ours(x, t, cond))


@pytest.mark.parametrize("t", [0.0, 0.5, 499.99, 999.0])
def test_fractional_times_equal_diffusers(t: float) -> None:
    config, ours, theirs = pair("sd2")
    x, _, cond, kwargs = unet_inputs(config)
    time = torch.full((2,), t)
    assert close(ours(x, time, cond), theirs(x, time, **kwargs).sample)
    assert not close(ours(x, time + 0.25, cond), theirs(x, time, **kwargs).sample)


@pytest.mark.parametrize("family", TINY)
def test_prepared_is_exactly_unprepared_and_can_be_sliced(family: str) -> None:
    config, ours = ours_only(family)
    x, t, cond, _ = unet_inputs(config)
    prepared = ours.prepare(cond)
    assert torch.equal(ours(x, t, prepared), ours(x, t, cond))
    second = slice(1, 2)
    alone = ours(x[second], t[second], cond[second])
    assert torch.equal(ours(x[second], t[second], ours.prepare(cond[second])), alone)
    assert close(ours(x[second], t[second], prepared[second]), alone, tol=REORDERED)
    assert not close(ours(x[second], t[second], prepared[slice(0, 1)]), alone)


def test_slicing_keeps_the_extra_channels_with_their_item() -> None:
    config, ours = ours_only("sd1", in_channels=9)
    x, t, cond, _ = unet_inputs(config)
    cond = Conditioning(cond.context, concat=x[:, 4:])
    both = ours(x[:, :4], t, ours.prepare(cond))
    for i in range(2):
        item = slice(i, i + 1)
        assert close(ours(x[item, :4], t[item], ours.prepare(cond)[item]), both[item], tol=REORDERED)


@pytest.mark.parametrize("family", TINY)
def test_joined_contexts_of_different_length_equal_separate_runs(family: str) -> None:
    config, ours = ours_only(family)
    x, t, short, _ = unet_inputs(config, length=4)
    _, _, long, _ = unet_inputs(config, length=6, seed=1)
    joined = join([short, long])
    assert joined.context.shape == (4, 12, config.context_dim)
    apart = torch.cat([ours(x, t, short), ours(x, t, long)])
    together = ours(torch.cat([x, x]), torch.cat([t, t]), joined)
    assert close(together, apart, tol=REORDERED)
    prepared = join_prepared([ours.prepare(short), ours.prepare(long)])
    assert len(prepared) == 4 and len(prepared[1:3]) == 2
    assert close(ours(torch.cat([x, x]), torch.cat([t, t]), prepared), apart, tol=REORDERED)

    padded = dataclasses.replace(joined, context=torch.cat([pad(short.context, 12), pad(long.context, 12)]))
    assert not close(ours(torch.cat([x, x]), torch.cat([t, t]), padded), apart, tol=1e-3)


def pad(context: Tensor, length: int) -> Tensor:
    """What join does not do."""
    return F.pad(context, (0, 0, 0, length - context.shape[1]))


def test_join_refuses_a_batch_in_which_only_some_have_a_vector() -> None:
    _, _, with_vector, _ = unet_inputs(TINY["sdxl"].unet)
    for name, other in (
        ("vector", Conditioning(with_vector.context)),
        ("concat", dataclasses.replace(with_vector, concat=torch.zeros(2, 5, 8, 8))),
    ):
        with pytest.raises(ValueError, match=f"with and without {name}"):
            join([with_vector, other])
    _, sdxl = ours_only("sdxl")
    prepared = sdxl.prepare(with_vector)
    with pytest.raises(ValueError, match="with and without vector"):
        join_prepared([prepared, dataclasses.replace(prepared, vector=None)])


@pytest.mark.parametrize("family", TINY)
def test_the_readable_attention_equals_the_fused_one(family: str) -> None:
    config, ours = copy.deepcopy(ours_only(family))
    x, t, cond, _ = unet_inputs(config)
    fused = ours(x, t, cond)
    called = []

    def core(*args: object) -> Tensor:
        called.append(args)
        return explicit(*args)

    attentions = [module for module in ours.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.core = core
    assert close(ours(x, t, cond), fused, tol=REORDERED)
    assert len(called) == len(attentions)


@pytest.mark.parametrize("causal", [False, True])
def test_the_two_cores_agree_on_plain_tensors(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    assert close(explicit(q, k, v, causal), sdpa(q, k, v, causal), tol=1e-6)
    assert close(explicit(q, k[:, :, :5], v[:, :, :5]), sdpa(q, k[:, :, :5], v[:, :, :5]), tol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"heads": (4, 2, 6)}, {"heads": (1, 1, 1)}, {"groups": 16}, {"groups": 4}], ids=str
)
def test_heads_and_groups_are_honoured(changes: dict) -> None:
    config, ours, theirs = pair("sd2", **changes)
    x, t, cond, kwargs = unet_inputs(config)
    wanted = theirs(x, t, **kwargs).sample
    assert close(ours(x, t, cond), wanted)
    assert not close(twin(TINY["sd2"].unet, theirs)(x, t, cond), wanted, tol=1e-4)  # the same tensors


def test_a_vector_where_none_is_expected_and_the_reverse_are_refused() -> None:
    x, t, cond, _ = unet_inputs(TINY["sdxl"].unet)
    _, sdxl = ours_only("sdxl")
    with pytest.raises(ValueError, match="this UNet has vector_dim 68"):
        sdxl(x, t, Conditioning(cond.context))
    _, sd1 = ours_only("sd1")
    with pytest.raises(ValueError, match="this UNet has vector_dim 0"):
        sd1.prepare(dataclasses.replace(unet_inputs(TINY["sd1"].unet)[2], vector=cond.vector))


def test_the_vector_changes_the_picture() -> None:
    config, ours = ours_only("sdxl")
    x, t, cond, _ = unet_inputs(config)
    other = dataclasses.replace(cond, vector=cond.vector.flip(0))
    assert not close(ours(x, t, other), ours(x, t, cond), tol=1e-4)


def test_training_reaches_every_parameter_through_an_unprepared_conditioning() -> None:
    config = TINY["sdxl"].unet
    ours = twin(config, unet_oracle(config)).requires_grad_(True)
    x, t, cond, _ = unet_inputs(config)
    ours(x, t, cond).square().mean().backward()
    untouched = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
