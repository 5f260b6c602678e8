"""Monitors that outlive the process."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.monitors import Monitors, MonitorSettings
from ctd_guardrail.monitors.state import fingerprint, pack_scores, read_state, unpack_scores, write_state
from ctd_guardrail.monitors.write_ahead import WriteAheadLog
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.runtime.files import write_whole

__all__ = ["KeptMonitors"]

log = logging.getLogger(__name__)

# A save writes some hundred kB in milliseconds, parallel to the requests. It need not be frequent: the log holds what
# came after it.
_SAVE_EVERY_S: Final = 30.0
_SAVE: Final = "save"
_KEY: Final = "key"


class KeptMonitors:
    """Keeps monitors and their recent scores in a folder, and logs each alarm.

    Three files: ``monitors-KEY.json``, the state; ``monitors-KEY.wal``, the updates since it was saved; and
    ``scores-KEY.csv``, which ``ctd-calibrate recalibrate`` reads. KEY is a hash of settings and calibration scores:
    after a change of either, new monitors start. If the state is removed while the process runs, new monitors start at
    the next save.

    Each update is written to the log before it is made, and all random numbers follow from the saved state. After a
    kill, the next process therefore computes the same numbers. Without the log, a crash would take back the evidence
    since the last save and draw new random numbers: alarms would no longer keep their delta.

    All methods but the constructor belong to one thread at a time; the object locks itself.

    Args:
        settings: The settings of the monitors.
        scores: Delegation values of the calibration turns.
        folder: The folder of the files; None: no files. If another process writes them, this one logs a warning and
            writes none.
        save_every_s: Seconds between saves.
        clock: A monotonic clock, in seconds.

    Attributes:
        monitors: The monitors.
        conversation_key: The key of the hashes that name conversations. It is saved, so that the next process goes on
            with the open ones.
        state_file: The file of their state, or None.
        scores_file: The file of the recent scores, or None.

    Raises:
        ConfigError: A setting lies outside its range.
        DataError: No calibration turn is readable.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        scores: TurnScores,
        *,
        folder: Path | None = None,
        save_every_s: float = _SAVE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._scores = scores
        key = _key(settings, scores)
        self.state_file = None if folder is None else folder / f"monitors-{key}.json"
        self.scores_file = None if folder is None else folder / f"scores-{key}.csv"
        self._ahead = None if folder is None else WriteAheadLog(folder / f"monitors-{key}.wal")
        self._save_every_s = save_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._writer: FileLock | None = None
        if folder is not None:
            self._writer = FileLock(folder / f"monitors-{key}.lock", blocking=False, thread_local=False)
            self._release = weakref.finalize(self, self._writer.release, force=True)
        self.conversation_key = b""
        self._said: set[str] = set()
        self._save = ""  # the name of the save that the log follows; empty: this process writes no log
        self._known = ""  # the name of the save that these monitors continue
        self._repeated = 0  # the updates after it that they have repeated from the log
        self._has_tried = False
        self._has_changed = False
        self.monitors = self._read() or Monitors(settings, scores)
        self._inherited = self.monitors.rates.requests
        self._say_alarms()
        self._saved_at = clock()

    def update(self, request: Request) -> None:
        """Take one request; see :meth:`Monitors.update`."""
        self._take("request", *request._replace(scores=pack_scores(request.scores)))  # type: ignore[arg-type]

    def unaudited(self) -> None:
        """Take one input that the audit's coin did not select."""
        if self._settings.audit_share:
            self._take("unaudited")

    def audited(self, *, missed: bool) -> None:
        """Take the outcome of an audit; see :meth:`Monitors.audited`."""
        if self._settings.audit_share:
            self._take("audited", missed)

    def tick(self, *, is_last: bool = False) -> None:
        """Save if it is due."""
        if is_last or self._clock() - self._saved_at >= self._save_every_s:
            self.save()

    def save(self) -> None:
        """Save now, if anything has changed."""
        with self._lock:
            self._save_now()

    def close(self) -> None:
        """Save, and let another process write the folder."""
        self.save()
        if self._writer is not None:
            self._save = ""
            self._release()

    def _take(self, kind: str, *values: Any) -> None:
        with self._lock:
            update = [kind, *values]
            self._write_ahead(update)
            self._has_changed = True
            _apply(self.monitors, update)
            self._say_alarms()

    def _write_ahead(self, update: list[Any]) -> None:
        if self._ahead is None:
            return
        if not self._has_tried:
            # The log continues a saved state, which holds the random numbers.
            self._has_tried = True
            self._has_changed = True
            self._save_now()
        if not self._save:
            return
        try:
            self._ahead.append(self._save, update)
        except OSError as error:
            self._save = ""  # a log with a gap is worth nothing; the next save starts it again
            self._say_unsaved(error)

    def _save_now(self) -> None:
        if self.state_file is None or self.scores_file is None or self._ahead is None:
            return
        self._saved_at = self._clock()
        if not self._may_write():
            return
        if self._save and not self.state_file.exists():
            log.warning("%s was removed: new monitors start", self.state_file)
            self.monitors = Monitors(self._settings, self._scores)
            self._said.clear()
            self._has_changed = True
        if not self._has_changed:
            return
        save = secrets.token_hex(8)
        try:
            write_whole(self.scores_file, self.monitors.recent.csv())
            write_state(self.state_file, {_SAVE: save, _KEY: self.conversation_key.hex()} | self.monitors.state())
            # From here on the log follows this state, also if its old lines cannot be removed: they name another one.
            self._save = self._known = save
            self._repeated = 0
            self._has_changed = False
            self._ahead.clear()
        except OSError as error:
            self._say_unsaved(error)

    def _may_write(self) -> bool:
        if self._writer is None or self._writer.is_locked:
            return True
        try:
            Path(self._writer.lock_file).parent.mkdir(parents=True, exist_ok=True)
            self._writer.acquire()
        except Timeout:
            if "writer" not in self._said:
                self._said.add("writer")
                log.warning(
                    "another process writes %s: these monitors are not saved as long as it does", self.state_file
                )
            return False
        except OSError as error:
            self._say_unsaved(error)
            return False
        self._continue_from_other()
        return True

    def _continue_from_other(self) -> None:
        """Continue from the state that another process has saved since this one read it."""
        key, seen = self.conversation_key, self._known
        try:
            state = None if self.state_file is None else read_state(self.state_file)
        except (DataError, OSError):
            return
        if state is None or self._ahead is None:
            return
        try:
            has_more = len(self._ahead.read(seen)) > self._repeated  # of a process that was killed before it saved
        except OSError:
            return
        if state.get(_SAVE, "") == seen and not has_more:
            return
        newer = self._read()
        # The names of conversations are under the key of this process's memory.
        self.conversation_key = key
        if newer is not None:
            log.warning(
                "another process has saved %s since these monitors began: they continue from its state, without the %d "
                "requests of this process so far",
                self.state_file,
                self.monitors.rates.requests - self._inherited,
            )
            self.monitors, self._inherited = newer, newer.rates.requests
            self._said.clear()
            self._say_alarms()

    def _read(self) -> Monitors | None:
        if self.state_file is None or self._ahead is None:
            return None
        try:
            state = read_state(self.state_file)
            if state is None:
                return None
            save, key = str(state.pop(_SAVE, "")), str(state.pop(_KEY, ""))
            monitors = Monitors.from_state(state, self._settings, self._scores)
            self.conversation_key = bytes.fromhex(key)
            updates = self._ahead.read(save)
            self._known, self._repeated = save, len(updates)
            for update in updates:
                _apply(monitors, update)
        except (DataError, OSError, ValueError) as error:
            log.error("new monitors start, and their earlier inputs are lost: %s", error)  # noqa: TRY400  # complete
            return None
        log.info("the monitors continue after %d requests", monitors.rates.requests)
        return monitors

    def _say_unsaved(self, error: OSError) -> None:
        log.error("the monitors' state could not be saved to %s: %s", self.state_file, error.strerror)

    def _say_alarms(self) -> None:
        for name, raised_at in self.monitors.alarms().items():
            if raised_at is not None and name not in self._said:
                self._said.add(name)
                log.warning("alarm %s: raised at conversation %d since the monitors began", name, raised_at)


def _apply(monitors: Monitors, update: list[Any]) -> None:
    """Make an update, from its form in the log.

    Raises:
        DataError: It is none.
    """
    match update:
        case ["request", str(), str(), list(), int(), bool(), int() | float(), int(), bool()]:
            request = Request(*update[1:])
            monitors.update(request._replace(scores=unpack_scores(request.scores)))
        case ["unaudited"]:
            monitors.unaudited()
        case ["audited", bool(missed)]:
            monitors.audited(missed=missed)
        case _:
            raise DataError("the log of the monitors holds an unknown update", hint="Remove it: new monitors start")


def _key(settings: MonitorSettings, scores: TurnScores) -> str:
    numbers = 0 if scores.conversation is None else fingerprint(scores.conversation)
    identity = {**asdict(settings), "scores": fingerprint(scores.d), "conversations": numbers}
    del identity["keep_scores"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
