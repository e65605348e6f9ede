"""Pre-train kobert-mini, a small model in place of KoBERT, on unlabelled Korean film reviews.

    python data/kobert-mini/pretrain.py --corpus nsmc-corpus.parquet --output DIR [--exclude FOLDER] [--tokens 420]

The corpus is a Parquet file with a column `review` (Naver sentiment movie corpus, CC0); ratings are not read.

1. Train a SentencePiece unigram vocabulary in KoBERT's layout: `tokenizer.model` and `vocab.txt`. If the folder already
   has these two files, they are kept.
2. Initialise the word embeddings from a truncated SVD of the PPMI matrix of the tokens. This takes a few seconds and
   saves half an hour of training.
3. Train BERT to predict 15% of the tokens, of which 80% are replaced by [MASK], 10% by random tokens and 10% are kept.
   Batches consist of reviews of similar length.

Each review is used once cleaned as in the pipeline and once raw, so that the model also knows ㅋㅋ and ㅠㅠ, which the
cleaning removes. A GPU replays every step as a CUDA graph, one for each of a few lengths. On a CPU use fewer tokens and
smaller batches: `--tokens 40 --batch 5000`. The weights are committed because another device rounds differently.
"""

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
import torch
from safetensors.torch import save_file
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from stages.common.pretrained.tokenizer import SPECIAL_TOKENS, SentencePieceTokenizer
from stages.ingest import find_files, read_files

SEED = 42
PAD, SEP, MASK, FIRST_WORD = 1, 3, 4, 5
LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)  # Lengths of batches, in tokens.
LEARNING_RATE = 2e-3
WARMUP = 0.02  # Fraction of the tokens during which the learning rate increases.
MASKED = 0.15  # Fraction of the tokens that are predicted.
LOG_EVERY = 2000  # Number of steps between two entries of the log.

Step = Callable[[torch.Tensor, int], None]  # Training step on the rows with these numbers, padded to a length.


def clean(text: str) -> str:
    """Apply the three rules of the notebook, which are the defaults of the pipeline."""
    text = re.sub(r"[^0-9가-힣A-Za-z.,?!]+", " ", re.sub(r"<[^>]+>", " ", text))
    return re.sub(r"\s+", " ", text).strip()


def read_reviews(corpus: Path, exclude: Path | None) -> list[str]:
    """Read the corpus without the reviews that, after cleaning, also stand in the AI Hub files of `exclude`."""
    reviews = pq.read_table(corpus, columns=["review"])["review"].to_pylist()
    if exclude is None:
        return reviews
    parts = read_files(exclude, find_files(exclude))
    unwanted = {clean(text) for part in parts for text in part.records.text}
    kept = [text for text in reviews if clean(text) not in unwanted]
    print(f"{len(reviews) - len(kept):,} of {len(reviews):,} reviews also stand in {exclude.name} and are left out")
    return kept


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> None:
    """Train the vocabulary on raw reviews and write it in KoBERT's layout."""
    unk, pad, *control = SPECIAL_TOKENS
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        unk_piece=unk,
        pad_id=1,
        pad_piece=pad,
        bos_id=-1,
        eos_id=-1,
        control_symbols=control,
        num_threads=1,  # The number of threads changes the sums and thereby the vocabulary.
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = (model.id_to_piece(index) for index in range(model.vocab_size()))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def ppmi_vectors(rows: list[np.ndarray], vocab_size: int, size: int, window: int = 4) -> np.ndarray:
    """Compute word vectors (vocab_size, size), a truncated SVD of the PPMI matrix of tokens up to `window` apart."""
    flat = np.concatenate([np.append(row, SEP) for row in rows]).astype(np.int64)  # With [SEP] between reviews.
    counts = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float64)
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


def build_model(vectors: np.ndarray, layers: int, device: torch.device) -> BertForMaskedLM:
    """Make a BERT with these word embeddings and otherwise random weights."""
    vocab_size, hidden = vectors.shape
    config = BertConfig(  # type: ignore[call-arg]  # attn_implementation is among the **kwargs
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
        # With bf16 on a CPU, the backward pass of "sdpa" is three times slower.
        attn_implementation="sdpa" if device.type == "cuda" else "eager",
        pad_token_id=PAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(SEED)
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[FIRST_WORD:] = torch.from_numpy(vectors[FIRST_WORD:])
    return model.to(device).train()  # type: ignore[arg-type]  # declared by a wrapper without `self`


def epoch(
    buckets: dict[int, np.ndarray], slots: int, generator: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the length and the row numbers of each batch of an epoch.

    All batches of a length have the same number of rows, which a CUDA graph requires; rows that do not fill a batch are
    left out of the epoch.

    Args:
        buckets: Row numbers by length.
        slots: Maximum number of tokens in a batch, padding included.
        generator: Source of the random order.
    """
    batches = []
    for length, rows in buckets.items():
        size = min(slots // length, len(rows))
        order = generator.permutation(rows)[: len(rows) // size * size]
        batches += [(length, batch) for batch in order.reshape(-1, size)]
    for index in generator.permutation(len(batches)):
        yield batches[index]


def make_step(
    model: BertForMaskedLM,
    optimizer: torch.optim.Optimizer,
    corpus: pa.ListArray,
    counts: dict[int, int],
    total_loss: torch.Tensor,
) -> Step:
    """Make a training step that selects and masks tokens on the device of the model and never waits for it.

    Args:
        model: The model.
        optimizer: Its optimizer.
        corpus: Token ids of each row.
        counts: Number of tokens to predict in a batch, by length of the batch.
        total_loss: Scalar to which the loss of each step is added.
    """
    device = model.device
    ids = torch.tensor(corpus.values.to_numpy()).long().to(device)
    sizes = torch.tensor(corpus.value_lengths().to_numpy()).long().to(device)
    starts = sizes.cumsum(0) - sizes

    def step(rows: torch.Tensor, length: int) -> None:
        place = torch.arange(length, device=device)
        real = place < sizes[rows][:, None]
        input_ids = ids[(starts[rows][:, None] + place).clamp(max=len(ids) - 1)].masked_fill(~real, PAD)
        lots = torch.rand(input_ids.shape, device=device).masked_fill(input_ids < FIRST_WORD, -1.0)
        masked = lots.flatten().topk(counts[length], sorted=False).indices
        targets = input_ids.flatten().index_select(0, masked)
        draw = torch.rand(len(masked), device=device)
        noise = torch.randint(FIRST_WORD, model.config.vocab_size, masked.shape, device=device)
        shown = torch.where(draw < 0.8, MASK, torch.where(draw < 0.9, noise, targets))
        input_ids = input_ids.flatten().scatter(0, masked, shown).view_as(input_ids)
        # Without a complete mask, transformers would check whether one is needed and wait for the GPU.
        mask = torch.zeros(real.shape, dtype=torch.bfloat16, device=device).masked_fill(~real, -1e4)[:, None, None, :]
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            hidden = model.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state
            logits = model.cls(hidden.flatten(0, 1).index_select(0, masked))
            loss = cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()  # At the end of the step, so that the gradients are in the memory of the graph.
        total_loss.add_(loss.detach())

    return step


class Graphed:
    """A training step as one CUDA graph for each length, because launching its kernels takes longer than they run."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def __call__(self, rows: torch.Tensor, length: int) -> None:
        if length not in self._graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # The first call, in which libraries set themselves up, is not recorded.
                self._step(rows, length)
            torch.cuda.current_stream().wait_stream(stream)
            graph, own = torch.cuda.CUDAGraph(), rows.clone()
            with torch.cuda.graph(graph):
                self._step(own, length)
            self._graphs[length] = graph, own
        else:
            graph, own = self._graphs[length]
            own.copy_(rows)
            graph.replay()


def pretrain(model: BertForMaskedLM, corpus: pa.ListArray, tokens: int, slots: int) -> list[dict[str, float]]:
    """Train on `tokens` tokens in batches of `slots` tokens.

    Returns:
        The log: one object every LOG_EVERY steps, with the mean loss of these steps.
    """
    device, generator = model.device, np.random.default_rng(SEED)
    lengths = corpus.value_lengths().to_numpy()
    buckets = {
        longest: rows
        for shorter, longest in zip((2, *LENGTHS), LENGTHS, strict=False)
        if len(rows := np.flatnonzero((lengths > shorter) & (lengths <= longest)))
    }
    mean = {length: lengths[rows].mean() for length, rows in buckets.items()}
    counts = {n: max(1, int(MASKED * mean[n] * min(slots // n, len(rows)))) for n, rows in buckets.items()}
    rate, total_loss = torch.tensor(0.0, device=device), torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=rate,  # A tensor, because a CUDA graph reads its value at each replay.
        betas=(0.9, 0.98),
        fused=True,
        capturable=device.type == "cuda",
    )
    step = make_step(model, optimizer, corpus, counts, total_loss)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN would make a plan for each shape.
        step = Graphed(step)
    started, steps, seen, logged, log = time.monotonic(), 0, 0, 0, []
    while seen < tokens:
        for length, rows in epoch(buckets, slots, generator):
            done = seen / tokens
            if done >= 1:
                break
            rate.fill_(LEARNING_RATE * min(1.0, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * done)))
            step(torch.from_numpy(rows).to(device, non_blocking=True), length)
            steps += 1
            seen += int(mean[length] * len(rows))
            if steps % LOG_EVERY == 0 or seen >= tokens:
                log.append({"step": steps, "tokens": seen, "loss": float(total_loss) / (steps - logged)})
                logged = steps
                total_loss.zero_()
                seconds = time.monotonic() - started
                print(f"{seconds:6.0f} s  {json.dumps(log[-1])}  {seen / seconds:,.0f} tokens/s", flush=True)
    return log


def save(model: BertForMaskedLM, folder: Path, log: list[dict[str, float]]) -> None:
    """Write the encoder without head in half precision, its config with the usual dropout of BERT, and the log."""
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--corpus", type=Path, required=True, help="Parquet file with a column `review`")
    arguments.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    arguments.add_argument("--exclude", type=Path, help="folder of AI Hub JSON files whose reviews are left out")
    arguments.add_argument("--tokens", type=float, default=420, help="millions of tokens to train on, 420 by default")
    arguments.add_argument("--batch", type=int, default=32768, help="tokens in a batch, padding included")
    arguments.add_argument("--vocabulary", type=int, default=8002, help="size of the vocabulary; KoBERT's by default")
    arguments.add_argument("--layers", type=int, default=2, help="number of layers")
    arguments.add_argument("--hidden", type=int, default=256, help="hidden size")
    options = arguments.parse_args()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")

    reviews = read_reviews(options.corpus, options.exclude)
    if not (folder / "tokenizer.model").is_file():
        train_tokenizer(reviews, options.vocabulary, folder)
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", folder / "vocab.txt")
    cleaned, raw = (
        tokenizer.encode(texts, LENGTHS[-1]).input_ids for texts in ([clean(text) for text in reviews], reviews)
    )
    rows = [row.values.to_numpy() for row in (*cleaned, *list(raw)[::4])]
    vectors = ppmi_vectors(rows, tokenizer.vocab_size, options.hidden).astype(np.float32)
    model = build_model(vectors, options.layers, device)
    log = pretrain(model, pa.concat_arrays([cleaned, raw]), int(options.tokens * 1e6), options.batch)
    save(model, folder, log)


if __name__ == "__main__":
    main()
