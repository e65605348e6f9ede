"""The type of a model."""

from typing import Any

# A token classifier of transformers, or PEFT's wrapper around one. To a type checker both are an nn.Module, which has
# neither a config nor named parts.
Model = Any
