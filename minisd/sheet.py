"""Sheets: many pictures on one, with labels along two axes, and in the file what each of them is.

In: RGB pictures of `generate`, row by row. Out: one RGB picture; its `.info["minisd_grid"]` is JSON: `recipe` holds
what all pictures have in common, `cells` what each has of its own, so that recipe | cell draws that picture again.
There is no recipe of the sheet itself: nothing may take it for a picture that a seed gives.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .image import grid

GAP = 4  # white pixels between pictures
WIDEST = 14  # heights of a letter; so far a label may widen its column, a longer word is cut
LINES = 4  # of a label
LONGEST = 400  # characters of a label that are looked at

Font = ImageFont.FreeTypeFont


def read_picture(path: Path) -> Image.Image:
    """A picture file in memory, with the texts it holds."""
    with Image.open(path) as image:
        return image.convert("RGB")


def plain_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a square, as near as can be; no labels."""
    columns = math.isqrt(len(images) - 1) + 1  # the root, rounded up
    sheet = grid(images, columns)
    sheet.info["minisd_grid"] = describe(images, [{}] * len(images), {"columns": columns})
    return sheet


def labelled_sheet(
    images: Sequence[Image.Image], x_labels: Sequence[str], y_labels: Sequence[str], axes: dict[str, Any]
) -> Image.Image:
    """Pictures row by row under labels. None is scaled; a smaller one stands in the middle of its cell.

    Args:
        images: len(y_labels) * len(x_labels) of them, of any sizes.
        x_labels: over the columns; where all are empty they take no room.
        y_labels: beside the rows.
        axes: told in the file beside `recipe` and `cells`. Each cell has its `box`: left, top, right, bottom.
    """
    width, height = max(image.width for image in images), max(image.height for image in images)
    font = ImageFont.load_default(min(32, max(12, width // 16)))
    line = math.ceil(1.25 * font.size)
    width = max(width, *(column_width(label, font) for label in x_labels))
    above = [wrap(label, font, width, LINES) for label in x_labels]
    beside = [wrap(label, font, round(WIDEST * font.size), max(1, height // line)) for label in y_labels]
    left = math.ceil(max((font.getlength(text) for lines in beside for text in lines), default=-GAP)) + 2 * GAP
    top = max(map(len, above)) * line + GAP

    size = (left + len(x_labels) * (width + GAP), top + len(y_labels) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(above):
        middle = left + column * (width + GAP) + width // 2
        write(pen, lines, font, middle, top - GAP - len(lines) * line, line, "ma")
    for row, lines in enumerate(beside):
        middle = top + row * (height + GAP) + height // 2
        write(pen, lines, font, left - GAP, middle - len(lines) * line // 2, line, "ra")
    boxes = []
    for i, image in enumerate(images):
        row, column = divmod(i, len(x_labels))
        x = left + column * (width + GAP) + (width - image.width) // 2
        y = top + row * (height + GAP) + (height - image.height) // 2
        sheet.paste(image, (x, y))
        boxes.append({"box": (x, y, x + image.width, y + image.height)})
    sheet.info["minisd_grid"] = describe(images, boxes, axes)
    return sheet


def describe(images: Sequence[Image.Image], extra: Sequence[dict[str, Any]], told: dict[str, Any]) -> str:
    """What the pictures are, as JSON: what all have in common once, then what each has of its own."""
    recipes = [json.loads(image.info["minisd"]) for image in images]
    common = {k: v for k, v in recipes[0].items() if all(k in r and r[k] == v for r in recipes)}
    own = [{k: v for k, v in recipe.items() if k not in common} for recipe in recipes]
    cells = [more | cell for more, cell in zip(extra, own, strict=True)]
    return json.dumps({**told, "recipe": common, "cells": cells}, ensure_ascii=False)


def words(label: str) -> list[str]:
    """A label's words; no line break or other control character is left."""
    return "".join(c if c.isprintable() else " " for c in label[:LONGEST]).split()


def column_width(label: str, font: Font) -> int:
    """How many pixels a label needs to be read whole in LINES, which break at words; up to WIDEST."""
    longest = max((font.getlength(word) for word in words(label)), default=0)
    return min(round(WIDEST * font.size), math.ceil(max(longest, font.getlength(" ".join(words(label))) / (LINES - 1))))


def wrap(label: str, font: Font, width: int, most: int) -> list[str]:
    """A label in at most so many lines of that many pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in words(label):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most or len(label) > LONGEST:
        lines[most - 1 :] = [f"{' '.join(lines[most - 1 :])}…"]
    return [trim(text, font, width) for text in lines]


def trim(text: str, font: Font, width: int) -> str:
    """A text of at most so many pixels."""
    if font.getlength(text) <= width:
        return text
    kept = text.rstrip("…")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"


def write(pen: ImageDraw.ImageDraw, lines: Sequence[str], font: Font, x: int, y: int, step: int, anchor: str) -> None:
    """Lines of text one under another, black."""
    for i, text in enumerate(lines):
        pen.text((x, y + i * step), text, fill="black", font=font, anchor=anchor)
