"""When a training saves a checkpoint: after an interval, or because a signal requests a stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from stages.common.modeling.distributed import DistributedContext


class SaveDecision(NamedTuple):
    """What a training has to do after a step."""

    save_now: bool
    signal_number: int  # The signal after which to stop once the checkpoint is saved; 0: go on.


class SavePolicy:
    """Decides when to save; all processes of a training get the same answer.

    Args:
        interval_seconds: The time between two checkpoints. With 0 only a signal leads to one.
    """

    def __init__(self, interval_seconds: float, distributed: DistributedContext) -> None:
        self._interval_seconds, self._distributed = interval_seconds, distributed
        self._last_saved, self._signal_number = time.monotonic(), 0

    def poll(self) -> SaveDecision:
        """Decide whether to save now, which restarts the interval. All processes must call this at the same step."""
        elapsed = time.monotonic() - self._last_saved
        due = self._distributed.is_main_process and 0 < self._interval_seconds <= elapsed
        is_due, signal_number = self._distributed.max_over_processes([due, self._signal_number])
        if is_due:
            self._last_saved = time.monotonic()
        return SaveDecision(bool(is_due or signal_number), int(signal_number))

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Within the block, SIGTERM and Ctrl-C request a checkpoint and a stop. Further signals change nothing."""

        def request_stop(number: int, frame: FrameType | None) -> None:
            self._signal_number = self._signal_number or number

        handlers = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
