"""Which examples form a batch: indices of each batch, at most `batch_size`, from the lengths of the examples."""

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
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[index] for index in generator.permutation(len(batches))] if group_by_length else batches


def length_sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of similar length, the longest first, so that running out of memory shows at once."""
    order = np.argsort(-lengths, kind="stable")
    return np.split(order, range(batch_size, len(order), batch_size))
