"""A classifier as one ONNX file."""

import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from stages.common.modeling.types import Model
from stages.common.runtime.exceptions import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class ClsLogits(nn.Module):
    """`input_ids` and `attention_mask` (texts, tokens) to logits (texts, classes) of a token classifier at token 0."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]


def check_onnx_packages() -> None:
    """Raise a UserError if a package that `save_onnx` needs is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}: install what requirements.txt names")


def save_onnx(model: Model, path: Path, int8: bool) -> None:
    """Write a token classifier's logits at token 0 as ONNX, for any number of texts of any length.

    Args:
        int8: quantise the weights of matrix products and embeddings to 8 bits, activations while it runs.
    """
    model.set_attn_implementation("eager")
    example = torch.full((2, 7), model.config.pad_token_id + 1)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, of no use here, is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of things within torch and transformers
        torch.onnx.export(
            ClsLogits(model).eval(),
            (example, torch.ones_like(example)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if int8:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        float32 = onnx.load(path)
        del float32.graph.value_info[:]  # shapes that the exporter inferred, and that quantising would contradict
        logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess the model
        quantize_dynamic(float32, path, weight_type=QuantType.QInt8)
