"""A baseline without fine-tuning: logistic regression on the frozen base model's last hidden states, averaged.

It shows what fine-tuning adds. A review's features are the mean over its tokens, which a masked language model fills
with more than [CLS].
"""

from typing import Any

from stages.common.artifacts.logits import write_logits
from stages.common.core.exceptions import report_user_errors
from stages.common.core.params import load_params
from stages.common.core.paths import BASE_MODEL, LINEAR_PROBE_LOGITS, TEST, TRAIN, VALIDATION

C_GRID = (0.01, 0.1, 1.0, 10.0)  # inverse regularization strengths; validation macro-F1 chooses


@report_user_errors
def main() -> None:
    params = load_params()
    # torch and scikit-learn take seconds to import, and a fault in params.yaml is reported before.
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from stages.common.modeling.classifier import build_classifier
    from stages.common.modeling.dataset import read_dataset
    from stages.common.modeling.inference import mean_hidden_states

    model = build_classifier(BASE_MODEL, dropout=0.0, seed=0)
    datasets = {path.stem: read_dataset(path) for path in (TRAIN, VALIDATION, TEST)}
    features = {
        name: mean_hidden_states(model, dataset, params.train.eval_batch_size) for name, dataset in datasets.items()
    }

    def fit(c: float) -> tuple[float, Any]:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        probe.fit(features["train"], datasets["train"].labels)
        predictions = probe.predict(features["validation"])
        return f1_score(datasets["validation"].labels, predictions, average="macro"), probe

    _, probe = max((fit(c) for c in C_GRID), key=lambda result: result[0])
    logits = {f"linear_probe/{name}": probe.predict_log_proba(features[name]) for name in ("validation", "test")}
    write_logits(LINEAR_PROBE_LOGITS, {name: np.asarray(values) for name, values in logits.items()})


if __name__ == "__main__":
    main()
