"""Our classifier, a token classifier read at token 0, as the sequence classifier that stock tools expect.

A sequence classifier of transformers has one more layer before its head: activation(W h + b), with h the last hidden
state of token 0. No training is needed to fill it in: weights exist with which the layer changes nothing.
"""

import copy

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from stages.common.modeling.classifier import HEAD
from stages.common.modeling.types import Model
from stages.common.runtime.exceptions import UserError

# The layer computes a(scale * h + shift), and the head after it undoes both. Near 0 tanh is the identity, and 2^-12 is
# where its curvature is as small as float32's rounding; far above 0 ReLU and GELU are the identity.
SCALES_AND_SHIFTS = ((2.0**-12, 0.0), (1.0, 64.0))
TOLERANCE = 1e-5  # of a logit
PROBE_SHAPE = (4, 16)  # random texts, in tokens, on which both models are compared


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


@torch.inference_mode()
def to_sequence_classifier(token_classifier: Model) -> Model:
    """Copy a token classifier without adapters into a sequence classifier with the logits of its token 0.

    Raises:
        UserError: the sequence classifier of this encoder has a head that cannot be made to give these logits.
    """
    config = token_classifier.config
    input_ids, expected = _cls_logits(token_classifier)
    try:
        model = transformers.AutoModelForSequenceClassification.from_config(copy.deepcopy(config)).eval()
        model.base_model.load_state_dict(token_classifier.base_model.state_dict(), strict=False)
        dense, head = map(model.get_submodule, _head_layers(model))
        weight, bias = token_classifier.classifier.weight, token_classifier.classifier.bias
        for scale, shift in SCALES_AND_SHIFTS:
            dense.weight.copy_(scale * torch.eye(len(dense.weight)))
            dense.bias.fill_(shift)
            head.weight.copy_(weight / scale)
            head.bias.copy_(bias - shift * weight.double().sum(1))
            if (model(input_ids=input_ids).logits - expected).abs().max() < TOLERANCE:
                return model
    except (AttributeError, ValueError, RuntimeError):
        pass  # an encoder without a sequence classifier, or with a head of another structure
    raise UserError(
        f"the sequence classifier of {config.model_type} has a head that cannot give these logits: export with "
        "--head token, a token classifier whose logits of a text are those at token 0"
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
