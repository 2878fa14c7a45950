"""The words of the world: shapes, patterns, colours, grounds, sizes, places, relations, numbers.

In: nothing. Out: names, and for colours RGB in 0..255. Emoji stand in `minisd.world.emoji`. Lengths are fractions of
the picture's width, y points down.
"""

from itertools import combinations, permutations

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
PATTERNS = ("plain", "striped", "dotted", "checkered", "outlined")
NEVER = {"circle": ("outlined",), "ring": PATTERNS[1:]}  # an outlined circle is a ring; a ring has no room for more
COLOURS: dict[str, RGB] = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (40, 80, 235),
    "yellow": (250, 215, 30),
    "purple": (140, 40, 200),
    "orange": (245, 130, 20),
    "black": (15, 15, 15),
    "pink": (255, 95, 175),
}
TINTS = tuple(name for name in COLOURS if name != "black")  # an emoji can be had in these: black leaves no detail

PLAIN: dict[str, RGB] = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "cream": (255, 243, 214),
    "cyan": (120, 225, 235),
    "brown": (120, 80, 45),
    "dark blue": (25, 40, 110),
}
MUTED: dict[str, RGB] = {  # for grounds of two colours: pale, so that objects in full colour stand out
    "white": (250, 250, 250),
    "gray": (165, 165, 165),
    "red": (222, 116, 112),
    "yellow": (245, 228, 140),
    "green": (142, 196, 142),
    "blue": (134, 172, 228),
    "purple": (178, 146, 214),
    "pink": (248, 186, 214),
}
LANDSCAPES: dict[str, tuple[RGB, ...]] = {  # what they are painted in, from the top down
    "night sky": ((10, 12, 42), (38, 40, 92)),
    "sea": ((205, 232, 250), (72, 150, 205), (40, 100, 165)),
    "meadow": ((190, 226, 250), (132, 196, 92), (98, 168, 66)),
}
_PAIRS = tuple("/".join(pair) for pair in combinations(MUTED, 2))
_TURNED = tuple("/".join(pair) for pair in permutations(MUTED, 2))  # a gradient goes from one to the other
GROUNDS: dict[str, tuple[str, ...]] = {  # kind of ground -> the grounds
    "plain": tuple(PLAIN),
    "gradient": tuple(f"gradient {pair}" for pair in _TURNED),
    "striped": tuple(f"striped {pair}" for pair in _PAIRS),
    "checkered": tuple(f"checkered {pair}" for pair in _PAIRS),
    "night sky": ("night sky",),
    "sea": ("sea",),
    "meadow": ("meadow",),
}

SIZES = {"small": 0.27, "large": 0.42}
JITTER = {"small": 0.015, "large": 0.02}  # an extent is the size +- its jitter
INVERSE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(INVERSE)
PLACES: dict[str, tuple[float, float]] = {  # where the centre lies, in thirds of the picture
    "in the top left corner": (0, 0),
    "at the top": (1, 0),
    "in the top right corner": (2, 0),
    "on the left": (0, 1),
    "in the middle": (1, 1),
    "on the right": (2, 1),
    "in the bottom left corner": (0, 2),
    "at the bottom": (1, 2),
    "in the bottom right corner": (2, 2),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}

_PLURALS = {
    "die": "dice",
    "mouse": "mice",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "leaf": "leaves",
    "loaf": "loaves",
    "wolf": "wolves",
    "scarf": "scarves",
    "tooth": "teeth",
    "foot": "feet",
    "tomato": "tomatoes",
    "potato": "potatoes",
}
_SOUNDS = {"unicorn": "a", "ufo": "a", "hourglass": "an"}  # spelt otherwise than they sound


def ground_parts(ground: str) -> tuple[str, tuple[str, ...]]:
    """The kind of a ground and its colours: "striped red/white" is ("striped", ("red", "white"))."""
    kind, _, pair = ground.partition(" ")
    if "/" in pair:
        return kind, tuple(pair.split("/"))
    return ("plain", (ground,)) if ground in PLAIN else (ground, ())


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    first = words.partition(" ")[0]
    return f"{_SOUNDS.get(first, 'an' if first[0] in 'aeiou' else 'a')} {words}"


def plural(noun: str) -> str:
    """More than one: of the last word, or of the one before "of" ("bowls of soup")."""
    head, of, rest = noun.partition(" of ")
    before, space, last = head.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou-":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{before}{space}{last}{of}{rest}"
