"""Fixtures: a tiny BERT in KoBERT's layout, a folder in which both methods were trained on it, and a clone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.support.corpus import records, write_corpus
from tests.support.dvc import DVC, commit, copy_clone
from tests.support.project import copy_project, prepare, run, run_tool, stage_runner

# The workers of pytest share the cores, so each has one thread. This must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
BuildOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> BuildOnce:
    """Return a folder that the first of pytest's workers to ask for it builds, for all of them; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def build_or_wait(name: str, build: Callable[[Path], None]) -> Path:
        folder, built = shared / name, shared / f"{name}.built"
        with FileLock(shared / f"{name}.lock"):
            if not built.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                built.touch()
        return folder

    return build_or_wait


def build_tiny_base_model(folder: Path) -> None:
    import sentencepiece
    import torch
    from transformers import BertConfig, BertModel

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
    # As in KoBERT, vocab.txt has another order than the ids of SentencePiece.
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


@pytest.fixture(scope="session")
def tiny_base_model(build_once: BuildOnce) -> Path:
    """Write a BERT with 2 layers of width 8, random weights and a SentencePiece vocabulary, in KoBERT's layout."""
    return build_once("tiny", build_tiny_base_model)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a stage in an empty folder. Changed parameters stay changed."""
    monkeypatch.chdir(tmp_path)
    return stage_runner()


@pytest.fixture(scope="session")
def trained_project(tiny_base_model: Path, build_once: BuildOnce) -> Path:
    """Train the tiny model with both methods in a folder, which tests must not change."""

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            stage = prepare(folder, tiny_base_model)
            rates = {"full__learning_rates": [0.01], "lora__learning_rates": [0.05]}
            stage("train_full", "--fold", 0, "--learning-rate", 0.01, train__epochs=1, **rates)
            stage("train_lora", "--fold", 0, "--learning-rate", 0.05)
            stage("prune_runs", run__folds=[0])
            stage("select")

    return build_once("trained", build)


@pytest.fixture
def tool(trained_project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `run_tool`, which runs in the folder of `trained_project`."""
    monkeypatch.chdir(trained_project)
    return run_tool


@pytest.fixture(scope="session")
def clone(tiny_base_model: Path, build_once: BuildOnce) -> Path:
    """Make a clone with a tiny corpus and a tiny base model, and commit its results. Tests must not change it."""

    def build(root: Path) -> None:
        copy_project(root)
        for unused in ("dvc.lock", "data/sample", "data/kobert-mini"):
            shutil.rmtree(root / unused) if (root / unused).is_dir() else (root / unused).unlink()
        write_corpus(root / "data/tiny", records())
        shutil.copytree(tiny_base_model, root / "data/tiny-model")
        params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        params["data"]["source"], params["base_model"]["folder"] = "data/tiny", "data/tiny-model"
        params["tokenize"]["max_length"], params["train"]["epochs"] = 32, 1
        params["full"]["learning_rates"], params["lora"]["learning_rates"] = [0.001], [0.01]
        params["run"]["folds"] = [0]
        params["lora"]["target_modules"] = ["query", "value"]
        text = yaml.safe_dump(params, allow_unicode=True, sort_keys=False)
        (root / "params.yaml").write_text(text, encoding="utf-8")
        for command in (
            ["git", "init", "-q"],
            ["git", "config", "user.email", "test@example.org"],
            ["git", "config", "user.name", "test"],
        ):
            assert run(*command, cwd=root).returncode == 0
        commit(root, "tiny")
        result = run(*DVC, "repro", cwd=root)
        assert result.returncode == 0, result.stderr
        commit(root, "results")

    return build_once("a clone", build)


@pytest.fixture
def repro(clone: Path, tmp_path: Path) -> Path:
    """A copy of the clone, which is up to date."""
    return copy_clone(clone, tmp_path)
