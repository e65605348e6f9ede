"""Pre-train kobert-mini, the embedded stand-in for KoBERT, on unlabelled Korean film reviews.

    python data/kobert-mini/pretrain.py --corpus nsmc-corpus.parquet --output DIR [--minutes 60]

The corpus is a Parquet file with a column `review` (Naver sentiment movie corpus, CC0); ratings are never read.

1. A SentencePiece unigram vocabulary in KoBERT's layout: `tokenizer.model` and `vocab.txt`, [UNK] 0 ... [MASK] 4.
2. Word embeddings from a truncated SVD of the tokens' PPMI matrix: half an hour of masked tokens in a few seconds.
3. BERT, masked tokens (15%, of which 80% [MASK], 10% random, 10% kept), batches of reviews of like length.

Half of the batches are cleaned like the pipeline's default, half are raw, so that an ablation of the cleaning finds a
vocabulary and vectors for ㅋㅋ and ㅠㅠ too. The schedule ends when `--minutes` do, so the result is not the same bit
for bit on another machine; that is why the weights are committed.
"""

import argparse
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import sentencepiece
import torch
from safetensors.torch import save_file
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from stages.common.tokenizer import SPECIAL_TOKENS, SentencePieceTokenizer

SEED = 42
VOCAB_SIZE = 8002  # KoBERT's
MAX_LENGTH = 128  # tokens; the longest review has 150 characters
BATCH_SIZE = 256  # reviews
LEARNING_RATE = 1.2e-3
WARMUP = 0.02  # share of the time
MASKED = 0.15


def clean(text: str) -> str:
    """The notebook's three rules, which are the pipeline's defaults."""
    text = re.sub(r"[^0-9가-힣A-Za-z.,?!]+", " ", re.sub(r"<[^>]+>", " ", text))
    return re.sub(r"\s+", " ", text).strip()


def train_tokenizer(texts: list[str], folder: Path) -> SentencePieceTokenizer:
    """Train the vocabulary on raw reviews and write it in KoBERT's layout."""
    unk, pad, *control = SPECIAL_TOKENS
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        character_coverage=0.9995,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        unk_piece=unk,
        pad_id=1,
        pad_piece=pad,
        bos_id=-1,
        eos_id=-1,
        control_symbols=control,
        num_threads=1,  # the thread count changes the sums, and so the vocabulary
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = (model.id_to_piece(index) for index in range(model.vocab_size()))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return SentencePieceTokenizer(folder / "tokenizer.model", folder / "vocab.txt")


def ppmi_vectors(rows: list[np.ndarray], size: int, window: int = 4) -> np.ndarray:
    """Truncated SVD of the PPMI matrix of tokens at most `window` apart, (VOCAB_SIZE, size)."""
    flat = np.concatenate([np.append(row, 3) for row in rows]).astype(np.int64)  # a [SEP] between reviews
    counts = sparse.csr_matrix((VOCAB_SIZE, VOCAB_SIZE), dtype=np.float64)
    for distance in range(1, window + 1):
        pairs = sparse.coo_matrix(
            (np.full(len(flat) - distance, 1.0 / distance), (flat[:-distance], flat[distance:])), counts.shape
        )
        counts = counts + pairs.tocsr() + pairs.T.tocsr()
    total, marginal = counts.sum(), np.asarray(counts.sum(axis=1)).ravel()
    context = marginal**0.75
    context /= context.sum()
    counts = counts.tocoo()
    pmi = np.log(counts.data / total / (marginal[counts.row] / total) / context[counts.col])
    ppmi = sparse.csr_matrix((np.maximum(pmi, 0), (counts.row, counts.col)), counts.shape)
    u, s, _ = randomized_svd(ppmi, size, random_state=SEED)
    vectors = u * np.sqrt(s)
    return (vectors - vectors.mean(0)) / vectors.std() * 0.04


def batches(lengths: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch: random reviews, of like length within a batch."""
    order = generator.permutation(len(lengths))
    chunks = np.array_split(order, max(1, len(order) // (BATCH_SIZE * 50)))
    result = []
    for chunk in chunks:
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        result += np.array_split(chunk, max(1, len(chunk) // BATCH_SIZE))
    return [result[index] for index in generator.permutation(len(result))]


def mask_tokens(rows: list[np.ndarray], generator: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Padded input_ids (batch, length), attention_mask, and the flat positions and ids of the tokens to predict."""
    length = max(map(len, rows))
    input_ids = np.full((len(rows), length), 1)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
    chosen = (generator.random(input_ids.shape) < MASKED) & (input_ids > 4)
    targets = input_ids[chosen]
    draw = generator.random(len(targets))
    random_ids = generator.integers(5, VOCAB_SIZE, len(targets))
    attention_mask = (input_ids != 1).astype(np.int64)
    input_ids[chosen] = np.where(draw < 0.8, 4, np.where(draw < 0.9, random_ids, targets))
    return tuple(map(torch.from_numpy, (input_ids, attention_mask, np.flatnonzero(chosen), targets)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--corpus", type=Path, required=True, help="Parquet file with a column `review`")
    arguments.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    arguments.add_argument("--minutes", type=float, default=60, help="time for masked tokens")
    arguments.add_argument("--layers", type=int, default=2)
    arguments.add_argument("--hidden", type=int, default=256)
    arguments.add_argument("--reviews", type=int, default=None, help="use only the first so many")
    options = arguments.parse_args()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    reviews = pq.read_table(options.corpus, columns=["review"])["review"].to_pylist()[: options.reviews]
    tokenizer = train_tokenizer(reviews, folder)
    versions = [tokenizer.encode(texts, MAX_LENGTH).rows() for texts in ([clean(text) for text in reviews], reviews)]
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=512,
        attn_implementation="eager",  # with bf16 on a CPU the backward of "sdpa" is three times slower
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        vectors = torch.from_numpy(ppmi_vectors(versions[0] + versions[1][::4], options.hidden)).float()
        model.bert.embeddings.word_embeddings.weight[5:] = vectors[5:]
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )

    lengths = np.array([len(row) for row in versions[0]])
    started, step, tokens, recent, log = time.monotonic(), 0, 0, [], []
    progress = tqdm(total=100, unit="%", disable=None)
    done = 0.0
    while done < 1:
        for batch in batches(lengths, generator):
            done = (time.monotonic() - started) / (60 * options.minutes)
            if done >= 1:
                break
            scale = min(1.0, done / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * scale
            # All cleaned or all raw within a batch: their lengths differ.
            rows = [versions[step % 2][index] for index in batch]
            input_ids, attention_mask, positions, targets = (
                tensor.to(device) for tensor in mask_tokens(rows, generator)
            )
            with torch.autocast(device.type, torch.bfloat16):
                hidden = model.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
                logits = model.cls(hidden.flatten(0, 1)[positions])
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            tokens += int(attention_mask.sum())
            recent.append(loss.detach())
            if step % 500 == 0:
                seconds = time.monotonic() - started
                log.append({"step": step, "tokens": tokens, "loss": float(torch.stack(recent).mean())})
                recent = []
                print(f"{seconds:6.0f} s  {json.dumps(log[-1])}  {tokens / seconds:,.0f} tokens/s", flush=True)
            if step % 4000 == 0:
                save(model, folder, log)
        progress.update(round(100 * min(1, done)) - progress.n)
    save(model, folder, log)


def save(model: BertForMaskedLM, folder: Path, log: list[dict[str, float]]) -> None:
    """Write the encoder (no pooler, no head) in half precision, its config with BERT's usual dropout, and the log."""
    encoder = {f"bert.{name}": tensor.half().contiguous() for name, tensor in model.bert.state_dict().items()}
    encoder = {name: tensor.cpu() for name, tensor in encoder.items() if "position_ids" not in name}
    save_file(encoder, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    shutil.move(folder / "model.safetensors.tmp", folder / "model.safetensors")
    config = model.config.to_diff_dict() | {
        "architectures": ["BertModel"],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "pretraining.json").write_text(json.dumps(log, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
