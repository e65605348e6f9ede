"""How often the comparison's intervals hold the true difference, and how often its verdict is wrong.

    python -m tests.benchmarks.coverage --replications 2000

Test sets with labels of three classes are simulated, and the predictions of two methods on them, a run for each seed.
A run's accuracy on each class, and so its macro-F1, is its method's plus a normal deviate: the seed. Methods share a
part of what makes a row hard, so that two runs disagree on about 15% of the rows.
"""

import argparse
import itertools
from functools import partial

import numpy as np

from stages.common.evaluation.significance import (
    TOST_LEVEL,
    bootstrap_replicates,
    confidence_interval,
    resampling_weights,
    verdict,
)
from stages.common.evaluation.vectorized_metrics import count_metrics

ROWS, SEEDS, SEED_SDS = (882, 20_000), (1, 2, 3, 5), (0.0, 0.005, 0.01, 0.02)
MACRO_F1, MARGIN = 0.8, 0.01
SHARED = 0.73  # probability that a row is as hard for a run as for all others: leaves 15% disagreement
BOOTSTRAP_SAMPLES = 400
LABELS = ("0", "1", "2")


def simulate_run(labels: np.ndarray, hardness: np.ndarray, macro_f1: float, rng: np.random.Generator) -> np.ndarray:
    """Hits, actual and predicted classes (rows, 9) of a run that has each row right with the probability `macro_f1`."""
    own = np.where(rng.random(len(labels)) < SHARED, hardness, rng.random(len(labels)))
    wrong = (labels + rng.integers(1, len(LABELS), len(labels))) % len(LABELS)
    predictions = np.where(own < macro_f1, labels, wrong)
    actual, predicted = np.eye(len(LABELS))[labels], np.eye(len(LABELS))[predictions]
    return np.hstack([actual * predicted, actual, predicted])


def replicate(
    num_rows: int, num_seeds: int, sd: float, difference: float, weights: list[np.ndarray], rng: np.random.Generator
) -> tuple[bool, str]:
    """Whether one simulated comparison's interval holds the true difference, and its verdict."""
    labels, hardness = np.arange(num_rows) % len(LABELS), rng.random(num_rows)
    statistics = {}
    for method, true in (("full", MACRO_F1), ("lora", MACRO_F1 + difference)):
        deviates = rng.normal(0, sd, num_seeds)
        of_runs = [simulate_run(labels, hardness, true + deviate, rng) for deviate in deviates]
        statistics[method] = np.stack(of_runs, axis=1)
    metrics = partial(count_metrics, labels=LABELS)
    runs = {method: metrics(values.mean(0))["macro_f1"] for method, values in statistics.items()}
    replicates = bootstrap_replicates(statistics, weights, metrics)
    estimate = float(runs["lora"].mean() - runs["full"].mean())
    of_difference = replicates["lora"]["macro_f1"] - replicates["full"]["macro_f1"]
    pair = (runs["full"], runs["lora"])
    interval = confidence_interval(estimate, of_difference, pair)
    tost_interval = confidence_interval(estimate, of_difference, pair, level=TOST_LEVEL)
    return interval[0] <= difference <= interval[1], verdict(interval, tost_interval, MARGIN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000, help="of each cell")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    print("| rows | seeds | sd | coverage at 0 | better or worse at 0 | coverage at the margin | equivalent there |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_rows, num_seeds, sd in itertools.product(arguments.rows, arguments.seeds, SEED_SDS):
        cell = [num_rows, num_seeds, int(sd * 1000)]  # random numbers of its own, whatever cells run before it
        # Rows are simulated anew each time, so that one set of resamples serves all replications.
        weights = list(resampling_weights(np.arange(num_rows), BOOTSTRAP_SAMPLES, seed=sum(cell)))
        columns = [f"{num_rows:,}", str(num_seeds), f"{sd:g}"]
        for difference, wrong in ((0.0, ("better", "worse")), (MARGIN, ("equivalent",))):
            rng = np.random.default_rng([*cell, int(difference > 0)])
            results = [
                replicate(num_rows, num_seeds, sd, difference, weights, rng) for _ in range(arguments.replications)
            ]
            covered = np.mean([covers for covers, _ in results])
            error = np.mean([said in wrong for _, said in results])
            columns += [f"{covered:.1%}", f"{error:.1%}"]
        print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    main()
