"""Report a lack of memory, of a GPU or the machine, in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import TrainParams

# Parts of the messages of torch, CUDA and cuBLAS, since not all of these errors have a type of their own.
MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether this error, or one that was being handled when it was raised, is a lack of memory."""
    if error is None:
        return False
    is_torch_error = isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
    return isinstance(error, MemoryError) or is_torch_error or _is_out_of_memory(error.__context__)


@contextmanager
def report_out_of_memory(params: TrainParams) -> Iterator[None]:
    """Raise a UserError if the block runs out of memory. Checkpoints are kept."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory: halve train.batch_size ({params.batch_size}) and double train.gradient_accumulation_steps "
            f"({params.gradient_accumulation_steps}), so that the optimizer steps stay the same; if this happened "
            f"after an epoch, lower train.eval_batch_size ({params.eval_batch_size}); if another program took the "
            "memory, `dvc repro` resumes from the last checkpoint"
        ) from error
