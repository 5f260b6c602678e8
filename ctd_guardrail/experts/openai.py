"""A judge behind any OpenAI-compatible endpoint: vLLM, NIM, SGLang, Ollama, llama.cpp, OpenAI."""

from __future__ import annotations

import asyncio
import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.config import OpenAIExpertConfig
from ctd_guardrail.experts.deadline import within
from ctd_guardrail.experts.prompt import DEFAULT_INSTRUCTION, JSON_QUESTION, JudgePrompt, one_word_question
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.experts.verdict import SAFE_WORD, UNSAFE_WORD, p_unsafe_from_json, p_unsafe_from_logprobs
from ctd_guardrail.http_client import authorization, close_with, open_client, read_key
from ctd_guardrail.io_thread import IO_THREAD

__all__ = ["OpenAIExpert"]

# An honest answer has a few kilobytes. A larger one is not read to its end.
_MAX_RESPONSE_BYTES: Final = 1 << 20
# The most that OpenAI's own endpoint gives, and vLLM's default limit.
_TOP_LOGPROBS: Final = 20
_MAX_JSON_TOKENS: Final = 64
_WHOLE_SECONDS: Final = re.compile(r"[0-9]{1,9}")

_VERDICT_SCHEMA: Final = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["safe", "unsafe"]}, "confidence": {"type": "number"}},
    "required": ["verdict", "confidence"],
    "additionalProperties": False,
}
_TRANSIENT: Final = frozenset(
    {httpx.codes.REQUEST_TIMEOUT, httpx.codes.CONFLICT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS}
)
_HINTS: Final = {
    400: "The endpoint refuses the request: where it has no log-probabilities, set scoring: json",
    401: "Check the key in the variable that expert.api_key_env names",
    403: "Check the key in the variable that expert.api_key_env names",
    404: "Check expert.base_url (it ends with the version, as in /v1) and expert.model",
    422: "The endpoint refuses the request: where it has no log-probabilities, set scoring: json",
    429: "The endpoint limits the rate: lower alpha or max_concurrency, or raise its limit",
}


class OpenAIExpert:
    """Asks a chat model whether the conversation is unsafe.

    A call is made once: whoever asks decides about another attempt, and counts it. Proxies and ``.netrc`` from the
    environment are not used: the configuration alone says where conversations and the key go.

    Args:
        config: Endpoint, model and form of the answer.

    Raises:
        ConfigError: The environment variable of the key is not set, or does not hold a key.
    """

    def __init__(self, config: OpenAIExpertConfig) -> None:
        self._config = config
        self._url = f"{config.base_url}/chat/completions"
        question = one_word_question(UNSAFE_WORD, SAFE_WORD) if config.scoring == "logprobs" else JSON_QUESTION
        self._prompt = JudgePrompt(question, config.instruction or DEFAULT_INSTRUCTION)
        self._key = None if config.api_key_env is None else read_key(config.api_key_env, setting="expert.api_key_env")
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._client = open_client(keepalive=config.max_concurrency)
        self._finalizer = close_with(self, self._client)

    @property
    def identity(self) -> str:
        """Kind, model, form of the answer and prompt."""
        return f"openai:{self._config.model}:{self._config.scoring}:{self._prompt.fingerprint}"

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Raises:
            ExpertTimeoutError: No complete answer before the deadline.
            ExpertUnavailableError: Refused, unreachable, rate-limited or failing.
            ExpertVerdictError: The answer is not a verdict.
        """
        payload = self._payload(conversation)
        call = IO_THREAD.submit(self._call(payload))
        status, body, retry_after = await within(asyncio.wrap_future(call), self._config.timeout_s)
        if status != httpx.codes.OK:
            raise ExpertUnavailableError(
                f"the expert answered with HTTP {status}",
                hint=_HINTS.get(status, ""),
                is_transient=status in _TRANSIENT or status >= httpx.codes.INTERNAL_SERVER_ERROR,
                retry_after_s=_seconds(retry_after),
            )
        return self._read(body)

    async def aclose(self) -> None:
        """Close the connections; calls that are under way fail."""
        if self._finalizer.detach():
            await asyncio.wrap_future(IO_THREAD.submit(self._client.aclose()))

    def _payload(self, conversation: Conversation) -> bytes:
        payload: dict[str, Any] = {
            "model": self._config.model,
            "messages": self._prompt.render(conversation).messages(),
            "temperature": 0,
            "stream": False,
        }
        if self._config.scoring == "logprobs":
            payload |= {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        else:
            schema = {"name": "verdict", "strict": True, "schema": _VERDICT_SCHEMA}
            payload |= {
                "max_tokens": _MAX_JSON_TOKENS,
                "response_format": {"type": "json_schema", "json_schema": schema},
            }
        return json.dumps(payload).encode("ascii")

    async def _call(self, payload: bytes) -> tuple[int, bytes, str]:
        """Return status, body, and when to come again. Runs on the I/O thread."""
        try:
            async with (
                self._slots,
                self._client.stream("POST", self._url, content=payload, headers=authorization(self._key)) as response,
            ):
                # The text of a refusal is not read: it may quote the conversation.
                body = await _read_body(response) if response.status_code == httpx.codes.OK else b""
                return response.status_code, body, response.headers.get("Retry-After", "")
        except ExpertError:
            raise
        except Exception as error:  # noqa: BLE001  # httpx lets errors of sockets, TLS and its own state through
            # Only the class of the error: its text may name the address or quote the answer.
            raise ExpertUnavailableError(
                f"the call to the expert failed ({type(error).__name__})",
                hint="Check that expert.base_url is reachable from here",
            ) from None

    def _read(self, body: bytes) -> ExpertScore:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise ExpertVerdictError("the expert's answer is not JSON", hint="Check expert.base_url") from None
        choice = _first(_get(answer, "choices"))
        if choice is None:
            raise ExpertVerdictError(
                "the expert's answer is not a chat completion", hint="expert.base_url must be OpenAI-compatible"
            )
        if self._config.scoring == "logprobs":
            token = _first(_get(_get(choice, "logprobs"), "content"))
            p_unsafe = p_unsafe_from_logprobs(_get(token, "top_logprobs"))
        else:
            p_unsafe = p_unsafe_from_json(_get(_get(choice, "message"), "content"))
        tokens = _get(_get(answer, "usage"), "total_tokens")
        counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
        return ExpertScore(p_unsafe, tokens=tokens if counted else None)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that a ``Retry-After`` names, as a number or as a date (RFC 9110, section 10.2.3)."""
    if _WHOLE_SECONDS.fullmatch(retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _MAX_RESPONSE_BYTES:
            raise ExpertVerdictError(f"the expert's answer exceeds {_MAX_RESPONSE_BYTES} bytes")
    return bytes(body)


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _first(value: object) -> Any:
    return value[0] if isinstance(value, list) and value else None
