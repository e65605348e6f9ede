"""Which examples form a batch: indices (batch_size,) of each batch, from the lengths of the examples alone."""

import numpy as np

BUCKET_FACTOR = 50  # batches that are sorted by length together


def shuffled_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, group_by_length: bool = False
) -> list[np.ndarray]:
    """Shuffle the examples of an epoch; the order depends on `seed` and `epoch` and on no other random draw.

    Args:
        lengths: (examples,) in tokens.
        group_by_length: batches of examples of similar length, from random buckets of `BUCKET_FACTOR` batches, in
            random order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if group_by_length:
        bucket = np.arange(len(order)) // (BUCKET_FACTOR * batch_size)
        order = order[np.lexsort((lengths[order], bucket))]
    batches = _chunk(order, batch_size)
    return [batches[index] for index in generator.permutation(len(batches))] if group_by_length else batches


def length_sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of similar length, the longest first, so that running out of memory shows at once."""
    return _chunk(np.argsort(-lengths, kind="stable"), batch_size)


def _chunk(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
