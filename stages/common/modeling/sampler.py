"""Which examples form a batch: the indices of each batch, of which the last may be smaller than the others."""

import numpy as np


def shuffled_batches(num_examples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffle the examples of an epoch; the order depends on `seed` and `epoch` and on no other random draw."""
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    return _split(order, batch_size)


def length_sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Form batches of examples of similar length, the longest first, so that running out of memory shows at once.

    Args:
        lengths: Number of tokens of each example, (examples,).
    """
    return _split(np.argsort(-lengths, kind="stable"), batch_size)


def _split(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return np.split(order, range(batch_size, len(order), batch_size))
