"""Our classifier, a token classifier read at token 0, as the sequence classifier that stock tools expect.

A sequence classifier of transformers has one more layer before its head: activation(W h + b), with h the last hidden
state of token 0. No training is needed to fill it in: each logit is computed by units of that layer that together are
the identity, and the head adds them up.
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

TOLERANCE = 1e-5  # of a logit
PROBE_SHAPE = (4, 16)  # random texts, in tokens, on which both models are compared
STEPS_PER_WIDTH = 1.5  # tanh functions this close add up to a line: the error is below 1e-5 of their width
MARGIN = 6.0  # widths beyond the largest logit, where the functions left out are constant
MAX_WIDTH = 2.0  # wider ones would multiply the learning rate of W
MAX_TRAINABLE_WEIGHT = 2.0  # of the head


def _identities(units: int, bound: float) -> Iterator[torch.Tensor]:
    """Yield slopes, shifts and weights (3, at most `units`) with sum(weights * activation(slopes * x + shifts)) = x.

    Which of them holds depends on the activation; those with which the head can be trained further come first.

    Args:
        bound: Largest absolute value of x.
    """
    yield torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]])  # of GELU, ReLU and SiLU: a(x) - a(-x) = x
    width = bound / max(units / (2 * STEPS_PER_WIDTH) - MARGIN, 1e-9)
    if width < MAX_WIDTH:  # of tanh: a staircase of smooth steps
        steps = (torch.arange(units) - (units - 1) / 2) / STEPS_PER_WIDTH
        ones = torch.ones(units)
        yield torch.stack([ones / width, -steps, ones * width / (2 * STEPS_PER_WIDTH)])
    # Near 0 tanh is the identity. AdamW moves such large weights too little, and what they multiply too much.
    yield torch.tensor([[2.0**-16], [0.0], [2.0**16]])


def _cls_logits(token_classifier: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of random texts, and the logits of their token 0."""
    input_ids = torch.randint(
        token_classifier.config.vocab_size, PROBE_SHAPE, generator=torch.Generator().manual_seed(0)
    )
    return input_ids, token_classifier.eval()(input_ids=input_ids).logits[:, 0]


def _head_layers(model: Model) -> tuple[str, str]:
    """Names of the layer before the head and of the head."""
    config = model.config
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = [name for name, module in linear.items() if module.out_features == config.num_labels]
    # Layers of the encoder stand in a list, as `encoder.layer.0.intermediate.dense` does.
    outside = [name for name in linear if not any(part.isdigit() for part in name.split("."))]
    dense = [name for name in outside if linear[name].weight.shape == (config.hidden_size, config.hidden_size)]
    if len(heads) != 1 or len(dense) != 1:
        raise ValueError
    return dense[0], heads[0]


@torch.no_grad()
def to_sequence_classifier(token_classifier: Model) -> Model:
    """Copy a token classifier without adapters into a sequence classifier with the logits of its token 0.

    A warning says so if the head of the copy cannot be trained further.

    Raises:
        UserError: The sequence classifier of this encoder has a head that cannot be made to give these logits.
    """
    config = copy.deepcopy(token_classifier.config)
    config.classifier_dropout = 0.0  # The units of a logit are right only together.
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
                    warn("this head is exact but cannot be trained further; for that, export with --head token")
                return model
    except (AttributeError, ValueError, RuntimeError):
        pass  # an encoder without a sequence classifier, or with a head of another structure
    raise UserError(
        f"the sequence classifier of {config.model_type} has a head that cannot give these logits: export with "
        "--head token and without --adapter, a token classifier whose logits of a text are those at token 0"
    )


def to_sequence_adapter(token_adapter: PeftModel) -> PeftModel:
    """The adapter of a token classifier as one of a sequence classifier; `token_adapter` must not be used any more.

    It also holds the head and the layer before it. Errors are those of `to_sequence_classifier`.
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
        raise UserError(f"--adapter: PEFT gives other logits to this {model.config.model_type}; leave out --adapter")
    return adapter
