"""Logistic regression, and features of texts for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from stages.common.modeling.macro_scores import macro_scores
from stages.common.runtime.console import ProgressBar

TFIDF_C_GRID = (1.0, 3.0, 10.0)  # inverse regularization strengths around the best one; validation macro-F1 selects
MIN_ROWS_FOR_MIN_DF = 1000  # a smaller corpus may have no n-gram twice
Splits = dict[str, Any]  # features or labels of each split


def tfidf_features(texts: Splits) -> Splits:
    """TF-IDF of character 1- to 4-grams within words; the vocabulary is that of the split `train`."""
    min_df = 2 if len(texts["train"]) >= MIN_ROWS_FOR_MIN_DF else 1
    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=min_df, dtype=np.float32)
    tfidf.fit(texts["train"])
    return {split: tfidf.transform(split_texts) for split, split_texts in texts.items()}


def logistic_regression(c: float, class_weights: str = "none") -> LogisticRegression:
    """The model of an inverse regularization strength, unfitted.

    Args:
        class_weights: `train.class_weights`.
    """
    # Newton's method takes a tenth of the default's time here, and gets closer to the optimum.
    weights = "balanced" if class_weights == "balanced" else None
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-6, max_iter=1000, class_weight=weights)


def fit_logistic_regression(
    features: Splits, labels: Splits, c_grid: Sequence[float], class_weights: str, name: str
) -> LogisticRegression:
    """The model of the regularization strength with the best macro-F1 on the validation rows."""
    grid = ProgressBar(c_grid, desc=name)
    models = [logistic_regression(c, class_weights).fit(features["train"], labels["train"]) for c in grid]
    predictions = [model.predict(features["validation"]) for model in models]
    num_classes = len(np.unique(labels["train"]))
    scores = [macro_scores(predicted, labels["validation"], num_classes)["macro_f1"] for predicted in predictions]
    return models[int(np.argmax(scores))]
