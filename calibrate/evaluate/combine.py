"""Several evaluations as one: means, and the standard errors that only repetition shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from calibrate.evaluate.significance import combine_tests
from calibrate.evaluate.study import Study
from calibrate.evaluate.table import Record, Table
from ctd_guardrail.errors import DataError

__all__ = ["combine_studies"]

_SETTINGS: Final = ("tau", "delta", "alpha")
_NUMBERS: Final = ("rows", "unsafe", "clusters", "calibration_rows")


def combine_studies(studies: Sequence[Study]) -> Study:
    """Return the mean of several evaluations, such as one for each seed.

    Every column ``x`` becomes its mean, every ``x_se`` the standard error of that mean, from the spread of ``x``
    between evaluations: the luck of training and calibration is in it. The other columns, interval ends among them,
    are plain means. Differences are tested anew, by paired t-tests. Single failures have no mean; they are left out.

    Args:
        studies: At least two, of one setting.

    Raises:
        DataError: There are fewer than two, or their alpha, delta or tau differ.
    """
    if len(studies) < 2:  # noqa: PLR2004 - a spread takes two
        raise DataError(f"a standard error takes at least two evaluations, not {len(studies)}")
    for name in _SETTINGS:
        if len({getattr(study, name) for study in studies}) > 1:
            raise DataError(f"evaluations of different {name} have no mean", hint="Combine those of one setting")
    tables: dict[str, Table] = {}
    for name in studies[0].tables:
        same = [study.tables[name] for study in studies]
        if name == "tests":
            tables[name] = combine_tests(same)
        elif name != "failures":
            tables[name] = _combine_tables(same)
    settings = {name: getattr(studies[0], name) for name in _SETTINGS}
    numbers = {name: float(np.mean([getattr(study, name) for study in studies])) for name in _NUMBERS}
    spearman = _mean([study.spearman for study in studies])
    return Study(**settings, **numbers, spearman=spearman, tables=tables, studies=len(studies))


def _combine_tables(tables: Sequence[Table]) -> Table:
    first = tables[0]
    found: dict[tuple[Any, ...], list[Record]] = {}
    for table in tables:
        for row in table.rows:
            found.setdefault(tuple(row[key] for key in first.keys), []).append(row)
    values = {
        name: f"standard error of {name.removesuffix('_se')}, over evaluations" if name.endswith("_se") else meaning
        for name, meaning in first.values.items()
    }
    rows = (
        dict(zip(first.keys, keys, strict=True)) | {name: _summary(name, rows) for name in values}
        for keys, rows in found.items()
    )
    return replace(first, values=values, rows=tuple(rows))


def _summary(column: str, rows: Sequence[Record]) -> float | None:
    """Return the mean of a column, or the error of the mean of the column that a ``_se`` belongs to."""
    if not column.endswith("_se"):
        return _mean([row[column] for row in rows])
    known = np.array([value for row in rows if (value := row[column.removesuffix("_se")]) is not None])
    return float(known.std(ddof=1) / math.sqrt(known.size)) if known.size > 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
