"""What a world is made of: the [world] section of a training recipe.

No torch here: recipes are checked before it is loaded. In: a table of a TOML file. Out: a `WorldRecipe`.
"""

from dataclasses import dataclass
from pathlib import Path

from minisd.config import check
from minisd.world.words import GROUNDS, PATTERNS

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",  # Fedora before 38
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",  # Fedora
)


@dataclass(frozen=True)
class WorldRecipe:
    """Which things on which grounds."""

    emoji: int | None = None  # the first so many of `minisd.world.emoji.EMOJI`; 0: shapes alone; None: all
    shapes: float = 0.3  # share of the objects that are shapes, where there are emoji
    patterns: tuple[str, ...] = PATTERNS
    grounds: tuple[str, ...] = tuple(GROUNDS)
    font: str | None = None  # of Noto Color Emoji; None: where systems keep it
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 < self.shapes <= 1, f"world.shapes is {self.shapes}: give a share above 0 and at most 1")
        for name, given, known in (("patterns", self.patterns, PATTERNS), ("grounds", self.grounds, tuple(GROUNDS))):
            unknown = [word for word in given if word not in known]
            check(not unknown, f"world.{name} has unknown words {unknown}: choose from {known}")
        check("plain" in self.patterns, f"world.patterns is {self.patterns}: 'plain' is always among them")

    def check_font(self) -> None:
        """Raises ValueError where emoji are wanted and there is no font to draw them."""
        if self.emoji != 0:
            find_font(self.font)


def find_font(path: str | None) -> str:
    """Where Noto Color Emoji lies: at a path, or where systems keep it.

    Raises:
        ValueError: there is no such file.
    """
    for candidate in [path] if path else FONTS:
        if Path(candidate).is_file():
            return candidate
    raise ValueError(
        f"no colour font at {path or ' or '.join(FONTS)}: install Debian's fonts-noto-color-emoji, name a "
        f"NotoColorEmoji.ttf by --font or as `font` in the recipe's [world], or set emoji = 0 there"
    )
