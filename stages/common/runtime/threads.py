"""Choose the number of threads of a run, how they wait, and the number of runs at the same time."""

import math
import os

from stages.common.runtime.paths import BASE_MODEL

SPIN_COUNT = 1000  # Loops of a thread before it sleeps, about a microsecond; the default of OpenMP is billions.
LARGE_MODEL_PARAMETERS = 25e6  # With a smaller model, another run uses a core better than a second thread.
CORES_PER_THREAD = 8  # Number of cores for which a run of a large model gets one thread.
BYTES_PER_PARAMETER = 20  # Memory of weights, gradients, two moments of AdamW and the best weights, in float32.
BYTES_PER_RUN = 1e9  # Memory of the libraries, the dataset and the activations.


def count_base_model_parameters() -> int:
    """Count the parameters of the base model without reading their values."""
    from safetensors import safe_open

    with safe_open(BASE_MODEL / "model.safetensors", "numpy") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _count_threads(parameters: int | None = None) -> int:
    """Return the number of threads of a run.

    It depends on the machine and the model only, so that runs beside it do not change the bytes of the run.
    """
    from joblib import cpu_count  # Unlike `os.cpu_count` it respects the limits of containers.

    own_choice = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if own_choice.isdecimal() and int(own_choice):  # OpenMP ignores 0.
        return int(own_choice)
    parameters = count_base_model_parameters() if parameters is None else parameters
    return 1 if parameters < LARGE_MODEL_PARAMETERS else max(1, cpu_count() // CORES_PER_THREAD)


def set_up_threads() -> None:
    """Set the number of threads, and let waiting threads sleep, unless the environment says otherwise.

    By default a waiting OpenMP thread spins. If another program uses a core, the other threads spin until the thread
    that has lost its core gets it back, thousands of times a second, and training takes many times as long. The number
    of threads changes the results, but the way in which they wait does not. This must be called before torch is
    imported.
    """
    os.environ["OMP_NUM_THREADS"] = str(_count_threads())
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def count_runs_that_fit(parameters: int | None = None) -> int:
    """Return the number of runs that can be trained at the same time.

    It is one on a GPU. On a CPU the number of cores and the free memory decide.

    Args:
        parameters: Number of parameters of the base model. By default it is read from the base model.
    """
    import psutil
    import torch
    from joblib import cpu_count

    if torch.cuda.is_available():
        return 1
    parameters = count_base_model_parameters() if parameters is None else parameters
    need = BYTES_PER_RUN + BYTES_PER_PARAMETER * parameters
    return max(1, min(cpu_count() // _count_threads(parameters), int(psutil.virtual_memory().available / need)))
