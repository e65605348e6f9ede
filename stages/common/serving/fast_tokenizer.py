"""The tokenizer of an exported model, which cleans raw texts as in training, tokenizes and truncates them."""

from pathlib import Path

import pyarrow as pa
import transformers
from tokenizers import Regex, Tokenizer, normalizers

from stages.common.artifacts.files import read_json, write_json
from stages.common.cleaning import WHITE_SPACE, clean, patterns
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import CleanParams
from stages.common.serving.text_classifier import TextClassifier


def add_cleaning(tokenizer: Tokenizer, params: CleanParams) -> Tokenizer:
    """Make `tokenizer` clean a text before it tokenizes the text.

    Raises:
        UserError: The library of the tokenizer does not accept the regular expression of `params.keep`.
    """
    try:
        rules = [normalizers.Replace(Regex(pattern), " ") for pattern in patterns(params)]
    except Exception as error:  # The library has no exception type of its own.
        raise UserError(f"clean.keep: {params.keep!r} cannot be written to tokenizer.json: {error}") from error
    strip = normalizers.Replace(Regex(rf"\A[{WHITE_SPACE}]+|[{WHITE_SPACE}]+\z"), "")
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *rules, strip, *own])
    return tokenizer


def save_fast_tokenizer(classifier: TextClassifier, folder: Path) -> None:
    """Write the tokenizer of an exported model for releases 4 and 5 of transformers.

    transformers truncates only with `truncation=True`, and then to `model_max_length`. Other libraries truncate as
    tokenizer.json says.
    """
    cleaning = classifier.metadata.preprocessing.clean
    tokenizer = add_cleaning(classifier.tokenizer.to_fast(), cleaning)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    tokenizer.enable_truncation(classifier.metadata.preprocessing.max_length)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokenizer.id_to_token(classifier.model.config.pad_token_id),
        model_max_length=classifier.metadata.preprocessing.max_length,
        model_input_names=["input_ids", "attention_mask"],
        # Otherwise special tokens in a text would be recognised before cleaning, which removes them in training.
        split_special_tokens=clean(pa.array(special, pa.string()), cleaning).to_pylist() != special,
    )
    fast.save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # Release 5 writes a class name that release 4 does not know.
    write_json(config, {**read_json(config), "tokenizer_class": "PreTrainedTokenizerFast"})
