"""The embedded reviews agree with their README."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.common.cleaning import clean
from stages.ingest import find_files
from tests.support.corpus import SHIPPED
from tests.support.project import ROOT

SAMPLE = ROOT / "data/sample"


def rows() -> list[dict]:
    return [row for file in find_files(SAMPLE) for row in json.loads((SAMPLE / file).read_text(encoding="utf-8"))]


def valid() -> tuple[list[str], np.ndarray]:
    kept = [row for row in rows() if row.get("GeneralPolarity") in ("-1", "0", "1")]
    texts = clean(pa.array([row["RawText"] for row in kept]), SHIPPED.clean)
    return texts.to_pylist(), np.array([int(row["GeneralPolarity"]) for row in kept])


def test_the_sample_has_the_counts_of_the_corpus():
    assert len(rows()) == 5004
    unusable = Counter(row.get("GeneralPolarity", "no key") for row in rows())
    for polarity in ("-1", "0", "1"):
        assert unusable.pop(polarity) > 1000
    assert sum(unusable.values()) == 596
    assert {"no key", None, "", "2"} <= set(unusable)
    texts, _ = valid()
    assert len(texts) == 4408
    assert "" not in texts
    assert 0 < len(texts) - len(set(texts)) < 44


def test_the_script_writes_the_same_bytes(tmp_path):
    command = [sys.executable, str(SAMPLE / "generate.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert again == {path.relative_to(SAMPLE): path.read_bytes() for path in SAMPLE.rglob("*.json")}


def test_counting_characters_is_not_enough():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline

    texts, labels = valid()
    x, x_test, y, y_test = train_test_split(texts, labels, test_size=0.2, stratify=labels, random_state=0)
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    model = make_pipeline(features, LogisticRegression(C=3, max_iter=1000)).fit(x, y)
    assert 0.6 < f1_score(y_test, model.predict(x_test), average="macro") < 0.8


def test_files_are_laid_out_as_the_corpus_is():
    assert all(Path(file).parts[:2] == ("SNS", "04. IT기기") for file in find_files(SAMPLE))
    row = rows()[0]
    assert list(row)[:2] == ["Index", "RawText"]
    assert {"Source", "Domain", "MainCategory", "ProductName", "ReviewScore", "RDate", "Aspects"} <= set(row)
    assert all(isinstance(value, str) for key, value in row.items() if key not in ("Aspects", "GeneralPolarity"))
