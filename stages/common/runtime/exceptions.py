"""Faults that end a stage, and how they are reported: in one line, with a status that is not 0."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from stages.common.runtime.inputs import InputChangedError, check_inputs, watch_inputs
from stages.common.runtime.process import set_up_process


class UserError(Exception):
    """A fault that the user can mend; its text names the file, key or value and what to do."""


class TrainingInterrupted(BaseException):
    """A signal ended a training. A BaseException, so that no `except Exception` takes it for a fault.

    Args:
        signal_number: of the signal.
        message: for the user; empty in all processes but one.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number  # as shells do


def report_user_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a `main`: set up the process, and turn an error of the user or the disk into one line and status 1.

    A stage whose inputs or parameters changed while it ran ends with such an error too, see `inputs`.
    Ctrl-C exits with 130, and a training that a signal stopped with 128 + its number, as shells do.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            set_up_process()
            watch_inputs(Path(main.__code__.co_filename).stem)
            main()
            check_inputs()
        except (UserError, InputChangedError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")
        except TrainingInterrupted as interruption:
            if message := str(interruption):
                print(f"error: {message}", file=sys.stderr)
            sys.exit(interruption.exit_status)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)

    return run
