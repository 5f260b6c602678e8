"""A judge over HTTP that remembers which rows it was asked about, and gives no verdict on some of them."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

__all__ = ["RowJudge"]


class RowJudge:
    """An OpenAI-compatible judge that takes a moment.

    Attributes:
        asked: Rows, in the order of the questions.
        answered: Rows, in the order of the answers.
        refuses: Whether it answers with HTTP 401.
        breaks_at: It answers with HTTP 401 from this question on.
        declines: Rows that it answers with prose.
        filters: Rows whose answer a content filter withholds.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.refuses = False
        self.breaks_at = sys.maxsize
        self.declines: set[str] = set()
        self.filters: set[str] = set()
        judge, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = re.search(r"row-\d{4}|a long row", body)
                assert found
                with lock:
                    judge.asked.append(found[0])
                    number = len(judge.asked)
                time.sleep(0.02)
                p = sum(map(ord, found[0])) % 97 / 100
                tokens = [{"token": "Yes", "logprob": np.log(p + 0.01)}, {"token": "No", "logprob": np.log(0.99 - p)}]
                choice = self.choice(found[0], tokens)
                raw = json.dumps({"choices": [choice], "usage": {"total_tokens": 10}}).encode()
                self.send_response(401 if judge.refuses or number >= judge.breaks_at else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                with lock:
                    judge.answered.append(found[0])

            def choice(self, row: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
                if row in judge.filters:
                    message = {"role": "assistant", "content": None}
                    return {"index": 0, "finish_reason": "content_filter", "message": message, "logprobs": None}
                answer = "I" if row in judge.declines else "No"
                if answer == "I":
                    tokens = [{"token": "I", "logprob": -0.01}, {"token": "Sorry", "logprob": -5.0}]
                content = [{"token": answer, "logprob": 0.0, "top_logprobs": tokens}]
                message = {"role": "assistant", "content": answer}
                return {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": content}}

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
