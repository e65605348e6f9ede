"""The reviews and errors that the reader of each source format returns."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Columns:
    """Names of the keys or columns of a source that the pipeline reads."""

    text: str
    label: str
    id: str
    category: str
    header: tuple[str, ...] = ()  # Names of all columns, for tables without a header.

    def names(self) -> dict[str, str]:
        """Return the key or column for each field of `Records`."""
        return {"text": self.text, "label": self.label, "id": self.id, "category": self.category}


AIHUB = Columns(text="RawText", label="GeneralPolarity", id="Index", category="MainCategory")


@dataclass
class Records:
    """Consecutive reviews, with one list for each field.

    Numbers are stored as text; None stands for a value that is null or missing.
    """

    text: list[str] = field(default_factory=list)  # "" for a review without a text.
    label: list[str | None] = field(default_factory=list)
    has_label: list[bool] = field(default_factory=list)  # Whether the review has the key, even with the value null.
    id: list[str | None] = field(default_factory=list)
    category: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def __iadd__(self, others: "Records") -> "Records":
        for name, values in vars(self).items():
            values += vars(others)[name]
        return self

    def pop(self, count: int) -> "Records":
        """Remove and return the first `count` reviews."""
        first = Records(**{name: values[:count] for name, values in vars(self).items()})
        for values in vars(self).values():
            del values[:count]
        return first


@dataclass(frozen=True)
class ReadError:
    """An error in a file or in one of its records; it is returned, not raised, because reading goes on after it."""

    reason: Literal["unreadable", "not_json", "not_unicode", "wrong_type", "not_a_row"]
    place: str  # Place in the file: the record, the line and column, or the byte.
    detail: str
    of_record: bool  # Whether the error concerns one record, not the file as a whole.

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.detail)))


class ReadResult(NamedTuple):
    """The valid records and the errors of a file or of a part of it."""

    records: Records
    errors: list[ReadError]
