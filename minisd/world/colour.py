"""Colours as the eye sees them.

In: sRGB in 0..255. Out: CIE L*a*b* (D65), where distances follow the eye; and pictures in one hue.
https://www.w3.org/Graphics/Color/srgb, CIE 15
"""

import numpy as np

from minisd.world.words import COLOURS, RGB

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3), 0 to 255, to CIE L*a*b* (IEC 61966-2-1)."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)  # relative to white
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def mixed(one: RGB, other: RGB, share: float) -> RGB:
    """`share` of the other colour in the one."""
    return tuple(round(a + share * (b - a)) for a, b in zip(one, other, strict=True))


def levels(picture: np.ndarray) -> tuple[float, float, float]:
    """The dark, the middle and the bright level of a picture (h, w, 4), of 0..255."""
    solid = (picture[..., :3].astype(np.float32) @ LUMA)[picture[..., 3] > 128]
    low, middle, high = np.percentile(solid, (3, 50, 97)) if len(solid) else (0, 128, 255)
    spread = 60.0  # a flat picture stays flat: its noise is not blown up to black and white
    return min(low, middle - spread), middle, max(high, middle + spread)


def tones(rgb: np.ndarray, marks: tuple[float, float, float]) -> np.ndarray:
    """How bright pixels (..., 3) are within their picture: 0 its dark level, 1/2 its middle, 1 its bright one."""
    return np.interp(rgb @ LUMA, marks, (0, 0.5, 1))


def duotone(tone: np.ndarray, colour: RGB) -> np.ndarray:
    """Tones (...,) as shades of one colour (..., 3): a dark one, the colour itself at 1/2, a pale one."""
    shades = np.array([mixed(colour, (0, 0, 0), 0.65), colour, mixed(colour, (255, 255, 255), 0.65)])
    return np.stack([np.interp(tone, (0, 0.5, 1), shades[:, channel]) for channel in range(3)], -1)


def named(rgb: np.ndarray) -> np.ndarray:
    """The word (k,) for each colour (k, 3): a name of the palette, or one that no object is asked in."""
    names = [name for name, _ in SAMPLES]
    distances = np.linalg.norm(lab(rgb)[:, None] - lab(np.array([rgb for _, rgb in SAMPLES])), axis=-1)
    return np.array(names)[distances.argmin(1)]


# What else goes by the names of the palette, and what does not.
SAMPLES: tuple[tuple[str, RGB], ...] = (
    *COLOURS.items(),
    *((name, mixed(rgb, (255, 255, 255), 0.3)) for name, rgb in COLOURS.items() if name not in ("black", "orange")),
    *((name, mixed(rgb, (0, 0, 0), 0.3)) for name, rgb in COLOURS.items() if name not in ("yellow", "orange")),
    ("yellow", (255, 195, 35)),
    ("pink", (242, 150, 150)),
    ("green", (150, 200, 60)),
    ("green", (95, 120, 40)),
    ("blue", (70, 165, 235)),
    *(("brown", rgb) for rgb in ((70, 45, 35), (120, 80, 45), (150, 95, 55), (185, 120, 60), (205, 155, 95))),
    *(("beige", rgb) for rgb in ((235, 200, 150), (240, 215, 185), (250, 235, 215), (225, 180, 130), (255, 246, 157))),
    *(("gray", (level, level, level)) for level in (90, 150, 200, 225)),
    *(("gray", rgb) for rgb in ((85, 110, 125), (140, 165, 180), (190, 215, 225))),
    ("white", (255, 255, 255)),
)
