"""Check that the disk has space for all runs before the first one is trained."""

import shutil

from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Params
from stages.common.runtime.paths import RUNS, run_name
from stages.common.runtime.threads import count_base_model_parameters

BYTES_PER_PARAMETER = 4  # Size of one parameter in a checkpoint, in float32.
RESUMPTION_COPIES = 4  # The file from which a run resumes has weights, two moments of AdamW and the best weights.


def format_bytes(number: float) -> str:
    """Format a size as `1.2 GB` or `15 MB`, in powers of 1,000."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def check_disk(params: Params) -> None:
    """Check that the disk has space for the missing runs of full fine-tuning; those of LoRA are small.

    DVC's cache may need the same space once more. It needs none on a file system that lets two files share blocks, so
    a lack of space for the cache leads to a warning only.

    Raises:
        UserError: The disk does not have space for the runs.
    """
    names = [run_name(fold, rate) for fold in params.run.folds for rate in params.full.learning_rates]
    missing = sum(not (RUNS / "full" / name).is_dir() for name in names)
    checkpoint = BYTES_PER_PARAMETER * count_base_model_parameters()
    runs, free = missing * checkpoint, shutil.disk_usage(".").free
    needed = runs + RESUMPTION_COPIES * checkpoint if missing else 0
    text = (
        f"the disk has {format_bytes(free)} free, but {missing} runs of full fine-tuning still have to be trained, "
        f"which take {format_bytes(checkpoint)} each"
    )
    if free < needed:
        raise UserError(f"{RUNS}: {text}; free disk space, or choose fewer run.folds or full.learning_rates")
    if free < needed + runs:
        warn(f"{RUNS}: {text}, and may take the same space once more in DVC's cache")
