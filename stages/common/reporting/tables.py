"""The tables of the comparison, defined once for Markdown and for the page."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.result import Comparison, Tuning
from stages.common.reporting.formatting import (
    NAMES,
    Text,
    format_ece,
    format_interval,
    format_part,
    format_score,
    format_value,
)

Cell = str | Text


class Table(NamedTuple):
    """A table whose title and heads, and the names of methods in it, are in two languages."""

    title: Text
    head: list[Text]
    rows: Sequence[Sequence[Cell]]


def _table(title: str, head: str, rows: Sequence[Sequence[Cell]]) -> Table:
    """Make a table from texts such as "method | 방법"; semicolons separate the heads."""
    of_title, *of_head = (Text(*(part.strip() for part in text.split("|"))) for text in (title, *head.split(";")))
    return Table(of_title, of_head, rows)


def _trials(name: Cell, tuning: Tuning) -> list[list[Cell]]:
    """Return a row for each learning rate that was tried."""
    return [
        [
            name,
            f"{trial.learning_rate:g}",
            str(len(trial.macro_f1)),
            format_score(fmean(trial.macro_f1)),
            format_score(stdev(trial.macro_f1)) if len(trial.macro_f1) > 1 else "",
            Text("yes", "예") if trial.learning_rate == tuning.learning_rate else "",
        ]
        for trial in tuning.trials
    ]


def make_tables(comparison: Comparison) -> dict[str, Table]:
    """Make all tables, by name."""
    results = {NAMES[method]: comparison.method(method) for method in METHODS}
    scores = {name: comparison.scores(name) for name in NAMES}
    temperatures = {method: [run.temperature for run in comparison.method(method).runs] for method in METHODS}
    pairs = zip(comparison.full.runs, comparison.lora.runs, comparison.difference.by_fold, strict=True)
    return {
        "scores": _table(
            "Scores on the test rows: means over the folds, with the 95% confidence interval of macro-F1"
            "| 평가 데이터 점수: 폴드 평균과 매크로 F1의 95% 신뢰구간",
            "method | 방법; macro-F1 | 매크로 F1; accuracy | 정확도; precision | 정밀도; recall | 재현율",
            [
                [
                    NAMES[name],
                    format_interval(each.macro_f1),
                    *map(format_value, (each.accuracy, each.macro_precision, each.macro_recall)),
                ]
                for name, each in scores.items()
            ],
        ),
        "costs": _table(
            "Costs | 비용",
            "method | 방법; trainable parameters | 학습되는 파라미터; all parameters | 전체 파라미터;"
            "size on disk | 저장 크기",
            [
                [
                    name,
                    f"{each.trainable_parameters:,}",
                    f"{each.total_parameters:,}",
                    f"{each.checkpoint_bytes / 1e6:,.2f} MB",
                ]
                for name, each in results.items()
            ],
        ),
        "folds": _table(
            "Macro-F1 on the test rows of each fold | 폴드별 평가 데이터의 매크로 F1",
            "fold | 폴드; Full fine-tuning | 전체 미세조정; LoRA | LoRA; LoRA - full | LoRA − 전체",
            [
                [str(full.fold), format_score(full.macro_f1), format_score(lora.macro_f1), f"{difference:+.3f}"]
                for full, lora, difference in pairs
            ],
        ),
        "tuning": _table(
            "Macro-F1 on the validation rows, by learning rate | 학습률별 검증 데이터의 매크로 F1",
            "method | 방법; learning rate | 학습률; folds | 폴드 수; mean | 평균;"
            "standard deviation | 표준편차; selected | 선택",
            [row for name, each in results.items() for row in _trials(name, each.tuning)],
        ),
        "runs": _table(
            "Best epochs at the selected learning rate (the loss gap is validation loss minus training loss)"
            " | 선택된 학습률로 학습한 각 폴드의 최적 에폭(손실 격차는 검증 손실 − 학습 손실)",
            "method | 방법; fold | 폴드; best epoch by macro-F1 | 매크로 F1 최적 에폭; "
            "loss gap there | 그때의 손실 격차; best epoch by loss | 손실 최적 에폭; "
            "loss gap at that epoch | 그 에폭의 손실 격차",
            [
                [
                    name,
                    str(run.fold),
                    str(run.epochs.best_epoch_by_f1),
                    f"{run.epochs.gap_at_best_epoch_by_f1:.2f}",
                    str(run.epochs.best_epoch_by_loss),
                    f"{run.epochs.gap_at_best_epoch_by_loss:.2f}",
                ]
                for name, each in results.items()
                for run in each.runs
            ],
        ),
        "calibration": _table(
            "Calibration before and after temperature scaling; in brackets, the ECE of exact probabilities by chance"
            "| 온도 보정 전후의 확률 보정(괄호 안은 확률이 정확해도 우연히 나오는 ECE)",
            "method | 방법; temperatures | 온도; loss | 손실; loss, scaled | 손실(보정 후); "
            "Brier score | 브라이어 점수; Brier score, scaled | 브라이어 점수(보정 후); "
            "ECE | ECE; ECE, scaled | ECE(보정 후)",
            [
                [
                    NAMES[name],
                    ", ".join(f"{temperature:.2f}" for temperature in temperatures.get(name, ())),
                    *map(format_value, (each.loss, each.scaled_loss, each.brier, each.scaled_brier)),
                    *(format_ece(comparison, name, scaled) for scaled in (False, True)),
                ]
                for name, each in scores.items()
            ],
        ),
        "classes": _table(
            "Scores of each class, with the 95% confidence interval of F1 | 클래스별 점수와 F1의 95% 신뢰구간",
            "method | 방법; class | 클래스; precision | 정밀도; recall | 재현율; F1 | F1",
            [
                [NAMES[name], label, format_value(of.precision), format_value(of.recall), format_interval(of.f1)]
                for name, each in scores.items()
                for label, of in each.classes.items()
            ],
        ),
        "class_differences": _table(
            "F1 of LoRA minus full fine-tuning by class, with 95% intervals that nothing corrects for their number"
            "| 클래스별 F1 차이(LoRA − 전체 미세조정)와 다중 비교를 보정하지 않은 95% 구간",
            "class | 클래스; LoRA - full | LoRA − 전체",
            [[label, format_part(each)] for label, each in comparison.class_differences.items()],
        ),
    }
