"""Expert scores on disk, each before the next is asked for: they are money."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ctd_guardrail.errors import DataError
from ctd_guardrail.experts.protocol import ExpertScore

__all__ = ["Journal"]

_Entry = tuple[str, str, float, int, int | None]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS scores (
    expert TEXT NOT NULL, conversation TEXT NOT NULL, p_unsafe REAL NOT NULL, attempts INTEGER NOT NULL, tokens INTEGER,
    PRIMARY KEY (expert, conversation)
) WITHOUT ROWID
"""


class Journal:
    """An SQLite file of scores, keyed by the expert's identity and the conversation's digest. It holds no text.

    Args:
        path: The file; created where it does not exist.
        expert: Identity of the expert.

    Raises:
        DataError: The file is not such a journal, or cannot be opened.
    """

    def __init__(self, path: Path, expert: str) -> None:
        self.path = path
        self._expert = expert
        self._pending: list[_Entry] = []
        self._turn = asyncio.Lock()
        try:
            # Commits run on worker threads, one at a time.
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._connection:
                self._connection.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise DataError(
                f"is not a readable journal of expert scores ({error})",
                file=path,
                hint="Restore it, or remove it to ask the expert again",
            ) from error

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._connection.close()

    def known(self, conversations: Iterable[str]) -> dict[str, float]:
        """Return the scores that are saved, of those digests that are asked for."""
        wanted = set(conversations)
        rows = self._connection.execute("SELECT conversation, p_unsafe FROM scores WHERE expert = ?", (self._expert,))
        return {digest: p_unsafe for digest, p_unsafe in rows if digest in wanted}

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk.

        Scores that arrive while another commit is under way share the next one.
        """
        self._pending.append((self._expert, conversation, score.p_unsafe, score.attempts, score.tokens))
        async with self._turn:
            # Whoever held the turn before may have taken this score along.
            if self._pending:
                batch, self._pending = self._pending, []
                await asyncio.to_thread(self._commit, batch)

    def _commit(self, batch: list[_Entry]) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", batch)
