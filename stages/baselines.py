"""What the fine-tuned models have to beat: the majority class, and character n-grams with logistic regression."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm import tqdm

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import write_logits
from stages.common.core.exceptions import report_user_errors
from stages.common.core.labels import LABELS
from stages.common.core.params import load_params
from stages.common.core.paths import BASELINES, TEST, TRAIN, VALIDATION

STRENGTHS = (1.0, 3.0, 10.0)  # inverse regularisation, chosen on the validation rows
Texts = list[str]


def fit_tfidf(texts: Texts, labels: np.ndarray, validation_texts: Texts, validation_labels: np.ndarray) -> Pipeline:
    """Character 1- to 4-grams within words, TF-IDF and logistic regression, of the strength best on validation."""
    rare = 2 if len(texts) >= 1000 else 1  # a small corpus may have no n-gram twice
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=rare, dtype=np.float32)
    x, validation = features.fit_transform(texts), features.transform(validation_texts)
    best, best_score = None, -1.0
    for strength in tqdm(STRENGTHS, desc="tfidf", disable=None):
        # Newton's method takes a tenth of the default's time here, and gets closer to the optimum.
        model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-6, max_iter=1000).fit(x, labels)
        score = f1_score(validation_labels, model.predict(validation), average="macro", zero_division=0)
        if score > best_score:
            best, best_score = model, score
    return make_pipeline(features, best)


def log_shares(labels: np.ndarray) -> np.ndarray:
    """Log-probabilities (3,) of the classes, those of the majority class for every review."""
    return np.log(np.bincount(labels, minlength=len(LABELS)) / len(labels))


@report_user_errors
def main() -> None:
    load_params()
    tables = {name: read_table(path) for name, path in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))}
    texts = {name: table["text"].to_pylist() for name, table in tables.items()}
    labels = {name: table["labels"].to_numpy() for name, table in tables.items()}
    tfidf = fit_tfidf(texts["train"], labels["train"], texts["validation"], labels["validation"])
    outputs = {}
    for split in ("validation", "test"):
        outputs[f"majority/{split}"] = np.tile(log_shares(labels["train"]), (len(labels[split]), 1))
        outputs[f"tfidf/{split}"] = tfidf.predict_log_proba(texts[split])
    write_logits(BASELINES, outputs)


if __name__ == "__main__":
    main()
