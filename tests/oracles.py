"""Random diffusers and transformers models, their minisd twins, and how to compare the two.

In: a minisd config, tiny (`TINY`) or true (`TRUE`). Out: `*_oracle(config)`, the other library's model of it,
and `twin(config, theirs)`, the minisd module with the same weights. Every 1-D parameter of an oracle is
perturbed: norms are 1 and 0 when fresh, and parity between fresh networks does not see a swapped norm.
"""

from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from minisd.config import Config, NoiseConfig, TextConfig, UNetConfig, VAEConfig
from minisd.nn.blocks import sinusoids
from minisd.nn.clip import CLIPText
from minisd.nn.conditioning import Conditioning
from minisd.nn.unet import UNet
from minisd.nn.vae import VAE
from minisd.weights.keys import text_keys, to_ours, unet_keys, vae_keys

TEXT_PREFIX = "text_model."


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """max|ours - theirs| / max|theirs|."""
    assert ours.shape == theirs.shape, f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype == torch.float32, f"{ours.dtype}, {theirs.dtype}: not float32"
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def close(ours: Tensor, theirs: Tensor, tol: float = 1e-5) -> bool:
    """max|ours - theirs| <= tol * max|theirs|. Not so where either holds a NaN."""
    return deviation(ours, theirs) <= tol


def shallow(config: Config) -> Config:
    """Every kind of block at its full width, but without the repeats: for what looks at shapes alone."""
    unet = replace(config.unet, depth=tuple(min(d, 1) for d in config.unet.depth), mid_depth=1, blocks_per_level=1)
    text = tuple(replace(tower, layers=3) for tower in config.text)  # 3: clip skip 2 is one of its own
    return replace(config, text=text, unet=unet, vae=replace(config.vae, blocks_per_level=1))


def perturb(model: nn.Module, seed: int) -> nn.Module:
    """Norms' weights become 1 +- 0.2, biases b +- 0.05: small, so that a wrong norm eps still shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1 and not p.is_meta:
            p.data += (0.2 if name.endswith("weight") else 0.05) * torch.randn(p.shape, generator=generator)
    return model.eval().requires_grad_(False)


def text_oracle(config: TextConfig, seed: int = 0) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The transformers model; with projection where the config has one."""
    torch.manual_seed(seed)
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    theirs = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        projection_dim=config.projection or config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        bos_token_id=config.bos_id,
        eos_token_id=config.eos_id,
        pad_token_id=config.pad_id,
    )
    return perturb(kind(theirs), seed)


def unet_oracle(config: UNetConfig, linear: bool = True, seed: int = 0) -> UNet2DConditionModel:
    """The diffusers model. `linear`: projections are linear (SD 2.x, SDXL), else 1x1 convolutions (SD 1.x).

    `attention_head_dim` is the number of heads: one (SD 1.x) or one per level (SD 2.x, SDXL).
    """
    torch.manual_seed(seed)
    heads = config.heads[0] if len(set(config.heads)) == 1 else config.heads
    depth = (*(d or 1 for d in config.depth[:-1]), config.mid_depth)  # mid takes the last level's
    assert config.depth[-1] in (0, config.mid_depth), "diffusers has one number for the last level and mid"
    down = ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.depth]
    pooled = {}
    if config.vector_dim:
        pooled = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_dim(config),
            "projection_class_embeddings_input_dim": config.vector_dim,
        }
    model = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        down_block_types=down,
        up_block_types=["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(config.depth)],
        transformer_layers_per_block=depth,
        attention_head_dim=heads,
        cross_attention_dim=config.context_dim,
        norm_num_groups=config.groups,
        use_linear_projection=linear,
        **pooled,
    )
    return perturb(model, seed)


def vae_oracle(config: VAEConfig, seed: int = 0) -> AutoencoderKL:
    """The diffusers model."""
    torch.manual_seed(seed)
    levels = len(config.channels)
    model = AutoencoderKL(
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        scaling_factor=config.scale_factor,
        force_upcast=config.force_upcast,
    )
    return perturb(model, seed)


def twin(config: TextConfig | UNetConfig | VAEConfig, theirs: nn.Module) -> CLIPText | UNet | VAE:
    """The minisd module with the oracle's weights, built on the meta device and loaded strictly."""
    state = theirs.state_dict()
    if isinstance(config, TextConfig):
        prefix = TEXT_PREFIX if any(name.startswith(TEXT_PREFIX) for name in state) else ""
        kind, table = CLIPText, text_keys(config, prefix)
    else:
        kind, keys = (UNet, unet_keys) if isinstance(config, UNetConfig) else (VAE, vae_keys)
        table = keys(config)
    with torch.device("meta"):
        model = kind(config)
    tensors = to_ours(state, table, model.state_dict())
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Oracle:
    """One tiny model as the other libraries have it, and its minisd config."""

    config: Config
    text: tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL


def oracle(family: str) -> Oracle:
    """All networks of one tiny family: sd1, sd2, sdxl or mini."""
    config = TINY[family]
    return Oracle(
        config,
        tuple(text_oracle(tower, seed=i) for i, tower in enumerate(config.text)),
        unet_oracle(config.unet, linear=family != "sd1"),
        vae_oracle(config.vae),
    )


def size_dim(config: UNetConfig) -> int:
    """Width of the embedding of one of SDXL's six size numbers; the tiny UNets' pooled vector is 20 wide."""
    return (config.vector_dim - (1280 if config.vector_dim == 2816 else POOLED)) // 6


def unet_inputs(
    config: UNetConfig, scale: float = 1.0, size: tuple[int, int] = (8, 8), length: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Conditioning, dict]:
    """x (2, c, h, w), fractional t (2,), the conditioning for minisd, the keywords for diffusers."""
    g = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(2, config.in_channels, *size, generator=g)
    t = torch.tensor([981.0, 20.25])
    context = torch.randn(2, length, config.context_dim, generator=g)
    if not config.vector_dim:
        return x, t, Conditioning(context), {"encoder_hidden_states": context}
    pooled = torch.randn(2, POOLED, generator=g)
    sizes = torch.tensor([[512.0, 384, 0, 0, 512, 384], [1024, 1024, 16, 8, 1024, 1024]])
    vector = torch.cat([pooled, sinusoids(sizes, size_dim(config)).flatten(1)], dim=1)
    added = {"text_embeds": pooled, "time_ids": sizes}
    return x, t, Conditioning(context, vector), {"encoder_hidden_states": context, "added_cond_kwargs": added}


def token_ids(config: TextConfig, lengths: tuple[int, ...] = (3, 9, 14), seed: int = 0) -> Tensor:
    """One row for each prompt of so many tokens: BOS, the tokens, EOS, padding."""
    ids = torch.full((len(lengths), config.max_length), config.pad_id)
    g = torch.Generator().manual_seed(seed)
    for row, n in zip(ids, lengths, strict=True):
        row[0] = config.bos_id
        row[1 : n + 1] = torch.randint(1, config.bos_id, (n,), generator=g)
        row[n + 1] = config.eos_id
    return ids


POOLED = 20
WORDS = {"vocab_size": 99, "max_length": 16, "bos_id": 97, "eos_id": 98}
SMALL_TEXT = TextConfig(width=32, layers=3, heads=4, hidden=48, pad_id=98, **WORDS)
OPEN_TEXT = TextConfig(width=24, layers=4, heads=2, hidden=64, pad_id=0, activation="gelu", **WORDS)
SMALL_VAE = VAEConfig(channels=(16, 24, 32), groups=8)
TINY = {
    "sd1": Config(
        "tiny-sd1",
        (SMALL_TEXT,),
        UNetConfig(4, 4, (32, 64, 96), 2, (1, 1, 0), 1, heads=(4, 4, 4), context_dim=32, groups=8),
        SMALL_VAE,
    ),
    "sd2": Config(
        "tiny-sd2",
        (OPEN_TEXT,),
        UNetConfig(4, 4, (32, 64, 96), 2, (1, 1, 0), 1, heads=(2, 4, 6), context_dim=24, groups=8),
        SMALL_VAE,
        NoiseConfig(prediction="v"),
    ),
    "sdxl": Config(
        "tiny-sdxl",
        (
            TextConfig(width=32, layers=3, heads=4, hidden=48, pad_id=98, final_norm=False, **WORDS),
            TextConfig(
                width=24,
                layers=4,
                heads=2,
                hidden=64,
                pad_id=0,
                activation="gelu",
                projection=POOLED,
                pooled=True,
                final_norm=False,
                **WORDS,
            ),
        ),
        UNetConfig(4, 4, (32, 64, 96), 2, (0, 1, 2), 2, (2, 4, 6), 56, vector_dim=POOLED + 6 * 8, groups=8),
        VAEConfig(channels=(16, 24, 32), groups=8, scale_factor=0.13025, force_upcast=True),
    ),
    "mini": Config(
        "tiny-mini",
        (SMALL_TEXT,),
        UNetConfig(4, 4, (16, 32, 48), 1, (0, 1, 1), 1, heads=(2, 4, 3), context_dim=32, groups=4),
        VAEConfig(channels=(16, 24, 32), blocks_per_level=1, groups=4, scale_factor=0.7),
        NoiseConfig(prediction="v", zero_snr=True),
    ),
}
BIG_G = TextConfig(
    width=1280,
    layers=32,
    heads=20,
    hidden=5120,
    activation="gelu",
    projection=1280,
    pooled=True,
    final_norm=False,
    pad_id=0,
)
TRUE = {
    "sd15": Config("sd15"),
    "sd21": Config(
        "sd21",
        (TextConfig(width=1024, layers=23, heads=16, hidden=4096, activation="gelu", pad_id=0),),
        UNetConfig(heads=(5, 10, 20, 20), context_dim=1024),
        noise=NoiseConfig(prediction="v"),
    ),
    "sdxl": Config(
        "sdxl",
        (TextConfig(final_norm=False), BIG_G),
        UNetConfig(4, 4, (320, 640, 1280), 2, (0, 2, 10), 10, (5, 10, 20), context_dim=2048, vector_dim=2816),
        VAEConfig(scale_factor=0.13025, force_upcast=True),
    ),
}
