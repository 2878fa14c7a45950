"""An oracle that reads a picture back into words, by rules alone.

In: a square RGB picture, drawn or generated. Out: a `Reading`, to be marked against a `Scene` (`mark`).
Every pixel is taken as a mixture, pixel = background + coverage * (object - background). The coverage of each
connected blob is compared with the eight shapes drawn into its bounding box. What resembles nothing is called
"unclear", so that a poor picture cannot pass by being nearest to something.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from minisd.world.colour import lab
from minisd.world.scenes import Object
from minisd.world.shapes import Box, mask
from minisd.world.words import COLOURS, PLAIN, RGB, SHAPES

UNCLEAR = "unclear"
CONTRAST = 45.0  # RGB distance that lifts a pixel off the background; black on dark blue, the faintest, has 99
SPECK = 0.004  # share of the picture; the smallest star covers 0.02
MOST = 6  # blobs looked at: no scene has more than four, and noise has dozens
COLOUR_LIMIT = 30.0  # CIE76 difference to the nearest palette colour
BACKGROUND_LIMIT = 25.0
SPREAD_LIMIT = 40.0  # RGB distance of three quarters of an object's pixels from their own median
SHAPE_LIMIT = 0.7  # soft IoU
ASPECT_LIMIT = 1.4
CLOSE = 0.12  # soft IoU: nearer rivals are looked at closely
SCALES = (0.6, 1.0)
BLURS = (0.0, 0.6, 1.0)  # pixels; generated pictures are softer than drawn ones
LARGE = 0.33  # of the width: between the largest small shape and the smallest large one


@dataclass(frozen=True)
class Reading:
    """What a picture shows. Any shape, colour or background may be "unclear"; objects come largest first."""

    background: str
    objects: tuple[Object, ...]


def read(image: Image.Image) -> Reading:
    """Reads a square picture. Raises ValueError if it is not square or smaller than 48 pixels."""
    if image.width != image.height or image.width < 48:
        raise ValueError(f"the picture is {image.width} x {image.height}: give a square, 48 pixels or more")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    ground = _border_colour(pixels)
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    labels = label(contrast > CONTRAST)
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")[:MOST] + 1
    blobs = [number for number in order if areas[number - 1] >= SPECK * labels.size]
    objects = tuple(_read_blob(pixels, ground, contrast, labels, number) for number in blobs)
    return Reading(nearest(ground, PLAIN, BACKGROUND_LIMIT), objects)


def nearest(rgb: np.ndarray | RGB, names: dict[str, RGB], limit: float) -> str:
    """The name whose colour looks most like `rgb` (3,), or "unclear" beyond a CIE76 difference of `limit`."""
    distances = np.linalg.norm(lab(np.array(list(names.values()))) - lab(np.asarray(rgb)), axis=-1)
    best = int(distances.argmin())
    return list(names)[best] if distances[best] <= limit else UNCLEAR


def label(marked: np.ndarray) -> np.ndarray:
    """Numbers the 4-connected blobs of a bool array (h, w): ints (h, w) from 1 in reading order, else 0."""
    ids = np.arange(marked.size).reshape(marked.shape)
    across = marked[:, 1:] & marked[:, :-1]
    down = marked[1:] & marked[:-1]
    first = np.concatenate([ids[:, :-1][across], ids[:-1][down]])
    second = np.concatenate([ids[:, 1:][across], ids[1:][down]])
    root = ids.ravel().copy()
    while (root[first] != root[second]).any():
        low = np.minimum(root[first], root[second])
        np.minimum.at(root, root[first], low)
        np.minimum.at(root, root[second], low)
        while (root[root] != root).any():
            root = root[root]
    labels = np.zeros(marked.size, dtype=np.int64)
    inside = marked.ravel()
    labels[inside] = np.unique(root[inside], return_inverse=True)[1] + 1
    return labels.reshape(marked.shape)


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    """The median of the outermost pixels: an object that runs off the picture does not sway it."""
    edge = max(1, len(pixels) // 48)
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[edge:-edge, edge:-edge] = True
    return np.median(pixels[~inner], axis=0)


def _read_blob(pixels: np.ndarray, ground: np.ndarray, contrast: np.ndarray, labels: np.ndarray, number: int) -> Object:
    size = len(pixels)
    blob = labels == number
    # Rims are mixtures: only the pixels that stand out most show the object's own colour.
    core = blob & (contrast >= 0.9 * np.quantile(contrast[blob], 0.95))
    colour = np.median(pixels[core], axis=0)
    spread = np.quantile(np.linalg.norm(pixels[core] - colour, axis=-1), 0.75)
    tint = colour - ground
    plain = spread <= SPREAD_LIMIT and np.linalg.norm(tint) >= CONTRAST / 2
    # Without one colour of its own a blob is no mixture: then it covers what it covers.
    coverage = np.maximum((pixels - ground) @ tint / (tint @ tint), 0) if plain else blob.astype(np.float32)
    coverage[(labels > 0) & ~blob] = 0
    shape, (left, top, right, bottom) = _fit(*_crop(coverage, blob))
    extent = (right - left + bottom - top) / 2 / size
    return Object(
        noun=shape,
        colour=nearest(colour, COLOURS, COLOUR_LIMIT) if plain else UNCLEAR,
        size="large" if extent > LARGE else "small",
        x=(left + right) / 2 / size,
        y=(top + bottom) / 2 / size,
        extent=extent,
    )


def _crop(coverage: np.ndarray, blob: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The coverage around a blob, with three pixels to spare (zeros beyond the edge), and its (left, top)."""
    rows, columns = np.flatnonzero(blob.any(1)), np.flatnonzero(blob.any(0))
    padded = np.pad(coverage, 3)
    return (
        padded[rows[0] : rows[-1] + 7, columns[0] : columns[-1] + 7],
        int(columns[0]) - 3,
        int(rows[0]) - 3,
    )


def _fit(coverage: np.ndarray, left: int, top: int) -> tuple[str, Box]:
    """The shape that fits a coverage (h, w) best and its box in the picture; (left, top) is its corner."""
    x0, x1 = _ends(coverage.max(0))
    y0, y1 = _ends(coverage.max(1))
    # Points that end in less than half a pixel make the box look too small.
    boxes = [(x0 - grown, y0 - grown, x1 + grown, y1 + grown) for grown in (0, 0.75)]
    firsts = [
        max((_iou(coverage, shape, blur, box), shape, blur, box) for blur in BLURS for box in boxes) for shape in SHAPES
    ]
    firsts.sort(reverse=True)
    rivals = [first for first in firsts if first[0] > firsts[0][0] - CLOSE]
    iou, shape, _, box = max(_refined(coverage, *rival) for rival in rivals[:3])
    width, height = box[2] - box[0], box[3] - box[1]
    clear = iou >= SHAPE_LIMIT and max(width, height) <= ASPECT_LIMIT * min(width, height)
    return shape if clear else UNCLEAR, (box[0] + left, box[1] + top, box[2] + left, box[3] + top)


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """Where a row of coverages (n,) rises and falls half-way, with fractions, at least one pixel apart."""
    solid = np.flatnonzero(profile >= profile.max() / 2)
    first, last = int(solid[0]), int(solid[-1])
    start, end = first + 1 - float(profile[first]), last + float(profile[last])
    return min(start, (start + end - 1) / 2), max(end, (start + end + 1) / 2)


def _refined(coverage: np.ndarray, iou: float, shape: str, blur: float, box: Box) -> tuple[float, str, float, Box]:
    """Moves each side of the box while the fit improves: a pointed shape's box is first seen too small."""
    height, width = coverage.shape
    for step in (1.0, 0.5, 0.25):
        for side in range(4):
            for move in (-step, step):
                trial = tuple(edge + move * (k == side) for k, edge in enumerate(box))
                left, top, right, bottom = trial
                if 0 <= left <= right - 1 <= width - 1 and 0 <= top <= bottom - 1 <= height - 1:
                    iou, box = max((iou, box), (_iou(coverage, shape, blur, trial), trial))
    return iou, shape, blur, box


def _iou(coverage: np.ndarray, shape: str, blur: float, box: Box) -> float:
    """Soft intersection over union of a coverage (h, w) and a shape drawn into a box, blurred (pixels)."""
    image, corner = mask(shape, box)
    canvas = Image.new("L", coverage.shape[::-1])
    canvas.paste(image, corner)
    if blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur))
    drawn = np.asarray(canvas, dtype=np.float32) / 255
    # A thin shape, blurred, nowhere shows its full colour: its coverage was measured against too pale a one.
    scale = np.clip((coverage * drawn).sum() / np.square(coverage).sum(), *SCALES)
    coverage = np.minimum(coverage * scale, 1)
    return float(np.minimum(coverage, drawn).sum() / np.maximum(coverage, drawn).sum())
