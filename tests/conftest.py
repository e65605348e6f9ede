"""A tiny BERT in KoBERT's layout and a few dozen reviews, made in a temporary folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    "-1": ["실망", "최악이에요", "별로", "환불하고 싶다", "돈 아까워요", "고장났어요"],
    "0": ["그냥 그래요", "보통이에요", "쓸만은 한데", "아직 모르겠다", "무난해요", "그럭저럭"],
    "1": ["최고", "만족해요", "강추", "정말 좋아요", "또 살게요", "완전 추천"],
}
THINGS = ["배터리", "화면", "음질", "카메라", "키보드", "충전", "무게", "가격", "디자인", "배송"]


def record(index: int, text: str, polarity: Any = "1", **others: Any) -> dict[str, Any]:
    """An AI Hub record."""
    return {"Index": str(index), "RawText": text, "MainCategory": "이어폰", "GeneralPolarity": polarity, **others}


def records() -> list[dict[str, Any]]:
    """180 distinct reviews, 60 of each polarity, with a word that gives the polarity away."""
    return [
        record(3 * (10 * w + t) + p, f"{thing} {word}! ㅋㅋ", polarity)
        for p, (polarity, words) in enumerate(WORDS.items())
        for w, word in enumerate(words)
        for t, thing in enumerate(THINGS)
    ]


def write_corpus(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as AI Hub files of 50 records below a folder with a Korean name and spaces."""
    target = folder / "SNS" / "04. IT기기"
    target.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 50), start=1):
        text = json.dumps(rows[start : start + 50], ensure_ascii=False, indent=2)
        (target / f"4-1.IT기기({number}).json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer BERT of width 8 with random weights and a SentencePiece vocabulary, in KoBERT's layout."""
    import sentencepiece
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([row["RawText"] for row in records()]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=120,
        hard_vocab_limit=False,
        unk_piece="<unk>",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    # As in KoBERT, the order of vocab.txt is not that of SentencePiece's ids.
    pieces = sorted(model.id_to_piece(index) for index in range(1, model.vocab_size()))
    vocab = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    (folder / "vocab.txt").write_text("\r\n".join(vocab) + "\r\n", encoding="utf-8", newline="")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def encode(folder: Path, texts: list[str], max_length: int = 64) -> list[list[int]]:
    """Ids of each text by the tokenizer in `folder`."""
    from stages.common.tokenizer import load_tokenizer

    return [row.tolist() for row in load_tokenizer(folder).encode(texts, max_length).rows()]


def copy_project(target: Path) -> Path:
    """A git repository with the files of this checkout: what a clone has, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment that runs the tests, offline unless `variables` say otherwise."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def stage_runner() -> Callable[..., None]:
    """A function that runs a stage's `main` in the current folder with our params.yaml, some keys changed."""
    import yaml

    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def run_stage(name: str, *arguments: object, **changed: Any) -> None:
        for key, value in changed.items():
            section, _, leaf = key.partition("__")
            params[section][leaf] = value
        Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
        run_tool(name, *arguments)

    return run_stage


def run_tool(name: str, *arguments: object) -> None:
    """Run the `main` of a script that takes arguments."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(f"stages.{name}").main()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a stage's `main` in an empty folder; changed parameters stay changed."""
    monkeypatch.chdir(tmp_path)
    return stage_runner()


def prepare(folder: Path, base_model: Path, **changed: Any) -> Callable[..., None]:
    """Take `records` as far as the splits in `folder`, the current one; returns a runner of the stages that follow."""
    stage = stage_runner()
    stage("base_model", base_model__name=str(base_model))
    stage("ingest", data__source=str(write_corpus(folder / "raw", records())))
    for name in ("filter", "clean_and_tokenize", "split"):
        stage(name, tokenize__max_length=64, **changed)
    return stage


@pytest.fixture(scope="session")
def trained_project(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny model was trained both ways; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage = prepare(folder, tiny_base_model)
        stage("train_full", 42, train__epochs=1, full__learning_rate=0.01)
        stage("train_lora", 42, lora__learning_rate=0.05)
        stage("evaluate")
    return folder


@pytest.fixture
def tool(trained_project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run_tool` in the folder of `trained_project`."""
    monkeypatch.chdir(trained_project)
    return run_tool
