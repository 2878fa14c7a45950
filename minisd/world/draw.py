"""Scenes drawn as pictures, a batch at a time, on any device.

In: scenes. Out: pictures (b, 3, size, size) in [-1, 1]. Grounds and sprites are made once (`grounds`, `sprites`) and
lie on the device as bytes; a picture is its ground with up to four sprites laid over it, each sampled between its
pixels so that sizes and places may be anything. Sprites are premultiplied by their alpha: Porter & Duff 1984,
https://doi.org/10.1145/800031.808606
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.world.grounds import paint
from minisd.world.scenes import Scene
from minisd.world.sprites import Sprites
from minisd.world.words import JITTER, SIZES

MOST = 4  # objects in a scene


@dataclass(frozen=True)
class Layout:
    """Scenes in numbers: ground (b,), and for every object sprite (b, 4), -1 for none, size (b, 4) as a number, and
    centre and extent (b, 4, 3) as fractions of the width."""

    ground: Tensor
    sprite: Tensor
    size: Tensor
    box: Tensor


class Painter:
    """Draws scenes of some sprites and grounds."""

    def __init__(self, sprites: Sprites, grounds: Sequence[str], size: int, device: torch.device | str = "cpu") -> None:
        self.size, self.device = size, torch.device(device)
        self.sprites = {look: i for i, look in enumerate(sprites.looks)}
        self.sizes = {name: i for i, name in enumerate(SIZES)}
        # A border of one transparent pixel: the samples just outside a sprite fade to nothing.
        self.atlases = [
            F.pad(torch.from_numpy(sprites.atlas(round(size * (SIZES[name] + JITTER[name])))), (1, 1, 1, 1)).to(device)
            for name in SIZES
        ]
        painted = {ground: paint(ground, size) for ground in grounds}
        starts = np.cumsum([0, *(len(pictures) for pictures in painted.values())])
        self.starts = {ground: (int(i), len(painted[ground])) for ground, i in zip(painted, starts, strict=False)}
        stacked = np.concatenate(list(painted.values())).transpose(0, 3, 1, 2)
        self.grounds = torch.from_numpy(np.ascontiguousarray(stacked)).to(device)

    def layout(self, scenes: Sequence[Scene]) -> Layout:
        """What of the scenes is drawn, in numbers, on the CPU."""
        ground, sprite, size, box = [], [], [], []
        for scene in scenes:
            start, count = self.starts[scene.background]
            ground.append(start + scene.grain % count)
            spare = MOST - len(scene.objects)
            sprite += [self.sprites[item.look] for item in scene.objects] + spare * [-1]
            size += [self.sizes[item.size] for item in scene.objects] + spare * [0]
            box += [(item.x, item.y, item.extent) for item in scene.objects] + spare * [(0.0, 0.0, 1.0)]
        numbers = (torch.tensor(sprite).view(-1, MOST), torch.tensor(size).view(-1, MOST))
        return Layout(torch.tensor(ground), *numbers, torch.tensor(box).view(-1, MOST, 3))

    def __call__(self, scenes: Sequence[Scene] | Layout) -> Tensor:
        """Pictures (b, 3, size, size) in [-1, 1], float32, on the painter's device."""
        plan = scenes if isinstance(scenes, Layout) else self.layout(scenes)
        pictures = self.grounds[plan.ground.to(self.device)].float()
        for slot in range(MOST):
            for size, atlas in enumerate(self.atlases):
                rows = ((plan.sprite[:, slot] >= 0) & (plan.size[:, slot] == size)).nonzero().squeeze(1)
                if len(rows):
                    sprites = atlas[plan.sprite[rows, slot].to(self.device)].float()
                    self.lay(pictures, rows.to(self.device), sprites, plan.box[rows, slot].to(self.device))
        return (pictures / 127.5 - 1).clamp(-1, 1)  # a rounded sprite may be half a level too bright

    def lay(self, pictures: Tensor, rows: Tensor, sprites: Tensor, box: Tensor) -> None:
        """Lay sprites (k, 4, m, m), border included, over the pictures (b, 3, size, size) of some rows (k,)."""
        m = sprites.shape[-1]
        window = torch.arange(m + 2, device=box.device)  # more than a box and its soft rim ever touch
        corner = ((box[:, :2] - box[:, 2:] / 2) * self.size - 1).floor().long().clamp(0, self.size - len(window))
        x, y = (corner[:, k, None] + window for k in (0, 1))
        # From the picture's width to the sprite's, whose border lies outside the box; then to grid_sample's -1..1.
        scale = 2 * (m - 2) / m / box[:, 2, None]
        u, v = ((pixels + 0.5) / self.size - box[:, k, None] for k, pixels in enumerate((x, y)))
        grid = torch.stack(torch.broadcast_tensors((u * scale)[:, None, :], (v * scale)[:, :, None]), dim=-1)
        laid = F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        where = rows[:, None, None], y[:, :, None], x[:, None, :]
        below = rearrange(pictures, "b c h w -> b h w c")
        laid = rearrange(laid, "k c h w -> k h w c")
        below[where] = below[where] * (1 - laid[..., 3:] / 255) + laid[..., :3]
