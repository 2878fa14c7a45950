"""LoRA: small changes of a model's weights, merged into them and taken off again.

In: files in kohya's or diffusers' (PEFT's) naming, each with a weight. Out: the model, its matrices W turned into
W + weight * alpha / rank * up @ down. The originals are kept, so that `unload` brings them back bit for bit.
Hu et al. 2021, https://arxiv.org/abs/2106.09685; https://github.com/kohya-ss/sd-scripts
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import Parameter

from ..config import Config, check
from ..model import Model
from .detect import known_as
from .foreign import Fields
from .keys import first, flat
from .lora_names import other_kind, places, role_of, trained_for
from .tensors import read_header, read_tensors

log = logging.getLogger("minisd")

Faults = dict[str, list[str]]


@dataclass(frozen=True)
class Change:
    """What one file adds to one weight: scale * up @ down, with a convolution `mid` between them in some files.

    down (r, i) or (r, i, k, k), up (o, r) or (o, r, 1, 1), mid (r, r, k, k); r is the rank.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None
    scale: float

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the change, (o, i) or (o, i, k, k); None where its parts do not go together."""
        down, up = flat(self.down.shape), flat(self.up.shape)
        if len(up) != 2 or len(down) < 2 or 0 in (*up, *down):
            return None
        if self.mid is None:
            return (up[0], *down[1:]) if up[1] == down[0] else None
        fits = len(down) == 2 and self.mid.ndim == 4 and tuple(self.mid.shape[:2]) == (up[1], down[0])
        return flat((up[0], down[1], *self.mid.shape[2:])) if fits else None

    def delta(self, like: Tensor) -> Tensor:
        """The change, not yet scaled, in the shape and on the device of a weight, float32."""
        down, up = (rearrange(t.to(like.device, torch.float32), "r ... -> r (...)") for t in (self.down, self.up))
        if self.mid is None:
            return (up @ down).reshape(like.shape)
        mid = self.mid.to(like.device, torch.float32)
        return einsum(up, mid, down, "o r, r s k l, s i -> o i k l").reshape(like.shape)


def load_loras(model: Model, loras: Sequence[tuple[str | Path, float]]) -> None:
    """Merge LoRA files into a model; those merged before are taken off first. One line each is logged.

    Args:
        model: its UNet and text encoders are changed in place; `model.originals` keeps what they were.
        loras: (file, weight) each; 1.0 is the strength it was trained at, negative weights are allowed.

    Raises:
        ValueError: a weight that is no finite number; a file that is no LoRA, damaged, or does not fit the model (at
            most six lines). The model is then as before. Or the sum is too large for the model's dtype; the model
            is then without LoRAs.
    """
    weights = parameters(model)
    plan: dict[str, list[tuple[float, Change]]] = {}
    lines, names = [], []
    for path, weight in loras:
        ok = isinstance(weight, int | float) and math.isfinite(weight)
        check(ok, f"the weight {weight!r} of {path} must be a finite number")
        changes = read(Path(path), model.config, {name: p.shape for name, p in weights.items()})
        for name, change in changes.items():
            plan.setdefault(name, []).append((weight * change.scale, change))
        lines.append(f"{path}: weight {weight:g}, {described(changes)}")
        names.append(f"{Path(path).name}:{weight:g}")
    unload(model)
    merge(model, plan)
    if names:
        model.origin["loras"] = ", ".join(names)  # goes into the recipe of every picture
    for line in lines:
        log.info("%s", line)


@torch.no_grad()
def unload(model: Model) -> None:
    """Take all LoRAs off: the original weights again, bit for bit. Does nothing where there are none."""
    weights = parameters(model)
    for name, original in model.originals.items():
        weights[name].data = original.to(weights[name].device, weights[name].dtype)
    model.originals.clear()
    model.origin.pop("loras", None)


@torch.no_grad()
def merge(model: Model, plan: Mapping[str, list[tuple[float, Change]]]) -> None:
    """Add the changes to the weights they name; summed in float32, rounded once."""
    weights = parameters(model)
    for name, changes in plan.items():
        weight = weights[name]
        total = weight.float()
        for scale, change in changes:
            total = total + scale * change.delta(weight)
        merged = torch.empty_like(weight).copy_(total)  # keeps the layout in memory, which the speed hangs on
        if not torch.isfinite(merged).all():
            unload(model)
            raise ValueError(f"with these LoRAs {name} is too large for {weight.dtype}: lower weights, or --dtype fp32")
        model.originals[name] = weight.data
        weight.data = merged


def parameters(model: Model) -> dict[str, Parameter]:
    """Every parameter that a LoRA may change, by minisd's name: unet.*, text.0.* ..."""
    return dict(nn.ModuleDict({"unet": model.unet, "text": model.text}).named_parameters())


def read(path: Path, config: Config, shapes: Mapping[str, torch.Size]) -> dict[str, Change]:
    """The changes of one file, by minisd's name of the weight.

    Args:
        config: of the model that it shall fit.
        shapes: of the model's own weights.

    Raises:
        ValueError: as `load_loras`.
    """
    tensors = read_tensors(path)
    bundled = [name for name in tensors if name.startswith("bundle_emb.")]
    if bundled:
        log.warning("%s: the embeddings it carries are left out: %s", path, first(bundled))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in bundled}
    kind = other_kind(tensors)
    check(not kind, f"{path} is {kind}")
    check(any(role_of(name)[1] for name in tensors), f"{path} is not a LoRA: it holds {first(list(tensors))}")
    bad = [name for name, tensor in tensors.items() if not sound(name, tensor)]
    check(not bad, f"{path} is damaged: {len(bad)} tensors hold other than finite numbers ({first(bad)})")
    found, faults = sort_in(tensors, places(config))
    told = told_by_peft(path) if any(name.startswith(PEFT) for name in tensors) else told_alphas(path)
    changes = {}
    for name, (stem, roles) in found.items():
        if not {"down", "up"} <= roles.keys():
            faults["without their other half"].append(stem)
            continue
        change = Change(roles["down"], roles["up"], roles.get("mid"), scale_of(stem, roles, told))
        changes[name] = change
        if change.shape != flat(shapes[name]):
            seen = " x ".join(str(tuple(t.shape)) for t in (change.up, change.down))
            faults["of another shape"].append(f"{stem} {seen} instead of {tuple(shapes[name])}")
        if not math.isfinite(change.scale):
            faults["with an alpha that is no number"].append(stem)
    message = misfit(path, tensors, config, faults)
    check(not message, message)
    return changes


def sound(name: str, tensor: Tensor) -> bool:
    """Finite numbers, with a fraction unless it is an alpha."""
    return (tensor.is_floating_point() or name.endswith(".alpha")) and bool(torch.isfinite(tensor.float()).all())


def sort_in(
    tensors: Mapping[str, Tensor], known: Mapping[str, str]
) -> tuple[dict[str, tuple[str, dict[str, Tensor]]], Faults]:
    """{weight's name: (the file's name of it, {role: tensor})}, and the names that found no place."""
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    faults: Faults = {kind: [] for kind in FAULTS}
    for name, tensor in tensors.items():
        stem, role = role_of(name)
        if not role or stem not in known:
            faults["of no place in the model"].append(name)
            continue
        roles = found.setdefault(known[stem], (stem, {}))[1]
        if role in roles:
            faults["given twice"].append(name)
        roles[role] = tensor
    return found, faults


def told_alphas(path: Path) -> dict[str, object]:
    """What diffusers writes beside the tensors: "unet.lora_alpha", "unet.alpha_pattern" ...; {} where there is none."""
    text = read_header(path).metadata.get("lora_adapter_metadata", "{}")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its lora_adapter_metadata cannot be read: {error}") from error
    check(isinstance(told, dict), f"{path}: its lora_adapter_metadata is no table")
    return told


def told_by_peft(path: Path) -> dict[str, object]:
    """The same of a file that PEFT saved by itself: it lies in adapter_config.json beside the file.

    Raises:
        ValueError: it is not there, or asks for a DoRA.
    """
    config = Fields.of(path.parent, "adapter_config.json")
    check(not config.data.get("use_dora"), f"{config.where}: a DoRA, which minisd does not read")
    part = PEFT.partition(".")[0]
    return {f"{part}.{key}": config.data.get(key) for key in ("lora_alpha", "alpha_pattern", "use_rslora")}


def scale_of(stem: str, roles: Mapping[str, Tensor], told: Mapping[str, object]) -> float:
    """alpha / rank, or alpha / sqrt(rank) where the metadata say so (rsLoRA); no alpha: 1. NaN: it is no number."""
    rank = max([1, *roles["down"].shape[:1]])
    if "alpha" in roles:
        return float(roles["alpha"]) / rank if roles["alpha"].numel() == 1 else math.nan
    part, _, name = stem.partition(".")
    patterns = told.get(f"{part}.alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) else {}
    ours = (alpha for key, alpha in patterns.items() if f".{name}".endswith(f".{key.removeprefix('^')}"))
    alpha = next(ours, told.get(f"{part}.lora_alpha"))
    if alpha is None:
        return 1.0
    ok = type(alpha) in (int, float) and abs(alpha) < 1e9
    return alpha / (math.sqrt(rank) if told.get(f"{part}.use_rslora") is True else rank) if ok else math.nan


def described(changes: Mapping[str, Change]) -> str:
    """What a file changes, in words."""
    ranks = sorted({change.down.shape[0] for change in changes.values()})
    unet = sum(name.startswith("unet.") for name in changes)
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"rank {span}, {unet} layers of the UNet, {len(changes) - unet} of the text encoders"


def misfit(path: Path, tensors: Mapping[str, Tensor], config: Config, faults: Faults) -> str:
    """At most six lines on tensors that do not fit, with the likely cause; "" where all do."""
    told = [f"  {len(names)} {kind}: {first(names)}" for kind, names in faults.items() if names]
    family, width = trained_for(tensors)
    model = known_as(config.unet.context_dim).strip(" ()") or config.name
    if family and family != model:
        cause = f"this LoRA is for {family}, the model is {model}"
    elif width and width != config.unet.context_dim:
        cause = f"this LoRA is for a context {width} wide, the model's is {config.unet.context_dim}"
    elif faults["of no place in the model"]:
        cause = "a LoRA for a model that is built otherwise, or names that minisd does not know"
    else:
        cause = "the file is incomplete or damaged"
    kind = f"a LoRA for {family or 'an unknown model'}{f' (context {width})' if width else ''}"
    return "\n".join([f"{path} does not fit: {kind}", *told[:4], f"  likely cause: {cause}"]) if told else ""


PEFT = "base_model.model."
FAULTS = (
    *("of no place in the model", "of another shape", "without their other half", "given twice"),
    "with an alpha that is no number",
)
