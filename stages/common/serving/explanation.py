"""Why a text got its label: which words carried it, and what the training data says about similar texts."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from stages.common.serving.text_classifier import TextClassifier

MAX_WORDS = 60  # of a text that are attributed; each costs a prediction


def explain_prediction(classifier: TextClassifier, text: str) -> dict[str, Any]:
    """Probabilities of a text, and an attribution of the best label to its words by occlusion.

    Returns:
        `label` and `probabilities` (classes,), None where cleaning leaves no text; `attributions`, for each of the
        first words how much the probability of `label` falls when that word is left out (Zeiler and Fergus 2014,
        arXiv 1311.2901).
    """
    text = unicodedata.normalize("NFC", text)  # as cleaning does
    words = text.split()
    shown = words[:MAX_WORDS]
    without = [" ".join([*words[:index], *words[index + 1 :]]) for index in range(len(shown))]
    probabilities, *occluded = classifier.predict_proba([text, *without])
    if np.isnan(probabilities[0]):
        return {"label": None, "probabilities": None, "attributions": []}
    best = int(probabilities.argmax())
    # Without its only word a text has no prediction: all of its probability is that word's.
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
    """The training texts most similar to a text, by the cosine between TF-IDF vectors of character 2- to 4-grams."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        self._texts, self._labels = texts, labels
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32)
        self._vectors = self._vectorizer.fit_transform(texts)

    def find(self, text: str, count: int) -> list[dict[str, Any]]:
        """At most `count` texts that have something in common with `text`, the most similar first."""
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
