"""A small corpus in AI Hub's layout, and the shipped parameters."""

import json
from pathlib import Path
from typing import Any

import yaml

from stages.common.runtime.params import Params
from tests.support import parameter_table

LABELS = ("부정", "중립", "긍정")
SHIPPED_TEXT = parameter_table.shipped()
SHIPPED = Params.model_validate(yaml.safe_load(SHIPPED_TEXT))
WORDS = {
    "-1": ["실망", "최악이에요", "별로", "환불하고 싶다", "돈 아까워요", "고장났어요"],
    "0": ["그냥 그래요", "보통이에요", "쓸만은 한데", "아직 모르겠다", "무난해요", "그럭저럭"],
    "1": ["최고", "만족해요", "강추", "정말 좋아요", "또 살게요", "완전 추천"],
}
THINGS = ["배터리", "화면", "음질", "카메라", "키보드", "충전", "무게", "가격", "디자인", "배송"]


def record(index: int, text: str, polarity: Any = "1", **others: Any) -> dict[str, Any]:
    """Make an AI Hub record."""
    return {"Index": str(index), "RawText": text, "MainCategory": "이어폰", "GeneralPolarity": polarity, **others}


def records() -> list[dict[str, Any]]:
    """Make 180 different reviews, 60 of each polarity, with a word that reveals the polarity."""
    return [
        record(3 * (10 * w + t) + p, f"{thing} {word}! ㅋㅋ", polarity)
        for p, (polarity, words) in enumerate(WORDS.items())
        for w, word in enumerate(words)
        for t, thing in enumerate(THINGS)
    ]


def write_corpus(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as AI Hub files of 50 records each, in a folder whose name has Korean letters and spaces."""
    target = folder / "SNS" / "04. IT기기"
    target.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 50), start=1):
        text = json.dumps(rows[start : start + 50], ensure_ascii=False, indent=2)
        (target / f"4-1.IT기기({number}).json").write_text(text, encoding="utf-8")
    return folder
