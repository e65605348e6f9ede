"""Arrow tables between the stages: the stream that `datasets.Dataset.from_file` opens, the same bytes every time.

`datasets` itself is not imported: it takes a second, and its `save_to_disk` writes fingerprints of paths and times.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """A writer of an Arrow stream; if the block fails, nothing is written."""
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        yield writer


def write_table(path: Path, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> None:
    """Write an Arrow stream batch by batch, so that memory holds one; if one of them fails, nothing is written."""
    with table_writer(path, schema) as writer:
        for batch in batches:
            writer.write(batch)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as an Arrow stream ({error}); run `dvc repro` to make it") from error


def read_table(path: Path) -> pa.Table:
    """Memory-map an Arrow stream.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _readable(path):
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def read_batches(path: Path, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream, some columns or all, memory holding one: mapped pages would count as ours.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _readable(path), pa.OSFile(str(path)) as file:
        names = pa.ipc.open_stream(file).schema.names
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(map(names.index, columns)))
        yield from pa.ipc.open_stream(file, options=options)
