"""A line that says how far a long reading is."""

from __future__ import annotations

import sys
import time

_PATIENCE = 3.0  # seconds before a reading is worth a line
_EVERY = 0.5  # seconds between two states of the line on a terminal
_EVERY_IN_A_FILE = 60.0  # and between two lines where they pile up


class Progress:
    """Counts, and says so on standard error once it takes longer than three seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def one(self) -> None:
        """One more is done; not to be called by two threads at once."""
        self._done += 1
        now = time.monotonic()
        pause = (_EVERY if self._terminal else _EVERY_IN_A_FILE) if self._shown else _PATIENCE
        if now - self._said < pause:
            return
        self._said, self._shown = now, True
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        line = f"{self._what}: {self._done:,} of {self._total:,} ({rate:,.0f}/s, {left:,.0f} s left)"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._shown and self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
