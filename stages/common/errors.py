"""What a user did wrong, told in one line."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A fault that the user can mend; its text names the file, key or value and what to do."""


class Stopped(BaseException):
    """A signal ended the work; BaseException, so that no one takes it for a fault."""

    def __init__(self, signal: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + signal  # a shell's


def one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a stage's `main`: a fault of the user or the disk ends in one line and status 1, a signal in its status."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except (UserError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except Stopped as stopped:
            print(f"error: {stopped}", file=sys.stderr)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def warn(text: str) -> None:
    """One line to the user that does not stop the stage."""
    print(f"warning: {text}", file=sys.stderr)
