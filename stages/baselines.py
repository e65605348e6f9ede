"""What the fine-tuned models have to beat: the majority class, character n-grams, and the base model without training.

Of the frozen base model the features of a review are its last hidden states, averaged over the tokens: a masked
language model puts more into them than into [CLS]. This baseline shows what fine-tuning adds.
"""

from typing import Any

import numpy as np

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import write_logits
from stages.common.core.console import ProgressBar
from stages.common.core.exceptions import report_user_errors
from stages.common.core.params import load_params
from stages.common.core.paths import BASE_MODEL, BASELINE_LOGITS, SPLITS

# Inverse regularization strengths around the best one of each kind of features; validation macro-F1 selects.
TFIDF_C_GRID = (1.0, 3.0, 10.0)
PROBE_C_GRID = (0.01, 0.1, 1.0)
Splits = dict[str, Any]  # features or labels of each split


def tfidf_features(texts: Splits) -> Splits:
    """TF-IDF of character 1- to 4-grams within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_df = 2 if len(texts["train"]) >= 1000 else 1  # a small corpus may have no n-gram twice
    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=min_df, dtype=np.float32)
    tfidf.fit(texts["train"])
    return {split: tfidf.transform(split_texts) for split, split_texts in texts.items()}


def hidden_state_features(batch_size: int) -> Splits:
    """Mean last hidden states of the frozen base model, scaled to the training rows' mean and variance."""
    from sklearn.preprocessing import StandardScaler

    from stages.common.modeling.classifier import build_classifier
    from stages.common.modeling.dataset import read_dataset
    from stages.common.modeling.inference import mean_hidden_states

    model = build_classifier(BASE_MODEL, dropout=0.0, seed=0)
    features = {split: mean_hidden_states(model, read_dataset(path), batch_size) for split, path in SPLITS.items()}
    scaler = StandardScaler().fit(features["train"])
    return {split: scaler.transform(states) for split, states in features.items()}


def fit_logistic_regression(features: Splits, labels: Splits, c_grid: tuple[float, ...], name: str) -> Any:
    """The model of the regularization strength with the best macro-F1 on the validation rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    # Newton's method takes a tenth of the default's time here, and gets closer to the optimum.
    options = {"solver": "newton-cg", "tol": 1e-6, "max_iter": 1000}
    grid = ProgressBar(c_grid, desc=name)
    models = [LogisticRegression(C=c, **options).fit(features["train"], labels["train"]) for c in grid]
    predictions = [model.predict(features["validation"]) for model in models]
    scores = [f1_score(labels["validation"], predicted, average="macro") for predicted in predictions]
    return models[int(np.argmax(scores))]


@report_user_errors
def main() -> None:
    params = load_params()
    # scikit-learn takes seconds to import; a fault in params.yaml is reported before that.
    from sklearn.dummy import DummyClassifier

    tables = {split: read_table(path) for split, path in SPLITS.items()}
    labels = {split: table["labels"].to_numpy() for split, table in tables.items()}
    tfidf = tfidf_features({split: table["text"].to_pylist() for split, table in tables.items()})
    hidden_states = hidden_state_features(params.train.eval_batch_size)
    models = {
        "majority": (DummyClassifier(strategy="prior").fit(tfidf["train"], labels["train"]), tfidf),
        "tfidf": (fit_logistic_regression(tfidf, labels, TFIDF_C_GRID, "tfidf"), tfidf),
        "linear_probe": (fit_logistic_regression(hidden_states, labels, PROBE_C_GRID, "linear_probe"), hidden_states),
    }
    logits = {
        f"{name}/{split}": model.predict_log_proba(features[split])
        for name, (model, features) in models.items()
        for split in ("validation", "test")
    }
    write_logits(BASELINE_LOGITS, logits)


if __name__ == "__main__":
    main()
