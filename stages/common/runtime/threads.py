"""How many threads a run has, how they wait for each other, and how many runs fit the machine."""

import math
import os

from stages.common.runtime.paths import BASE_MODEL

SPIN_COUNT = 1000  # turns of a loop, about a microsecond; the default is billions
LARGE_MODEL_PARAMETERS = 25e6  # A smaller model gains less by a second thread than by a run beside it.
RUNS_AT_ONCE = 8  # Machines with more cores than that give a large model more than one thread.
BYTES_PER_PARAMETER = 20  # Weights, gradients, two moments of AdamW and the best weights, in float32.
BYTES_PER_RUN = 1e9  # Of the libraries, the data set and the activations.


def count_base_model_parameters() -> int:
    """Count the parameters of the base model, without reading them."""
    from safetensors import safe_open

    with safe_open(BASE_MODEL / "model.safetensors", "numpy") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _count_threads(parameters: int | None = None) -> int:
    """The threads of a run, by the machine and the model alone: what runs beside it, or later, changes no byte."""
    from joblib import cpu_count  # It knows the limits of containers.

    own_choice = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if own_choice.isdecimal() and int(own_choice):  # 0 means nothing to OpenMP.
        return int(own_choice)
    parameters = count_base_model_parameters() if parameters is None else parameters
    return 1 if parameters < LARGE_MODEL_PARAMETERS else max(1, cpu_count() // RUNS_AT_ONCE)


def set_up_threads() -> None:
    """Set the number of threads, and let a thread that waits sleep at once, unless the environment says otherwise.

    By default an OpenMP thread that waits spins. Where another program has taken a core, the threads that still have
    one spin until the thread that lost its core gets it back, thousands of times a second, and training takes many
    times as long. How threads wait changes no result; their number does. To have an effect this must be called before
    torch is imported.
    """
    os.environ["OMP_NUM_THREADS"] = str(_count_threads())
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def count_runs_that_fit(parameters: int | None = None) -> int:
    """Count the runs that fit this machine side by side: one on a GPU, else what cores and free memory allow.

    Args:
        parameters: Number of parameters of the base model; by default it is read from the base model.
    """
    import psutil
    import torch
    from joblib import cpu_count

    if torch.cuda.is_available():
        return 1
    parameters = count_base_model_parameters() if parameters is None else parameters
    need = BYTES_PER_RUN + BYTES_PER_PARAMETER * parameters
    return max(1, min(cpu_count() // _count_threads(parameters), int(psutil.virtual_memory().available / need)))
