"""Running out of memory, on a GPU or a CPU, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import TrainParams

# What torch, CUDA and cuBLAS say; only some of their errors have a type of their own.
MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or the one during whose handling it was raised, is about memory."""
    if error is None:
        return False
    told = isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
    return isinstance(error, MemoryError) or told or _is_out_of_memory(error.__context__)


@contextmanager
def report_out_of_memory(params: TrainParams) -> Iterator[None]:
    """Raise a UserError where the block runs out of memory. Checkpoints stay where they are."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory: halve train.batch_size ({params.batch_size}) and double train.gradient_accumulation_steps "
            f"({params.gradient_accumulation_steps}), which takes the same optimizer steps, or lower "
            f"train.eval_batch_size ({params.eval_batch_size}) if this happened after an epoch; if it was another "
            "program that took the memory, `dvc repro` resumes from the last checkpoint"
        ) from error
