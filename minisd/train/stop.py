"""When a run has to stop before its end: a signal, or its time is over.

A signal is noted and answered at the end of the step, with a checkpoint; a second one ends the program at once.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run stopped in good order. `signal` is 0 where its time was over."""

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


def now() -> float:
    """Seconds on a clock that nobody sets."""
    return time.monotonic()


@contextmanager
def stopping(until: float = math.inf) -> Iterator[Callable[[], int]]:
    """Yield a function that says whether to stop: 0 no, -1 it is later than `until`, else a signal's number."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # torchrun hands on to its processes what the terminal has told them already: there a second one says nothing.
        if caught and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        caught.append(number)
        told = b"\nminisd: stopping after this step, with a checkpoint; once more to stop at once\n"
        os.write(sys.__stderr__.fileno(), told)

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python lets nobody catch a signal
    before = {number: signal.signal(number, note) for number in SIGNALS} if main else {}
    try:
        yield lambda: caught[0] if caught else -(now() > until)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
