"""Convert our token classifier, whose logits are those of token 0, to the sequence classifier that other tools expect.

A sequence classifier of transformers has an additional layer before its head, activation(W h + b), where h is the last
hidden state of token 0. Its weights need no training. Several units of that layer together compute each logit, by an
identity such as gelu(x) - gelu(-x) = x, and the head adds them up.
"""

import copy
from collections.abc import Iterator

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from stages.common.modeling.classifier import HEAD
from stages.common.modeling.types import Model
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError

TOLERANCE = 1e-5  # Largest difference between the logits of both models.
PROBE_SHAPE = (4, 16)  # Shape (texts, tokens) of the random texts on which both models are compared.
# Density of the tanh functions that add up to a line. With this density the error is below 1e-5 of their width.
STEPS_PER_WIDTH = 1.5
MARGIN = 6.0  # Widths that the line extends beyond the largest logit, where further functions would be constant.
MAX_WIDTH = 2.0  # Largest width of a tanh function. A larger one would multiply the learning rate of W.
MAX_TRAINABLE_WEIGHT = 2.0  # Largest weight of a head that AdamW can train further.


def _identities(units: int, bound: float) -> Iterator[torch.Tensor]:
    """Yield candidates for an identity, each as slopes, shifts and weights (3, at most `units`).

    An identity is sum(weights * activation(slopes * x + shifts)) = x. The activation decides which candidate is one.
    Candidates with which the head can be trained further come first.

    Args:
        units: Number of units of the layer for each logit.
        bound: Largest absolute value of x.
    """
    yield torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]])  # GELU, ReLU and SiLU satisfy a(x) - a(-x) = x.
    width = bound / max(units / (2 * STEPS_PER_WIDTH) - MARGIN, 1e-9)
    if width < MAX_WIDTH:  # Shifted tanh functions add up to a staircase of smooth steps, which is a line.
        steps = (torch.arange(units) - (units - 1) / 2) / STEPS_PER_WIDTH
        ones = torch.ones(units)
        yield torch.stack([ones / width, -steps, ones * width / (2 * STEPS_PER_WIDTH)])
    # Near 0 tanh is the identity. AdamW changes such large weights too little, and what they multiply too much.
    yield torch.tensor([[2.0**-16], [0.0], [2.0**16]])


def _cls_logits(token_classifier: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of random texts, and the logits of their token 0."""
    input_ids = torch.randint(
        token_classifier.config.vocab_size, PROBE_SHAPE, generator=torch.Generator().manual_seed(0)
    )
    return input_ids, token_classifier.eval()(input_ids=input_ids).logits[:, 0]


def _head_layers(model: Model) -> tuple[str, str]:
    """Return the names of the layer before the head and of the head.

    Raises:
        ValueError: The head has another structure.
    """
    config = model.config
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = [name for name, module in linear.items() if module.out_features == config.num_labels]
    # Names of layers within the encoder contain a number, such as `encoder.layer.0.intermediate.dense`.
    outside = [name for name in linear if not any(part.isdigit() for part in name.split("."))]
    dense = [name for name in outside if linear[name].weight.shape == (config.hidden_size, config.hidden_size)]
    if len(heads) != 1 or len(dense) != 1:
        raise ValueError
    return dense[0], heads[0]


@torch.no_grad()
def to_sequence_classifier(token_classifier: Model) -> Model:
    """Copy a token classifier without adapters to a sequence classifier that has the logits of its token 0.

    If the head of the copy cannot be trained further, a warning says so.

    Raises:
        UserError: The head of this encoder's sequence classifier cannot compute these logits.
    """
    config = copy.deepcopy(token_classifier.config)
    config.classifier_dropout = 0.0  # Dropping one of the units that compute a logit would distort the logit.
    input_ids, expected = _cls_logits(token_classifier)
    hidden = token_classifier.base_model(input_ids=input_ids).last_hidden_state[:, 0]
    weight, bias = token_classifier.classifier.weight, token_classifier.classifier.bias
    classes, units = len(weight), weight.shape[1] // len(weight)
    try:
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        model.base_model.load_state_dict(token_classifier.base_model.state_dict(), strict=False)
        dense, head = map(model.get_submodule, _head_layers(model))
        head.bias.copy_(bias)
        bound = 1.5 * float(weight.norm(dim=1).max() * hidden.norm(dim=1).max())
        for slopes, shifts, weights in _identities(units, bound):
            used = classes * len(slopes)
            for parameter in (dense.weight, dense.bias, head.weight):
                parameter.zero_()
            dense.weight[:used] = torch.kron(weight, slopes[:, None])
            dense.bias[:used] = shifts.repeat(classes)
            head.weight[:, :used] = torch.block_diag(*[weights] * classes)
            if (model(input_ids=input_ids).logits - expected).abs().max() < TOLERANCE:
                if weights.abs().max() > MAX_TRAINABLE_WEIGHT:
                    warn(
                        "the exported head computes the same logits but cannot be trained further; to train further, "
                        "export with --head token"
                    )
                return model
    except (AttributeError, ValueError, RuntimeError):
        pass  # The encoder has no sequence classifier, or one whose head has another structure.
    raise UserError(
        f"the sequence classifier of {config.model_type} has a head that cannot compute the logits of this model; "
        "export with --head token and without --adapter, which writes a token classifier"
    )


def to_sequence_adapter(token_adapter: PeftModel) -> PeftModel:
    """Convert the adapters of a token classifier to adapters of a sequence classifier.

    The result also has the head and the layer before it. `token_adapter` must not be used afterwards.

    Raises:
        UserError: The head of this encoder's sequence classifier cannot compute these logits.
    """
    with torch.inference_mode():
        input_ids, expected = _cls_logits(token_adapter)
    weights = get_peft_model_state_dict(token_adapter, save_embedding_layers=False)
    lora = {name: tensor for name, tensor in weights.items() if "lora_" in name}
    config = token_adapter.active_peft_config
    model = to_sequence_classifier(token_adapter.unload())
    dense, head = _head_layers(model)
    sequence_config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(config.target_modules),
        exclude_modules=[dense],
        modules_to_save=[HEAD, *(name for name in (dense, head) if not name.startswith(HEAD))],
    )
    adapter = get_peft_model(model, sequence_config)
    set_peft_model_state_dict(adapter, get_peft_model_state_dict(adapter, save_embedding_layers=False) | lora)
    with torch.inference_mode():
        difference = (adapter.eval()(input_ids=input_ids).logits - expected).abs().max()
    if not difference < TOLERANCE:
        raise UserError(f"--adapter: PEFT changes the logits of this {model.config.model_type}; leave out --adapter")
    return adapter
