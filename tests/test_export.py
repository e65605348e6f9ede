"""Exported folders give, without code of ours, what the checkpoint gives."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.common.core.params import load_params
from stages.common.corpus.cleaning import clean
from stages.common.modeling.classifier import load_checkpoint
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.export import with_cleaning
from tests.support.corpus import records
from tests.support.project import ROOT, encode

RAW = [f"<b>{row['RawText']}</b>\n😊 …#" for row in records()]
METHODS = ["full", "lora"]
MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; see requirements.txt")


def checkpoint_logits(method: str) -> np.ndarray:
    """Logits (reviews, 3) of a checkpoint, adapters not merged, with our own cleaning and tokenizer; no padding."""
    model = load_checkpoint(Path(f"data/models/{method}"), Path("data/base_model")).eval()
    texts = clean(pa.array(RAW), load_params(ROOT / "params.yaml").clean).to_pylist()
    rows = encode(Path("data/base_model"), texts)
    with torch.inference_mode():
        return np.stack([model(input_ids=torch.tensor([row])).logits[0, 0].numpy() for row in rows])


@pytest.mark.parametrize("method", METHODS)
def test_stock_transformers_gives_the_same(tool, tmp_path, method):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tool("export", "--model", f"data/models/{method}", "--output", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(RAW, padding=True, truncation=True, return_tensors="pt")).logits[:, 0]
    assert np.abs(logits.numpy() - checkpoint_logits(method)).max() < 1e-5
    assert model.config.id2label == {0: "부정", 1: "중립", 2: "긍정"}
    assert len(tokenizer(["최고 " * 100], truncation=True)["input_ids"][0]) == 64
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@needs_onnx
@pytest.mark.parametrize("method", METHODS)
def test_onnxruntime_gives_the_same(tool, tmp_path, method):
    import onnxruntime
    from transformers import AutoTokenizer

    tool("export", "--model", f"data/models/{method}", "--output", tmp_path / "out", "--format", "onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    truth = checkpoint_logits(method)
    for texts in (slice(0, 180), slice(7, 8), slice(20, 25)):
        inputs = tokenizer(RAW[texts], padding=True, truncation=True, return_tensors="np")
        assert set(inputs) == {entry.name for entry in session.get_inputs()} == {"input_ids", "attention_mask"}
        (logits,) = session.run(["logits"], dict(inputs))
        assert logits.shape == (len(RAW[texts]), 3)
        assert np.abs(logits - truth[texts]).max() < 1e-4


@pytest.mark.parametrize("form", ["safetensors", pytest.param("onnx", marks=needs_onnx)])
def test_the_readme_of_the_folder_holds_code_that_runs_there(tool, tmp_path, form):
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", "--format", form)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(encoding="utf-8"), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"((부정|중립|긍정) \[.*\]\n){2}", result.stdout)


def test_a_missing_package_is_one_line(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match=r"--format onnx needs a package more: .*onnx"):
        tool("export", "--model", "data/models/lora", "--output", tmp_path / "out", "--format", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tool, tmp_path):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(SystemExit, match="is there already"):
            tool("export", "--model", "data/models/lora", "--output", output)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"
    (tmp_path / "empty").mkdir()
    tool("export", "--model", "data/models/lora", "--output", tmp_path / "empty")
    assert (tmp_path / "empty/config.json").is_file()


def test_the_exported_tokenizer_cleans_and_cuts_as_kobert_does():
    """On the sample, with the real vocabulary; real reviews differ where a long run of dots may be cut two ways."""
    folder = ROOT / "data/kobert-mini"
    tokenizer, params = load_tokenizer(folder), load_params(ROOT / "params.yaml").clean
    files = sorted((ROOT / "data/sample").rglob("*.json"))[:10]
    texts = [row["RawText"] for path in files for row in json.loads(path.read_text(encoding="utf-8"))]
    texts += ["<b>café</b> ㅋㅋ``좋다''", "ＡＢ１２ 한글\u3000\x1c끝", "뷁뷁 쀍", "<<a>b> c\n\n<\n>"]
    ours = encode(folder, clean(pa.array(texts), params).to_pylist(), 256)
    theirs = [encoding.ids for encoding in with_cleaning(tokenizer.to_fast(), params).encode_batch(texts)]
    assert len(texts) > 900
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= len(texts) // 500
    raw = encode(folder, texts, 256)
    theirs = [encoding.ids for encoding in tokenizer.to_fast().encode_batch(texts)]
    assert sum(a != b for a, b in zip(raw, theirs, strict=True)) <= len(texts) // 500
