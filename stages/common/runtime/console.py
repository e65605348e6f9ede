"""Warnings and progress bars of a stage, on a terminal and in a log."""

import os
import reprlib
import sys
import time
from typing import Any

from tqdm import tqdm

# Environment variable with the width of the progress bar in columns. A parent process sets it if it draws the bar.
COLUMNS = "STAGE_COLUMNS"
LOG_INTERVAL_SECONDS = 30  # Time between two lines of progress in a log.


def warn(message: str) -> None:
    """Print a warning of one line."""
    print(f"warning: {message}", file=sys.stderr)


class _ShortRepr(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python writes no decimal number of more than 4,300 digits.
            return f"a number of {value.bit_length()} bits"


_short_repr = _ShortRepr()
_short_repr.maxlevel, _short_repr.maxstring = 2, 80  # A few lines of YAML with anchors can stand for a billion values.


def short_repr(value: object) -> str:
    """Return the `repr` of a value that a user wrote, shortened to about 80 characters."""
    return _short_repr.repr(value)


def format_duration(seconds: float) -> str:
    """Format a duration as `1:05` or `2:03:05`."""
    return tqdm.format_interval(seconds)


class ProgressBar(tqdm):
    """A progress bar on a terminal, or a line every half minute in a log, which cannot be overwritten."""

    def __init__(self, *args: Any, **options: Any) -> None:
        columns = int(os.environ.get(COLUMNS, 0))
        self._in_log = not sys.stderr.isatty() and not columns
        if self._in_log:
            options |= {"mininterval": LOG_INTERVAL_SECONDS, "maxinterval": LOG_INTERVAL_SECONDS, "ncols": 100}
        elif columns:
            options["ncols"] = columns
        super().__init__(*args, **{"dynamic_ncols": not self._in_log, "leave": False, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or print it as a line of a log if there is progress."""
        if not self._in_log:
            super().display(msg, pos)
        elif msg is None and self.n > self.initial and time.time() - self.last_print_t >= self.mininterval:
            print(self, file=sys.stderr, flush=True)
