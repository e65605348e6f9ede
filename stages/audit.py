"""List labels that are probably wrong, for a person to check, and measure which method learned them.

The method is confident learning (Northcutt et al. 2021, arXiv 1911.00068). Each test row gets probabilities from the
models of its fold, which were not trained on it, averaged over full fine-tuning and LoRA. A label is suspected if the
probability of another class is at least the mean probability of that class over the rows labelled with it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stages.common.artifacts.files import write_json
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.selection import Selection, read_selection
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import AUDIT_METRICS, LABEL_ISSUES, LABEL_NOISE

if TYPE_CHECKING:
    from stages.common.evaluation.predictions import Predictions, TestedRows


def out_of_fold_probabilities(tested: "TestedRows", predictions: Mapping[str, "Predictions"]) -> np.ndarray:
    """Average the calibrated probabilities of both methods for each test row, (rows, classes)."""
    from scipy.special import softmax

    each = [
        softmax(of_method.logits / of_method.temperatures[tested.fold_index][:, None], axis=1)
        for of_method in predictions.values()
    ]
    return np.mean(each, axis=0)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the class to which each row confidently belongs.

    These are the classes whose probability is at least the mean probability of the class over the rows labelled with
    it. If a row has several such classes, it belongs to the most probable one.

    Args:
        probabilities: Shape (rows, classes).
        labels: Class indices, (rows,).

    Returns:
        Class indices (rows,); -1 for a row that belongs to no class.
    """
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == label, label].mean() for label in classes])
    eligible = np.where(probabilities >= thresholds, probabilities, -1)
    return np.where(eligible.max(1) >= 0, eligible.argmax(1), -1)


def noise_rates(confident: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Estimate, for each label, the fraction of its rows that belong to each class.

    Args:
        confident: Class of each row from `confident_classes`, (rows,); rows of no class are not counted.
        labels: Class indices, (rows,).
        num_classes: Number of classes.

    Returns:
        Fractions (classes, classes); the first axis is the label, the second one the class.
    """
    known = confident >= 0
    joint = np.bincount(labels[known] * num_classes + confident[known], minlength=num_classes**2)
    joint = joint.reshape(num_classes, num_classes)
    return joint / np.maximum(joint.sum(1, keepdims=True), 1)


def list_issues(tested: "TestedRows", probabilities: np.ndarray, suspected: np.ndarray) -> pa.Table:
    """List the rows for which another class is more probable than the label, in ascending probability of the label."""
    labels, names, rows = tested.labels, np.array(tested.class_names), np.arange(len(tested.labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    of_label, suggested = probabilities[rows, labels], others.argmax(1)
    listed = np.argsort(of_label, kind="stable")
    listed = listed[(of_label < others.max(1))[listed]]
    columns: dict[str, Any] = {
        "Index": tested.table["Index"].take(listed),
        "text": tested.table["text"].take(listed),
        "label": names[labels[listed]],
        "suggested": names[suggested[listed]],
        "p_label": of_label[listed],
        "p_suggested": probabilities[listed, suggested[listed]],
        "suspected": np.where(suspected[listed], "yes", ""),
    }
    return pa.table(columns)


def label_fit(tested: "TestedRows", suspected: np.ndarray, selection: Selection) -> dict[str, dict[str, float]]:
    """Measure how often each method predicts the label of its training rows, for suspected labels and for others.

    Only training rows that are test rows of another fold are counted, because only these were audited. The result is
    empty if there are none.
    """
    from stages.common.evaluation.predictions import run_files

    status = np.full(len(tested.all_labels), -1)  # 1: the label is suspected, 0: it is not, -1: it was not audited.
    status[tested.rows] = suspected
    result = {}
    for method, selected in selection.items():
        fitted, kinds, files = [], [], run_files(method, selected)
        for number, fold in tested.by_fold.items():
            rows, logits = fold.train, read_logits(files[number], len(tested.class_names), ["train"])["train"]
            fitted.append(logits.argmax(1) == tested.all_labels[rows])
            kinds.append(status[rows])
        fits, kind = np.concatenate(fitted), np.concatenate(kinds)
        if (kind == 1).any() and (kind == 0).any():
            result[method] = {"suspected": float(fits[kind == 1].mean()), "others": float(fits[kind == 0].mean())}
    return result


@report_user_errors
def main() -> None:
    load_params()
    # Imported after params.yaml was checked, because SciPy and pandas take seconds to import.
    from stages.common.evaluation.predictions import read_method_predictions, read_tested_rows
    from stages.common.spreadsheet import write_spreadsheet

    selection = read_selection()
    tested = read_tested_rows(selection["full"].folds)
    if tested.is_fixed:  # All folds have the same test rows, and each row is audited once.
        tested = read_tested_rows(selection["full"].folds[:1])
    labels, names = tested.labels, tested.class_names
    probabilities = out_of_fold_probabilities(tested, read_method_predictions(tested, selection))
    confident = confident_classes(probabilities, labels)
    suspected = (confident >= 0) & (confident != labels)
    write_spreadsheet(LABEL_ISSUES, list_issues(tested, probabilities, suspected).to_pandas())
    rates, counts = noise_rates(confident, labels, len(names)), np.bincount(labels, minlength=len(names))
    pairs = [(i, j) for i, j in np.ndindex(rates.shape) if i != j]
    noise = [{"label": names[i], "suggested": names[j], "rate": float(rates[i, j])} for i, j in pairs]
    write_json(LABEL_NOISE, sorted(noise, key=lambda pair: -pair["rate"]))
    wrong = sum(float(rates[i, j] * counts[i]) for i, j in pairs) / len(labels)
    fit = label_fit(tested, suspected, selection)
    rounded = {method: {name: round(value, 4) for name, value in values.items()} for method, values in fit.items()}
    metrics = {"rows": len(labels), "suspected": int(suspected.sum()), "estimated_wrong": round(wrong, 4)}
    write_json(AUDIT_METRICS, {**metrics, "label_fit": rounded})
    print(f"{metrics['suspected']} of {len(labels)} labels are suspected to be wrong; see {LABEL_ISSUES}")


if __name__ == "__main__":
    main()
