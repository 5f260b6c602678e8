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

from tests.support.waiting import wait_until

__all__ = ["RowJudge"]


class RowJudge:
    """An OpenAI-compatible judge that takes a moment.

    Attributes:
        asked: Rows, in the order of the questions. A question about no row is answered and not noted.
        answered: Rows, in the order of the answers.
        refuses: Whether it answers with HTTP 401.
        breaks_at: It answers with HTTP 401 from this question on.
        declines: Rows that it answers with prose.
        filters: Rows whose answer a content filter withholds.
        blocks: Rows whose prompt a content filter stops, with HTTP 400.
        overflows: Rows whose prompt is too long, with HTTP 400.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.refuses = False
        self.breaks_at = sys.maxsize
        self.declines: set[str] = set()
        self.filters: set[str] = set()
        self.blocks: set[str] = set()
        self.overflows: set[str] = set()
        judge, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = re.search(r"row-\d{4}|a long row", body)
                row, number = found[0] if found else "", 0
                if row:
                    with lock:
                        judge.asked.append(row)
                        number = len(judge.asked)
                time.sleep(0.02)
                status, answer = judge._answer(row)
                raw = json.dumps(answer).encode()
                self.send_response(401 if judge.refuses or number >= judge.breaks_at else status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                with lock:
                    judge.answered.append(row)

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

    def _answer(self, row: str) -> tuple[int, dict[str, Any]]:
        if row in self.blocks:
            return 400, _error("content_filter", "The prompt was stopped by a content filter.")
        if row in self.overflows:
            return 400, _error("context_length_exceeded", "This model's maximum context length is 512 tokens.")
        return 200, {"choices": [self._choice(row)], "usage": {"total_tokens": 10}}

    def _choice(self, row: str) -> dict[str, Any]:
        p = sum(map(ord, row)) % 97 / 100
        tokens = [{"token": "Yes", "logprob": np.log(p + 0.01)}, {"token": "No", "logprob": np.log(0.99 - p)}]
        if row in self.filters:
            message = {"role": "assistant", "content": None}
            return {"index": 0, "finish_reason": "content_filter", "message": message, "logprobs": None}
        answer = "I" if row in self.declines else "No"
        if answer == "I":
            tokens = [{"token": "I", "logprob": -0.01}, {"token": "Sorry", "logprob": -5.0}]
        content = [{"token": answer, "logprob": 0.0, "top_logprobs": tokens}]
        message = {"role": "assistant", "content": answer}
        return {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": content}}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.asked) >= count, within_s=300, every_s=0.005)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": "prompt", "code": code}}
