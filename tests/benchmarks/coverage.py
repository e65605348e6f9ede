"""Simulate how often the comparison's intervals cover the true difference, and how often its verdict is wrong.

    python -m tests.benchmarks.coverage --replications 2000 --folds 3 5

Two methods are trained on K folds and tested on the rows of each fold. The truth is the difference between their
expected macro-F1 over new rows, seeds and training rows. If learning rates are selected, it is the difference between
new runs with the selected rates.

The recall of a run is 0.8 plus normal deviates: one for its seed, and one for each chunk of the corpus on which it is
trained. These are all chunks but its own fold, so the errors of folds are correlated. A row that is hard for one method
tends to be hard for the other, so that two runs disagree on about 15% of the rows.

Rows with the same label and the same two predictions are exchangeable. A fold is therefore a table of 27 counts, and a
bootstrap resample of its rows is a multinomial draw of such counts.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t

from stages.common.evaluation.significance import CONFIDENCE_LEVEL, TOST_LEVEL, Interval, fold_variance, verdict

RECALL, MARGIN = 0.8, 0.01
SHARED = 0.73  # Probability that a row is as hard for a run as for all other runs, so that 15% disagreement is left.
BOOTSTRAP_SAMPLES, BATCH = 200, 100  # Resamples per replication, and replications that are computed together.
CORPUS_FOLDS = 5  # Folds of the corpus, of which K are run. If K is larger, the corpus has K folds.
TRUTH_DRAWS = 400_000  # Runs from which the truth is computed.
BALANCED, SKEWED = (1 / 3, 1 / 3, 1 / 3), (0.8, 0.15, 0.05)
CANDIDATES = ("ours", "paired t")


@dataclass(frozen=True)
class Scenario:
    """What makes runs differ. Standard deviations are those of recall, and pairs are (full, LoRA)."""

    name: str
    seed_sds: tuple[float, float] = (0.01, 0.01)
    seed_correlation: float = 0.0
    # Standard deviation due to the choice of training rows, with 882 rows per fold. It decreases with the square root.
    training_sd: float = 0.0
    heavy_tails: bool = False  # Whether seeds have deviates of Student's t with 3 degrees of freedom, same variance.
    divergent: tuple[float, float] = (0.0, 0.0)  # Probability that a run loses `drop`.
    drop: float = 0.3  # Recall that a divergent run loses.
    shares: tuple[float, ...] = BALANCED  # Share of each class in the rows.
    rows: tuple[int, ...] = (882, 20_000)  # Numbers of rows per fold, each of which is simulated.
    rates: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (0.0,))  # Recall that each learning rate adds.


SCENARIOS = (
    Scenario("rows alone", seed_sds=(0, 0)),
    Scenario("seeds, sd 0.005", seed_sds=(0.005, 0.005)),
    Scenario("seeds, sd 0.01"),
    Scenario("seeds, sd 0.02", seed_sds=(0.02, 0.02)),
    Scenario("training rows, sd 0.005", training_sd=0.005, seed_sds=(0, 0)),
    Scenario("training rows and seeds", training_sd=0.005),
    Scenario("unequal seeds", seed_sds=(0.005, 0.02)),
    Scenario("opposed seeds", seed_correlation=-0.5),
    Scenario("heavy tails", heavy_tails=True),
    Scenario("divergence in both", divergent=(0.05, 0.05)),
    Scenario("divergence in one", divergent=(0.0, 0.05)),
    Scenario("200 rows, 80/15/5", shares=SKEWED, rows=(200,)),
    Scenario("200 rows, training rows", shares=SKEWED, rows=(200,), training_sd=0.005),
    Scenario("three equal rates", rates=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))),
    Scenario("three unequal rates", rates=((0.0, 0.0, 0.0), (-0.03, 0.0, -0.01))),
)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Compute macro-F1 (..., 2) of both methods from counts (..., 27) by label, prediction of full and of LoRA."""
    cube = counts.reshape(*counts.shape[:-1], 3, 3, 3)
    scores = []
    for other in (-1, -2):
        table = cube.sum(other)
        hits = np.diagonal(table, axis1=-2, axis2=-1)
        scores.append((2 * hits / np.maximum(table.sum(-1) + table.sum(-2), 1e-12)).mean(-1))
    return np.stack(scores, -1)


def cell_probabilities(recall: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Compute the probability (..., 3, 9) of both predictions in each class from recalls (..., 2) of both methods."""
    full, lora = recall[..., 0], recall[..., 1]
    both = SHARED**2 * np.minimum(full, lora) + (1 - SHARED**2) * full * lora
    # A wrong class is predicted in proportion to its share.
    wrong = (np.array(shares) * (1 - np.eye(3))) / (1 - np.array(shares))[:, None]
    pairs = [(np.eye(3), np.eye(3)), (np.eye(3), wrong), (wrong, np.eye(3)), (wrong, wrong)]
    basis = np.stack([np.einsum("cf,cl->cfl", *pair).reshape(3, 9) for pair in pairs])
    return np.tensordot(np.stack([both, full - both, lora - both, 1 - full - lora + both], -1), basis, 1)


def rates_chosen(scenario: Scenario, seeds: np.ndarray, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Select learning rates (replications, methods) by validation of runs (replications, methods, rates, folds)."""
    # There are 0.4 times as many validation rows. Errors that all runs share cancel.
    noise = rng.normal(0, (0.075 / (0.4 * num_rows)) ** 0.5, seeds.shape)
    return (seeds + noise + np.array(scenario.rates)[:, :, None]).mean(-1).argmax(-1)


def draw_recalls(scenario: Scenario, size: int, folds: int, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw recalls (2, size, folds, 2) of tested runs and of new runs with the same rates, for both methods."""
    corpus_folds = max(CORPUS_FOLDS, folds)
    shape = (size, len(scenario.rates[0]), folds)
    deviates = rng.standard_normal((2, 2, *shape))  # The first axis is tested and new runs, the second is methods.
    if scenario.heavy_tails:
        deviates = rng.standard_t(3, (2, 2, *shape)) / 3**0.5
    correlation = scenario.seed_correlation
    deviates[:, 1] = correlation * deviates[:, 0] + (1 - correlation**2) ** 0.5 * deviates[:, 1]
    seeds = np.moveaxis(deviates, 1, 2) * np.array(scenario.seed_sds)[:, None, None]  # (2, size, methods, rates, folds)
    diverged = rng.random(seeds.shape) < np.array(scenario.divergent)[:, None, None]
    seeds = seeds - scenario.drop * diverged
    chosen = rates_chosen(scenario, seeds[0], num_rows, rng)
    runs = np.take_along_axis(seeds, chosen[None, :, :, None, None], axis=3)[:, :, :, 0]
    runs = runs + np.take_along_axis(np.array(scenario.rates)[None], chosen[:, :, None], axis=2)
    chunks = rng.standard_normal((2, size, 2, corpus_folds))
    trained = chunks.sum(-1, keepdims=True) - chunks[..., :folds]  # A run is trained on all chunks but the tested one.
    scale = scenario.training_sd * (882 / num_rows * (CORPUS_FOLDS - 1)) ** 0.5 / (corpus_folds - 1)
    return RECALL + np.moveaxis(runs + scale * trained, 2, 3)


def expected_f1(recall: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Compute macro-F1 (..., 2) over infinitely many rows from recalls (..., 2)."""
    cells = cell_probabilities(recall, shares) * np.array(shares)[:, None]
    return macro_f1(cells.reshape(*cells.shape[:-2], 27))


def shifts_for(scenario: Scenario, folds: int, num_rows: int, truth_draws: int) -> list[float]:
    """Find what to add to LoRA's recall so that the true difference over new runs is 0, and so that it is `MARGIN`."""
    fresh = draw_recalls(scenario, truth_draws // folds, folds, num_rows, np.random.default_rng(1))[1]
    grid = np.linspace(0.0, 1.2, 601)
    curve = expected_f1(np.stack([grid, grid], -1), scenario.shares)[:, 0]

    def excess(shift: float, target: float) -> float:
        recall = clip(fresh + np.array([0, shift]))
        return float(np.diff(np.interp(recall, grid, curve)).mean()) - target

    return [brentq(excess, -0.1, 0.1, args=(target,), xtol=1e-5) for target in (0.0, MARGIN)]


def clip(recall: np.ndarray) -> np.ndarray:
    return np.clip(recall, 0.02, 0.98)


def draw_counts(recall: np.ndarray, shares: tuple[float, ...], num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the counts (..., 27) of a stratified fold from the recalls (..., 2) of the runs that are tested on it."""
    by_class = np.round(np.array(shares) * num_rows).astype(int)
    cells = rng.multinomial(by_class, cell_probabilities(clip(recall), shares))
    return cells.reshape(*cells.shape[:-2], 27)


def bootstrap_variance(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compute the variance (...) of the difference in macro-F1 over resamples of the rows in `counts` (..., 27)."""
    total = counts.sum(-1)[..., None]
    drawn = rng.multinomial(total, (counts / total)[..., None, :], (*counts.shape[:-1], BOOTSTRAP_SAMPLES))
    return np.diff(macro_f1(drawn))[..., 0].var(-1, ddof=1)


def simulate(
    scenario: Scenario, folds: int, num_rows: int, truth: float, shift: float, size: int, rng: np.random.Generator
) -> dict[str, list[tuple[bool, str, float]]]:
    """Simulate `size` replications.

    Returns:
        For each candidate and replication: whether its interval covers the truth, its verdict, and its half-width.
    """
    recall = draw_recalls(scenario, size, folds, num_rows, rng)[0] + np.array([0, shift])
    counts = draw_counts(recall, scenario.shares, num_rows, rng)
    differences = np.diff(macro_f1(counts))[..., 0]
    pooled = counts.sum(1)
    total, degrees = fold_variance(differences, bootstrap_variance(pooled, rng))
    mean = differences.mean(-1)
    settings = ((total, degrees), (differences.var(-1, ddof=1) / folds, np.full(size, folds - 1)))
    results: dict[str, list[tuple[bool, str, float]]] = {}
    for name, (variance, df) in zip(CANDIDATES, settings, strict=True):
        errors = variance**0.5
        ends = [t.ppf((1 + level) / 2, df) * errors for level in (CONFIDENCE_LEVEL, TOST_LEVEL)]
        results[name] = []
        for middle, half, tost_half in zip(mean, *ends, strict=True):
            pair = [Interval(middle - width, middle + width, np.nan, np.nan, folds) for width in (half, tost_half)]
            covers = bool(pair[0].low <= truth <= pair[0].high)
            results[name].append((covers, verdict(pair[0], pair[1], MARGIN), float(half)))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000, help="simulations per cell of the table")
    parser.add_argument("--truth-draws", type=int, default=TRUTH_DRAWS, help="runs from which the truth is computed")
    parser.add_argument("--folds", type=int, nargs="+", default=(2, 3, 5, 10), help="numbers of folds to simulate")
    arguments = parser.parse_args()
    print("Coverage and wrong verdicts for true differences of 0 and of the margin; half-widths are those at 0.\n")
    columns = [f"{name}, at {truth:g}" for truth in (0.0, MARGIN) for name in CANDIDATES]
    columns += [f"half-width, {name}" for name in CANDIDATES]
    print("| " + " | ".join(["folds", "scenario", "rows a fold", *columns]) + " |")
    print("| ---: | --- |" + " ---: |" * (len(columns) + 1))
    for folds, (index, scenario) in itertools.product(arguments.folds, enumerate(SCENARIOS)):
        for num_rows in scenario.rows:
            cells, widths = [], []
            shifts = shifts_for(scenario, folds, num_rows, arguments.truth_draws)
            truths = ((0.0, ("better", "worse")), (MARGIN, ("equivalent",)))
            for (truth, wrong), shift in zip(truths, shifts, strict=True):
                rng = np.random.default_rng([index, num_rows, folds, int(truth > 0)])
                results: dict[str, list[tuple[bool, str, float]]] = {name: [] for name in CANDIDATES}
                for start in range(0, arguments.replications, BATCH):
                    size = min(BATCH, arguments.replications - start)
                    for name, of_batch in simulate(scenario, folds, num_rows, truth, shift, size, rng).items():
                        results[name] += of_batch
                for of_candidate in results.values():
                    covers, said, halves = zip(*of_candidate, strict=True)
                    cells.append(f"{np.mean(covers):.1%}, {np.mean([one in wrong for one in said]):.1%}")
                    widths.append(f"{np.mean(halves):.4f}")
            row = [str(folds), scenario.name, f"{num_rows:,}", *cells, *widths[: len(CANDIDATES)]]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
