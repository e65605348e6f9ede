"""The tables of the comparison, defined once for Markdown and for the page."""

from collections.abc import Callable
from statistics import fmean, stdev
from typing import NamedTuple

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.result import Comparison
from stages.common.reporting.formatting import (
    NAMES,
    Text,
    format_difference,
    format_ece,
    format_interval,
    format_score,
    format_value,
)

Cell = str | Text


class Table(NamedTuple):
    """A table whose heads, and the names of methods in it, are in two languages."""

    title: Text
    head: list[Text]
    rows: list[list[Cell]]


METHOD, CLASS, FOLD = Text("method", "방법"), Text("class", "클래스"), Text("fold", "폴드")
MACRO_F1, ACCURACY = Text("macro-F1", "매크로 F1"), Text("accuracy", "정확도")
PRECISION, RECALL = Text("precision", "정밀도"), Text("recall", "재현율")
LEARNING_RATE, DIFFERENCE = Text("learning rate", "학습률"), Text("LoRA - full", "LoRA − 전체")


def _scores(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = []
    for name, text in NAMES.items():
        scores = comparison.scores(name)
        others = (scores.accuracy, scores.macro_precision, scores.macro_recall)
        rows.append([text, format_interval(scores.macro_f1), *map(format_value, others)])
    title = Text(
        "Scores on the test rows: means over the folds, with the 95% confidence interval of macro-F1",
        "평가 데이터 점수: 폴드 평균과 매크로 F1의 95% 신뢰구간",
    )
    return Table(title, [METHOD, MACRO_F1, ACCURACY, PRECISION, RECALL], rows)


def _costs(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = []
    for method in METHODS:
        result = comparison.method(method)
        counts = (f"{count:,}" for count in (result.trainable_parameters, result.total_parameters))
        rows.append([NAMES[method], *counts, f"{result.checkpoint_bytes / 1e6:,.2f} MB"])
    head = [
        METHOD,
        Text("trainable parameters", "학습되는 파라미터"),
        Text("all parameters", "전체 파라미터"),
        Text("size on disk", "저장 크기"),
    ]
    return Table(Text("Costs", "비용"), head, rows)


def _folds(comparison: Comparison) -> Table:
    runs = zip(comparison.full.runs, comparison.lora.runs, comparison.difference.by_fold, strict=True)
    rows: list[list[Cell]] = [
        [str(full.fold), format_score(full.macro_f1), format_score(lora.macro_f1), f"{difference:+.3f}"]
        for full, lora, difference in runs
    ]
    title = Text("Macro-F1 on the test rows of each fold", "폴드별 평가 데이터의 매크로 F1")
    return Table(title, [FOLD, *(NAMES[method] for method in METHODS), DIFFERENCE], rows)


def _classes(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [text, label, format_value(scores.precision), format_value(scores.recall), format_interval(scores.f1)]
        for name, text in NAMES.items()
        for label, scores in comparison.scores(name).classes.items()
    ]
    title = Text("Scores of each class, with the 95% confidence interval of F1", "클래스별 점수와 F1의 95% 신뢰구간")
    return Table(title, [METHOD, CLASS, PRECISION, RECALL, Text("F1", "F1")], rows)


def _class_differences(comparison: Comparison) -> Table:
    title = Text(
        "F1 of LoRA minus full fine-tuning by class, with 95% intervals that nothing corrects for their number",
        "클래스별 F1 차이(LoRA − 전체 미세조정)와 다중 비교를 보정하지 않은 95% 구간",
    )
    rows: list[list[Cell]] = [[label, format_difference(each)] for label, each in comparison.class_differences.items()]
    return Table(title, [CLASS, DIFFERENCE], rows)


def _tuning(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = []
    for method in METHODS:
        tuning = comparison.method(method).tuning
        for trial in tuning.trials:
            deviation = format_score(stdev(trial.macro_f1)) if len(trial.macro_f1) > 1 else ""
            selected: Cell = Text("yes", "예") if trial.learning_rate == tuning.learning_rate else ""
            scores: list[Cell] = [str(len(trial.macro_f1)), format_score(fmean(trial.macro_f1)), deviation, selected]
            rows.append([NAMES[method], f"{trial.learning_rate:g}", *scores])
    title = Text("Macro-F1 on the validation rows, by learning rate", "학습률별 검증 데이터의 매크로 F1")
    spread = Text("standard deviation", "표준편차")
    head = [METHOD, LEARNING_RATE, Text("folds", "폴드 수"), Text("mean", "평균"), spread, Text("selected", "선택")]
    return Table(title, head, rows)


def _runs(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = []
    for method in METHODS:
        for run in comparison.method(method).runs:
            epochs = run.epochs
            by_f1 = [str(epochs.best_epoch_by_f1), f"{epochs.gap_at_best_epoch_by_f1:.2f}"]
            by_loss = [str(epochs.best_epoch_by_loss), f"{epochs.gap_at_best_epoch_by_loss:.2f}"]
            rows.append([NAMES[method], str(run.fold), *by_f1, *by_loss])
    head = [
        METHOD,
        FOLD,
        Text("best epoch by macro-F1", "매크로 F1 최적 에폭"),
        Text("loss gap there", "그때의 손실 격차"),
        Text("best epoch by loss", "손실 최적 에폭"),
        Text("loss gap at that epoch", "그 에폭의 손실 격차"),
    ]
    title = Text(
        "Best epochs of each run at the selected learning rate; the loss gap is validation loss minus training loss",
        "선택된 학습률로 한 각 학습의 최적 에폭(손실 격차는 검증 손실 − 학습 손실)",
    )
    return Table(title, head, rows)


def _calibration(comparison: Comparison) -> Table:
    rows: list[list[Cell]] = []
    for name, text in NAMES.items():
        scores = comparison.scores(name)
        runs = comparison.method(name).runs if name in METHODS else []
        values = map(format_value, (scores.loss, scores.scaled_loss, scores.brier, scores.scaled_brier))
        errors = (format_ece(comparison, name, scaled) for scaled in (False, True))
        rows.append([text, ", ".join(f"{run.temperature:.2f}" for run in runs), *values, *errors])
    head = [
        METHOD,
        Text("temperatures", "온도"),
        *(Text("loss", "손실"), Text("loss, scaled", "손실(보정 후)")),
        *(Text("Brier score", "브라이어 점수"), Text("Brier score, scaled", "브라이어 점수(보정 후)")),
        *(Text("ECE", "ECE"), Text("ECE, scaled", "ECE(보정 후)")),
    ]
    title = Text(
        "Calibration before and after temperature scaling; in brackets, the ECE of exact probabilities by chance",
        "온도 보정 전후의 확률 보정(괄호 안은 확률이 정확해도 우연히 나오는 ECE)",
    )
    return Table(title, head, rows)


BUILDERS: dict[str, Callable[[Comparison], Table]] = {
    "scores": _scores,
    "costs": _costs,
    "folds": _folds,
    "tuning": _tuning,
    "runs": _runs,
    "calibration": _calibration,
    "classes": _classes,
    "class_differences": _class_differences,
}


def make_tables(comparison: Comparison) -> dict[str, Table]:
    """Make all tables, by name."""
    return {name: build(comparison) for name, build in BUILDERS.items()}
