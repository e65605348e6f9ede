"""Labels of the training side that are probably wrong, by confident learning, for a person to look at.

Each row gets its probabilities from a TF-IDF model that has not seen its text. A row is suspected if another class is
as probable as it is, on average, for the rows that are labelled with it (Northcutt et al. 2021, arXiv 1911.00068).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.artifacts.files import write_json
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import AUDIT_METRICS, LABEL_ISSUES, LABEL_NOISE, TRAIN, VALIDATION

NUM_FOLDS = 5
C = 3.0  # inverse regularization strength: the middle one of the baseline's


def out_of_fold_probabilities(texts: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities (rows, classes) by models that were fitted on other texts."""
    from sklearn.model_selection import GroupKFold

    from stages.common.linear_models import logistic_regression, tfidf_features
    from stages.common.runtime.console import ProgressBar

    probabilities = np.zeros((len(texts), num_classes))
    groups = np.unique(texts, return_inverse=True)[1]
    num_folds = min(NUM_FOLDS, int(groups.max()) + 1)
    folds = GroupKFold(num_folds, shuffle=True, random_state=0).split(texts, groups=groups)
    for train, held_out in ProgressBar(folds, total=num_folds, desc="audit", unit="fold"):
        features = tfidf_features({"train": texts[train], "held_out": texts[held_out]})
        model = logistic_regression(C).fit(features["train"], labels[train])
        probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(features["held_out"])
    return probabilities


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class (rows,) that each row confidently belongs to; -1 where that is none.

    A row belongs to a class whose probability is at least the mean of that class' probability over the rows that are
    labelled with it; of several such classes, to the most probable one.
    """
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == label, label].mean() for label in classes])
    eligible = np.where(probabilities >= thresholds, probabilities, -1)
    return np.where(eligible.max(1) >= 0, eligible.argmax(1), -1)


def noise_rates(confident: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Of the rows with each label the estimated fraction (classes, classes) that belongs to each class.

    Args:
        confident: see `confident_classes`; rows of no class are not counted.
    """
    known = confident >= 0
    joint = np.bincount(labels[known] * num_classes + confident[known], minlength=num_classes**2)
    joint = joint.reshape(num_classes, num_classes)
    return joint / np.maximum(joint.sum(1, keepdims=True), 1)


@report_user_errors
def main() -> None:
    params = load_params()
    # pandas takes half a second to import; a fault in params.yaml is reported before that.
    from stages.common.spreadsheet import write_spreadsheet

    # Without rows for validation the test rows stand in its file.
    table = pa.concat_tables(map(read_table, (TRAIN, VALIDATION) if params.split.validation_size else (TRAIN,)))
    names, labels = np.array(get_class_names(table.schema)), table["labels"].to_numpy()
    probabilities = out_of_fold_probabilities(np.array(table["text"].to_pylist(), object), labels, len(names))
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(1)
    self_confidence = probabilities[rows, labels]
    confident = confident_classes(probabilities, labels)
    suspected = (confident >= 0) & (confident != labels)

    listed = np.argsort(self_confidence, kind="stable")
    listed = listed[(self_confidence < others.max(1))[listed]]  # another class is more probable
    columns: dict[str, Any] = {
        "Index": table["Index"].take(listed),
        "text": table["text"].take(listed),
        "label": names[labels[listed]],
        "suggested": names[suggested[listed]],
        "p_label": self_confidence[listed],
        "p_suggested": probabilities[listed, suggested[listed]],
        "suspected": np.where(suspected[listed], "yes", ""),
    }
    write_spreadsheet(LABEL_ISSUES, pa.table(columns).to_pandas())
    rates, counts = noise_rates(confident, labels, len(names)), np.bincount(labels, minlength=len(names))
    pairs = [(i, j) for i, j in np.ndindex(rates.shape) if i != j]
    noise = [{"label": str(names[i]), "suggested": str(names[j]), "rate": float(rates[i, j])} for i, j in pairs]
    write_json(LABEL_NOISE, sorted(noise, key=lambda pair: -pair["rate"]))
    wrong = sum(float(rates[i, j] * counts[i]) for i, j in pairs) / len(labels)
    metrics = {"rows": len(labels), "suspected": int(suspected.sum()), "estimated_wrong": round(wrong, 4)}
    write_json(AUDIT_METRICS, metrics)
    print(f"{metrics['suspected']} of {len(labels)} labels are suspected to be wrong: {LABEL_ISSUES}")


if __name__ == "__main__":
    main()
