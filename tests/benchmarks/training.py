"""Compare the training speed with that of the notebook's loop and of transformers' Trainer.

    python -m tests.benchmarks.training [--reviews FILE] [--join N] [--sizes 2x128 4x256 12x768] [--busy]

    notebook          padded batches of 16 in random order; the loss is read after every step
    trainer           transformers' Trainer with padded batches of 16 in random order
    trainer, grouped  transformers' Trainer with batches of reviews of similar length
    ours              the pipeline's loop with packed batches of 16 in random order
    ours, fp32        the pipeline's loop in fp32, whatever train.precision is
    ours, eager       the pipeline's loop without CUDA graphs; it only runs if --contenders names it

Models have random weights and KoBERT's vocabulary size. The reviews are those of FILE (Parquet with a column `review`)
or of data/sample, tokenized by the embedded tokenizer.

Each contender runs in a process of its own. In each round all contenders run one after another, so that a slow minute
of the machine affects all of them. The results are medians over the rounds. A run trains two epochs to warm up, one of
them under torch's FLOP counter, and is timed in the third epoch.

`peak` is the number of operations per second in the third epoch, padding included, as a fraction of the rate of a large
matrix product in the same process and precision. On a CPU transformers' Trainer computes in float32, its default. With
--busy another program uses one core all the time.
"""

import argparse
import atexit
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.common.modeling.classifier import add_lora
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import get_device
from stages.common.runtime.params import Params, load_params
from stages.common.runtime.threads import SPIN_COUNT
from stages.common.training.trainer import Trainer
from stages.common.training.training_step import PRECISIONS, choose_precision

CONTENDERS = ("notebook", "trainer", "trainer, grouped", "ours", "ours, fp32")
ALL_CONTENDERS = (*CONTENDERS, "ours, eager")
BATCH_SIZE = 16
STEPS = {"2x128": 40, "4x256": 30, "12x768": 8}  # Steps of an epoch on a CPU, by size of the model.
GPU_STEPS = 200  # Steps of an epoch on a GPU, so that nearly all CUDA graphs are captured in the first two epochs.
VOCABULARY, PAD_ID = 8002, 1


def read_reviews(path: Path | None, params: Params, joined: int = 1) -> pa.ListArray:
    """Tokenize random reviews, cleaned as params.yaml says.

    Args:
        path: Parquet file with a column `review`; None reads the corpus of params.yaml.
        params: All parameters.
        joined: Number of reviews that are joined to one.
    """
    import pyarrow.parquet as pq

    from stages.common.cleaning import clean
    from stages.common.pretrained.tokenizer import load_tokenizer
    from stages.ingest import find_files, read_files

    if path:
        texts = pq.read_table(path, columns=["review"])["review"]
    else:
        folder = Path(params.data.source)
        texts = pa.array([text for part in read_files(folder, find_files(folder)) for text in part.records.text])
    texts = [text for text in clean(texts, params.clean).to_pylist() if text]
    count = BATCH_SIZE * max(GPU_STEPS, *STEPS.values())
    chosen = np.random.default_rng(0).choice(len(texts), (count, joined), replace=False)
    tokenizer = load_tokenizer(Path("data/kobert-mini"))
    texts = [" ".join(texts[number] for number in numbers) for numbers in chosen]
    return tokenizer.encode(texts, params.tokenize.max_length).input_ids


def encoder_config(size: str, **others: Any) -> Any:
    """Return the config of a BERT with KoBERT's vocabulary size.

    Args:
        size: Layers and width, such as "4x256".
        others: Other values of the config.
    """
    from transformers import BertConfig

    layers, width = map(int, size.split("x"))
    return BertConfig(  # type: ignore[call-arg]  # num_labels is among the **kwargs
        vocab_size=VOCABULARY,
        pad_token_id=PAD_ID,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=3,
        **others,
    )


class Notebook(nn.Module):
    """The notebook's classifier: the last hidden state of token 0, dropout, and one linear layer."""

    def __init__(self, size: str, lora: bool) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert: Any = BertModel(encoder_config(size))
        if lora:
            adapters = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"], bias="none")
            self.bert = get_peft_model(self.bert, adapters)
        self.dropout, self.classifier = nn.Dropout(0.1), nn.Linear(self.bert.config.hidden_size, 3)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Compute logits (reviews, 3)."""
        return self.classifier(self.dropout(self.bert(**inputs).last_hidden_state[:, 0]))


def notebook_epochs(size: str, lora: bool, dataset: TokenizedDataset, learning_rate: float) -> Callable[[], float]:
    """Return a function that trains one epoch as the notebook does and returns its time in seconds."""

    def collate(items: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in items)
        padded = [np.pad(ids, (0, longest - len(ids)), constant_values=PAD_ID) for ids, _ in items]
        input_ids = torch.tensor(np.stack(padded), dtype=torch.long)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in items])
        labels = torch.tensor([label for _, label in items])
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    model = Notebook(size, lora).to(get_device()).train()
    items: Any = list(zip(dataset.input_ids.to_pylist(), dataset.labels.tolist(), strict=True))
    loader = torch.utils.data.DataLoader(items, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=learning_rate)

    def epoch() -> float:
        started, total = time.perf_counter(), 0.0
        for batch in loader:
            batch = {name: tensor.to(get_device()) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(**batch), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - started

    return epoch


def huggingface_epochs(
    size: str, lora: bool, dataset: TokenizedDataset, learning_rate: float, grouped: bool, precision: torch.dtype
) -> tuple[int, float]:
    """Train with transformers' Trainer.

    Returns:
        The floating-point operations of the first epoch, and the time of the third one in seconds.
    """
    import transformers

    from stages.common.pretrained.tokenizer import SPECIAL_TOKENS

    class Tokenizer:
        """The part of a tokenizer that DataCollatorWithPadding uses."""

        def pad(self, features: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
            ids = [torch.tensor(feature["input_ids"]) for feature in features]
            padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=SPECIAL_TOKENS.index("[PAD]"))
            labels = torch.tensor([feature["label"] for feature in features])
            return {"input_ids": padded, "attention_mask": (padded != PAD_ID).long(), "labels": labels}

    class Clock(transformers.TrainerCallback):
        """Count the floating-point operations of the first epoch, and measure the time of the last one."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.counter = FlopCounterMode(display=False) if state.epoch < 0.5 else None
            if self.counter:
                self.counter.__enter__()
            synchronize()
            self.started = time.perf_counter()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            self.seconds = time.perf_counter() - self.started
            if self.counter:
                self.counter.__exit__(None, None, None)
                self.flops = self.counter.get_total_flops()

    model: Any = transformers.BertForSequenceClassification(encoder_config(size))
    if lora:
        adapters = LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"]
        )
        model = get_peft_model(model, adapters)
    data = [
        {"input_ids": ids, "label": label, "length": len(ids)}
        for ids, label in zip(dataset.input_ids.to_pylist(), dataset.labels.tolist(), strict=True)
    ]
    import datasets

    arguments = transformers.TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=3,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="group_by_length" if grouped else "random",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=get_device().type == "cuda",
        bf16=precision == torch.bfloat16,
        fp16=precision == torch.float16,
    )
    clock = Clock()
    transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(data),
        data_collator=transformers.DataCollatorWithPadding(Tokenizer()),  # type: ignore[arg-type]
        callbacks=[clock],
    ).train()
    return clock.flops, clock.seconds


def our_epochs(
    size: str, lora: bool, dataset: TokenizedDataset, params: Params, precision: torch.dtype, eager: bool
) -> Callable[[], float]:
    """Return a function that trains one epoch with the pipeline's loop and returns its time in seconds."""
    from transformers import BertForTokenClassification

    model: Any = BertForTokenClassification(encoder_config(size, classifier_dropout=0.1))
    if lora:
        model = add_lora(model, params.lora, 42)
    train_params = params.train.model_copy(
        update={
            "batch_size": BATCH_SIZE,
            "schedule": "constant",
            "precision": next(name for name, dtype in PRECISIONS.items() if dtype == precision),
        }
    )
    learning_rate = (params.lora if lora else params.full).learning_rates[0]
    # The validation examples are not used, since only epochs are trained.
    trainer = Trainer(model, dataset, dataset, train_params, learning_rate, seed=42)
    trainer._progress.disable = True
    step = trainer._step
    use_cuda_graphs = step.use_cuda_graphs and not eager
    step.use_cuda_graphs = False  # The FLOP counter, which runs in the first epoch, does not see replayed operations.
    if eager:
        step._collator.pad_to_multiple = False

    def epoch() -> float:
        trainer._epoch_losses = []  # Validation would reset the losses.
        started = time.perf_counter()
        trainer._train_epoch()
        synchronize()
        step.use_cuda_graphs = use_cuda_graphs
        return time.perf_counter() - started

    return epoch


def synchronize() -> None:
    if get_device().type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(dtype: torch.dtype) -> float:
    """Measure the rate of a square matrix product several times, and return the best one in FLOP/s."""
    size = 8192 if get_device().type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=get_device(), dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def contend(contender: str, size: str, method: str, reviews: Path | None, joined: int) -> dict[str, float]:
    """Train one contender in this process, and return its results.

    Args:
        contender: One of `ALL_CONTENDERS`.
        size: Layers and width of the model, such as "4x256".
        method: "full" or "lora".
        reviews: Parquet file of the reviews, or None for data/sample.
        joined: Number of reviews that are joined to one.
    """
    params = load_params()
    gpu = get_device().type == "cuda"
    steps = GPU_STEPS if gpu else STEPS[size]
    input_ids = read_reviews(reviews, params, joined).slice(0, BATCH_SIZE * steps)
    dataset = TokenizedDataset(input_ids, np.random.default_rng(1).integers(0, 3, len(input_ids)))
    lora, grouped = method == "lora", contender.endswith("grouped")
    learning_rate = (params.lora if lora else params.full).learning_rates[0]
    torch.manual_seed(0)
    in_fp32 = ("notebook", "ours, fp32") if gpu else ("notebook", "ours, fp32", "trainer", "trainer, grouped")
    precision = choose_precision("fp32" if contender in in_fp32 else params.train.precision, get_device())
    peak = matmul_rate(precision)
    if contender.startswith("trainer"):
        flops, seconds = huggingface_epochs(size, lora, dataset, learning_rate, grouped, precision)
    else:
        epoch = (
            notebook_epochs(size, lora, dataset, learning_rate)
            if contender == "notebook"
            else our_epochs(size, lora, dataset, params, precision, contender.endswith("eager"))
        )
        with FlopCounterMode(display=False) as counter:
            epoch()
        flops = counter.get_total_flops()
        epoch()
        seconds = epoch()
    return {
        "samples_per_second": len(input_ids) / seconds,
        "tokens_per_second": len(input_ids.flatten()) / seconds,
        "milliseconds_per_step": 1000 * seconds / steps,
        "fraction_of_peak": flops / seconds / peak,
        "peak_gflops": peak / 1e9,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--reviews", type=Path, help="Parquet file with a column `review` (default: data/sample)")
    arguments.add_argument("--join", type=int, default=1, metavar="N", help="join N reviews to one (default: 1)")
    arguments.add_argument("--sizes", nargs="+", choices=list(STEPS), default=list(STEPS), help="sizes of the model")
    arguments.add_argument(
        "--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"], help="methods to train"
    )
    arguments.add_argument("--rounds", type=int, default=3, help="number of measurements, of which the median counts")
    arguments.add_argument("--busy", action="store_true", help="let another program use one core all the time")
    arguments.add_argument(
        "--contenders", nargs="+", choices=ALL_CONTENDERS, default=CONTENDERS, help="training loops to compare"
    )
    arguments.add_argument("--output", type=Path, help="JSON file for the results of every run")
    # This script calls itself with this option to train one contender in a process of its own.
    arguments.add_argument("--contender", choices=ALL_CONTENDERS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.contender:
        measured = contend(options.contender, options.sizes[0], options.methods[0], options.reviews, options.join)
        print(json.dumps(measured))
        return
    runs: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    if options.busy:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        atexit.register(busy.kill)
    for size in options.sizes:
        for method in options.methods:
            for _ in range(options.rounds):
                for contender in options.contenders:
                    command = [sys.executable, "-m", "tests.benchmarks.training", "--contender", contender]
                    command += ["--sizes", size, "--methods", method, "--join", str(options.join)]
                    command += ["--reviews", str(options.reviews)] if options.reviews else []
                    environment = dict(os.environ)
                    if contender.startswith("ours"):  # The training stages set this before they import torch.
                        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
                    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                    measured = json.loads(result.stdout.splitlines()[-1])
                    runs.setdefault((size, method, contender), []).append(measured)
            report(size, method, runs, options.contenders)
    if options.output:
        values = {", ".join(key): value for key, value in runs.items()}
        options.output.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def report(
    size: str, method: str, runs: dict[tuple[str, str, str], list[dict[str, float]]], contenders: Sequence[str]
) -> None:
    """Print a table of the results of one size and method. Each ratio compares runs of the same round."""

    def ratio(contender: str, others: list[str]) -> str:
        if not set(others) <= set(contenders):
            return ""
        pairs = zip(runs[size, method, contender], *(runs[size, method, other] for other in others), strict=True)
        ratios = [mine["samples_per_second"] / max(o["samples_per_second"] for o in others) for mine, *others in pairs]
        return f"{median(ratios):.2f}"

    print(f"\n{size}, {method}\n")
    print("| | samples/s | real tokens/s | ms a step | to notebook | to trainer | to grouped | peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for contender in contenders:
        rows = runs[size, method, contender]
        middle = {name: median(row[name] for row in rows) for name in rows[0]}
        print(
            f"| {contender} | {middle['samples_per_second']:.0f} | {middle['tokens_per_second']:.0f} "
            f"| {middle['milliseconds_per_step']:.1f} | {ratio(contender, ['notebook'])} "
            f"| {ratio(contender, ['trainer'])} | {ratio(contender, ['trainer, grouped'])} "
            f"| {100 * middle['fraction_of_peak']:.0f}% |",
            flush=True,
        )


if __name__ == "__main__":
    main()
