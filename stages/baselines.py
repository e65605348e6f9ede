"""What the fine-tuned models have to beat: the majority class, character n-grams, and the base model without training.

Of the frozen base model the features of a review are its last hidden states, averaged over the tokens: a masked
language model puts more into them than into [CLS]. This baseline shows what fine-tuning adds.
"""

from typing import Any

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import write_logits
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import BASE_MODEL, BASELINE_LOGITS, SPLITS

PROBE_C_GRID = (0.01, 0.1, 1.0)  # around the best one; validation macro-F1 selects


def hidden_state_features(batch_size: int) -> dict[str, Any]:
    """Mean last hidden states of the frozen base model, scaled to the training rows' mean and variance."""
    from sklearn.preprocessing import StandardScaler

    from stages.common.modeling.classifier import build_classifier
    from stages.common.modeling.dataset import read_dataset
    from stages.common.modeling.inference import mean_hidden_states

    datasets = {split: read_dataset(path) for split, path in SPLITS.items()}
    model = build_classifier(BASE_MODEL, datasets["train"].class_names, dropout=0.0, seed=0)
    features = {split: mean_hidden_states(model, dataset, batch_size) for split, dataset in datasets.items()}
    scaler = StandardScaler().fit(features["train"])
    return {split: scaler.transform(states) for split, states in features.items()}


@report_user_errors
def main() -> None:
    params = load_params()
    # scikit-learn takes seconds to import; a fault in params.yaml is reported before that.
    from sklearn.dummy import DummyClassifier

    from stages.common.linear_models import TFIDF_C_GRID, fit_logistic_regression, tfidf_features

    tables = {split: read_table(path) for split, path in SPLITS.items()}
    labels = {split: table["labels"].to_numpy() for split, table in tables.items()}
    tfidf = tfidf_features({split: table["text"].to_pylist() for split, table in tables.items()})
    hidden_states = hidden_state_features(params.train.eval_batch_size)
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
        f"{name}/{split}": model.predict_log_proba(features[split])
        for name, (model, features) in models.items()
        for split in ("validation", "test")
    }
    write_logits(BASELINE_LOGITS, logits)


if __name__ == "__main__":
    main()
