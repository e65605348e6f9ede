"""Exported folders give the same results as the checkpoint, without code of this project."""

import importlib.util
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from stages.common.cleaning import clean
from stages.common.modeling.classifier import load_checkpoint
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.common.runtime.exceptions import UserError
from stages.common.serving.fast_tokenizer import add_cleaning
from stages.common.serving.sequence_classifier import to_sequence_classifier
from tests.support.corpus import LABELS, SHIPPED, records
from tests.support.project import ROOT, encode

RAW_TEXTS = [f"<b>{row['RawText']}</b>\n😊 …#" for row in records()]
LONG_TEXT = "최고 " * 100  # This has more than the 64 tokens of `trained_project`.
METHODS = ["full", "lora"]


def checkpoint_logits(method: str, texts: list[str] = RAW_TEXTS) -> np.ndarray:
    """Compute the logits (texts, 3) of a checkpoint with our own cleaning and tokenizer, without merging or padding."""
    model = load_checkpoint(Path(f"data/models/{method}"), LABELS, Path("data/base_model")).eval()
    cleaned = clean(pa.array(texts), SHIPPED.clean).to_pylist()
    with torch.inference_mode():
        rows = encode(Path("data/base_model"), cleaned)
        return np.stack([model(input_ids=torch.tensor([row])).logits[0, 0].numpy() for row in rows])


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_the_pipeline_of_transformers_gives_our_labels_and_probabilities(tool, tmp_path, method):
    tool("export", "--model", f"data/models/{method}", "--output", tmp_path / "out")
    classify = transformers.pipeline("text-classification", model=tmp_path / "out", truncation=True)
    texts = [*RAW_TEXTS, LONG_TEXT]
    expected = softmax(checkpoint_logits(method, texts))
    for rows, probabilities in zip(classify(texts, top_k=None, batch_size=16), expected, strict=True):
        assert rows[0]["label"] == LABELS[int(probabilities.argmax())]
        by_label = {row["label"]: row["score"] for row in rows}
        assert [by_label[label] for label in LABELS] == pytest.approx(probabilities, abs=1e-5)


def test_an_exported_folder_needs_nothing_else(tool, tmp_path):
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_tokenizer_file_itself_truncates(tool, tmp_path):
    from tokenizers import Tokenizer

    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out")
    assert len(Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode(LONG_TEXT).ids) == 64


@pytest.mark.parametrize("method", METHODS)
def test_the_token_classifier_gives_our_logits_at_token_0(tool, tmp_path, method):
    tool("export", "--model", f"data/models/{method}", "--output", tmp_path / "out", "--head", "token")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(RAW_TEXTS, padding=True, truncation=True, return_tensors="pt")).logits[:, 0]
    assert np.abs(logits.numpy() - checkpoint_logits(method)).max() < 1e-5
    assert model.config.id2label == dict(enumerate(LABELS))


def test_an_exported_adapter_is_put_on_its_base_model_by_peft(tool, trained_project, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", "--adapter")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    assert Path(config["base_model_name_or_path"]).samefile(
        json.loads(Path("data/base_model/base_model.json").read_text(encoding="utf-8"))["name"]
    )
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        logits = model(**tokenizer(RAW_TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    assert np.abs(logits.numpy() - checkpoint_logits("lora")).max() < 1e-5


def small_token_classifier(model_type: str, **changed: int) -> transformers.PreTrainedModel:
    """Make a token classifier with random weights and biases."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32} | changed
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=100, num_labels=3, pad_token_id=1, max_position_embeddings=40, **sizes
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("model_type", "changed"),
    [("bert", {}), ("roberta", {}), ("electra", {"embedding_size": 16}), ("albert", {"embedding_size": 16})],
)
@torch.inference_mode()
def test_a_sequence_classifier_has_the_logits_of_token_0(model_type, changed):
    token_classifier = small_token_classifier(model_type, **changed)
    sequence_classifier = to_sequence_classifier(token_classifier)
    input_ids = torch.randint(2, 100, (5, 20), generator=torch.Generator().manual_seed(1))
    expected = token_classifier(input_ids=input_ids).logits[:, 0]
    assert (sequence_classifier(input_ids=input_ids).logits - expected).abs().max() < 1e-5


def test_an_encoder_with_another_head_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"modernbert .* --head token and without --adapter"):
        to_sequence_classifier(small_token_classifier("modernbert", cls_token_id=2, sep_token_id=3))


def onnx_logits(folder: Path, texts: list[str]) -> np.ndarray:
    import onnxruntime

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    assert set(inputs) == {entry.name for entry in session.get_inputs()} == {"input_ids", "attention_mask"}
    return session.run(["logits"], dict(inputs))[0]


@pytest.mark.parametrize("method", METHODS)
def test_onnx_gives_our_logits_for_batches_of_every_shape(tool, tmp_path, method):
    tool("export", "--model", f"data/models/{method}", "--output", tmp_path / "out", "--format", "onnx")
    expected = checkpoint_logits(method)
    for texts in (slice(0, 180), slice(7, 8), slice(20, 25)):
        assert np.abs(onnx_logits(tmp_path / "out", RAW_TEXTS[texts]) - expected[texts]).max() < 1e-4


def test_int8_makes_the_file_smaller_and_changes_few_labels(tool, tmp_path):
    sizes, labels = [], []
    for name, options in (("fp32", []), ("int8", ["--int8"])):
        tool("export", "--model", "data/models/full", "--output", tmp_path / name, "--format", "onnx", *options)
        sizes.append((tmp_path / name / "model.onnx").stat().st_size)
        labels.append(onnx_logits(tmp_path / name, RAW_TEXTS).argmax(1))
    assert sizes[1] < sizes[0]
    assert (labels[0] == labels[1]).mean() > 0.95


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="Optimum is not installed")
def test_optimum_loads_the_onnx_folder(tool, tmp_path):
    from optimum.onnxruntime import ORTModelForSequenceClassification

    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", "--format", "onnx")
    model = ORTModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    logits = model(**tokenizer(RAW_TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    assert np.abs(logits.numpy() - checkpoint_logits("lora")).max() < 1e-4


KINDS = {
    "sequence": [],
    "token": ["--head", "token"],
    "adapter": ["--adapter"],
    "onnx": ["--format", "onnx"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_in_the_card_runs_in_the_folder(tool, tmp_path, monkeypatch, capsys, kind):
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", *KINDS[kind])
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "stages" not in code
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert re.fullmatch(r"((부정|중립|긍정) \[.*\]\n){2}", capsys.readouterr().out)


def test_a_missing_onnx_package_is_reported_before_any_work(tool, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(SystemExit, match="--format onnx needs onnxscript"):
        tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", "--format", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_output_may_not_replace_anything(tool, tmp_path):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(SystemExit, match="exists and is not an empty folder"):
            tool("export", "--model", "data/models/lora", "--output", output)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


def test_the_output_may_be_an_empty_folder(tool, tmp_path):
    (tmp_path / "empty").mkdir()
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "empty")
    assert (tmp_path / "empty/config.json").is_file()


def test_a_model_without_adapter_cannot_be_exported_as_one(tool, tmp_path):
    with pytest.raises(SystemExit, match="has no adapter; omit --adapter"):
        tool("export", "--model", "data/models/full", "--output", tmp_path / "out", "--adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--format", "onnx", "--adapter"], ["--adapter", "--head", "token"], ["--int8"]], ids=" ".join
)
def test_arguments_that_do_not_go_together_are_refused(tool, tmp_path, arguments):
    with pytest.raises(SystemExit, match="2"):
        tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", *arguments)


def test_the_exported_tokenizer_cleans_and_tokenizes_as_kobert_does():
    """This uses the sample and the real vocabulary. Reviews differ if a long run of dots can be split in two ways."""
    folder = ROOT / "data/kobert-mini"
    tokenizer, params = load_tokenizer(folder), SHIPPED.clean
    files = sorted((ROOT / "data/sample").rglob("*.json"))[:10]
    texts = [row["RawText"] for path in files for row in json.loads(path.read_text(encoding="utf-8"))]
    texts += ["<b>café</b> ㅋㅋ``좋다''", "ＡＢ１２ 한글\u3000\x1c끝", "뷁뷁 쀍", "<<a>b> c\n\n<\n>"]
    ours = encode(folder, clean(pa.array(texts), params).to_pylist(), 256)
    exported = [encoding.ids for encoding in add_cleaning(tokenizer.to_fast(), params).encode_batch(texts)]
    assert sum(a != b for a, b in zip(ours, exported, strict=True)) <= len(texts) // 500
    raw = encode(folder, texts, 256)
    exported = [encoding.ids for encoding in tokenizer.to_fast().encode_batch(texts)]
    assert sum(a != b for a, b in zip(raw, exported, strict=True)) <= len(texts) // 500


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_both_exports_are_trained_further_by_transformers_without_a_jump(model_type, tmp_path, capsys):
    """They train for twenty steps at 5e-5. The head needs more units for this than the smallest encoders have."""
    token_classifier = small_token_classifier(model_type, hidden_size=128)
    ids = torch.randint(2, 100, (320, 12), generator=torch.Generator().manual_seed(1))
    labels = (ids[:, 1:] > 60).sum(1).clamp(3, 5) - 3
    optimizer = torch.optim.AdamW(token_classifier.parameters(), 1e-3)
    for rows in torch.arange(320).split(32) * 5:
        loss = torch.nn.functional.cross_entropy(token_classifier(input_ids=ids[rows]).logits[:, 0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sequence_classifier = to_sequence_classifier(token_classifier)
    assert capsys.readouterr().err == ""
    token_labels = torch.full_like(ids, -100)
    token_labels[:, 0] = labels
    losses = []
    for model, targets in ((token_classifier, token_labels), (sequence_classifier, labels)):
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=20,
            per_device_train_batch_size=16,
            learning_rate=5e-5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": row, "labels": target} for row, target in zip(ids, targets, strict=True)]
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses.append([float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])
    for of_token, of_sequence in zip(*losses, strict=True):
        assert of_sequence < of_token + 0.5
    assert np.mean(losses[1][-5:]) < np.mean(losses[0][-5:]) + 0.1


def test_a_head_that_cannot_be_trained_further_is_warned_of(capsys):
    to_sequence_classifier(small_token_classifier("bert"))
    assert "cannot be trained further; to train further, export with --head token" in capsys.readouterr().err


def test_special_tokens_in_a_text_get_the_ids_that_they_have_in_training(tool, tmp_path):
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out")
    texts = ["[CLS] 최고 [SEP]", "최고[PAD]별로[MASK]", "\x01최\x7f고\u200b별로\ufeff\x00"]
    cleaned = clean(pa.array(texts), SHIPPED.clean).to_pylist()
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported(texts, truncation=True)["input_ids"] == encode(Path("data/base_model"), cleaned)


def test_the_exported_tokenizer_has_only_normalizers_that_transformers_js_knows(tool, tmp_path):
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out")
    text = (tmp_path / "out/tokenizer.json").read_text(encoding="utf-8")
    steps = json.loads(text)["normalizer"]["normalizers"]
    used = {inner["type"] for step in steps for inner in step.get("normalizers", [step])}
    assert used <= {"Replace", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents", "Lowercase", "Sequence"}


def test_a_folder_whose_name_is_not_utf8_is_refused_at_once(tool, tmp_path):
    with pytest.raises(SystemExit, match="need a path in UTF-8"):
        tool("export", "--model", "data/models/lora", "--output", os.fsdecode(os.fsencode(tmp_path) + b"/\xb0\xa1"))


def test_the_exported_tokenizer_composes_hangul_as_cleaning_does(tool, tmp_path):
    """Texts from macOS have decomposed Hangul."""
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    text = "배터리 최고예요"
    assert tokenizer(unicodedata.normalize("NFD", text)).input_ids == tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_a_link_to_an_empty_folder_is_followed(tool, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target/config.json").is_file()
