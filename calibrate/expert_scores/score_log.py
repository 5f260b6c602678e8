"""Score log: expert scores, refusals and open requests in an SQLite file.

A request is logged before it is sent, and deleted when its score is saved. So a saved score is never requested again.
After a kill, the log shows the requests that were in flight. Only those may be billed twice; to avoid that, the
endpoint would have to recognise a repeated request. A refusal is saved like a score, with its reason.

One process writes to the log: the run itself, or one actor on a cluster.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ctd_guardrail.errors import DataError
from ctd_guardrail.experts.protocol import ExpertScore

__all__ = ["Refusal", "ScoreLog"]

_Statement = tuple[str, tuple[str | float | None, ...]]

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS scores (
    expert TEXT NOT NULL, conversation TEXT NOT NULL, p_unsafe REAL NOT NULL, attempts INTEGER NOT NULL, tokens INTEGER,
    PRIMARY KEY (expert, conversation)
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS open_questions (
    expert TEXT NOT NULL, conversation TEXT NOT NULL, PRIMARY KEY (expert, conversation)
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS refusals (
    expert TEXT NOT NULL, conversation TEXT NOT NULL, problem TEXT NOT NULL, hint TEXT NOT NULL,
    PRIMARY KEY (expert, conversation)
) WITHOUT ROWID""",
)
_OPEN: Final = "INSERT OR IGNORE INTO open_questions VALUES (?, ?)"
_CLOSE: Final = "DELETE FROM open_questions WHERE expert = ? AND conversation = ?"
_SAVE: Final = "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)"
_REFUSE: Final = "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM refusals WHERE expert = ? AND conversation = ?"
_SETTLED: Final = tuple(
    f"SELECT 1 FROM {table} WHERE expert = ? AND conversation = ?"  # noqa: S608  # the two tables above
    for table in ("scores", "refusals")
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason why an expert gives no score for one conversation.

    Attributes:
        problem: Message of the expert's error. Like every error, it holds no text of the conversation.
        hint: Advice for the user.
    """

    problem: str
    hint: str = ""


class ScoreLog:
    """An SQLite file of scores, keyed by the expert's identity and the conversation's digest. It holds no text.

    Args:
        path: The file; created if it does not exist.
        expert: Identity of the expert.

    Raises:
        DataError: The file is not a score log, or cannot be opened.
    """

    def __init__(self, path: Path, expert: str) -> None:
        self.path = path
        self._expert = expert
        self._pending: list[_Statement] = []
        self._turn = asyncio.Lock()
        try:
            # Commits run on worker threads, one at a time.
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._connection:
                for table in _SCHEMA:
                    self._connection.execute(table)
        except sqlite3.Error as error:
            raise DataError(
                f"is not a readable score log ({error})",
                file=path,
                hint="Restore it, or remove it to ask the expert again",
            ) from error

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._connection.close()

    def known(self, conversations: Iterable[str]) -> dict[str, float]:
        """Return the saved scores of these digests."""
        wanted = set(conversations)
        rows = self._connection.execute("SELECT conversation, p_unsafe FROM scores WHERE expert = ?", (self._expert,))
        return {digest: p_unsafe for digest, p_unsafe in rows if digest in wanted}

    def refused(self, conversations: Iterable[str]) -> dict[str, Refusal]:
        """Return the saved refusals of these digests."""
        wanted = set(conversations)
        query = "SELECT conversation, problem, hint FROM refusals WHERE expert = ?"
        rows = self._connection.execute(query, (self._expert,))
        return {digest: Refusal(problem, hint) for digest, problem, hint in rows if digest in wanted}

    def forget_refusals(self, conversations: Iterable[str]) -> None:
        """Delete the refusals of these conversations, so that they are asked about again."""
        with self._connection:
            self._connection.executemany(_FORGET, [(self._expert, digest) for digest in conversations])

    def left_open(self, conversations: Iterable[str]) -> set[str]:
        """Return the conversations whose requests were in flight when a run was killed."""
        rows = self._connection.execute("SELECT conversation FROM open_questions WHERE expert = ?", (self._expert,))
        return {digest for (digest,) in rows}.intersection(conversations)

    async def claim(self, conversation: str) -> bool:
        """Log a request on the disk before it is sent, and return whether to send it.

        It is not sent if its score or its refusal is saved already.
        """
        key = (self._expert, conversation)
        if any(self._connection.execute(query, key).fetchone() is not None for query in _SETTLED):
            return False
        await self._write((_OPEN, (self._expert, conversation)))
        return True

    async def release(self, conversation: str) -> None:
        """Delete a request that the expert failed to answer."""
        await self._write((_CLOSE, (self._expert, conversation)))

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk, and its request deleted."""
        entry = (self._expert, conversation, score.p_unsafe, score.attempts, score.tokens)
        await self._write((_SAVE, entry), (_CLOSE, (self._expert, conversation)))

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        """Return when the refusal is on the disk, and its request deleted."""
        entry = (self._expert, conversation, refusal.problem, refusal.hint)
        await self._write((_REFUSE, entry), (_CLOSE, (self._expert, conversation)))

    async def _write(self, *statements: _Statement) -> None:
        """Return when the statements are committed. Statements that arrive during a commit share the next one."""
        self._pending += statements
        async with self._turn:
            # The task before may have committed these statements too.
            if self._pending:
                batch, self._pending = self._pending, []
                await asyncio.to_thread(self._commit, batch)

    def _commit(self, batch: list[_Statement]) -> None:
        with self._connection:
            for statement, values in batch:
                self._connection.execute(statement, values)
