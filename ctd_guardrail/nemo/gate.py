"""No verdict, no call: the main LLM gets no part of a request before the guard has judged all of it.

The shape of a request decides which rails of the host run, and the client chooses the shape. So the guard does not
rely on being called. The doors of an engine open a request here. The action of the rail gives the verdict if the host
runs the rail. The main LLM asks for the verdict before each call; if there is none yet, the guard decides then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Final

from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Decision
from ctd_guardrail.nemo.carried import Prompt, texts_in
from ctd_guardrail.nemo.client import OVERRIDES, ClientRequest
from ctd_guardrail.nemo.guards import LoadableGuard
from ctd_guardrail.nemo.messages import ChatMessages, with_rewritten
from ctd_guardrail.nemo.principal import principal_of
from ctd_guardrail.text.message_text import texts_of
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS

__all__ = ["Gate", "InRequest", "OpenRequest", "current_request", "enter", "entered", "texts_judged"]

log = logging.getLogger(__name__)

# It is not a mapping, so the guard refuses it like an override that is not allowed.
_REFUSED_OPTION: Final = "refused option"
# Below this many characters, searching a prompt for texts costs less than a switch of threads.
_INLINE_CHARACTERS: Final = 65_536

_request: ContextVar[OpenRequest | None] = ContextVar("ctd_request", default=None)
# The expert of the guard may be the main LLM. It then judges the conversation and does not answer it.
_is_judging: ContextVar[bool] = ContextVar("ctd_is_judging", default=False)


class OpenRequest:
    """A request in progress, and the verdicts on it.

    Args:
        gate: The gate of the app.
        client: The content of the request.
        is_waived: Whether the operator allows this client to skip the guard.
        source: The host's object for the messages, if it passes the same one to several doors.

    Attributes:
        late: Texts of the call of the main LLM that were not known when the dialogue was judged.
        is_refused: Whether a call of the main LLM was refused.
    """

    def __init__(self, gate: Gate, client: ClientRequest, *, is_waived: bool = False, source: object = None) -> None:
        self.gate = gate
        self.client = client
        self.is_waived = is_waived
        self.source = source
        self.late: tuple[Any, ...] = ()
        self.is_refused = False
        self.verdicts: list[tuple[ChatMessages | tuple[Any, ...], Decision]] = []
        self.lock = asyncio.Lock()

    def take(self, source: object) -> bool:
        """Return whether the request was opened for this object and was not taken before."""
        is_mine = self.source is not None and self.source is source
        if is_mine:
            self.source = None
        return is_mine

    @property
    def is_judged(self) -> bool:
        """Whether there is a verdict on the dialogue."""
        return bool(self.verdicts)

    @property
    def block(self) -> Decision | None:
        """The first verdict that blocks, or None."""
        return next((decision for _, decision in self.verdicts if decision.is_blocking), None)

    def verdict_on(self, what: ChatMessages | tuple[Any, ...]) -> Decision | None:
        """Return the verdict on these very messages or texts, or None."""
        return next((decision for judged, decision in self.verdicts if judged == what), None)


class Gate:
    """Guards the main LLM of one app.

    Args:
        guard: Judges requests.
        config: The section of the app's configuration.
        refusals: The messages of the app for a refusal, and for a guard that failed.
        operator_texts: Returns the texts of the operator: instructions, prompts, names of flows.
    """

    def __init__(
        self,
        guard: LoadableGuard,
        config: CtdConfig,
        *,
        refusals: Sequence[Sequence[str]],
        operator_texts: Callable[[], Iterable[str]],
    ) -> None:
        self.guard = guard
        self.config = config
        self._refusals = [
            said[0] if said else default for said, default in zip(refusals, DEFAULT_REFUSALS, strict=False)
        ]
        self._operator_texts = operator_texts

    @property
    def trusts_system(self) -> bool:
        """Whether system messages of a request are the operator's own."""
        return self.config.system_messages == "trust"

    def words(self, decision: Decision | None = None) -> str:
        """Return the message of the app for a block; None: for the block of the current request."""
        request = current_request(self)
        decision = decision or (None if request is None else request.block)
        refused, unavailable = self._refusals
        return refused if decision is not None and not decision.reason.is_failure else unavailable

    def note_answer(self, content: str | None, tool_calls: Sequence[Any] | None = None) -> None:
        """Remember an answer of the main LLM: a client that sends it back adds no new text."""
        if not _is_judging.get() and isinstance(content, str):
            calls = [call.to_dict() for call in tool_calls or ()]
            self.guard.note_answer({"content": content, "tool_calls": calls} if calls else content)

    def opened(self, client: ClientRequest, *, source: object = None) -> OpenRequest:
        """Return a new request; see :class:`OpenRequest`."""
        is_waived = client.refused_option is not None and self.config.client_options == "allow"
        if client.refused_option is not None and not is_waived:
            log.warning("a request asks for %s, and client_options refuses that", client.refused_option)
        return OpenRequest(self, client, is_waived=is_waived, source=source)

    async def judge(self, request: OpenRequest, *, user_message: object = None) -> Decision:
        """Return the verdict on the dialogue and the asides of a request: an earlier block, or a new verdict.

        Args:
            request: The request.
            user_message: The last user turn as earlier rails rewrote it; None: as the client sent it.
        """
        async with request.lock:
            if request.block is not None:
                return request.block
            messages = with_rewritten(request.client.messages, user_message)
            return await self._verdict(request, messages, messages, request.client.asides)

    async def admits(self, *parts: Any) -> bool:
        """Return whether the main LLM may be called with a prompt and parameters in the current request."""
        if _is_judging.get():
            return True
        request = current_request(self)
        if request is None:
            # The call came through no guarded door, so its request is unknown and cannot be judged.
            self.guard.count_unscreened_call("unknown")
            log.error("a call of the main LLM outside of any request was refused: there is no verdict on it")
            return False
        if request.is_waived:
            self.guard.count_unscreened_call("client_options")
            return True
        if not request.is_judged:
            await self.judge(request)
        if request.block is None and (carried := await self._carried(request, parts)):
            async with request.lock:
                await self._verdict(request, carried, [], carried)
        request.is_refused |= request.block is not None
        return request.block is None

    async def _verdict(
        self,
        request: OpenRequest,
        what: ChatMessages | tuple[Any, ...],
        messages: ChatMessages,
        asides: Sequence[Any],
    ) -> Decision:
        decision = request.verdict_on(what)
        if decision is None:
            variables = request.client.variables
            overrides = variables.get(OVERRIDES)
            principal, is_doubled = principal_of(self.guard.principal, variables)
            if is_doubled:
                log.warning("a request names its principal twice")
            if is_doubled or (request.client.refused_option is not None and not request.is_waived):
                overrides = _REFUSED_OPTION
            token = _is_judging.set(True)
            try:
                decision = await self.guard.check(messages, overrides, principal=principal, asides=asides)
            finally:
                _is_judging.reset(token)
            request.verdicts.append((what, decision))
        return decision

    async def _carried(self, request: OpenRequest, parts: Any) -> tuple[Any, ...]:
        """Return the late texts, and the loose texts that the call carries and that the operator did not write."""
        loose = request.client.loose
        if not loose:
            return request.late

        def carried() -> tuple[Any, ...]:
            try:
                judged = texts_judged(request.client.messages)
                unjudged = [text for text in dict.fromkeys(loose) if text not in judged]
                found = Prompt(said).carried(unjudged) if unjudged else []
                return (*request.late, *(text for text in found if not self._operator.holds(text)))
            except Exception:  # noqa: BLE001  # the texts were not read: the guard refuses None
                return (None,)

        try:
            said = texts_in(parts)
        except Exception:  # noqa: BLE001  # as above
            return (None,)
        if sum(map(len, loose)) + sum(map(len, said)) <= _INLINE_CHARACTERS:
            return carried()
        return await asyncio.to_thread(carried)

    @cached_property
    def _operator(self) -> Prompt:
        return Prompt(self._operator_texts())


def texts_judged(messages: ChatMessages) -> set[str]:
    """Return the texts of messages that the guard reads."""
    read = [texts_of(message) or () for message in messages if isinstance(message, Mapping)]
    return {text for texts in read for text in texts if text is not None}


def current_request(gate: Gate) -> OpenRequest | None:
    """Return the current request at this gate, or None."""
    request = _request.get()
    return request if request is not None and request.gate is gate else None


def enter(request: OpenRequest) -> None:
    """Make a request the current one for the rest of the running task."""
    _request.set(request)


@contextmanager
def entered(request: OpenRequest) -> Iterator[OpenRequest]:
    """Make a request the current one."""
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


class InRequest(AsyncIterator[Any]):
    """A stream that runs each step in its request, also if another task reads it.

    Args:
        request: The request.
        stream: The stream.
    """

    def __init__(self, request: OpenRequest, stream: AsyncIterator[Any]) -> None:
        self._request = request
        self._stream = stream

    async def __anext__(self) -> Any:
        """Return the next piece."""
        with entered(self._request):
            return await anext(self._stream)

    async def aclose(self) -> None:
        """Close the stream, if it can be closed."""
        if isinstance(self._stream, AsyncGenerator):
            with entered(self._request):
                await self._stream.aclose()
