"""The settings of a process that runs a stage or a tool. They are set here and not when a module is imported."""

import csv
import os
import signal
import warnings

MAX_CELL_CHARACTERS = 2**24  # Without a limit, a quote that is never closed reads the whole file into one cell.


def set_up_process() -> None:
    """Set signal handlers, warning filters, log levels and limits of the standard library for this process.

    `report_user_errors` calls it before a `main` begins, so that libraries that are imported later see the settings.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell starts background jobs with SIGINT ignored.
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    # transformers and huggingface_hub would report what our own messages say in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT causes it.
