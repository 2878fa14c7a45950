"""The pictures of the README and of docs/gallery.md, each by the very command that stands beside it there.

python scripts/gallery.py                # all of them, into docs/images/
python scripts/gallery.py clip-skip cfg  # some
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Each picture's path and the command that draws it, as the pages have them."""
    for path, command in re.findall(r'<img src="(.+?)".*?\| `(minisd .+?)` \|', (ROOT / "README.md").read_text()):
        yield Path(path), [*shlex.split(command), "-o", path]
    for command in re.findall(r"^    (minisd .+ -o .+)$", (ROOT / "docs" / "gallery.md").read_text(), re.MULTILINE):
        words = shlex.split(command)
        yield Path(words[words.index("-o") + 1]), words


def main() -> None:
    """Run the commands in their order, or those of the pictures named."""
    wanted = set(sys.argv[1:])
    for path, command in commands():
        if not wanted or path.stem in wanted:
            print(path, flush=True)
            run = [sys.executable, "-m", *command, "--overwrite", "-q"]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


if __name__ == "__main__":
    main()
