"""Errors that end a stage, and how they are reported: in one line, with an exit status other than 0."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from stages.common.runtime.inputs import InputChangedError, check_inputs, watch_inputs
from stages.common.runtime.process import set_up_process


class UserError(Exception):
    """An error that the user can correct. Its text names the file, key or value, and says what to do."""


class TrainingInterrupted(BaseException):
    """A signal ended a training. It is a BaseException, so that no `except Exception` catches it.

    Args:
        signal_number: Number of the signal.
        message: Message for the user. It is empty in all processes but one.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number  # This is the convention of shells.


def report_user_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a `main` so that it sets up the process and reports an error of the user or the disk in one line.

    The exit status of such an error is 1. A stage whose inputs or parameters change while it runs ends with such an
    error too, see the module `inputs`. Ctrl-C exits with 130, and a training that a signal stops with 128 + its number.
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
            hint = "; run `dvc repro` to go on" if "DVC_STAGE" in os.environ else ""
            print(f"error: interrupted{hint}", file=sys.stderr)
            sys.exit(130)

    return run
