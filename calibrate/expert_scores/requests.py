"""The rows that an expert has to score, and their scores so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.expert_scores.refused import Limits, RefusedRow, allowed_rows, repeated, too_many
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import CtdError

__all__ = ["ExpertScores", "ScoreRequests"]


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """Expert scores of the rows.

    Attributes:
        p: P(unsafe), shape [rows]; NaN if the expert refused the row.
        asked: Number of conversations that this run asked about.
        tokens: Tokens billed for scores; None if the expert does not report them.
        asked_again: Number of those that were in flight when an earlier run was killed, and may be billed twice.
        refused: The rows without a score, ascending.
    """

    p: FloatArray
    asked: int = 0
    tokens: int | None = None
    asked_again: int = 0
    refused: tuple[RefusedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequests:
    """The rows to score, and the conversations that still need a request.

    Attributes:
        dataset: The rows.
        rows: Indices of the rows to score.
        digests: Digest of each row's conversation.
        first: The first row of each conversation.
        missing: The first row of each conversation that has neither a score nor a refusal.
        left_open: Conversations whose request was in flight when a run was killed.
        allowed: Number of rows that the expert may refuse.
    """

    dataset: Dataset
    rows: IntArray
    digests: Sequence[str]
    first: dict[str, int]
    missing: dict[str, int]
    left_open: set[str]
    allowed: int

    @classmethod
    def of(
        cls, dataset: Dataset, rows: IntArray, log: ScoreLog, *, max_refused_rows: float, ask_refused_again: bool
    ) -> ScoreRequests:
        """Return the requests of some rows.

        Raises:
            DataError: The expert has refused too many of them already.
        """
        digests = [dataset.conversations[row].digest() for row in rows]
        if ask_refused_again:
            log.forget_refusals(digests)
        settled = log.known(digests).keys() | log.refused(digests).keys()
        first: dict[str, int] = {}
        for digest, row in zip(digests, rows.tolist(), strict=True):
            first.setdefault(digest, row)
        missing = {digest: row for digest, row in first.items() if digest not in settled}
        allowed = allowed_rows(max_refused_rows, rows.size)
        requests = cls(dataset, rows, digests, first, missing, log.left_open(missing), allowed)
        requests.refused(log)
        return requests

    @property
    def settled(self) -> int:
        """Number of conversations that need no request."""
        return len(self.first) - len(self.missing)

    def limits(self, log: ScoreLog) -> Limits:
        """Return the number of rows that the expert may still refuse."""
        return Limits(self.allowed - len(self.refused(log)), repeated(self.digests))

    def refused(self, log: ScoreLog) -> tuple[RefusedRow, ...]:
        """Return the rows that the expert has refused, ascending.

        Raises:
            DataError: There are more of them than are allowed.
        """
        found = log.refused(self.digests)
        places = sorted(
            (row, digest) for row, digest in zip(self.rows.tolist(), self.digests, strict=True) if digest in found
        )
        refused = tuple(RefusedRow.of(self.dataset, row, found[digest]) for row, digest in places)
        if len(refused) > self.allowed:
            raise too_many(self.dataset, refused, allowed=self.allowed, rows=self.rows.size)
        return refused

    def scores(self, log: ScoreLog, tokens: int | None) -> ExpertScores:
        """Return the saved scores of all rows.

        Raises:
            DataError: The expert has refused too many rows.
        """
        refused = self.refused(log)
        scores = log.known(self.digests)
        p = np.array([scores.get(digest, np.nan) for digest in self.digests])
        return ExpertScores(p, len(self.missing), tokens, len(self.left_open), refused)

    def error(self, log: ScoreLog, error: CtdError) -> CtdError:
        """Return the error of a run that ends with a failure of the expert."""
        saved = len(log.known(self.digests))
        return type(error)(
            f"{error.problem}; {saved} of {len(self.first)} expert scores are saved in {log.path}",
            hint=f"{error.hint + '. ' if error.hint else ''}Run the command again to continue from there",
        )
