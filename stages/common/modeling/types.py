"""The type of a model."""

from typing import Any

# A token classifier of transformers, or PEFT's wrapper around one. A type checker knows neither their `config` nor
# their parts.
Model = Any
