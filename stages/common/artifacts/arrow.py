"""Arrow tables between the stages: streams that `datasets.Dataset.from_file` opens, with the same bytes every time.

`datasets` itself is not imported: that takes a second, and its `save_to_disk` writes a fingerprint of paths and times.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from stages.common.artifacts.files import atomic_write
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing

FEATURES_KEY, PREPROCESSING_KEY = b"huggingface", b"preprocessing"  # in a schema's metadata
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow itself takes a file cut between two batches for a whole one


def _feature(field: pa.Field, class_names: Sequence[str]) -> dict[str, object]:
    if field.name == "labels":
        return {"names": list(class_names), "_type": "ClassLabel"}
    if pa.types.is_list(field.type):
        return {"feature": {"dtype": str(field.type.value_type), "_type": "Value"}, "_type": "List"}
    return {"dtype": str(field.type), "_type": "Value"}


def make_schema(fields: Mapping[str, pa.DataType], class_names: Sequence[str] = ()) -> pa.Schema:
    """An Arrow schema that carries the features of `datasets`; a field called `labels` is a ClassLabel."""
    schema = pa.schema(list(fields.items()))
    features = {"info": {"features": {field.name: _feature(field, class_names) for field in schema}}}
    return schema.with_metadata({FEATURES_KEY: json.dumps(features)})


def get_class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The classes of a schema by `make_schema`: the label of a row is an index into them."""
    return tuple(json.loads(schema.metadata[FEATURES_KEY])["info"]["features"]["labels"]["names"])


def with_preprocessing(schema: pa.Schema, preprocessing: Preprocessing) -> pa.Schema:
    """Add how the rows were made to the metadata; the splits inherit it, and training stores it with the weights."""
    return schema.with_metadata({**schema.metadata, PREPROCESSING_KEY: preprocessing.model_dump_json()})


def read_preprocessing(path: Path) -> Preprocessing:
    """Read how the rows of a tokenized table were made; a UserError says that the file is missing or damaged."""
    metadata = map_table(path).schema.metadata or {}
    if PREPROCESSING_KEY not in metadata:
        raise UserError(f"{path}: does not say how it was cleaned and tokenized; run `dvc repro` to make it")
    return Preprocessing.model_validate_json(metadata[PREPROCESSING_KEY])


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """Yield a writer of an Arrow stream, which replaces `path` when the block ends without an error."""
    with atomic_write(path) as temporary, pa.ipc.new_stream(str(temporary), schema) as writer:
        yield writer


def write_table(path: Path, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> None:
    """Write an Arrow stream with one batch in memory at a time; if making a batch fails, nothing is written."""
    with table_writer(path, schema) as writer:
        for batch in batches:
            writer.write(batch)


@contextmanager
def _report_unreadable(path: Path) -> Iterator[None]:
    try:
        with path.open("rb") as file:
            file.seek(-len(END_OF_STREAM), 2)  # from its end
            if file.read() != END_OF_STREAM:
                raise ValueError("its end is missing")
        yield
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as an Arrow stream ({error}); run `dvc repro` to make it") from error


def map_table(path: Path) -> pa.Table:
    """Memory-map an Arrow stream, whose values are not looked at; a UserError says that it is missing or cut off."""
    with _report_unreadable(path):
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the classes of a table; a UserError says that the file is missing or damaged."""
    with _report_unreadable(path):
        return get_class_names(map_table(path).schema)


def read_table(path: Path) -> pa.Table:
    """`map_table`, with all offsets and texts checked: reading past a wrong offset would kill the process."""
    with _report_unreadable(path):
        (table := map_table(path)).validate(full=True)
    return table


def read_batches(path: Path, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow stream, some columns or all, with one batch in memory at a time.

    The file is not memory-mapped: its pages would count as memory of this process. Errors are those of `read_table`.
    """
    with _report_unreadable(path), pa.OSFile(str(path)) as file:
        names = pa.ipc.open_stream(file).schema.names
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(map(names.index, columns)))
        for batch in pa.ipc.open_stream(file, options=options):
            batch.validate(full=True)
            yield batch
