"""Fixtures: a tiny BERT in KoBERT's layout, and a folder in which both methods were trained on it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.corpus import records, write_corpus
from tests.support.dvc import DVC
from tests.support.project import copy_project, prepare, run, run_tool, stage_runner

# One thread for each of pytest's workers, which share the cores; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a stage's `main` in an empty folder; changed parameters stay changed."""
    monkeypatch.chdir(tmp_path)
    return stage_runner()


@pytest.fixture(scope="session")
def trained_project(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the tiny model was trained both ways; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage = prepare(folder, tiny_base_model)
        rates = {"full__learning_rates": [0.01], "lora__learning_rates": [0.05]}
        stage("train_full", "--fold", 0, "--learning-rate", 0.01, train__epochs=1, **rates)
        stage("train_lora", "--fold", 0, "--learning-rate", 0.05)
        stage("prune_runs", run__folds=[0])
        stage("select")
    return folder


@pytest.fixture
def tool(trained_project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run_tool` in the folder of `trained_project`."""
    monkeypatch.chdir(trained_project)
    return run_tool


@pytest.fixture(scope="session")
def clone(tmp_path_factory, tiny_base_model) -> Path:
    """A clone with tiny data and a tiny base model of its own, committed."""
    root = copy_project(tmp_path_factory.mktemp("a clone"))
    (root / "dvc.lock").unlink()  # of the sample
    write_corpus(root / "data/tiny", records())
    shutil.copytree(tiny_base_model, root / "data/tiny-model")
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["data"]["source"], params["base_model"]["folder"] = "data/tiny", "data/tiny-model"
    params["tokenize"]["max_length"], params["train"]["epochs"] = 32, 1
    params["full"]["learning_rates"], params["lora"]["learning_rates"] = [0.001], [0.01]
    params["run"]["folds"] = [0]
    params["lora"]["target_modules"] = ["query", "value"]
    (root / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True, sort_keys=False), encoding="utf-8")
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "test@example.org"],
        ["git", "config", "user.name", "test"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "tiny"],
    ):
        assert run(*command, cwd=root).returncode == 0
    result = run(*DVC, "repro", cwd=root)
    assert result.returncode == 0, result.stderr
    for command in (["git", "add", "-A"], ["git", "commit", "-qm", "results"]):
        assert run(*command, cwd=root).returncode == 0
    return root


@pytest.fixture
def repro(clone) -> Path:
    """The clone with the parameters that it was committed with, up to date."""
    assert run("git", "checkout", "-q", "HEAD", "--", ".", cwd=clone).returncode == 0
    assert run(*DVC, "repro", cwd=clone).returncode == 0
    return clone
