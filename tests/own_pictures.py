"""Small folders of captioned pictures, for the tests of training on one's own."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def folder_of(home: Path, pictures: Sequence[Image.Image], captions: Sequence[object] | None = None) -> Path:
    """A folder with 0.png, 1.png ... and their metadata.jsonl."""
    home.mkdir(parents=True, exist_ok=True)
    captions = captions or [f"picture number {i}" for i in range(len(pictures))]
    rows = []
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        picture.save(home / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": caption}))
    (home / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return home


def noise(seed: int, width: int, height: int) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
