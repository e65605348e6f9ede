"""The figures of `compare` as people read them: words, tables, and no more digits than an interval deserves."""

import math
from collections.abc import Iterator
from typing import Any

from stages.common import paths
from stages.common.core.labels import LABELS

Figures = dict[str, Any]  # metrics/compare.json
METHODS = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "tfidf": "TF-IDF + logistic regression",
    "majority": "majority class",
}
IN_KOREAN = {"full": "전체 미세조정", "lora": "LoRA", "tfidf": "TF-IDF와 로지스틱 회귀", "majority": "다수 클래스"}
COLUMNS = {
    "macro_f1": "macro-F1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "accuracy": "accuracy",
    "loss": "loss",
    "brier": "Brier",
    "ece": "ECE",
    "scaled.loss": "loss, scaled",
    "scaled.brier": "Brier, scaled",
    "scaled.ece": "ECE, scaled",
}
VERDICTS = {
    "better": ("LoRA is better than full fine-tuning", "LoRA가 전체 미세조정보다 낫습니다"),
    "worse": ("LoRA is worse than full fine-tuning", "LoRA가 전체 미세조정보다 못합니다"),
    "equivalent": ("LoRA and full fine-tuning are equivalent", "LoRA와 전체 미세조정은 동등합니다"),
    "undecided": (
        "Undecided: these rows and runs show neither a difference nor equivalence",
        "판단 보류: 이 데이터와 실행만으로는 차이도 동등함도 말할 수 없습니다",
    ),
}


def decimals(low: float, high: float) -> int:
    """Places after the point: as far as the first digit of half the interval's width."""
    width = (high - low) / 2
    return min(4, max(0, -math.floor(math.log10(width)))) if width > 0 else 2


def pick(values: Figures, name: str) -> Any:
    """`values["a"]["b"]` for `a.b`."""
    for key in name.split("."):
        values = values[key]
    return values


def with_interval(value: float, low: float, high: float) -> str:
    """`0.80 [0.77, 0.83]`."""
    places = decimals(low, high)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def difference(value: float, low: float, high: float) -> str:
    """`-0.16 [-0.19, -0.12]`, with a digit more where a bound would be 0.00 and hide on which side of 0 it lies."""
    places = decimals(low, high)
    while places < 4 and any(bound and not round(bound, places) for bound in (low, high)):
        places += 1
    return f"{value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def rounded(values: Figures, name: str) -> str:
    """A figure of one method, rounded by its interval."""
    return f"{pick(values, name):.{decimals(*pick(values['interval'], name))}f}"


def by_rows(value: float, rows: int) -> str:
    """A share of few rows, which has no interval of its own: rounded by 1 / sqrt(rows), about as wide as one."""
    return f"{value:.{decimals(-1 / math.sqrt(rows), 1 / math.sqrt(rows))}f}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


def verdicts(figures: Figures) -> Iterator[tuple[str, str]]:
    """What can be said, each sentence in English and in Korean, the verdict first."""
    of = figures["difference"]
    gap, margin = difference(of["macro_f1"], of["low"], of["high"]), of["margin"]
    tests = f"{p_value(of['p_permutation'])} (permutation), McNemar {p_value(of['p_mcnemar'])}"
    english, korean = VERDICTS[of["verdict"]]
    yield f"{english}.", f"{korean}."
    yield (
        f"Macro-F1, LoRA minus full: {gap}, 95% interval; margin {margin:g}; {tests}.",
        f"매크로 F1 차이(LoRA − 전체): {gap}, 95% 신뢰구간; 허용 한계 {margin:g}; {tests}.",
    )
    if of["verdict"] == "equivalent" and (of["low"] > 0 or of["high"] < 0):
        yield "There is a difference, but one below the margin.", "차이는 있으나 허용 한계보다 작습니다."
    elif of["low"] > margin or of["high"] < -margin:
        yield "The whole interval lies beyond the margin.", "구간 전체가 허용 한계를 벗어납니다."
    elif of["verdict"] in ("better", "worse"):
        yield "The difference may still be below the margin.", "차이가 허용 한계보다 작을 수도 있습니다."
    for method in paths.METHODS:
        yield from _of_method(figures[method], METHODS[method], IN_KOREAN[method])
    if figures["selected_on_test_rows"]:
        yield (
            "Epochs were chosen on the test rows (split.validation_size: 0): the figures are optimistic.",
            "에폭을 평가 데이터로 골랐으므로(split.validation_size: 0) 수치가 실제보다 좋게 나옵니다.",
        )
    if "sd" not in figures["full"]["runs"]:
        yield (
            "One run a method: the interval knows nothing of what another seed would give.",
            "방법마다 한 번씩만 학습했으므로, 다른 시드의 변동은 구간에 들어 있지 않습니다.",
        )


def _of_method(values: Figures, english: str, korean: str) -> Iterator[tuple[str, str]]:
    for against in values["against"]:
        if (word := against["verdict"]) != "better":
            gap, baseline = difference(against["macro_f1"], *against["interval"]), against["baseline"]
            yield (
                f"{english} does not beat the baseline {METHODS[baseline]} ({word}: {gap}).",
                f"{korean}: 기준선({IN_KOREAN[baseline]})을 이기지 못했습니다({gap}).",
            )
    for run in values["runs"]["each"]:
        f1, loss = run["best_epoch"], run["best_epoch_by_loss"]
        seed = f", seed {run['seed']}" if "sd" in values["runs"] else ""
        if f1 != loss:
            yield (
                f"{english}{seed}: best epoch {f1} by validation macro-F1, but {loss} by validation loss.",
                f"{korean}{seed}: 최고 에폭이 검증 매크로 F1로는 {f1}, 검증 손실로는 {loss}입니다.",
            )


def table(figures: Figures) -> list[list[str]]:
    """Header and a row a method; of several runs the mean."""
    rows = [["method", *COLUMNS.values(), "trainable parameters", "of", "weights"]]
    for method, name in METHODS.items():
        values = figures[method]
        first = with_interval(values["macro_f1"], *values["interval"]["macro_f1"])
        cost = ["", "", ""]
        if "checkpoint_bytes" in values:
            counts = [f"{values[key]:,}" for key in ("trainable_parameters", "total_parameters")]
            size = values["checkpoint_bytes"] / 1e6
            cost = [*counts, f"{size:,.1f} MB" if size >= 1 else f"{1e3 * size:.1f} kB"]
        rows.append([name, first, *(rounded(values, key) for key in list(COLUMNS)[1:]), *cost])
    return rows


def seed_table(figures: Figures) -> list[list[str]]:
    """Header and a row a run, then the mean and the standard deviation of several."""
    keys = ("best_epoch", "best_epoch_by_loss", "gap_at_best_epoch", "gap_at_best_epoch_by_loss")
    rows = [["method", "seed", "macro-F1", "accuracy", "best epoch by F1", "by loss", "gap there", "gap there"]]
    for method in paths.METHODS:
        runs, spans = figures[method]["runs"], figures[method]["interval"]
        for run in (*runs["each"], *({"seed": name, **runs[name]} for name in ("mean", "sd") if name in runs)):
            more = run["seed"] == "sd"
            scores = [f"{run[name]:.{decimals(*spans[name]) + more}f}" for name in ("macro_f1", "accuracy")]
            rest = [f"{run[key]:.2f}" if "gap" in key else str(run[key]) for key in keys if key in run]
            rows.append([METHODS[method], str(run["seed"]), *scores, *(rest or [""] * len(keys))])
    return rows


def class_table(figures: Figures) -> list[list[str]]:
    """Header and a row a method and class."""
    rows = [["method", "class", "precision", "recall", "F1"]]
    for method, name in METHODS.items():
        for label in LABELS:
            keys = [f"per_class.{label}.{key}" for key in ("precision", "recall")]
            f1 = figures[method]["per_class"][label]["f1"]
            span = figures[method]["interval"]["per_class"][label]["f1"]
            rows.append([name, label, *(rounded(figures[method], key) for key in keys), with_interval(f1, *span)])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])
