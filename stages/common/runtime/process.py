"""The settings of a process that runs a stage or a tool. They are set here and not when a module is imported."""

import csv
import os
import signal
import sys
import warnings
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper

MAX_CELL_CHARACTERS = 2**24  # Without a limit, a quote that is never closed reads the whole file into one cell.


def _set_up_streams() -> None:
    """Give a process its three standard streams, if some are closed, and let them take every character."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # Otherwise the next file would become a stream.
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or TextIOWrapper(BufferedReader(FileIO(0, closefd=False)))
    sys.stdout = sys.stdout or TextIOWrapper(BufferedWriter(FileIO(1, "w", closefd=False)))
    sys.stderr = sys.stderr or TextIOWrapper(BufferedWriter(FileIO(2, "w", closefd=False)))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what a Korean locale's encoding does not have


def set_up_process() -> None:
    """Set signal handlers, warning filters, log levels and limits of the standard library for this process.

    `report_user_errors` calls it before a `main` begins, so that libraries that are imported later see the settings.
    """
    _set_up_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell starts background jobs with SIGINT ignored.
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    os.environ["MPLBACKEND"] = "agg"  # Pictures are files. A notebook names a backend that this environment may lack.
    # transformers and huggingface_hub would report what our own messages say in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT causes it.
