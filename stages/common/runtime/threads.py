"""How threads wait for each other."""

import os

SPIN_COUNT = 1000  # turns of a loop, about a microsecond; the default is billions


def limit_spinning() -> None:
    """Let an OpenMP thread that waits sleep at once, unless the user's environment says how it waits.

    By default it spins. Where another program has taken a core, the threads that still have one spin until the thread
    that lost its core gets it back, thousands of times a second, and training takes many times as long. To have an
    effect this must be called before torch is imported. How threads wait changes no result.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
