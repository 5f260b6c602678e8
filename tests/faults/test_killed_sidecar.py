"""A sidecar that is killed under load: what was promised to be kept is there, and the next one goes on from it."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ctd_guardrail.monitors.state import read_state
from tests.support.sidecar import SidecarProcess, sidecar_process

CLIENTS = 8
LONGEST_S = 12.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")


class Load:
    """Clients that send one question after the other until their sidecar is gone.

    Attributes:
        sent: Number of questions.
        answers: Time and verdict of each answer.
        broken: Number of questions that got no answer.
    """

    def __init__(self, url: str, numbers: Iterator[int]) -> None:
        self._url = url
        self._numbers = numbers
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self.sent = self.broken = 0
        self.answers: list[tuple[float, str]] = []
        self._clients = [self._pool.submit(self._send) for _ in range(CLIENTS)]

    def _send(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while True:
                with self._lock:
                    number = next(self._numbers)
                    self.sent += 1
                text = f"{'an odd' if number % 2 else 'a plain'} question, number {number}"
                try:
                    verdict = client.post("/v1/check", json={"text": text}).json()["verdict"]
                except httpx.TransportError:
                    with self._lock:
                        self.broken += 1
                    return
                with self._lock:
                    self.answers.append((time.time(), verdict))

    def end(self) -> None:
        for client in self._clients:
            client.result(60)
        self._pool.shutdown()


def states(folder: Path) -> list[Path]:
    """Return the saved states: one, or none where no save has come yet."""
    return list(folder.glob("state/monitors-*.json"))


def saves_seen_in(folder: Path, seconds: float) -> list[float]:
    """Return the times of the saves that a poll of the folder sees."""
    seen = [0.0]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        saved_at = max((state.stat().st_mtime for state in states(folder)), default=0.0)
        if saved_at > seen[-1]:
            seen.append(saved_at)
        time.sleep(0.01)
    return seen


def inputs_known_to(server: SidecarProcess) -> int:
    found = re.search(r"the monitors continue after (\d+) inputs", server.log)
    return int(found[1]) if found else 0


def test_a_sidecar_that_is_killed_under_load_goes_on_from_its_last_save(
    make_rail_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trials: Callable[..., int],
    record: Callable[..., None],
) -> None:
    monkeypatch.setenv("KILLED_AUDIT_KEY", "k" * 32)
    folder = make_rail_folder(
        monitor={"state": "./state"},
        audit_log={"path": "./audit.jsonl", "key_env": "KILLED_AUDIT_KEY"},
    )
    rng = random.Random(3)
    numbers = itertools.count()
    total = trials(full=20, reduced=2)
    held = answered = sent = blocks = 0
    least = most = 0  # inputs that the next process has to know of, and that it can know of
    for number in range(total + 1):
        with sidecar_process(folder, tmp_path / f"log-{number}") as server:
            server.wait_for(lambda server=server: server.status() == 200)
            known = inputs_known_to(server)
            if number:
                held += least <= known <= most and whole(folder, blocks)
            if number == total:
                assert server.check("a plain question")["verdict"] == "allow"
                break
            load = Load(server.url, numbers)
            saves = saves_seen_in(folder, rng.uniform(0.0, LONGEST_S))
            server.popen.send_signal(signal.SIGKILL)
            server.popen.wait(30)
            load.end()
        assert load.broken == CLIENTS
        assert {verdict for _, verdict in load.answers} <= {"allow", "block"}
        # What was answered before one save is in the next one, however long either took.
        kept = [verdict for at, verdict in load.answers if at < saves[-2:][0]]
        least, most = known + len(kept), known + load.sent
        blocks += kept.count("block")
        answered, sent = answered + len(load.answers), sent + load.sent
    record(
        "killed_sidecar",
        held,
        total,
        figure=f"{answered:,} answers, {sent - answered} connections that broke; no other",
    )


def whole(folder: Path, blocks: int) -> bool:
    """Return whether the state is whole, and the audit log too, with a line for each of so many blocks."""
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    is_state = all(read_state(state) is not None for state in states(folder))
    return is_state and sum(line["verdict"] == "block" for line in lines) >= blocks
