"""A judge behind any OpenAI-compatible endpoint: vLLM, NIM, SGLang, Ollama, llama.cpp, OpenAI."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.complaint import Complaint, parsed, read_complaint, stated_error
from ctd_guardrail.experts.openai.completion import is_only_markup, read_completion
from ctd_guardrail.experts.openai.request_form import RequestForm
from ctd_guardrail.experts.prompt import (
    DEFAULT_INSTRUCTION,
    JSON_QUESTION,
    JudgePrompt,
    RenderedPrompt,
    one_word_question,
)
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.experts.verdict import SAFE_WORD, UNSAFE_WORD
from ctd_guardrail.runtime.http_client import authorization, open_client, read_body, read_key
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Conversation

__all__ = ["OpenAIExpert"]

log = logging.getLogger(__name__)

# An honest answer has a few kilobytes. A larger one is not read to its end.
_MAX_RESPONSE_BYTES: Final = 1 << 20
_MAX_ERROR_BYTES: Final = 1 << 16
# Statuses whose body may state the cause.
_EXPLAINED: Final = frozenset({400, 403, 413, 422, 500})
_WHOLE_SECONDS: Final = re.compile(r"[0-9]{1,9}")
# The text that finds the form of the request. No word of a sender decides which form is used.
_GREETING: Final = Conversation.from_text("Good morning.")


@dataclasses.dataclass(slots=True)
class _Count:
    """The calls that one question has taken so far."""

    calls: int = 0


class OpenAIExpert:
    """Asks a chat model whether the conversation is unsafe.

    A call is made once, without a deadline: :class:`~ctd_guardrail.experts.bounded.bounded_expert.BoundedExpert`
    limits and repeats calls. Proxies and ``.netrc`` from the
    environment are not used: only the configuration decides where conversations and the key go.

    Endpoints differ in the parameters that they take. If one refuses the first request, a harmless text and the
    endpoint's complaints find the form that it takes, and the form is remembered. If it takes the harmless text in the
    same form, it refused only the sender's text.

    Args:
        config: Endpoint, model and form of the answer.
        runtime: Runs the calls; None: the runtime of the process.

    Raises:
        ConfigError: The environment variable of the key is not set, or does not hold a key.
    """

    def __init__(self, config: OpenAIExpertConfig, *, runtime: Runtime | None = None) -> None:
        self._config = config
        self._io = (runtime or Runtime.default()).io
        self._url = f"{config.base_url}/chat/completions"
        question = one_word_question(UNSAFE_WORD, SAFE_WORD) if config.scoring == "logprobs" else JSON_QUESTION
        self._prompt = JudgePrompt(question, config.instruction or DEFAULT_INSTRUCTION)
        self._key = None if config.api_key_env is None else read_key(config.api_key_env, setting="expert.api_key_env")
        # The rest is touched on the I/O thread only.
        self._form = RequestForm(config.scoring, is_folded=config.system_role == "fold")
        self._is_taken = False  # whether the endpoint has answered a request of this form
        self._unfit: Complaint | None = None  # why it took a harmless text in none of them
        self._has_failed = False  # whether it failed at one, so that no form could be found
        self._seeking = asyncio.Lock()
        self._client = open_client(keepalive=config.max_concurrency)
        self._finalizer = self._io.close_with(self, self._client)

    @property
    def identity(self) -> str:
        """Kind, model, form of the answer, prompt, and the place of the instruction if the configuration states it."""
        place = ":folded" if self._config.system_role == "fold" else ""
        return f"openai:{self._config.model}:{self._config.scoring}:{self._prompt.fingerprint}{place}"

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Raises:
            ExpertUnavailableError: Unreachable, rate-limited, failing, or refusing every request.
            ExpertVerdictError: The answer is not a verdict, or the endpoint refuses this conversation.
        """
        call = self._io.submit(self._ask(self._prompt.render(conversation)))
        return await asyncio.wrap_future(call)

    async def aclose(self) -> None:
        """Close the connections; calls that are under way fail."""
        if self._finalizer.detach():
            await asyncio.wrap_future(self._io.submit(self._client.aclose()))

    async def _ask(self, prompt: RenderedPrompt) -> ExpertScore:
        """Return the endpoint's score, with the calls that it took. Runs on the I/O thread."""
        count = _Count()
        try:
            score = read_completion(await self._answer(prompt, count), self._config.scoring)
        except ExpertError as error:
            error.attempts = count.calls
            raise
        return dataclasses.replace(score, attempts=count.calls)

    async def _answer(self, prompt: RenderedPrompt, count: _Count) -> object:
        """Return the endpoint's answer in the form of request that it takes."""
        form = self._form
        answer = await self._exchange(prompt, form, count)
        if isinstance(answer, Complaint):
            if self._may_seek(answer):
                await self._seek_form(answer, count)
            if self._form != form:
                form = self._form
                answer = await self._exchange(prompt, form, count)
        if not isinstance(answer, Complaint):
            self._is_taken, self._unfit = True, None
            if is_only_markup(answer) and form.is_short:
                self._form = self._form.longer()
                answer = await self._exchange(prompt, self._form, count)
        if isinstance(answer, Complaint):
            raise self._error(answer)
        return answer

    def _may_seek(self, complaint: Complaint) -> bool:
        """Return whether another form of request may help, and none was sought in vain."""
        if self._is_taken or self._unfit or not complaint.may_be_the_form:
            return False
        return not (complaint.is_failure and self._has_failed)

    def _error(self, complaint: Complaint) -> ExpertError:
        if self._unfit is not None and complaint.may_be_the_form and not complaint.is_failure:
            return self._unfit.error(scoring=self._config.scoring, is_every=True)
        return complaint.error(scoring=self._config.scoring)

    async def _seek_form(self, complaint: Complaint, count: _Count) -> None:
        """Find the form of request that the endpoint takes, with a harmless text."""
        async with self._seeking:
            if not self._may_seek(complaint):  # another question has done so in the meantime
                return
            prompt, form = self._prompt.render(_GREETING), self._form
            has_guessed = False
            while isinstance(answer := await self._exchange(prompt, form, count), Complaint):
                other = form.adapted(answer) if answer.may_be_the_form else None
                if other is None:
                    # An endpoint that is down or busy does not show whether it takes the form.
                    self._unfit = answer if answer.may_be_the_form and not answer.is_failure else None
                    self._has_failed |= answer.is_failure
                    return
                has_guessed |= other.is_folded != form.is_folded and "system" not in answer.parts
                form = other
            if has_guessed:
                # The fault may have ended by itself in the meantime.
                plain = form.folded(fold=False)
                if not isinstance(await self._exchange(prompt, plain, count), Complaint):
                    form = plain
            if form != self._form:
                log.warning("the expert's endpoint takes requests of this form only: %s", form.described())
            self._form, self._is_taken = form, True

    async def _exchange(self, prompt: RenderedPrompt, form: RequestForm, count: _Count) -> object:
        """Return the parsed answer to one request, or the endpoint's complaint."""
        count.calls += 1
        payload = json.dumps(form.payload(self._config.model, prompt)).encode("ascii")
        status, body, retry_after = await self._call(payload)
        if len(body) > _MAX_RESPONSE_BYTES:
            raise ExpertVerdictError(
                f"the expert's answer exceeds {_MAX_RESPONSE_BYTES} bytes", hint="Check expert.base_url"
            )
        answer = parsed(body)
        if status != httpx.codes.OK:
            return read_complaint(status, answer, _seconds(retry_after))
        if answer is None:
            raise ExpertVerdictError("the expert's answer is not JSON", hint="Check expert.base_url")
        return stated_error(answer) or answer

    async def _call(self, payload: bytes) -> tuple[int, bytes, str]:
        """Return status, body, and the header ``Retry-After``. Runs on the I/O thread."""
        try:
            async with self._client.stream(
                "POST", self._url, content=payload, headers=authorization(self._key)
            ) as response:
                status = response.status_code
                body = b""
                if status == httpx.codes.OK:
                    body = await read_body(response, limit=_MAX_RESPONSE_BYTES)
                elif status in _EXPLAINED:
                    # Of an error's text only the cause is kept: it may quote the conversation. The status counts even
                    # if the text is cut.
                    body = await read_body(response, limit=_MAX_ERROR_BYTES, may_be_cut=True)
                return status, body, response.headers.get("Retry-After", "")
        except Exception as error:  # noqa: BLE001  # httpx lets errors of sockets, TLS and its own state through
            # Only the class of the error: its text may name the address or quote the answer.
            raise ExpertUnavailableError(
                f"the call to the expert failed ({type(error).__name__})",
                hint="Check that expert.base_url is reachable from here",
            ) from None


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that a ``Retry-After`` names, as a number or as a date (RFC 9110, section 10.2.3)."""
    if _WHOLE_SECONDS.fullmatch(retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
