"""Compare both methods on the test rows, with intervals and tests, for `report` and for DVC's tables."""

from typing import TYPE_CHECKING, Any

from stages.common.artifacts.files import write_json
from stages.common.artifacts.methods import METHODS
from stages.common.artifacts.selection import read_selection
from stages.common.runtime import paths
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params

ROUNDING_NOISE = 1e-12  # A metric that is 0 in every resample may differ from 0 by this much.

if TYPE_CHECKING:
    from stages.common.evaluation.result import Comparison


def summarize(comparison: "Comparison") -> dict[str, Any]:
    """Summarize a comparison as the metrics of metrics/compare.json, which DVC's tables show in this order.

    `detectable` is the true difference that is found with a power of 80%. Counts are no metrics, and stand in
    metrics/compare_details.json alone.
    """
    difference = comparison.difference
    summary: dict[str, Any] = {
        "verdict": difference.verdict,
        "difference": difference.macro_f1.value,
        "low": difference.macro_f1.low,
        "high": difference.macro_f1.high,
        "detectable": difference.minimum_detectable_effect,
    }
    for name in METHODS:
        scores = comparison.scores(name)
        summary[name] = {"macro_f1": scores.macro_f1.value, "accuracy": scores.accuracy.value}
    return summary | {name: {"macro_f1": scores.macro_f1.value} for name, scores in comparison.baselines.items()}


def round_floats(value: Any) -> Any:
    """Round all floats in nested dicts and lists to four decimal places, or two digits below 0.001, as p-values are."""
    match value:
        case dict():
            return {key: round_floats(each) for key, each in value.items()}
        case list():
            return [round_floats(each) for each in value]
        case float() if abs(value) < ROUNDING_NOISE:
            return 0.0
        case float():
            return round(value, 4) if abs(value) >= 1e-3 else float(f"{value:.2g}")
    return value


@report_user_errors
def main() -> None:
    params = load_params()
    # SciPy takes seconds to import; an error in params.yaml is reported before that.
    from stages.common.evaluation.calibration import reliability_bins
    from stages.common.evaluation.comparison import compare_methods
    from stages.common.evaluation.error_analysis import confusion_counts
    from stages.common.evaluation.predictions import read_predictions, read_tested_rows
    from stages.common.evaluation.result import Comparison

    selection = read_selection()
    tested = read_tested_rows(selection["full"].folds)
    predictions = read_predictions(tested, selection)
    if tested.selects_on_test_rows:
        warn("split.validation_size is 0: epochs were selected on the test rows, so the metrics are optimistic")
    comparison = compare_methods(tested, predictions, selection, params.split.folds, params.compare)
    comparison = Comparison.model_validate(round_floats(comparison.model_dump()))
    bins = []
    for method in METHODS:
        logits, temperatures = predictions[method].logits, predictions[method].temperatures[tested.fold_index]
        confusion = confusion_counts(logits, tested.labels, tested.class_names)
        write_json(paths.PLOTS / f"confusion_{method}.json", confusion)
        bins += [{"method": method, **row} for row in reliability_bins(logits, tested.labels, temperatures)]
    write_json(paths.PLOTS / "reliability.json", bins)
    write_json(
        paths.VALIDATION_METRICS, round_floats({name: each.validation_scores() for name, each in selection.items()})
    )
    write_json(paths.COMPARE_DETAILS, comparison.model_dump())
    write_json(paths.COMPARE_METRICS, summarize(comparison))


if __name__ == "__main__":
    main()
