"""Reading and writing the Arrow tables that stages exchange.

`datasets.Dataset.from_file` opens these files. They are not written by `datasets`, because its `save_to_disk` stores a
fingerprint of paths and times, so that equal data would have different hashes; importing it also takes a second.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from stages.common.artifacts.files import atomic_write
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing

FEATURES_KEY, PREPROCESSING_KEY = b"huggingface", b"preprocessing"  # Keys of the metadata of a schema.
# Arrow accepts a file that was cut off between two batches, so its last bytes are checked.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def _feature(field: pa.Field, class_names: Sequence[str]) -> dict[str, object]:
    if field.name == "labels":
        return {"names": list(class_names), "_type": "ClassLabel"}
    if pa.types.is_list(field.type):
        return {"feature": {"dtype": str(field.type.value_type), "_type": "Value"}, "_type": "List"}
    return {"dtype": str(field.type), "_type": "Value"}


def make_schema(fields: Mapping[str, pa.DataType], class_names: Sequence[str] = ()) -> pa.Schema:
    """Make an Arrow schema with the features that `datasets` reads; the field `labels` becomes a ClassLabel."""
    schema = pa.schema(list(fields.items()))
    features = {"info": {"features": {field.name: _feature(field, class_names) for field in schema}}}
    return schema.with_metadata({FEATURES_KEY: json.dumps(features)})


def get_class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Return the class names in a schema made by `make_schema`; the label of a row is an index into them."""
    return tuple(json.loads(schema.metadata[FEATURES_KEY])["info"]["features"]["labels"]["names"])


def with_preprocessing(schema: pa.Schema, preprocessing: Preprocessing) -> pa.Schema:
    """Add the parameters that cleaned and tokenized the rows to the metadata; training stores them with the weights."""
    return schema.with_metadata({**schema.metadata, PREPROCESSING_KEY: preprocessing.model_dump_json()})


def read_preprocessing(path: Path) -> Preprocessing:
    """Read the parameters that cleaned and tokenized the rows of a table.

    Raises:
        UserError: The file is missing, damaged or not a tokenized table.
    """
    metadata = map_table(path).schema.metadata or {}
    if PREPROCESSING_KEY not in metadata:
        raise UserError(f"{path}: does not say how its texts were cleaned and tokenized; run `dvc repro` to make it")
    return Preprocessing.model_validate_json(metadata[PREPROCESSING_KEY])


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """Yield a writer of an Arrow stream; the stream replaces `path` when the block ends without an error."""
    with atomic_write(path) as temporary, pa.ipc.new_stream(str(temporary), schema) as writer:
        yield writer


def write_table(path: Path, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> None:
    """Write an Arrow stream with one batch in memory at a time; nothing is written if `batches` raises an error."""
    with table_writer(path, schema) as writer:
        for batch in batches:
            writer.write(batch)


@contextmanager
def _report_unreadable(path: Path) -> Iterator[None]:
    try:
        with path.open("rb") as file:
            file.seek(-len(END_OF_STREAM), os.SEEK_END)
            if file.read() != END_OF_STREAM:
                raise ValueError("the end of the file is missing")
        yield
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as an Arrow stream ({error}); run `dvc repro` to make it") from error


def map_table(path: Path) -> pa.Table:
    """Memory-map an Arrow stream without checking its values.

    Raises:
        UserError: The file is missing, cut off or not an Arrow stream.
    """
    with _report_unreadable(path):
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the class names of a table.

    Raises:
        UserError: The file is missing or damaged.
    """
    with _report_unreadable(path):
        return get_class_names(map_table(path).schema)


def read_table(path: Path) -> pa.Table:
    """Memory-map an Arrow stream and check all its values; reading past a wrong offset would kill the process."""
    with _report_unreadable(path):
        (table := map_table(path)).validate(full=True)
    return table


def read_batches(path: Path, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Yield the checked batches of an Arrow stream, with one batch in memory at a time.

    The file is not memory-mapped, because its pages would count as memory of this process.

    Args:
        columns: The columns to read, or none to read all of them.

    Raises:
        UserError: The file is missing or damaged.
    """
    with _report_unreadable(path), pa.OSFile(str(path)) as file:
        names = pa.ipc.open_stream(file).schema.names
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(map(names.index, columns)))
        for batch in pa.ipc.open_stream(file, options=options):
            batch.validate(full=True)
            yield batch
