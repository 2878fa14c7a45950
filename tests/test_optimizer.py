"""What moves the weights: Muon on views of weights, the average's width, the learning rate, gradients in one tensor."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from minisd.train.optimizer import Optimizer, evened, exponent, flat_gradients, schedule, update_ema
from minisd.train.recipe import ClipRecipe, LoraRecipe, StageRecipe, UnetRecipe, VaeRecipe


@pytest.mark.parametrize("width", [0.03, 0.05, 0.083, 0.1, 0.2])
def test_the_average_is_as_wide_as_the_recipe_says(width: float) -> None:
    """The weight of every step so far, told apart by feeding unit vectors: their spread over the training is `width`,
    and they are those of t ** gamma."""
    steps, gamma = 2000, exponent(width)
    ema = {"x": torch.zeros(steps, dtype=torch.float64)}
    for step in range(steps):
        unit = torch.zeros(steps, dtype=torch.float64)
        unit[step] = 1
        update_ema(ema, {"x": nn.Parameter(unit)}, step, gamma)
    weights, at = ema["x"], (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    mean = (weights * at).sum()
    assert (weights * (at - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-3)
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    assert torch.allclose(weights, (edges ** (gamma + 1)).diff(), atol=1e-12)


def test_the_exponents_are_those_of_the_paper() -> None:
    """Karras et al. 2024, section 3.1: widths of 5 and 10 % are gammas of 16.97 and 6.94."""
    assert (round(exponent(0.05), 2), round(exponent(0.10), 2)) == (16.97, 6.94)
    assert exponent(0.083) + 1 == pytest.approx(10, abs=2e-3)  # what recipes without the field have always had


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_a_convolution_for_the_matrix_it_is(layout: torch.memory_format) -> None:
    """Its steps, weight decay included, are those of torch's Muon on a matrix of its own, bit for bit; the bias and the
    thin output go AdamW's way."""
    draw = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 3, 1)).to(memory_format=layout)
    recipe = StageRecipe(steps=9, batch=1, lr=0.02, optimizer="muon", weight_decay=0.1)
    named = dict(module.named_parameters())
    flat_gradients(named.values())
    optimizer = Optimizer([{"params": list(named.values()), "scale": 0.5}], named, module, recipe)
    order = "o i h w -> o h w i" if layout == torch.channels_last else "o i h w -> o i h w"
    shape = (0, 2, 3, 1) if "h w i" in order else (0, 1, 2, 3)

    def copy(p: torch.Tensor) -> torch.Tensor:
        return p.detach().clone().permute(shape).reshape(len(p), -1).contiguous()

    rest = [n for n in named if n != "0.weight"]
    matrix, others = nn.Parameter(copy(named["0.weight"])), [nn.Parameter(named[n].detach().clone()) for n in rest]
    muon = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(3):
        for p in named.values():
            p.grad.copy_(torch.randn(p.shape, generator=draw))
        matrix.grad = copy(named["0.weight"].grad)
        for p, name in zip(others, rest, strict=True):
            p.grad = named[name].grad.clone()
        optimizer.step(0.02)
        muon.step()
        adam.step()
    assert torch.equal(copy(named["0.weight"]), matrix)
    assert all(torch.equal(named[n], p) for n, p in zip(rest, others, strict=True))
    assert {key for key, _ in optimizer.state() if key.startswith("momentum")} == {"momentum_buffer.0.weight"}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_muon_evens_out_a_spectrum(shape: tuple[int, int]) -> None:
    """The singular vectors stay, to the rounding of fp32, and the values, from 1 down to 1/50, come near 1."""
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, min(shape), generator=draw, dtype=torch.float64))[0] for n in shape)
    x = (u * torch.logspace(0, -1.7, min(shape), dtype=torch.float64)) @ v.T
    turned = u.T @ evened(x.float()).double() @ v
    assert turned.diag().min() > 0.65 and turned.diag().max() < 1.25
    assert (turned - turned.diag().diag()).abs().max() < 1e-5


def test_gradients_land_in_one_tensor() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    flat = flat_gradients(module.parameters())
    module(x).square().sum().backward()
    for p, gradient in zip(module.parameters(), wanted, strict=True):
        assert torch.equal(p.grad, gradient)
        assert p.grad.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    assert flat.norm().item() == pytest.approx(sum(g.square().sum().item() for g in wanted) ** 0.5, rel=1e-6)


def test_schedule_warms_up_and_falls_to_zero() -> None:
    recipe = StageRecipe(steps=100, batch=1, lr=1.0, warmup=10, decay=0.4)
    rates = [schedule(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert all(b < a for a, b in pairwise(rates[60:]))
    assert rates[99] == pytest.approx(1 / 40)
    still = StageRecipe(steps=3, batch=1, lr=1.0, warmup=0, decay=0.0)
    assert [schedule(step, still) for step in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("field", "hint"),
    [({"optimizer": "muonn"}, "did you mean muon"), ({"ema": 0.3}, "at most 0.28"), ({"decay": 1.5}, "0..1")],
)
def test_recipes_show_what_does_not_fit(field: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        StageRecipe(**{"steps": 1, "batch": 1, "lr": 1.0} | field)


@pytest.mark.parametrize(
    ("kind", "field", "hint"),
    [
        (StageRecipe, {"lr": 0.0}, "lr 0.0 must be above 0"),
        (StageRecipe, {"clip": -1.0}, "clip -1.0 must be above 0"),  # would climb
        (StageRecipe, {"weight_decay": -0.1}, "weight_decay -0.1 must not be below 0"),
        (ClipRecipe, {"sketch": -1.0}, "sketch -1.0 must not be below 0"),
        (VaeRecipe, {"kl": -1.0}, "kl -1.0 must not be below 0"),
        (UnetRecipe, {"drop_prompt": 3.0}, "drop_prompt 3.0 must be in 0..1"),
        (UnetRecipe, {"text_lr": -0.1}, "text_lr -0.1 must not be below 0"),
        (LoraRecipe, {"time_power": 0.0}, "time_power 0.0 must be above 0"),
    ],
)
def test_numbers_that_would_undo_the_training_are_refused(kind: type, field: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        kind(**{"steps": 1, "batch": 1, "lr": 1.0} | field)
