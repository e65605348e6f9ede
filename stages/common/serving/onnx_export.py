"""Export a classifier as one ONNX file."""

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
    """A token classifier that returns the logits (texts, classes) of token 0 only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]


def check_onnx_packages() -> None:
    """Check that the packages that `save_onnx` needs are installed.

    Raises:
        UserError: A package is missing.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}; run `pip install -r requirements.txt`")


def save_onnx(model: Model, path: Path, int8: bool) -> None:
    """Write a classifier as an ONNX file, for any number of texts of any length.

    The file maps `input_ids` and `attention_mask` (texts, tokens) to `logits` (texts, classes).

    Args:
        model: A token classifier without adapters.
        path: The file to write.
        int8: Whether weights of matrix products and embeddings are quantised to 8 bits. Activations are then quantised
            in use.
    """
    model.set_attn_implementation("eager")
    example = torch.full((2, 7), model.config.pad_token_id + 1)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # It warns that torchvision is missing, which is not used.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The warnings are about code of torch and transformers.
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
        del float32.graph.value_info[:]  # The shapes that the exporter inferred would contradict the quantised graph.
        logging.getLogger().setLevel(logging.ERROR)  # The quantiser recommends to preprocess the model.
        quantize_dynamic(float32, path, weight_type=QuantType.QInt8)
