"""Encoders other than KoBERT, with a `tokenizer.json`, work in the whole pipeline, in predict and in export."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from stages.clean_and_tokenize import POSITIONS_AFTER_PADDING
from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.files import write_json
from stages.common.modeling.classifier import build_classifier
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.common.runtime.exceptions import UserError
from tests.support.corpus import LABELS, record, records, write_corpus
from tests.support.project import run_tool

LONG = "화면 " * 100
RUN = ("--fold", 0, "--learning-rate", 0.01)
TEXTS = [row["RawText"] for row in records()]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def wordpiece(tokens: list[str], pad: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=tokens))
    pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pair)
    tokenizer.enable_padding(pad_token=pad, pad_id=tokenizer.token_to_id(pad))  # Many files set this.
    tokenizer.enable_truncation(8)
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=200, special_tokens=tokens, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def bert(folder: Path) -> list[str]:
    # Special tokens at the end of the vocabulary, unlike any model that one might have in mind.
    tokenizer = wordpiece(["가", "나", "다", "[MASK]", "[SEP]", "[PAD]", "[UNK]", "[CLS]"], "[PAD]")
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, pad_token_id=5, **SIZES
        )
    ).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["query", "value"]


def roberta(folder: Path) -> list[str]:
    tokenizer = byte_level()
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["query", "value"]


def xlm_roberta(folder: Path) -> list[str]:
    tokenizer = unigram()
    config = transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["query", "key"]


def electra(folder: Path) -> list[str]:
    tokenizer = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[PAD]")
    config = transformers.ElectraConfig(
        vocab_size=tokenizer.get_vocab_size(), embedding_size=8, max_position_embeddings=40, pad_token_id=0, **SIZES
    )
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["query", "value", "embeddings_project"]


def distilbert(folder: Path) -> list[str]:
    tokenizer = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[PAD]")
    config = transformers.DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=40,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        pad_token_id=0,
    )
    transformers.DistilBertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["q_lin", "v_lin"]


@pytest.mark.parametrize("build", [bert, roberta, xlm_roberta, electra, distilbert], ids=lambda build: build.__name__)
def test_the_whole_pipeline_runs_on(stage, tmp_path, capsys, build: Callable[[Path], list[str]]):
    torch.manual_seed(0)
    folder = tmp_path / "base"
    folder.mkdir()
    targets = build(folder)
    capsys.readouterr()
    stage("base_model", base_model__folder=str(folder))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [*records(), record(900, LONG)])))
    stage("filter")
    with pytest.raises(SystemExit, match="max_length is 41; the base model accepts 40 tokens at most"):
        stage("clean_and_tokenize", tokenize__max_length=41)
    stage("clean_and_tokenize", tokenize__max_length=40)
    stage("split")
    stage("train_full", *RUN, train__epochs=1, full__learning_rates=[0.01], lora__learning_rates=[0.01])
    stage("train_lora", *RUN, lora__target_modules=targets)
    for name in ("prune_runs", "select"):
        stage(name, run__folds=[0])
    assert "padded" not in capsys.readouterr().err, "packing is exact for each of them"
    stock = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    stock.backend_tokenizer.no_padding()
    table = read_table(Path("data/tokenized.arrow"))
    assert (
        table["input_ids"].to_pylist() == stock(table["text"].to_pylist(), truncation=True, max_length=40)["input_ids"]
    )
    assert json.loads(Path("metrics/tokens.json").read_text(encoding="utf-8"))["length"]["max"] == 40
    for method in ("full", "lora"):
        run_tool("predict", "--model", f"data/models/{method}", *TEXTS[:5], LONG)
        lines = capsys.readouterr().out.splitlines()
        run_tool("export", "--model", f"data/models/{method}", "--output", f"out/{method}")
        model = AutoModelForSequenceClassification.from_pretrained(f"out/{method}").eval()
        tokenizer = AutoTokenizer.from_pretrained(f"out/{method}")
        inputs = tokenizer([*TEXTS[:5], LONG], padding=True, truncation=True, return_tensors="pt")
        for line, row in zip(lines, model(**inputs).logits.softmax(1).tolist(), strict=True):
            assert [float(word) for word in line.split()[2:7:2]] == pytest.approx(row, abs=0.0051)


def test_unknown_words_are_counted(tmp_path):
    """Each type of tokenizer.json names its unknown token differently, and a byte-level one has none."""
    for build, unknown in ((bert, "[UNK]"), (roberta, None), (xlm_roberta, "<unk>"), (electra, "[UNK]")):
        folder = tmp_path / build.__name__
        folder.mkdir()
        build(folder)
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode(["쀍"], 40).input_ids.values.to_numpy()
        assert (tokenizer.unk_id in ids) == (unknown is not None)
        assert tokenizer.unk_id == (
            Tokenizer.from_file(f"{folder}/tokenizer.json").token_to_id(unknown) if unknown else -1
        )


def test_a_config_without_padding_id_is_one_line(tmp_path):
    bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "config.json", config | {"pad_token_id": None})
    with pytest.raises(UserError, match=r"config\.json: the key pad_token_id is missing"):
        build_classifier(tmp_path, LABELS, 0.1, 42)


def test_positions_are_counted_as_the_installed_transformers_does():
    """POSITIONS_AFTER_PADDING names all text encoders of transformers that derive positions from the padding id."""
    models = Path(transformers.__file__).parent / "models"
    found = set()
    for path in models.glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        if "def create_position_ids_from_input_ids" in text and "ForTokenClassification(" in text:
            config = path.with_name(path.name.replace("modeling_", "configuration_")).read_text(encoding="utf-8")
            found |= set(re.findall(r'^    model_type = "(.*)"$', config, re.MULTILINE))
    assert found - POSITIONS_AFTER_PADDING == {"esm", "layoutlmv3", "lilt", "markuplm"}  # Not for plain texts.
    assert found >= POSITIONS_AFTER_PADDING
