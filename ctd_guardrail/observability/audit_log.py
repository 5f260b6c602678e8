"""The audit log: one JSON object in each line, without a word of the conversation."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final

from pydantic import SecretBytes

from ctd_guardrail.decision import Decision, Verdict
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.observability.events import Decided, Event, Origin

__all__ = ["AuditLog"]

log = logging.getLogger(__name__)

_DIGEST_CHARACTERS: Final = 32
_SCALE: Final = 1 << 53


class AuditLog:
    """Writes decisions to a file: every block and every failure, and a random share of the rest.

    A line holds the conversation as a hash keyed by a secret. With the secret, the lines about a text can be found.
    Without it, texts cannot be tried out. The host rotates the file: a moved or removed file is opened again. On
    Windows, where open files cannot be moved, the host copies and truncates it.

    Args:
        file: The file; its folder is made.
        key: The secret.
        sample: Share of the other decisions that is written, in [0, 1].
        scores: Whether p, d and the expert's score are written.
        labels: Names of guard and policy, for each line.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(
        self, file: Path, *, key: SecretBytes, sample: float = 0.01, scores: bool = False, labels: Mapping[str, str]
    ) -> None:
        self._key = key
        self._sample = sample
        self._scores = scores
        self._labels = dict(labels)
        self._file = _File(file)
        self.close = weakref.finalize(self, self._file.close)

    @property
    def written(self) -> int:
        """Number of lines that were written."""
        return self._file.written

    @property
    def lost(self) -> int:
        """Number of lines that could not be written."""
        return self._file.lost

    def __call__(self, event: Event) -> None:
        """Write a decision if its line is due. The inputs of a self-test are not written."""
        if not isinstance(event, Decided) or event.origin is Origin.SELF_TEST:
            return
        decision = event.decision
        always = decision.verdict is Verdict.BLOCK or decision.reason.is_failure
        if always or secrets.randbelow(_SCALE) < self._sample * _SCALE:
            line = self._line(event, share=1.0 if always else self._sample)
            self._file.handle(logging.makeLogRecord({"msg": json.dumps(line, allow_nan=False)}))

    def _line(self, event: Decided, *, share: float) -> dict[str, Any]:
        decision = event.decision
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
            "request": event.request_id,
            "unit": None if event.unit is None else self._hash(event.unit),
            "verdict": decision.verdict,
            "route": decision.route,
            "reason": decision.reason,
            "mode": decision.mode,
            "failed": decision.reason.is_failure,
            **self._labels,
            "share": share,
            "ms": _milliseconds(decision),
        }
        if self._scores:
            line["scores"] = {"p": decision.p, "d": decision.d, "p_expert": decision.p_expert}
        return line

    def _hash(self, unit: str) -> str:
        return hmac.digest(self._key.get_secret_value(), unit.encode(), hashlib.sha256).hex()[:_DIGEST_CHARACTERS]


class _File(WatchedFileHandler):
    """Counts the lines that could not be written, and prints no traceback."""

    def __init__(self, file: Path) -> None:
        self.written = self.lost = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(file, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{file} cannot be written ({error.strerror})", key="audit_log.path", hint="Check folder and rights"
            ) from error

    def emit(self, record: logging.LogRecord) -> None:
        lost = self.lost
        try:
            super().emit(record)
        except OSError:  # the file was moved, and cannot be opened again
            self.handleError(record)
        self.written += self.lost == lost

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # the library's signature
        if not self.lost:
            log.error("the audit log cannot be written to %s, logged once", self.baseFilename)
        self.lost += 1


def _milliseconds(decision: Decision) -> dict[str, float]:
    timings = decision.timings
    return {
        "total": round(timings.total_ms, 3),
        "queue": round(timings.queue_ms, 3),
        "forward": round(timings.forward_ms, 3),
        "probe": round(timings.probe_ms, 3),
        "expert": round(timings.expert_ms, 3),
    }
