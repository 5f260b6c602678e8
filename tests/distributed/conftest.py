"""One Ray on this machine for all tests of this folder, and a judge that remembers what it was asked."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.data import Dataset, read_dataset
from calibrate.distributed.cluster import connect
from calibrate.distributed.config import RayConfig

ROWS = 60


@pytest.fixture(scope="session")
def run_on() -> Iterator[RayConfig]:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    config = RayConfig(type="ray", actors=2)
    with connect(config):
        yield config
    assert not ray.is_initialized()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    words = ["meadow", "carrot", "violin", "zzyx", "qqqv", "xjxj"]
    rows = [
        {"text": f"row-{i:04d} {' '.join(rng.choice(words, int(rng.integers(1, 12))))} 🜂", "label": i % 2}
        for i in range(ROWS)
    ]
    rows[7]["text"] = "a long row " * 30
    rows[9]["text"] = rows[8]["text"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset([file])


class Judge:
    """An OpenAI-compatible judge that takes a moment.

    Attributes:
        asked: Rows, in the order of the questions.
        answered: Rows, in the order of the answers.
        refuses: Whether it answers with HTTP 401.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.refuses = False
        judge, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = re.search(r"row-\d{4}|a long row", body)
                assert found
                with lock:
                    judge.asked.append(found[0])
                time.sleep(0.02)
                p = sum(map(ord, found[0])) % 97 / 100
                tokens = [{"token": "Yes", "logprob": np.log(p + 0.01)}, {"token": "No", "logprob": np.log(0.99 - p)}]
                content = [{"token": "No", "logprob": 0.0, "top_logprobs": tokens}]
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "No"}}
                raw = json.dumps(
                    {"choices": [choice | {"logprobs": {"content": content}}], "usage": {"total_tokens": 10}}
                ).encode()
                self.send_response(401 if judge.refuses else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                with lock:
                    judge.answered.append(found[0])

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of clients that were killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 300
        while len(self.asked) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def row_judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.close()


@pytest.fixture
def expert_section(row_judge: Judge) -> Callable[..., dict[str, Any]]:
    """The section of CALIBRATE.yml for this judge."""

    def make(**changes: Any) -> dict[str, Any]:
        section = {"type": "openai", "base_url": row_judge.base_url, "model": "judge", "max_concurrency": 4}
        return section | changes

    return make
