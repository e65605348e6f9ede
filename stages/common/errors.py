"""What a user did wrong, told in one line."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A fault that the user can mend; its text names the file, key or value and what to do."""


def one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a stage's `main`: a fault of the user or the disk ends in one line and status 1, Ctrl-C in status 130."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except (UserError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def warn(text: str) -> None:
    """One line to the user that does not stop the stage."""
    print(f"warning: {text}", file=sys.stderr)
