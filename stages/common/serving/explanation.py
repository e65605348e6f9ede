"""Explain why a text got its label: by the words that support it, and by similar texts of the training data."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from stages.common.serving.text_classifier import TextClassifier

MAX_WORDS = 60  # Words of a text that are explained; each one costs a prediction.


def explain_prediction(classifier: TextClassifier, text: str) -> dict[str, Any]:
    """Classify a text, and attribute its label to its words by occlusion (Zeiler and Fergus 2014, arXiv 1311.2901).

    Returns:
        `label` and `probabilities` (classes,), which are None if cleaning leaves no text; and `attributions`, a list
        that tells for each of the first `MAX_WORDS` words how much the probability of `label` falls without that word.
    """
    text = unicodedata.normalize("NFC", text)  # Cleaning does this too.
    words = text.split()
    shown = words[:MAX_WORDS]
    without = [" ".join([*words[:index], *words[index + 1 :]]) for index in range(len(shown))]
    probabilities, *occluded = classifier.predict_proba([text, *without])
    if np.isnan(probabilities[0]):
        return {"label": None, "probabilities": None, "attributions": []}
    best = int(probabilities.argmax())
    # A text without its only word has no prediction, so that word gets the whole probability.
    falls = [probabilities[best] - np.nan_to_num(each[best]) for each in occluded]
    attributions = [
        {"word": word, "attribution": round(float(fall), 6)} for word, fall in zip(shown, falls, strict=True)
    ]
    return {
        "label": classifier.labels[best],
        "probabilities": probabilities.round(6).tolist(),
        "attributions": attributions,
    }


class NearestTexts:
    """Find the texts most similar to a text, by the cosine between TF-IDF vectors of character 2- to 4-grams."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        self._texts, self._labels = texts, labels
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32)
        self._vectors = self._vectorizer.fit_transform(texts)

    def find(self, text: str, count: int) -> list[dict[str, Any]]:
        """Return at most `count` texts that share an n-gram with `text`, the most similar first."""
        composed = unicodedata.normalize("NFC", text)
        similarities = (self._vectors @ self._vectorizer.transform([composed]).T).toarray()[:, 0]
        nearest = np.argsort(-similarities, kind="stable")[:count]
        return [
            {
                "text": self._texts[index],
                "label": self._labels[index],
                "similarity": round(float(similarities[index]), 3),
            }
            for index in nearest
            if similarities[index] > 0
        ]
