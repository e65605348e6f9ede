"""What a user did wrong, told in one line."""

import functools
import signal
import sys
from collections.abc import Callable

_command = getattr(sys.modules["__main__"], "__spec__", None)
if _command and _command.name.startswith("stages."):
    # Ctrl-C ends the imports that follow, which take seconds, without a traceback; `one_line` takes it back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class UserError(Exception):
    """A fault that the user can mend; its text names the file, key or value and what to do."""


class Stopped(BaseException):
    """A signal ended the work; BaseException, so that no one takes it for a fault."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + number  # a shell's


def one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a stage's `main`: a fault of the user or the disk ends in one line and status 1, a signal in its status."""

    @functools.wraps(main)
    def run() -> None:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main()
        except (UserError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except Stopped as stopped:
            if text := str(stopped):  # one of several processes speaks
                print(f"error: {text}", file=sys.stderr)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def warn(text: str) -> None:
    """One line to the user that does not stop the stage."""
    print(f"warning: {text}", file=sys.stderr)
