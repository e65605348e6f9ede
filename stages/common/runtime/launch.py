"""The command line of a training stage, and the launcher that starts it in several processes."""

import argparse
import os
import shlex
import sys

from stages.common.runtime.exceptions import UserError

LAUNCHED = "STAGE_LAUNCHED"  # environment variable: the launcher has started this process


def parse_run(description: str | None) -> tuple[int, float]:
    """Read `--seed` and `--learning-rate` from the command line of a training stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, required=True, help="one of run.seeds")
    # DVC, which quotes for the shell only what it writes from ${item}, writes an underscore.
    parser.add_argument("--learning-rate", "--learning_rate", type=float, required=True, help="one of learning_rates")
    arguments = parser.parse_args()
    return arguments.seed, arguments.learning_rate


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
