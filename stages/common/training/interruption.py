"""Decide when a training saves a checkpoint: after an interval, or when a signal requests a stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from stages.common.modeling.distributed import DistributedContext


class SaveDecision(NamedTuple):
    """What a training must do after a step."""

    save_now: bool
    signal_number: int  # Signal that requested a stop after the checkpoint is saved; 0 if training goes on.


class SavePolicy:
    """Decide when to save a checkpoint. All processes of a training get the same decision.

    Args:
        interval_seconds: Seconds between two checkpoints. 0 saves a checkpoint only after a signal.
        distributed: The processes of the training.
    """

    def __init__(self, interval_seconds: float, distributed: DistributedContext) -> None:
        self._interval_seconds, self._distributed = interval_seconds, distributed
        self._last_saved, self._signal_number = time.monotonic(), 0

    def poll(self) -> SaveDecision:
        """Decide whether to save now, and if so, restart the interval. All processes must call it at the same step."""
        elapsed = time.monotonic() - self._last_saved
        due = self._distributed.is_main_process and 0 < self._interval_seconds <= elapsed
        is_due, signal_number = self._distributed.max_over_processes([due, self._signal_number])
        if is_due:
            self._last_saved = time.monotonic()
        return SaveDecision(bool(is_due or signal_number), int(signal_number))

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C request a checkpoint and a stop within the block. Further signals have no effect."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            self._signal_number = self._signal_number or number

        handlers = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
