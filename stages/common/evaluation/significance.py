"""Figures of classifiers on one set of rows, and how sure they are.

Each figure follows from means over rows, so that a resample of the rows is a matrix product.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest, permutation_test
from tqdm import tqdm

from stages.common.core.labels import LABELS

CLASSES = len(LABELS)
BINS = 15  # of equal width, for the expected calibration error
PERCENTILES = (2.5, 97.5)  # of a 95% interval
CELLS = 4_000_000  # of a matrix of resampled rows in memory
CALIBRATION = ("loss", "brier", "ece")


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number, 0.05 to 20, by which to divide logits (rows, 3) for the least loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def confidence_bins(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, its predicted class' probability and the number of its bin: (0, 1/15] is 0."""
    confidence = np.exp(log_softmax(logits, axis=1)).max(1)
    return confidence, np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def confusion_cells(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An indicator (rows, 9) of actual class x predicted class."""
    return np.eye(CLASSES**2)[labels * CLASSES + predictions]


def row_values(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """What each row adds to the figures, (rows, 43): confusion cells, and calibration before and after scaling."""
    predictions = logits.argmax(1)
    columns = [confusion_cells(predictions, labels)]
    for scaled in (logits, logits / temperature):
        logs = log_softmax(scaled, axis=1)
        loss = -logs[np.arange(len(labels)), labels]
        brier = ((np.exp(logs) - np.eye(CLASSES)[labels]) ** 2).sum(1)
        confidence, bins = confidence_bins(scaled)
        gaps = np.eye(BINS)[bins] * (confidence - (predictions == labels))[:, None]
        columns += [loss[:, None], brier[:, None], gaps]
    return np.hstack(columns)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def confusion_figures(cells: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, and precision, recall and F1, macro and per class, from sums or means of confusion cells (..., 9).

    As in scikit-learn with `zero_division=0`, an empty class counts as 0.
    """
    confusion = cells.reshape(*cells.shape[:-1], CLASSES, CLASSES)
    hits, actual, predicted = np.einsum("...ii->...i", confusion), confusion.sum(-1), confusion.sum(-2)
    by_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, actual),
        "f1": _ratio(2 * hits, actual + predicted),
    }
    return {
        **{f"macro_{name}": values.mean(-1) for name, values in by_class.items()},
        "accuracy": hits.sum(-1) / actual.sum(-1),
        **{f"per_class.{c}.{name}": v[..., i] for i, c in enumerate(LABELS) for name, v in by_class.items()},
    }


def figures(means: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure from means over rows (..., 43) of `row_values`; the Brier score is the sum over classes, 0 to 2."""
    result = confusion_figures(means[..., : CLASSES**2])
    for prefix, part in zip(("", "scaled."), np.split(means[..., CLASSES**2 :], 2, axis=-1), strict=True):
        values = part[..., 0], part[..., 1], np.abs(part[..., 2:]).sum(-1)
        result |= {prefix + name: value for name, value in zip(CALIBRATION, values, strict=True)}
    return result


def bootstrap(values: Mapping[str, np.ndarray], samples: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws (samples,) of each figure of each method, the mean over its runs, under resampling with replacement.

    A resample takes the same rows for every method and, where there are several runs, the same seeds. With one run a
    method the draws know nothing of what another seed would give.

    Args:
        values: by method, `row_values` of each run, (rows, runs, 43); runs are all in one order, or there is one.
    """
    rows = len(next(iter(values.values())))
    runs = max(value.shape[1] for value in values.values())
    of_rows, of_seeds = (np.random.default_rng([seed, stream]) for stream in range(2))
    weights = of_seeds.multinomial(runs, np.full(runs, 1 / runs), samples) / runs
    flat = np.hstack([value.reshape(rows, -1) for value in values.values()])
    means = np.empty((samples, flat.shape[1]))
    step = max(1, CELLS // rows)
    for start in tqdm(range(0, samples, step), desc="bootstrap", leave=False, disable=None):
        count = min(step, samples - start)
        drawn = of_rows.integers(0, rows, (count, rows)) + np.arange(count)[:, None] * rows
        times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        means[start : start + count] = times.astype(float) @ flat / rows
    ends = np.cumsum([value[0].size for value in values.values()])[:-1]
    draws = {}
    for (method, value), part in zip(values.items(), np.split(means, ends, axis=1), strict=True):
        of_runs = figures(part.reshape(samples, *value.shape[1:]))
        share = weights if value.shape[1] == runs else np.ones((samples, 1))
        draws[method] = {name: (figure * share).sum(1) for name, figure in of_runs.items()}
    return draws


def interval(draws: np.ndarray) -> list[float]:
    """Both ends of the 95% percentile interval."""
    return [float(end) for end in np.percentile(draws, PERCENTILES)]


def permutation_p(labels: np.ndarray, a: np.ndarray, b: np.ndarray, samples: int, seed: int) -> float:
    """Two-sided p of the difference in macro-F1, the mean over runs, where `a` and `b` may be swapped row by row.

    Args:
        labels: (rows,) class indices.
        a, b: (runs, rows) predictions of the two methods.
    """
    differ = (a != b).any(0)
    if differ.sum() < 2:
        return 1.0  # a swap turns the sign at most
    same = np.stack([confusion_cells(run, labels[~differ]).sum(0) for run in a[:, ~differ]])  # (runs, 9)
    # A row's label and its predictions in all runs are one number: its place in a table of the patterns that occur.
    both = np.hstack([np.vstack([labels, method])[:, differ] for method in (a, b)])
    patterns, codes = np.unique(both, axis=1, return_inverse=True)
    cells = np.stack([confusion_cells(run, patterns[0]) for run in patterns[1:]], axis=1)  # (patterns, runs, 9)

    def macro_f1(x: np.ndarray) -> np.ndarray:
        numbered = x.reshape(-1, x.shape[-1])
        shifted = numbered + np.arange(len(numbered))[:, None] * len(cells)
        counts = np.bincount(shifted.ravel(), minlength=len(numbered) * len(cells)).reshape(-1, len(cells))
        scores = confusion_figures(np.tensordot(counts.astype(float), cells, 1) + same)["macro_f1"].mean(-1)
        return scores.reshape(x.shape[:-1])

    return float(
        permutation_test(
            np.split(codes.ravel(), 2),
            lambda x, y, axis: macro_f1(x) - macro_f1(y),
            permutation_type="samples",
            vectorized=True,
            n_resamples=samples,
            batch=max(1, CELLS // codes.size),
            axis=-1,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def mcnemar_p(a_right: np.ndarray, b_right: np.ndarray) -> float:
    """McNemar's exact two-sided p, from which rows either method has right."""
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def verdict(span: list[float], margin: float) -> str:
    """What the 95% interval of a difference says against a margin named beforehand.

    Inside the margin is `equivalent`, even where 0 lies outside: the margin says what matters. Else an interval above 0
    is `better`, one below 0 `worse`, and one that holds 0 leaves the question `undecided`.
    """
    low, high = span
    if -margin < low and high < margin:
        return "equivalent"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
