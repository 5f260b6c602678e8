"""Saved states of the monitors: plain dictionaries in JSON files, checked when they are read."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.runtime.files import write_whole

__all__ = ["EXPERT", "SavedState", "State", "fingerprint", "pack_scores", "read_state", "unpack_scores", "write_state"]

State = dict[str, Any]

EXPERT: Final = "expert"
"""Stands for the score of a turn that the base model could not read and that went to the expert, +inf."""


def pack_scores(scores: Iterable[float]) -> list[float | str]:
    """Return scores as JSON values, with a word in place of +inf."""
    return [EXPERT if d == math.inf else d for d in scores]


def unpack_scores(values: Iterable[Any]) -> tuple[float, ...]:
    """Return the scores that :func:`pack_scores` packed.

    Raises:
        DataError: A value is no score.
    """
    scores = [math.inf if value == EXPERT else value for value in values]
    for d in scores:
        if isinstance(d, bool) or not isinstance(d, int | float) or not d > -math.inf:
            raise DataError(f"saved scores hold {d!r}, which is no score", hint="Start a new monitor")
    return tuple(map(float, scores))


def fingerprint(scores: FloatArray | IntArray) -> int:
    """Return a checksum that tells the calibration scores of one policy from those of another."""
    return zlib.crc32(scores.tobytes())


class SavedState:
    """Reads the fields of a saved state, each as the type that its monitor needs.

    Args:
        state: What ``state()`` returned.
        monitor: Name of the monitor, for the error message.
        fields: The names that the state must have, no more and no fewer.

    Raises:
        DataError: A field is missing or unknown. The readers raise it for a value that cannot be.
    """

    def __init__(self, state: Mapping[str, Any], monitor: str, fields: tuple[str, ...]) -> None:
        self._state = state
        self._monitor = monitor
        for name in fields:
            if name not in state:
                raise self._error(f"lacks the field {name!r}")
        for name in state:
            if name not in fields:
                raise self._error(f"has the unknown field {name!r}")

    def integer(self, name: str, *, minimum: int = 0) -> int:
        """Return a whole number of at least ``minimum``."""
        value = self._state[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._error(f"has {value!r} for {name!r}, not a whole number of at least {minimum}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Return a whole number of at least 1, or None."""
        return None if self._state[name] is None else self.integer(name, minimum=1)

    def number(self, name: str) -> float:
        """Return a finite number of at least 0."""
        value = self._state[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
            raise self._error(f"has {value!r} for {name!r}, not a finite number of at least 0")
        return float(value)

    def share(self, name: str) -> float:
        """Return a number in (0, 1)."""
        value = self.number(name)
        if not 0.0 < value < 1.0:
            raise self._error(f"has {value!r} for {name!r}, not a number between 0 and 1")
        return value

    def numbers(self, name: str, shape: tuple[int, ...] | None = None) -> FloatArray:
        """Return an array of finite numbers, of the given shape or else one column."""
        try:
            values = np.array(self._state[name], dtype=np.float64)
        except (TypeError, ValueError):
            raise self._error(f"has something else than numbers in {name!r}") from None
        if not np.isfinite(values).all() or (values.ndim != 1 if shape is None else values.shape != shape):
            raise self._error(f"has numbers of the wrong shape, or not finite, in {name!r}")
        return values

    def text(self, name: str) -> str:
        """Return a text."""
        value = self._state[name]
        if not isinstance(value, str):
            raise self._error(f"has {value!r} for {name!r}, not a text")
        return value

    def scores(self, name: str) -> tuple[float, ...]:
        """Return delegation values that :func:`pack_scores` packed."""
        values = self._state[name]
        if not isinstance(values, list):
            raise self._error(f"has no list in {name!r}")
        return unpack_scores(values)

    def lists(self, name: str) -> list[list[Any]]:
        """Return a list of lists with at least one item each."""
        rows = self._state[name]
        if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
            raise self._error(f"has no list of rows in {name!r}")
        return rows

    def states(self, name: str) -> list[Mapping[str, Any]]:
        """Return a list of saved states."""
        rows = self._state[name]
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise self._error(f"has no list of states in {name!r}")
        return rows

    def counts(self, name: str, columns: int) -> list[list[int]]:
        """Return rows of whole numbers of at least 0."""
        rows = self.lists(name)
        for row in rows:
            if len(row) != columns or any(type(value) is not int or value < 0 for value in row):
                raise self._error(f"has {row!r} in {name!r}, not {columns} whole numbers of at least 0")
        return rows

    def check_scores(self, name: str, expected: int) -> None:
        """Refuse a state that was saved beside other calibration scores than those with this fingerprint."""
        if self._state[name] != expected:
            raise self._error("was saved beside other calibration scores")

    def nested(self, name: str) -> Mapping[str, Any]:
        """Return the saved state of a part."""
        value = self._state[name]
        if not isinstance(value, Mapping):
            raise self._error(f"has no state in {name!r}")
        return value

    def _error(self, problem: str) -> DataError:
        return DataError(f"saved state of the {self._monitor} {problem}", hint="Start a new monitor")


def write_state(file: Path, state: State) -> None:
    """Write a monitor's state; see :func:`write_whole`."""
    write_whole(file, json.dumps(state, allow_nan=False))


def read_state(file: Path) -> State | None:
    """Return a monitor's state, or None if there is no file.

    Raises:
        DataError: The file is not a state.
        OSError: It cannot be read.
    """
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError("is not JSON", file=file, hint="Remove it: the monitors then start again") from error
    if not isinstance(state, dict):
        raise DataError("is not a JSON object", file=file, hint="Remove it: the monitors then start again")
    return state
