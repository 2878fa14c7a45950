"""`kill -9` inside a save and between two, and one when all seems done: the run goes on as if nothing had been."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_killed_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """All stages, killed inside a save of each of three. In a process of its own: a fork wants to be early."""
    command = [sys.executable, ROOT / "scripts/kill.py", "--kills", "3", "--inside", "3", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "3 of 3 inside a save" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    assert len(re.findall("ended -9, [0-9]+ files; went on: 0, all the same", done.stdout)) == 3
