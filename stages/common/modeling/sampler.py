"""Divide the indices of examples into batches. The last batch may be smaller than the others."""

import numpy as np


def shuffled_batches(num_examples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Divide the examples of an epoch into random batches, which depend on `seed` and `epoch` only."""
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    return _split(order, batch_size)


def length_sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Divide examples into batches of similar length.

    The longest examples come first, so that a lack of memory is noticed at once.

    Args:
        lengths: Number of tokens of each example, (examples,).
        batch_size: Number of examples per batch.
    """
    return _split(np.argsort(-lengths, kind="stable"), batch_size)


def _split(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return np.split(order, range(batch_size, len(order), batch_size))
