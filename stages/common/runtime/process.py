"""Settings of a process that runs a stage or a tool, which no module changes when it is imported."""

import csv
import os
import signal
import sys
import warnings
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper

# Upper bound on the length of a CSV cell. Without it, a quote that is never closed makes one cell of the whole file.
MAX_CELL_CHARACTERS = 2**24


def _set_up_streams() -> None:
    """Open standard streams that are closed, and let output streams accept every character."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # Otherwise the next file would get a stream's number.
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or TextIOWrapper(BufferedReader(FileIO(0, closefd=False)))
    sys.stdout = sys.stdout or TextIOWrapper(BufferedWriter(FileIO(1, "w", closefd=False)))
    sys.stderr = sys.stderr or TextIOWrapper(BufferedWriter(FileIO(2, "w", closefd=False)))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # The encoding of a locale may lack some characters.


def set_up_process() -> None:
    """Set signal handlers, warning filters, log levels and limits of the standard library for this process.

    `report_user_errors` calls this before `main`, so that libraries that `main` imports see the settings.
    """
    _set_up_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell starts background jobs with SIGINT ignored.
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    os.environ["MPLBACKEND"] = "agg"  # Jupyter sets a backend that this environment may lack.
    # transformers and huggingface_hub would repeat our own messages in many lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT causes this warning.
