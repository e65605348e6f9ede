"""The command line of a training stage, and the launcher that starts it in several processes."""

import argparse
import os
import shlex
import sys

from stages.common.runtime.exceptions import UserError

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


def start_launcher(launcher: str, module: str) -> None:
    """Replace this process by `launcher -m module` with the same arguments, unless a launcher has started it.

    The launcher gets a list of arguments: no shell reads what stands in params.yaml.

    Raises:
        UserError: there is no such program.
    """
    if launcher == "python" or LAUNCHED in os.environ or "WORLD_SIZE" in os.environ:
        return
    command = [*shlex.split(launcher), "-m", module, *sys.argv[1:]]
    try:
        os.execvpe(command[0], command, {**os.environ, LAUNCHED: "1"})
    except OSError as error:
        raise UserError(f"run.launcher: {command[0]} cannot be started: {error.strerror}") from error
