"""Parse the command line of a training stage, and start its processes."""

import argparse
import os
import shlex
import sys
from typing import Literal

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.inputs import check_inputs
from stages.common.runtime.parallel import SUPERVISED, end_with_supervisor, train_side_by_side

LAUNCHED = "STAGE_LAUNCHED"  # Environment variable that is set if `run.launcher` has started this process.


def parse_fold(description: str | None) -> int:
    """Read `--fold` from the command line of a stage that runs once per fold."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fold", type=int, required=True, help="one of run.folds")
    return parser.parse_args().fold


def parse_run(description: str | None) -> tuple[int, float]:
    """Read `--fold` and `--learning-rate` from the command line of a training stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fold", type=int, required=True, help="one of run.folds")
    # DVC writes this option with an underscore if the command of the stage contains ${item}, whose values it quotes.
    parser.add_argument("--learning-rate", "--learning_rate", type=float, required=True, help="one of learning_rates")
    arguments = parser.parse_args()
    return arguments.fold, arguments.learning_rate


def start_processes(launcher: str, parallel: int | Literal["auto"], module: str) -> None:
    """Start the processes that train, or return at once if this process is to train.

    A launcher other than python replaces this process by `launcher -m module` with the same arguments, without a shell,
    since params.yaml may contain any text. If DVC has started this process and the launcher is python, this function
    trains all missing runs in processes of their own, side by side, and exits when they have ended. Without DVC, this
    process trains its own run.

    Args:
        launcher: The parameter `run.launcher`.
        parallel: The parameter `run.parallel`.
        module: Name of the module of the stage.

    Raises:
        UserError: The launcher cannot be started.
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
            check_inputs()  # Inputs may have changed while the other runs were trained.
        sys.exit(status)
