"""The command line of a training stage, and how its processes are started."""

import argparse
import os
import shlex
import sys
from typing import Literal

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.inputs import check_inputs
from stages.common.runtime.parallel import SUPERVISED, end_with_supervisor, train_side_by_side

LAUNCHED = "STAGE_LAUNCHED"  # environment variable: the launcher has started this process


def parse_fold(description: str | None) -> int:
    """Read `--fold` from the command line of a stage that runs once for each fold."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fold", type=int, required=True, help="one of run.folds")
    return parser.parse_args().fold


def parse_run(description: str | None) -> tuple[int, float]:
    """Read `--fold` and `--learning-rate` from the command line of a training stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fold", type=int, required=True, help="one of run.folds")
    # DVC, which quotes for the shell only what it writes from ${item}, writes an underscore.
    parser.add_argument("--learning-rate", "--learning_rate", type=float, required=True, help="one of learning_rates")
    arguments = parser.parse_args()
    return arguments.fold, arguments.learning_rate


def start_processes(launcher: str, parallel: int | Literal["auto"], module: str) -> None:
    """Train in other processes, unless this process is one of them: then return at once.

    A launcher of several processes replaces this one by `launcher -m module` with the same arguments. It gets a list of
    arguments: no shell reads what stands in params.yaml. Under DVC and without such a launcher, runs are trained side
    by side; then this process waits for them and exits. Without DVC it trains its run itself.

    Raises:
        UserError: there is no such program.
    """
    arguments = ["-m", module, *sys.argv[1:]]
    if SUPERVISED in os.environ:
        end_with_supervisor()
    elif LAUNCHED in os.environ or "WORLD_SIZE" in os.environ:
        return
    elif launcher != "python":
        command = [*shlex.split(launcher), *arguments]
        try:
            os.execvpe(command[0], command, {**os.environ, LAUNCHED: "1"})
        except OSError as error:
            raise UserError(f"run.launcher: {command[0]} cannot be started: {error.strerror}") from error
    elif cell := os.environ.get("DVC_STAGE", "").rpartition(":")[2]:
        status = train_side_by_side(cell, arguments, parallel)
        if not status:
            check_inputs()  # The own run may have ended long before the others.
        sys.exit(status)
