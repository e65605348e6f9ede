"""Compute the logits of a batch or of a whole dataset, and check that packing does not change them."""

import numpy as np
import pyarrow as pa
import torch

from stages.common.modeling.collator import Batch, Collator
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import DistributedContext, get_device
from stages.common.modeling.packing import set_attention
from stages.common.modeling.sampler import length_sorted_batches
from stages.common.modeling.types import Model
from stages.common.runtime.console import warn

PROBE_LENGTHS = (3, 9, 5)  # Numbers of tokens of the examples on which packing is tried.
# Largest relative difference between logits: more than rounding in float32 causes, less than a leak between examples.
TOLERANCE = 1e-4


def cls_logits(model: Model, batch: Batch) -> torch.Tensor:
    """Compute the logits (examples, classes) of each example, which are those of its token 0, [CLS]."""
    logits = model(**batch.inputs).logits.flatten(0, 1)
    # The last layer of a packed model may have computed the [CLS] tokens only.
    return logits if len(logits) == len(batch.cls_positions) else logits.index_select(0, batch.cls_positions)


@torch.inference_mode()
def predict_logits(
    model: Model,
    collator: Collator,
    dataset: TokenizedDataset,
    batch_size: int,
    distributed: DistributedContext | None = None,
) -> torch.Tensor:
    """Compute the logits of all examples.

    Args:
        model: The model, which is set to evaluation mode.
        collator: Makes the batches for this model.
        dataset: The examples.
        batch_size: Number of examples per batch.
        distributed: The processes among which the batches are divided.

    Returns:
        Logits (examples, classes) in the order of `dataset`, in float32 on the CPU. All processes get all of them.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = torch.zeros(len(dataset), model.config.num_labels, device=device)
    batches = length_sorted_batches(dataset.lengths, batch_size)
    for indices in batches[distributed.rank :: distributed.world_size] if distributed else batches:
        logits[torch.from_numpy(indices).to(device)] = cls_logits(model, collator(dataset, indices)).float()
    return (distributed.all_reduce_sum(logits) if distributed else logits).cpu()


@torch.inference_mode()
def mean_hidden_states(model: Model, dataset: TokenizedDataset, batch_size: int) -> np.ndarray:
    """Average the encoder's last hidden states over the tokens of each example: (examples, hidden_size) in float32."""
    encoder = model.to(get_device()).base_model.eval()
    collator = Collator(model, packed=False)
    means = np.zeros((len(dataset), model.config.hidden_size), np.float32)
    for indices in length_sorted_batches(dataset.lengths, batch_size):
        inputs = collator(dataset, indices).inputs
        mask = inputs["attention_mask"][:, :, None]
        states = encoder(**inputs).last_hidden_state
        means[indices] = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return means


@torch.inference_mode()
def build_collator(model: Model, packing: bool) -> Collator:
    """Return a collator for `model`, which packs batches if that is requested and the model supports it.

    A model supports it if a packed batch has the same logits as the padded one. The model then keeps packed attention.
    Otherwise a warning says that batches are padded.

    Args:
        model: The model.
        packing: Whether batches should be packed.
    """
    padding = Collator(model, packed=False)
    if not packing:
        return padding
    was_training, attention_before = model.training, model.config._attn_implementation
    model.eval()
    first_id = model.config.pad_token_id + 1
    examples = pa.array([(first_id + np.arange(length) % 2) % model.config.vocab_size for length in PROBE_LENGTHS])
    probe = TokenizedDataset(examples, np.zeros(len(examples), np.int64))
    indices = np.arange(len(probe))
    expected = cls_logits(model, padding(probe, indices))
    collator = Collator(model, packed=True)

    def is_exact(fast_bert_layers: bool) -> bool:
        try:
            set_attention(model, "packed", fast_bert_layers)
            difference = (cls_logits(model, collator(probe, indices)) - expected).abs().max()
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        # The logits of a new head are so small that an absolute tolerance would not notice a leak between examples.
        return model.config._attn_implementation == "packed" and bool(difference < TOLERANCE * expected.abs().max())

    exact = is_exact(fast_bert_layers=True) or is_exact(fast_bert_layers=False)
    if not exact:
        set_attention(model, attention_before, fast_bert_layers=False)
        warn("train.packing: this base model does not support packing, so batches are padded")
    model.train(was_training)
    return collator if exact else padding
