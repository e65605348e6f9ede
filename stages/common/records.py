"""Arrow tables between the stages: the stream that `datasets.Dataset.from_file` opens, the same bytes every time.

`datasets` itself is not imported: it takes a second, and its `save_to_disk` writes fingerprints of paths and times.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from stages.common.errors import UserError
from stages.common.files import replacing
from stages.common.params import Preprocessing

LABELS = ("부정", "중립", "긍정")  # class index = polarity + 1
INT32_LIST = pa.list_(pa.int32())
PREPROCESSING = b"preprocessing"  # key of a schema's metadata


def _feature(field: pa.Field) -> dict[str, object]:
    if field.name == "labels":
        return {"names": list(LABELS), "_type": "ClassLabel"}
    if pa.types.is_list(field.type):
        return {"feature": {"dtype": str(field.type.value_type), "_type": "Value"}, "_type": "List"}
    return {"dtype": str(field.type), "_type": "Value"}


def schema(fields: dict[str, pa.DataType]) -> pa.Schema:
    """An Arrow schema that carries the features of `datasets`; a field called `labels` is a ClassLabel of `LABELS`."""
    plain = pa.schema(list(fields.items()))
    features = {"info": {"features": {field.name: _feature(field) for field in plain}}}
    return plain.with_metadata({"huggingface": json.dumps(features)})


def with_preprocessing(schema: pa.Schema, preprocessing: Preprocessing) -> pa.Schema:
    """`schema` with a note of how its rows were made, which the splits inherit and training saves with the weights."""
    return schema.with_metadata({**schema.metadata, PREPROCESSING: preprocessing.model_dump_json()})


def read_preprocessing(path: Path) -> Preprocessing:
    """How the rows of a tokenized table were made.

    Raises:
        UserError: the file is missing or damaged, or has no such note.
    """
    note = (read_table(path).schema.metadata or {}).get(PREPROCESSING)
    if note is None:
        raise UserError(f"{path}: does not tell how it was cleaned and tokenized; run `dvc repro` to make it")
    return Preprocessing.model_validate_json(note)


def write_table(path: Path, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> None:
    """Write an Arrow stream batch by batch, so that memory holds one; if one of them fails, nothing is written."""
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write(batch)


def read_table(path: Path) -> pa.Table:
    """Memory-map an Arrow stream.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as an Arrow stream ({error}); run `dvc repro` to make it") from error
