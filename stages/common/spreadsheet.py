"""CSV files that people open in a spreadsheet."""

import csv
from pathlib import Path

import pandas as pd

from stages.common.artifacts.files import atomic_write


def write_spreadsheet(path: Path, frame: pd.DataFrame) -> None:
    """Write CSV with a byte order mark, which Excel needs for UTF-8, and a `'` before cells that are like formulas."""
    frame = frame.replace(r"^([=+\-@\t\r])", r"'\1", regex=True)
    with atomic_write(path) as temporary:
        options = {"index": False, "encoding": "utf-8-sig", "lineterminator": "\n", "float_format": "%.3f"}
        frame.to_csv(temporary, quoting=csv.QUOTE_ALL, **options)
