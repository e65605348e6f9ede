"""Reviews as every source format gives them, and the errors that reading can find."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Columns:
    """The names that a source has for what the pipeline reads: keys of JSON objects, or columns of a table."""

    text: str
    label: str
    id: str
    category: str
    header: tuple[str, ...] = ()  # the names of all columns, for tables whose rows do not name them

    def names(self) -> dict[str, str]:
        """The name of each field of `Records`."""
        return {"text": self.text, "label": self.label, "id": self.id, "category": self.category}


AIHUB = Columns(text="RawText", label="GeneralPolarity", id="Index", category="MainCategory")


@dataclass
class Records:
    """Consecutive reviews, a list for each column; numbers as text, None where a value is null or missing."""

    text: list[str] = field(default_factory=list)  # "" where there is none
    label: list[str | None] = field(default_factory=list)
    has_label: list[bool] = field(default_factory=list)  # whether there is such a key at all
    id: list[str | None] = field(default_factory=list)
    category: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def __iadd__(self, others: "Records") -> "Records":
        for name, values in vars(self).items():
            values += vars(others)[name]
        return self

    def pop(self, count: int) -> "Records":
        """Remove the first reviews and return them."""
        first = Records(**{name: values[:count] for name, values in vars(self).items()})
        for values in vars(self).values():
            del values[:count]
        return first


@dataclass(frozen=True)
class ReadError:
    """An error in a file, or in one record of it: returned, not raised, since reading goes on after it."""

    reason: Literal["unreadable", "not_json", "not_unicode", "wrong_type", "not_a_row"]
    place: str  # in the file: record, line and column, or byte
    detail: str
    of_record: bool  # False: the error concerns the file as a whole

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.detail)))


class ReadResult(NamedTuple):
    """The valid records of a file, or of a part of it, and the errors found there."""

    records: Records
    errors: list[ReadError]
