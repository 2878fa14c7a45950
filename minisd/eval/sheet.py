"""A look at an evaluation: the first pictures of each category, framed green where they are right, red where not.

In: a `Report`. Out: one picture.
"""

from typing import TYPE_CHECKING

from PIL.Image import Image
from PIL.ImageOps import expand

from ..image import grid, to_pil
from .score import from_bytes

if TYPE_CHECKING:
    from .evaluate import Report

SHOWN = 32  # of each category
FRAME = {True: (40, 160, 60), False: (220, 40, 40)}


def sheet(report: "Report") -> Image:
    """Two rows a category, in the order of the tables."""
    shown = []
    for categories in report.answers.values():
        for answers in categories.values():
            pictures = to_pil(from_bytes(answers.pictures[:SHOWN]))
            verdicts = (verdict["all"] for verdict in answers.verdicts)
            framed = [expand(image, 2, FRAME[right]) for image, right in zip(pictures, verdicts, strict=False)]
            blank = expand(pictures[0].copy().point(lambda _: 255), 2, "white")
            shown += framed + [blank] * (-len(framed) % (SHOWN // 2))
    return grid(shown, columns=SHOWN // 2)
