"""Columns of scores in CSV files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError

__all__ = ["read_column"]


def read_column(path: Path, column: str) -> FloatArray:
    """Read one column of numbers from a CSV file whose first line names its columns.

    Args:
        path: The file, UTF-8.
        column: Name of the column.

    Returns:
        The numbers, shape [rows]. Blank lines are skipped.

    Raises:
        DataError: The file cannot be read, has no such column or no row, or a row has no finite number in it. The
            message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            if column not in header:
                raise DataError(
                    f"there is no column {column!r}",
                    file=path,
                    row=1,
                    hint=f"Name one of: {', '.join(header)}" if header else "The first line names the columns",
                )
            index = header.index(column)
            values = [_number(fields, index, path, lines.line_num) for fields in lines if fields]
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path, hint="Name a readable CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("is not a CSV file in UTF-8", file=path, hint="Save the file as CSV in UTF-8") from error
    if not values:
        raise DataError("has no rows", file=path, hint="A budget needs calibration rows")
    return np.array(values)


def _number(fields: list[str], index: int, path: Path, line: int) -> float:
    if index >= len(fields):
        raise DataError(
            f"has {len(fields)} fields, but the column of the scores is number {index + 1}",
            file=path,
            row=line,
            hint="Give every line as many fields as the first",
        )
    try:
        value = float(fields[index])
    except ValueError:
        # The value is not quoted: a wrong column may contain users' text.
        raise DataError(
            "the score is not a number", file=path, row=line, hint="Name the column that holds the scores"
        ) from None
    if not math.isfinite(value):
        raise DataError(f"the score is {value}", file=path, row=line, hint="Scores must be finite numbers")
    return value
