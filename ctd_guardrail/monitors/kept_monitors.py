"""Monitors that outlive the process."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.monitors import Monitors, MonitorSettings
from ctd_guardrail.monitors.state import fingerprint, read_state, write_state
from ctd_guardrail.policy.budget import sort_scores
from ctd_guardrail.runtime.files import write_whole

__all__ = ["KeptMonitors"]

log = logging.getLogger(__name__)

# A killed process loses at most this much. A save writes about 200 kB in milliseconds, parallel to the requests.
_SAVE_EVERY_S: Final = 5.0


class KeptMonitors:
    """Keeps monitors and their recent scores in a folder, and logs each alarm.

    Two files, each replaced as a whole: ``monitors-KEY.json`` and ``scores-KEY.csv``, which ``ctd-calibrate
    recalibrate`` reads. KEY is a hash of settings and calibration scores: after a change of either, new monitors start.
    If the state is removed while the process runs, new monitors start at the next save. A killed process loses the
    inputs since the last save, and nothing else.

    All methods but the constructor belong to one thread at a time; the object locks itself.

    Args:
        settings: The settings of the monitors.
        scores: Delegation values of the calibration inputs, shape [n].
        folder: The folder of the files; None: no files. If another process writes them, this one logs a warning and
            writes none.
        save_every_s: Seconds between saves.
        clock: A monotonic clock, in seconds.

    Attributes:
        monitors: The monitors.
        state_file: The file of their state, or None.
        scores_file: The file of the recent scores, or None.

    Raises:
        ConfigError: A setting lies outside its range.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        scores: FloatArray,
        *,
        folder: Path | None = None,
        save_every_s: float = _SAVE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._scores = sort_scores(scores)
        key = _key(settings, self._scores)
        self.state_file = None if folder is None else folder / f"monitors-{key}.json"
        self.scores_file = None if folder is None else folder / f"scores-{key}.csv"
        self._save_every_s = save_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._writer: FileLock | None = None
        if folder is not None:
            self._writer = FileLock(folder / f"monitors-{key}.lock", blocking=False, thread_local=False)
            self._release = weakref.finalize(self, self._writer.release, force=True)
        self._has_said_that_another_writes = False
        self._said: set[str] = set()
        self._is_saved = False
        self._has_changed = False
        self.monitors = self._read() or Monitors(settings, self._scores)
        self._say_alarms()
        self._saved_at = clock()

    def update(self, d: float, *, delegated: bool | None, audited: bool = False) -> None:
        """Take one input; see :meth:`Monitors.update`."""
        with self._lock:
            self.monitors.update(d, delegated=delegated, audited=audited)
            self._has_changed = True
            self._say_alarms()

    def audited(self, *, missed: bool) -> None:
        """Take the outcome of an audit; see :meth:`Monitors.audited`."""
        with self._lock:
            self.monitors.audited(missed=missed)
            self._has_changed = True

    def tick(self, *, is_last: bool = False) -> None:
        """Save if it is due."""
        if is_last or self._clock() - self._saved_at >= self._save_every_s:
            self.save()

    def save(self) -> None:
        """Save now, if anything has changed."""
        if self.state_file is None or self.scores_file is None:
            return
        with self._lock:
            self._saved_at = self._clock()
            if not self._may_write():
                return
            if self._is_saved and not self.state_file.exists():
                log.warning("%s was removed: new monitors start", self.state_file)
                self.monitors = Monitors(self._settings, self._scores)
                self._said.clear()
                self._has_changed = True
            if not self._has_changed:
                return
            state, recent = self.monitors.state(), self.monitors.recent.csv()
            try:
                write_whole(self.scores_file, recent)
                write_state(self.state_file, state)
            except OSError as error:
                log.error("the monitors' state could not be saved to %s: %s", self.state_file, error.strerror)  # noqa: TRY400
                return
            self._is_saved, self._has_changed = True, False

    def close(self) -> None:
        """Save, and let another process write the folder."""
        self.save()
        if self._writer is not None:
            self._release()

    def _may_write(self) -> bool:
        if self._writer is None or self._writer.is_locked:
            return True
        try:
            Path(self._writer.lock_file).parent.mkdir(parents=True, exist_ok=True)
            self._writer.acquire()
        except Timeout:
            if not self._has_said_that_another_writes:
                self._has_said_that_another_writes = True
                log.warning(
                    "another process writes %s: these monitors are not saved as long as it does", self.state_file
                )
            return False
        except OSError as error:
            log.error("the monitors' state could not be saved to %s: %s", self.state_file, error.strerror)  # noqa: TRY400
            return False
        return True

    def _read(self) -> Monitors | None:
        if self.state_file is None:
            return None
        try:
            state = read_state(self.state_file)
            if state is None:
                return None
            monitors = Monitors.from_state(state, self._settings, self._scores)
        except (DataError, OSError) as error:
            log.error("new monitors start, and their earlier inputs are lost: %s", error)  # noqa: TRY400  # complete
            return None
        self._is_saved = True
        log.info("the monitors continue after %d inputs", monitors.count.inputs)
        return monitors

    def _say_alarms(self) -> None:
        for name, raised_at in self.monitors.alarms().items():
            if raised_at is not None and name not in self._said:
                self._said.add(name)
                log.warning("alarm %s: raised at input %d since the monitors began", name, raised_at)


def _key(settings: MonitorSettings, scores: FloatArray) -> str:
    identity = {**asdict(settings), "scores": fingerprint(scores)}
    del identity["keep_scores"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
