"""Fit the baselines of a fold, simple models that show what fine-tuning adds, on the same training rows.

- The majority class.
- Logistic regression on TF-IDF of character n-grams.
- Logistic regression on the last hidden states of the frozen base model, averaged over the tokens of a text. Before
  fine-tuning, this average says more about a text than the hidden state of [CLS].
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.folds import Fold, read_fold
from stages.common.artifacts.logits import write_logits
from stages.common.runtime.console import ProgressBar
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.launch import parse_fold
from stages.common.runtime.parallel import end_with_supervisor
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import BASE_MODEL, TOKENIZED, baseline_path, fold_path
from stages.common.runtime.threads import set_up_threads

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Inverse regularization strengths, of which macro-F1 on the validation rows selects the best one.
TFIDF_C_GRID, PROBE_C_GRID = (1.0, 3.0, 10.0), (0.01, 0.1, 1.0)
# Number of training rows from which n-grams of a single text are ignored; a small corpus may have no others.
MIN_ROWS_FOR_MIN_DF = 1000
Parts = dict[str, Any]  # Features or labels of the training, validation and test rows, by part.


def tfidf_features(texts: Parts) -> Parts:
    """Compute TF-IDF of character 1- to 4-grams within words, with the vocabulary of the training rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_df = 2 if len(texts["train"]) >= MIN_ROWS_FOR_MIN_DF else 1
    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=min_df, dtype=np.float32)
    tfidf.fit(texts["train"])
    return {part: tfidf.transform(part_texts) for part, part_texts in texts.items()}


def hidden_state_features(fold: Fold, batch_size: int) -> Parts:
    """Compute mean last hidden states of the frozen base model, standardized by the training rows."""
    from sklearn.preprocessing import StandardScaler

    from stages.common.modeling.classifier import build_classifier
    from stages.common.modeling.dataset import read_dataset
    from stages.common.modeling.inference import mean_hidden_states

    dataset = read_dataset()
    model = build_classifier(BASE_MODEL, dataset.class_names, dropout=0.0, seed=0)
    features = {part: mean_hidden_states(model, dataset.take(rows), batch_size) for part, rows in vars(fold).items()}
    scaler = StandardScaler().fit(features["train"])
    return {part: scaler.transform(states) for part, states in features.items()}


def fit_logistic_regression(
    features: Parts, labels: Parts, c_grid: Sequence[float], class_weights: str, name: str
) -> "LogisticRegression":
    """Fit a model for each regularization strength, and return the one with the best validation macro-F1."""
    from sklearn.linear_model import LogisticRegression

    from stages.common.modeling.macro_scores import macro_scores

    num_classes = len(np.unique(labels["train"]))
    models, scores = [], []
    for c in ProgressBar(c_grid, desc=name):
        # Newton's method takes a tenth of the time of the default solver here and gets closer to the optimum.
        model = LogisticRegression(
            C=c,
            solver="newton-cg",
            tol=1e-6,
            max_iter=1000,
            class_weight="balanced" if class_weights == "balanced" else None,
        ).fit(features["train"], labels["train"])
        predictions = model.predict(features["validation"])
        models.append(model)
        scores.append(macro_scores(predictions.tolist(), labels["validation"].tolist(), num_classes)["macro_f1"])
    return models[int(np.argmax(scores))]


@report_user_errors
def main() -> None:
    params, number = load_params(), parse_fold(__doc__)
    end_with_supervisor()
    set_up_threads()
    # Imported after params.yaml was checked, because scikit-learn takes seconds to import.
    from sklearn.dummy import DummyClassifier

    table = read_table(TOKENIZED).select(["text", "labels"])
    fold = read_fold(fold_path(number), len(table))
    labels = {part: table["labels"].to_numpy()[rows] for part, rows in vars(fold).items()}
    tfidf = tfidf_features({part: table["text"].take(rows).to_pylist() for part, rows in vars(fold).items()})
    hidden_states = hidden_state_features(fold, params.train.eval_batch_size)
    weights = params.train.class_weights
    models = {
        "majority": (DummyClassifier(strategy="prior").fit(tfidf["train"], labels["train"]), tfidf),
        "tfidf": (fit_logistic_regression(tfidf, labels, TFIDF_C_GRID, weights, "tfidf"), tfidf),
        "linear_probe": (
            fit_logistic_regression(hidden_states, labels, PROBE_C_GRID, weights, "linear_probe"),
            hidden_states,
        ),
    }
    logits = {
        f"{name}/{part}": model.predict_log_proba(features[part])
        for name, (model, features) in models.items()
        for part in ("validation", "test")
    }
    write_logits(baseline_path(number), logits)


if __name__ == "__main__":
    main()
