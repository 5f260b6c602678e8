"""OpenAI-compatible judges and main LLMs over HTTP."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any

import numpy as np

from tests.support.loopback import JsonHandler, LoopbackServer
from tests.support.waiting import wait_until

__all__ = ["LoopbackJudge", "RowJudge"]


class _Endpoint:
    """A chat-completions endpoint; subclasses choose the answers."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        endpoint = self

        class Handler(JsonHandler):
            def do_POST(self) -> None:  # noqa: N802  # the standard library's name
                endpoint.answer(self, self.read_body().decode())

        self._server = LoopbackServer(Handler)

    def answer(self, handler: JsonHandler, body: str) -> None:
        raise NotImplementedError

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    def close(self) -> None:
        self._server.close()


class LoopbackJudge(_Endpoint):
    """Judges that find texts with the word `harmful` unsafe, and main LLMs that answer.

    Attributes:
        calls: Number of calls to the judges.
        answers: Number of calls to the main LLMs, the models `gpt-...`.
        answered_models: Names of the main LLMs that were called, in order.
        answered_bodies: The bodies of these calls.
        is_down: Whether judges answer with HTTP 503.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.answered_models: list[str] = []
        self.answered_bodies: list[str] = []
        self.is_down = False
        super().__init__()

    @property
    def answers(self) -> int:
        return len(self.answered_models)

    def answer(self, handler: JsonHandler, body: str) -> None:
        request = json.loads(body)
        if request["model"].startswith("gpt-"):
            self._answer_as_main_llm(handler, request)
        else:
            self._judge(handler, request, body)

    def _judge(self, handler: JsonHandler, request: dict[str, Any], body: str) -> None:
        with self.lock:
            self.calls += 1
        status, p = 503 if self.is_down else 200, 0.98 if "harmful" in body else 0.02
        if not request.get("logprobs"):
            handler.close_connection = True  # for NeMo, as below
            verdict = json.dumps({"User Safety": "unsafe" if p > 0.5 else "safe"})
            handler.reply(status, _completion({"message": {"role": "assistant", "content": verdict}}))
            return
        alternatives = [{"token": "Yes", "logprob": np.log(p)}, {"token": "No", "logprob": np.log1p(-p)}]
        handler.reply(status, _completion(_choice("No", alternatives)))

    def _answer_as_main_llm(self, handler: JsonHandler, request: dict[str, Any]) -> None:
        self.answered_models.append(request["model"])
        self.answered_bodies.append(json.dumps(request, ensure_ascii=False))
        # NeMo keeps connections for the event loop that opened them, and asks again from any other loop.
        handler.close_connection = True
        if not request.get("stream", False):
            handler.reply(200, _completion({"message": {"role": "assistant", "content": "the main LLM's answer"}}))
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        deltas = [{"role": "assistant", "content": "the main"}, {"content": " LLM's"}, {"content": " answer"}]
        for delta in [*deltas, {}]:
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            handler.wfile.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
        handler.wfile.write(b"data: [DONE]\n\n")


class RowJudge(_Endpoint):
    """A judge that takes a moment, notes the row of each question, and gives no verdict on some rows.

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
        super().__init__()

    def wait_for(self, count: int) -> None:
        """Wait for so many questions."""
        wait_until(lambda: len(self.asked) >= count, within_s=300, every_s=0.005)

    def answer(self, handler: JsonHandler, body: str) -> None:
        found = re.search(r"row-\d{4}|a long row", body)
        row, number = found[0] if found else "", 0
        if row:
            with self.lock:
                self.asked.append(row)
                number = len(self.asked)
        time.sleep(0.02)
        status, content = self._judge(row)
        content["usage"] = {"total_tokens": 10}
        handler.reply(401 if self.refuses or number >= self.breaks_at else status, content)
        with self.lock:
            self.answered.append(row)

    def _judge(self, row: str) -> tuple[int, dict[str, Any]]:
        if row in self.blocks:
            return 400, _error("content_filter", "The prompt was stopped by a content filter.")
        if row in self.overflows:
            return 400, _error("context_length_exceeded", "This model's maximum context length is 512 tokens.")
        if row in self.filters:
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": None}, "logprobs": None}
            return 200, _completion(choice | {"finish_reason": "content_filter"})
        if row in self.declines:
            alternatives = [{"token": "I", "logprob": -0.01}, {"token": "Sorry", "logprob": -5.0}]
            return 200, _completion(_choice("I", alternatives))
        p = sum(map(ord, row)) % 97 / 100
        alternatives = [{"token": "Yes", "logprob": np.log(p + 0.01)}, {"token": "No", "logprob": np.log(0.99 - p)}]
        return 200, _completion(_choice("No", alternatives))


def _choice(content: str, alternatives: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a choice of one token, with the alternatives of this token."""
    token = {"token": content, "logprob": 0.0, "top_logprobs": alternatives}
    return {"message": {"role": "assistant", "content": content}, "logprobs": {"content": [token]}}


def _completion(choice: dict[str, Any]) -> dict[str, Any]:
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return completion | {"choices": [{"index": 0, "finish_reason": "stop"} | choice]}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": "prompt", "code": code}}
