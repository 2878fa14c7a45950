"""LoRA files draw what diffusers draws with them, and leave no trace when they are taken off.

The oracle is diffusers' load_lora_weights on tiny whole pipelines. A LoRA here changes every kind of layer: linear,
convolutions 1x1 and 3x3, both text encoders. Its changes are half as large as the weights, so that a layer left out
or a wrong alpha shows.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracles import TINY, TRUE, deviation
from safetensors.torch import load_file, save_file
from test_folders import PROMPTS, Case, case, latents  # noqa: F401  (case is a fixture)
from torch import Tensor, nn

from minisd.config import Config
from minisd.pipeline import Model, generate
from minisd.weights.folder import modules
from minisd.weights.keys import unet_keys
from minisd.weights.ldm import unet_keys as ldm_keys
from minisd.weights.load import load
from minisd.weights.lora import Change, load_loras, parameters, read, unload
from minisd.weights.lora_names import places

TOL = 1e-5
TOWERS = ("text_encoder", "text_encoder_2")
KINDS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out", "conv1", "conv2")
KINDS += ("conv_shortcut", "0.conv", "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2")
KINDS += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
PARTS = {"down": ("lora_down", "lora_A"), "up": ("lora_up", "lora_B")}


def layers(one: Case) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, name, layer) of all that a LoRA may change, in diffusers' own words."""
    for part in ("unet", *TOWERS[: len(one.config.text)]):
        for name, module in getattr(one.pipe, part).named_modules():
            if name.endswith(KINDS) and isinstance(module, nn.Linear | nn.Conv2d):
                yield part, name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}", module


def halves(module: nn.Module, rank: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A random change of a layer, half as large as its weights."""
    out, *rest = module.weight.shape
    kernel = rest[1:]
    down = torch.randn(rank, *rest, generator=draw) / module.weight[0].numel() ** 0.5
    return {"down": down, "up": 0.5 * torch.randn(out, rank, *[1] * len(kernel), generator=draw) / rank**0.5}


def kohya(one: Case, seed: int = 0, alpha: float = 2.0) -> dict[str, Tensor]:
    """As sd-scripts writes it: SDXL's UNet under its original names. alpha is half the attention's rank."""
    draw, found = torch.Generator().manual_seed(seed), {}
    new, original = unet_keys(one.config.unet), ldm_keys(one.config.unet)
    original = {theirs: original[ours] for ours, theirs in new.items()}
    pair = len(one.config.text) > 1
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if pair else "lora_te_", "text_encoder_2": "lora_te2_"}
    for part, name, module in layers(one):
        if pair and part == "unet":
            name = original[f"{name}.weight"].removesuffix(".weight")
        stem = prefix[part] + name.replace(".", "_")
        change = halves(module, 3 if ".ff." in name else 4, draw)
        found |= {f"{stem}.{PARTS[role][0]}.weight": tensor for role, tensor in change.items()}
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def peft(one: Case, seed: int = 0) -> dict[str, Tensor]:
    """As diffusers writes it: no alpha."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for part, name, module in layers(one):
        change = halves(module, 3 if ".ff." in name else 4, draw)
        found |= {f"{part}.{name}.{PARTS[role][1]}.weight": tensor for role, tensor in change.items()}
    return found


def written(folder: Path, tensors: dict[str, Tensor], name: str = "lora", **metadata: str) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
    return path


def ours(one: Case, model: Model) -> Tensor:
    """The final latent after two steps."""
    size = {"steps": 2, "cfg_scale": 4.0, "height": 16, "width": 16, "emphasis": "off"}
    return generate(model, **PROMPTS, latents=latents(one), output="latent", **size)


def theirs(one: Case, *mixes: list[tuple[Path, float]]) -> list[Tensor]:
    """The same of diffusers' pipeline, for each mix of files and weights."""
    files = list(dict.fromkeys(path for mix in mixes for path, _ in mix))
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 16, "width": 16, "output_type": "latent"}
    for path in files:
        one.pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=path.stem)
    drawn = []
    for mix in mixes:
        one.pipe.set_adapters([path.stem for path, _ in mix], [weight for _, weight in mix])
        drawn.append(one.pipe(**PROMPTS, latents=latents(one), **options).images)
    one.pipe.unload_lora_weights()
    return drawn


def state(model: Model) -> dict[str, Tensor]:
    """Copies of all weights."""
    parts = {"unet": model.unet, "text": model.text, "vae": model.vae}
    return {f"{k}.{n}": t.clone() for k, part in parts.items() for n, t in part.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("naming", [kohya, peft])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_lora_draws_what_diffusers_draws(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    naming: Callable,
    tmp_path: Path,
) -> None:
    one = case(family)
    model = load(one.folder, dtype="fp32")
    plain, before = ours(one, model), state(model)
    tensors = naming(one)
    mixes = [[(written(tmp_path, tensors), weight)] for weight in (1.0, 0.6)]
    for mix, wanted in zip(mixes, theirs(one, *mixes), strict=True):
        load_loras(model, mix)
        drawn = ours(one, model)
        assert deviation(drawn, wanted) < TOL
        assert deviation(drawn, plain) > 0.01
        changed = {k for k, v in state(model).items() if not torch.equal(v, before[k])}
        assert len(changed) == sum(k.endswith(("lora_down.weight", "lora_A.weight")) for k in tensors)
    unload(model)
    assert equal(state(model), before) and torch.equal(ours(one, model), plain)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_two_at_once_draw_what_diffusers_draws(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    tmp_path: Path,
) -> None:
    one = case(family)
    model = load(one.folder, dtype="fp32")
    two = [(written(tmp_path, kohya(one, 1), "a"), 0.6), (written(tmp_path, peft(one, 2), "b"), -0.3)]
    load_loras(model, two)
    assert deviation(ours(one, model), theirs(one, two)[0]) < TOL


def test_alphas_in_the_metadata_count(case: Callable[[str], Case], tmp_path: Path) -> None:  # noqa: F811
    """diffusers writes PEFT's settings beside the tensors and follows them; another rank or alpha for some layers."""
    one = case("sd1")
    model = load(one.folder, dtype="fp32")
    names = [name for part, name, _ in layers(one) if part == "unet"]
    told = {
        "unet.r": 4,
        "unet.lora_alpha": 1,
        "unet.target_modules": names,
        "unet.rank_pattern": {name: 3 for name in names if ".ff." in name},
        "unet.alpha_pattern": {"ff.net.2": 5, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 7.5},
    }
    tensors = {k: v for k, v in peft(one).items() if k.startswith("unet.")}
    for rs in (False, True):
        settings = json.dumps({**told, "unet.use_rslora": rs})
        path = written(tmp_path, tensors, f"told{rs}", format="pt", lora_adapter_metadata=settings)
        load_loras(model, [(path, 1.0)])
        assert deviation(ours(one, model), theirs(one, [(path, 1.0)])[0]) < TOL


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of early 2023: by attention processors."""
    found = {}
    for name, tensor in tensors.items():
        stem, _, role = name.removesuffix(".weight").rpartition(".")
        end = {"lora_A": "lora.down.weight", "lora_B": "lora.up.weight"}[role]
        if "attn1" in stem or "attn2" in stem:
            stem = stem.removesuffix(".0").replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
            found[f"{stem}_{end}"] = tensor
        elif "self_attn" in stem:
            stem = stem.removesuffix("_proj")
            begin, _, word = stem.rpartition(".")
            found[f"{begin}.to_{word}_{end}"] = tensor
        else:
            linear = "mlp" in stem
            found[f"{stem}.{end.replace('lora.', 'lora_linear_layer.' if linear else 'lora.')}"] = tensor
    return found


def test_peft_alone_says_its_alpha_beside_the_file(
    case: Callable[[str], Case],  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = case("sd1")
    model = load(one.folder, dtype="fp32")
    tensors = {k: v for k, v in peft(one).items() if k.startswith("unet.")}
    alphas = {k.replace(".lora_A.weight", ".alpha"): torch.tensor(32.0) for k in tensors if ".lora_A." in k}
    load_loras(model, [(written(tmp_path, tensors | alphas, "alphas"), 1.0)])
    wanted = state(model)

    alone = {k.replace("unet.", "base_model.model.", 1): v for k, v in tensors.items()}
    path = written(tmp_path, alone | {"bundle_emb.word.string_to_param.*": torch.ones(1, 64)}, "alone")
    beside = tmp_path / "adapter_config.json"
    with pytest.raises(ValueError, match=r"lacks adapter_config\.json"):
        load_loras(model, [(path, 1.0)])
    beside.write_text(json.dumps({"lora_alpha": 32, "use_dora": True}))
    with pytest.raises(ValueError, match="a DoRA"):
        load_loras(model, [(path, 1.0)])
    beside.write_text(json.dumps({"r": 8, "lora_alpha": 32}))
    load_loras(model, [(path, 1.0)])
    assert equal(state(model), wanted)
    assert "the embeddings it carries are left out: bundle_emb.word" in caplog.text


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_all_namings_of_one_lora_give_the_same_weights(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    tmp_path: Path,
) -> None:
    one = case(family)
    model = load(one.folder, dtype="fp32")
    tensors = peft(one)
    load_loras(model, [(written(tmp_path, tensors), 1.0)])
    wanted = state(model)
    unet = {k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")}
    rest = {k: v for k, v in tensors.items() if not k.startswith("unet.")}
    adapter = {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()}
    bare = {k.replace("text_model.", ""): v for k, v in tensors.items()}
    kohya_of = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in tensors.items()}
    first = "lora_te1_" if family == "sdxl" else "lora_te_"
    prefixes = {"unet.": "lora_unet_", "text_encoder.": first, "text_encoder_2.": "lora_te2_"}
    under = {}
    for name, tensor in kohya_of.items():
        part = next(p for p in prefixes if name.startswith(p))
        stem, word, role = name.removeprefix(part).rpartition(".lora")
        under[f"{prefixes[part]}{stem.replace('.', '_')}{word}{role}"] = tensor
    peft_alone = {f"base_model.model.{k}": v for k, v in unet.items()}
    # PEFT alone says alpha in a file beside: here as large as the rank, which is 3 in feed-forwards, else 4
    threes = {name: 3 for part, name, _ in layers(one) if part == "unet" and ".ff." in name}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": threes}))
    original = ldm_keys(one.config.unet)
    original = {theirs: original[ours] for ours, theirs in unet_keys(one.config.unet).items()}
    comfy = {}
    for name, tensor in unet.items():  # as ComfyUI saves one
        stem, word, role = name.rpartition(".lora_")
        role = {"A.weight": "down.weight", "B.weight": "up.weight"}[role]
        comfy[f"diffusion_model.{original[stem + '.weight'].removesuffix('.weight')}{word}{role}"] = tensor
    versions = [old_names(tensors), adapter, bare, under, {**unet, **rest}, {**peft_alone, **rest}, {**comfy, **rest}]
    for i, version in enumerate(versions):
        assert version.keys() != tensors.keys() and len(version) == len(tensors)
        load_loras(model, [(written(tmp_path, version, f"v{i}"), 1.0)])
        assert equal(state(model), wanted), f"version {i}"
    torch.save({k: nn.Parameter(v) for k, v in tensors.items()}, tmp_path / "pytorch_lora_weights.bin")
    load_loras(model, [(tmp_path / "pytorch_lora_weights.bin", 1.0)])
    assert equal(state(model), wanted)


@pytest.mark.parametrize("config", [*TRUE.values(), *TINY.values()], ids=lambda config: config.name)
def test_no_name_can_be_read_in_two_ways(config: Config) -> None:
    """Every matrix of the UNet and the towers has a name in every naming; `places` refuses one name for two."""
    known = places(config)
    matrices = {
        name
        for name, shape in true_shapes(config).items()
        if len(shape) > 1 and "embedding." not in name and not name.startswith("vae.")
    }
    tower = "lora_te1_" if len(config.text) > 1 else "lora_te_"
    for prefixes in (("lora_unet_", tower, "lora_te2_"), ("unet.", "text_encoder.", "text_encoder_2.")):
        assert matrices <= {place for stem, place in known.items() if stem.startswith(prefixes)}
    assert known["lora_unet_mid_block_resnets_0_conv1"] == known["lora_unet_middle_block_0_in_layers_2"]


def test_published_names_are_found() -> None:
    """As in published files of all three families."""
    xl, v1 = places(TRUE["sdxl"]), places(TRUE["sd15"])
    block = "unet.down.1.transformers.0.blocks.0."
    assert xl["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"] == f"{block}self_attention.to_q.weight"
    assert xl["lora_unet_output_blocks_2_2_conv"] == "unet.up.2.upsample.conv.weight"
    assert xl["lora_te2_text_model_encoder_layers_31_mlp_fc2"] == "text.1.blocks.31.fc2.weight"
    name = "down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj"
    assert v1[f"lora_unet_{name}"] == xl[f"lora_unet_{name}"] == f"{block}ff.proj_in.weight"
    assert v1["lora_te_text_model_encoder_layers_11_self_attn_q_proj"] == "text.0.blocks.11.attention.to_q.weight"
    old = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out"
    assert v1[old] == "unet.up.2.transformers.0.blocks.0.cross_attention.to_out.weight"
    assert not any(stem.startswith("lora_te_") for stem in xl)  # a file of SD 1.x finds no tower in SDXL


def test_a_change_is_the_convolutions_it_stands_for() -> None:
    """down, then mid, then up, one convolution after another; the oracle is torch's own."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 9, 9, generator=draw)
    down, mid, up = (torch.randn(*s, generator=draw) for s in ((3, 5, 1, 1), (4, 3, 3, 3), (7, 4, 1, 1)))
    change = Change(down, up, mid, 1.0)
    weight = change.delta(torch.empty(*change.shape))
    assert change.shape == (7, 5, 3, 3)
    assert deviation(F.conv2d(x, weight), F.conv2d(F.conv2d(F.conv2d(x, down), mid), up)) < TOL
    wide = torch.randn(4, 5, 3, 3, generator=draw)
    change = Change(wide, up, None, 1.0)
    assert deviation(F.conv2d(x, change.delta(torch.empty(*change.shape))), F.conv2d(F.conv2d(x, wide), up)) < TOL


def tiny(one: Case) -> tuple[str, dict[str, Tensor]]:
    """A LoRA of one layer, under kohya's name."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    draw = torch.Generator().manual_seed(0)
    width = one.config.unet.channels[-1]
    down, up = torch.randn(2, width, generator=draw), torch.randn(width, 2, generator=draw)
    return stem, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1)}


PLACE = "unet.mid.transformers.0.blocks.0.self_attention.to_q.weight"


def test_half_precision_is_rounded_once(case: Callable[[str], Case], tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    model = load(one.folder, dtype="bf16")
    stem, tensors = tiny(one)
    before = state(model)[PLACE]
    load_loras(model, [(written(tmp_path, {k: v.half() for k, v in tensors.items()}), 0.5)])
    down, up = (tensors[f"{stem}.lora_{x}.weight"].half().float() for x in ("down", "up"))
    wanted = (before.float() + 0.5 * 0.5 * up @ down).bfloat16()
    assert torch.equal(state(model)[PLACE], wanted)
    assert parameters(model)[PLACE].dtype == torch.bfloat16
    strides = [p.stride() for p in model.unet.parameters()]
    unload(model)
    assert torch.equal(state(model)[PLACE], before)
    assert strides == [p.stride() for p in model.unet.parameters()]


def test_a_second_set_replaces_the_first(case: Callable[[str], Case], tmp_path: Path, caplog) -> None:  # noqa: F811
    caplog.set_level(logging.INFO, "minisd")
    one = case("sd1")
    model, fresh = (load(one.folder, dtype="fp32") for _ in range(2))
    before = state(model)
    first, second = written(tmp_path, kohya(one, 1), "first"), written(tmp_path, tiny(one)[1], "second")
    caplog.clear()
    load_loras(model, [(first, 1.0)])
    assert len(caplog.records) == 1 and "first.safetensors: weight 1, rank 3 to 4" in caplog.text
    assert model.origin["loras"] == "first.safetensors:1"
    load_loras(model, [(second, 0.7), (second, 0.1)])
    load_loras(fresh, [(second, 0.7), (second, 0.1)])
    assert equal(state(model), state(fresh)) and not equal(state(model), before)
    changed = state(model)
    with pytest.raises(ValueError):  # one bad file: nothing happens
        load_loras(model, [(first, 1.0), (tmp_path / "none.safetensors", 1.0)])
    assert equal(state(model), changed)
    load_loras(model, [])
    assert equal(state(model), before) and "loras" not in model.origin
    unload(model)  # nothing is left to take off
    assert equal(state(model), before)


def refusal(model: Model, path: Path, weight: float = 1.0) -> str:
    before = state(model)
    with pytest.raises(ValueError) as error:
        load_loras(model, [(path, weight)])
    assert equal(state(model), before) and not model.originals
    return str(error.value)


@pytest.mark.parametrize("mine, other", [("sd1", "sdxl"), ("sdxl", "sd1"), ("sd1", "sd2")])
@pytest.mark.parametrize("naming", [kohya, peft])
def test_a_lora_of_another_family_is_explained(
    case: Callable[[str], Case],  # noqa: F811
    mine: str,
    other: str,
    naming: Callable,
    tmp_path: Path,
) -> None:
    if other == "sd2":  # tiny sd1 and sd2 are of one shape: a context of another width
        tensors = {k: v[:, :48] if "lora_down" in k and "attn2_to_k" in k else v for k, v in kohya(case("sd2")).items()}
    else:
        tensors = naming(case(other))
    message = refusal(load(case(mine).folder, dtype="fp32"), written(tmp_path, tensors))
    lines = message.splitlines()
    assert 3 <= len(lines) <= 6 and "lora.safetensors does not fit: a LoRA for" in lines[0]
    assert lines[-1].startswith("  likely cause: this LoRA is for "), message
    if other == "sdxl":
        assert "this LoRA is for SDXL" in lines[-1]


@cache
def true_shapes(config: Config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in modules(config).state_dict().items()}


def true_lora(config: Config, names: tuple[str, ...]) -> dict[str, Tensor]:
    """A LoRA of rank 1 on some layers of a published model, in its true shapes."""
    known, found = places(config), {}
    for name in names:
        out, wide = true_shapes(config)[known[name]]
        found |= {f"{name}.lora_down.weight": torch.zeros(1, wide), f"{name}.lora_up.weight": torch.zeros(out, 1)}
    return found


ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
ORIGINAL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
CROSSED = [
    ("sd15", "sdxl", (ORIGINAL, "lora_te1_text_model_encoder_layers_0_mlp_fc1"), "SDXL, the model is SD 1.x"),
    ("sd15", "sdxl", ("lora_te2_text_model_encoder_layers_31_mlp_fc1",), "SDXL, the model is SD 1.x"),
    ("sd15", "sd21", (ATTENTION,), "SD 2.x, the model is SD 1.x"),
    ("sd15", "sd21", ("lora_te_text_model_encoder_layers_1_self_attn_q_proj",), "SD 2.x, the model is SD 1.x"),
    ("sd21", "sd15", (ATTENTION,), "SD 1.x, the model is SD 2.x"),
    ("sdxl", "sd15", (ATTENTION,), "SD 1.x, the model is SDXL"),
    ("sdxl", "sd15", ("lora_te_text_model_encoder_layers_1_self_attn_q_proj",), "SD 1.x, the model is SDXL"),
]


@pytest.mark.parametrize("mine, other, names, told", CROSSED)
def test_published_families_are_told_apart(
    mine: str, other: str, names: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    """The true shapes, on the meta device."""
    path = written(tmp_path, true_lora(TRUE[other], names))
    assert len(read(path, TRUE[other], true_shapes(TRUE[other]))) == len(names)
    with pytest.raises(ValueError) as error:
        read(path, TRUE[mine], true_shapes(TRUE[mine]))
    lines = str(error.value).splitlines()
    assert len(lines) <= 6 and lines[-1] == f"  likely cause: this LoRA is for {told}"


OTHERS = [
    ("x.hada_w1_a", "a LoHa"),
    ("lora_unet_x.lokr_w1", "a LoKr"),
    ("unet.x.lokr_w2_a", "a LoKr"),
    ("lora_unet_x.dora_scale", "a DoRA"),
    ("unet.x.lora_magnitude_vector", "a DoRA"),
    ("lora_unet_x.oft_blocks", "an OFT"),
    ("lora_unet_x.oft_diag", "an OFT"),
    ("base_model.model.x.oft_R.weight", "an OFT"),
    ("base_model.model.x.ia3_l", "an IA3"),
    ("lora_unet_x.on_input", "an IA3"),
    ("lora_unet_x.a1.weight", "a GLoRA"),
    ("lora_unet_x.diff", "a LyCORIS of whole differences"),
    ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "a LoRA for a model with a transformer"),
    ("transformer.x.lora_A.weight", "a LoRA for a model with a transformer"),
    ("emb_params", "a textual inversion embedding: give it with --embedding"),
    ("model.diffusion_model.out.2.weight", "a whole checkpoint, not a LoRA: give it with --model"),
    ("down_blocks.0.resnets.0.conv1.weight", "not a LoRA: it holds down_blocks.0.resnets.0.conv1.weight"),
]


@pytest.mark.parametrize("name, told", OTHERS)
def test_other_kinds_are_refused_in_one_line(
    case: Callable[[str], Case],  # noqa: F811
    name: str,
    told: str,
    tmp_path: Path,
) -> None:
    path = written(tmp_path, {name: torch.ones(2, 2)} | ({} if told.startswith("not") else tiny(case("sd1"))[1]))
    with pytest.raises(ValueError) as error:
        read(path, case("sd1").config, {})
    assert f"{path} is {told}" in str(error.value) and "\n" not in str(error.value)


def test_what_is_damaged_or_left_over_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    model = load(one.folder, dtype="fp32")
    stem, good = tiny(one)
    down, up, alpha = (f"{stem}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha"))
    twin = f"unet.{unet_keys(one.config.unet)[PLACE.removeprefix('unet.')].removesuffix('.weight')}"
    cases = [
        ({down: torch.full_like(good[down], float("nan"))}, f"1 tensors hold other than finite numbers ({down})"),
        ({up: torch.full_like(good[up], float("inf"))}, "other than finite numbers"),
        ({alpha: torch.tensor(float("nan"))}, "other than finite numbers"),
        ({down: good[down].to(torch.int8)}, "other than finite numbers"),
        ({down: None}, f"1 without their other half: {stem}"),
        ({down: None, up: None}, f"1 without their other half: {stem}"),
        ({down: good[down][:1]}, f"1 of another shape: {stem} (128, 2) x (1, 128) instead of (128, 128)"),
        ({down: good[down][:, :9]}, f"1 of another shape: {stem} (128, 2) x (2, 9) instead of (128, 128)"),
        ({down: good[down][:0], up: good[up][:, :0]}, "1 of another shape"),
        ({down: torch.ones(())}, "1 of another shape"),
        ({up: torch.ones(())}, "1 of another shape"),
        ({up: good[up][..., None, None].expand(-1, -1, 3, 3)}, "1 of another shape"),
        ({f"{stem}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "1 of another shape"),
        ({alpha: torch.ones(2)}, f"1 with an alpha that is no number: {stem}"),
        ({f"{twin}.lora_A.weight": good[down].clone()}, "1 given twice"),
        (
            {"lora_unet_other.lora_down.weight": good[down].clone()},
            "1 of no place in the model: lora_unet_other.lora_down.w",
        ),
        ({f"{stem}.lora_up.bias": torch.ones(2)}, f"1 of no place in the model: {stem}.lora_up.bias"),
    ]
    for i, (change, told) in enumerate(cases):
        tensors = {k: v for k, v in {**good, **change}.items() if v is not None}
        message = refusal(model, written(tmp_path, tensors, f"bad{i}"))
        assert told in message and len(message.splitlines()) <= 6, message
    path = written(tmp_path, good)
    for weight in (float("nan"), float("inf"), None):
        assert f"the weight {weight} of {path} must be a finite number" in refusal(model, path, weight)
    for text in ("{", "[]", "9" * 5000, "[" * 100_000):
        path = written(tmp_path, good, "metadata", lora_adapter_metadata=text)
        assert "its lora_adapter_metadata" in refusal(model, path)
    stems = {k.replace(stem, twin): v for k, v in good.items() if k != alpha}
    for value in ("many", float("nan"), 10**400, True, [1]):
        path = written(tmp_path, stems, "metadata", lora_adapter_metadata=json.dumps({"unet.lora_alpha": value}))
        assert "1 with an alpha that is no number" in refusal(model, path)


def test_a_sum_beyond_the_dtype_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    model = load(one.folder, dtype="fp32")
    model.unet.half()
    before = state(model)
    path = written(tmp_path, {k: v * 100 for k, v in tiny(one)[1].items()})
    with pytest.raises(ValueError, match=rf"{PLACE} is too large for torch.float16"):
        load_loras(model, [(path, 1.0)])
    assert equal(state(model), before)
    assert load_file(path).keys() == tiny(one)[1].keys()  # the file is only read
