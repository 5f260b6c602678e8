"""The doors of NeMo's LLMRails engine: every public way into it opens a request at the gate.

In Colang 1.0 the runtime runs input rails only for a request that ends with a user utterance. For such a request the
rail's action gives the verdict, in its place among the other rails. For other requests, and in Colang 2.x, the door
gives the verdict.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from nemoguardrails.llm.prompts import get_prompt
from nemoguardrails.llm.types import Task
from nemoguardrails.rails.llm.llmrails import LLMRails
from nemoguardrails.rails.llm.options import GenerationOptions, GenerationResponse, RailsResult, RailStatus, RailType

from ctd_guardrail.assembly.folder import FLOW
from ctd_guardrail.nemo.carried import texts_in
from ctd_guardrail.nemo.client import ClientRequest, asks_about_input, read_safely, roles_of
from ctd_guardrail.nemo.gate import Gate, InRequest, OpenRequest, current_request, entered, texts_judged
from ctd_guardrail.nemo.models import guard_models, guarded_function, is_guarded

__all__ = ["REFUSING_FLOW", "guard_doors", "operator_texts"]

REFUSING_FLOW: Final = "ctd refuse request"
"""The flow of Colang 1.0 that states a verdict from the door."""

_REFUSED_EVENT: Final = {"type": "CtdRequestRefused"}
# In Colang 2.x the input rails of the app run for it, and the rail states the verdict.
_NO_UTTERANCE: Final = {"type": "UtteranceUserActionFinished", "final_transcript": ""}
# Where a runtime gets its events.
_RUN: Final = {"1.0": "generate_events", "2.x": "process_events"}
# Events whose texts are in the host's memory of a conversation, though not in its key.
_REMEMBERED: Final = frozenset({"SystemMessage", "BotToolCalls", "UserToolMessages"})


def guard_doors(app: LLMRails, gate: Gate) -> None:
    """Put the gate in front of an app's public methods and of its models."""
    doors: Any = _Doors(app, gate)
    for name in ("generate_async", "generate_events_async", "process_events_async", "check_async"):
        setattr(app, name, getattr(doors, name))
    streaming = app.config.rails.output.streaming
    if streaming and streaming.enabled:
        setattr(app, "stream_async", doors.stream_async)  # noqa: B010  # a method, for mypy
    setattr(app.runtime, _RUN[app.config.colang_version], doors.run)
    guard_models(app, gate)
    for flow in app.config.flows:
        if isinstance(flow, dict) and flow.get("id") == REFUSING_FLOW:
            # Otherwise NeMo would show it to the main LLM as an example of a dialogue.
            flow["is_system_flow"] = True


class _Doors:
    """The guarded methods of one app.

    Args:
        app: The app, with its methods as they were.
        gate: Its gate.
    """

    def __init__(self, app: LLMRails, gate: Gate) -> None:
        self._app = app
        self._gate = gate
        self._generate = app.generate_async
        self._generate_events = app.generate_events_async
        self._process_events = app.process_events_async
        self._check = app.check_async
        self._stream = app.stream_async
        self._run = getattr(app.runtime, _RUN[app.config.colang_version])
        self._is_colang_1 = app.config.colang_version == "1.0"

    async def generate_async(
        self,
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | GenerationOptions | None = None,
        state: Any = None,
        streaming_handler: Any = None,
    ) -> Any:
        """As :meth:`LLMRails.generate_async`, behind the gate."""
        if (prompt is None) == (messages is None):
            return await self._generate(prompt, messages, options, state, streaming_handler)  # it reports the error
        self._guard_models()
        sent = [{"role": "user", "content": prompt}] if messages is None else messages
        generation = GenerationOptions(**options) if isinstance(options, dict) else options
        current = current_request(self._gate)
        if current is not None and current.take(sent if prompt is None else prompt):
            request = current
        else:
            request = self._gate.opened(self._read(sent, generation, state))
        with entered(request):
            if not self._runs_the_rail(request, sent, generation, state):
                await self._judge(request, generation)
            if request.block is None:
                answer = await self._generate(prompt, messages, options, state, streaming_handler)
                if not request.is_refused or streaming_handler is not None:
                    return answer
            return await self._refuse(prompt, options, state, streaming_handler)

    def stream_async(
        self,
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | GenerationOptions | None = None,
        state: Any = None,
        *args: Any,
        **more: Any,
    ) -> AsyncIterator[Any]:
        """As :meth:`LLMRails.stream_async`: output rails that ask the main LLM do so in the request of the stream."""
        sent = [{"role": "user", "content": prompt}] if messages is None and prompt is not None else messages or []
        # The host reports wrong options in the stream.
        client = read_safely(
            lambda: self._read(sent, GenerationOptions(**options) if isinstance(options, dict) else options, state)
        )
        with entered(self._gate.opened(client, source=prompt if messages is None else messages)) as request:
            # The host's own task of the main LLM begins here.
            return InRequest(request, self._stream(prompt, messages, options, state, *args, **more))

    async def generate_events_async(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As :meth:`LLMRails.generate_events_async`, behind the gate."""
        self._guard_models()
        client = self._read_events(events)
        with entered(self._gate.opened(client)) as request:
            await self._judge(request)
            if request.block is None:
                answer = await self._generate_events(events)
                if not request.is_refused:
                    return answer
            return await self._generate_events([_REFUSED_EVENT])

    async def process_events_async(
        self,
        events: list[dict[str, Any]],
        state: Any = None,
        blocking: bool = False,  # noqa: FBT001, FBT002  # the host's
    ) -> tuple[list[dict[str, Any]], Any]:
        """As :meth:`LLMRails.process_events_async`, behind the gate."""
        self._guard_models()
        history = [*getattr(state, "last_events", ()), *events]
        client = self._read_events(history)
        with entered(self._gate.opened(client)) as request:
            # An event that the bot has spoken requests nothing yet. If the main LLM is called anyway, the call waits.
            said = self._read_events(events).messages
            if client.refused_option or any(message is None or message["role"] != "assistant" for message in said):
                await self._judge(request)
            return await self._process_events(events if request.block is None else [_NO_UTTERANCE], state, blocking)

    async def check_async(
        self, messages: list[dict[str, Any]], rail_types: list[RailType] | None = None
    ) -> RailsResult:
        """As :meth:`LLMRails.check_async`, also for input without a user turn."""
        if asks_about_input(messages, rail_types) and "user" not in roles_of(messages):
            request = self._gate.opened(self._read(messages, None, None))
            with entered(request):
                decision = await self._gate.judge(request)
            if decision.is_blocking:
                return RailsResult(status=RailStatus.BLOCKED, content=self._gate.words(decision), rail=FLOW)
        return await self._check(messages, rail_types)

    async def run(self, events: list[Any], *args: Any, **options: Any) -> Any:
        """As the runtime's own method, which other code of an app may call as well."""
        self._guard_models()
        request = current_request(self._gate)
        if request is not None:
            request.late += self._remembered(request, events)
            return await self._run(events, *args, **options)
        state = options.get("state", args[0] if args and not self._is_colang_1 else None)
        client = self._read_events([*getattr(state, "last_events", ()), *events])
        with entered(self._gate.opened(client)):
            return await self._run(events, *args, **options)

    def _remembered(self, request: OpenRequest, events: list[Any]) -> tuple[str, ...]:
        """Return the texts of earlier requests that the host's memory puts before those of the client."""
        kept = [event for event in events if isinstance(event, Mapping) and str(event.get("type")) in _REMEMBERED]
        if not kept:
            return ()
        client = self._read_events(kept)
        known = {*request.client.asides, *request.late, *texts_judged(request.client.messages)}
        texts = [*client.asides, *texts_judged(client.messages)]
        return tuple(text for text in texts if text not in known)

    def _read(self, messages: list[dict[str, Any]], options: GenerationOptions | None, state: Any) -> ClientRequest:
        params = None if options is None else options.llm_params
        trusts_system = self._gate.trusts_system
        client = read_safely(
            lambda: ClientRequest.from_messages(messages, llm_params=params, trusts_system=trusts_system)
        )
        if isinstance(state, Mapping) and isinstance(state.get("events"), list):
            client = client.after(self._read_events(state["events"]))
        if options is not None and options.rails.dialog and not _enables_rail(options.rails.input):
            client = client.refusing("an option that switches the input rail off")
        return client

    def _read_events(self, events: list[Any]) -> ClientRequest:
        return read_safely(lambda: ClientRequest.from_events(events, trusts_system=self._gate.trusts_system))

    def _runs_the_rail(
        self, request: OpenRequest, messages: list[dict[str, Any]], options: GenerationOptions | None, state: Any
    ) -> bool:
        """Return whether the runtime is sure to call the rail's own action."""
        last = messages[-1] if messages else {}
        content = last.get("content") if isinstance(last, Mapping) else None
        return (
            self._is_colang_1
            and state is None
            and request.client.refused_option is None
            and FLOW in self._app.config.rails.input.flows
            and (options is None or _enables_rail(options.rails.input))
            and all(isinstance(message, Mapping) and message.get("role") != "event" for message in messages)
            and last.get("role") == "user"
            and isinstance(content, str)
            and bool(content.strip())
            # The host looks up a conversation by its user and assistant texts, and would restore these.
            and not request.client.asides
            and not any(
                message.get("tool_calls") or message["role"] == "tool"
                for message in request.client.messages
                if isinstance(message, Mapping)
            )
        )

    async def _judge(self, request: OpenRequest, options: GenerationOptions | None = None) -> None:
        """Decide at the door, except if the request does not call the main LLM."""
        asks_nothing = options is not None and not options.rails.dialog and not options.rails.input
        if not request.is_waived and not asks_nothing:
            await self._gate.judge(request)

    async def _refuse(self, prompt: str | None, options: Any, state: Any, streaming_handler: Any) -> Any:
        """Let the app state the verdict, without any text of the client in the runtime."""
        fresh = None if state is None else ({"events": []} if self._is_colang_1 else state)
        if self._is_colang_1:
            stand_in: list[dict[str, Any]] = [{"role": "event", "event": dict(_REFUSED_EVENT)}]
        else:
            stand_in = [{"role": "user", "content": ""}]
        answer: Any = await self._generate(None, stand_in, options, fresh, streaming_handler)
        if isinstance(answer, GenerationResponse):
            if state is not None and self._is_colang_1:
                answer.state = state
            if prompt is not None and isinstance(answer.response, list):
                answer.response = answer.response[-1]["content"]
            return answer
        return answer if prompt is None else answer["content"]

    def _guard_models(self) -> None:
        """Put the gate in front of models that an app has set without the host's methods."""
        app, gate = self._app, self._gate
        if app.llm is not None and not is_guarded(app.llm, gate):
            app.update_llm(app.llm)
        if self._is_colang_1 and app.passthrough_fn is not None and not hasattr(app.passthrough_fn, "ctd_gate"):
            app.passthrough_fn = guarded_function(app.passthrough_fn, gate)


def operator_texts(app: LLMRails) -> Iterator[str]:
    """Yield the operator's texts that a prompt may contain."""
    config = app.config
    yield from texts_in([instruction.content for instruction in config.instructions or ()])
    yield from texts_in(config.sample_conversation)
    yield from texts_in([prompt.model_dump() for prompt in config.prompts or ()])
    for task in Task:
        with suppress(ValueError):  # not every task has a prompt for every model
            yield from texts_in(get_prompt(config, task).model_dump())
    yield from texts_in([config.user_messages, config.bot_messages])
    for flow in config.flows:
        yield from texts_in(flow.get("id") if isinstance(flow, dict) else getattr(flow, "source_code", ""))


def _enables_rail(rails: object) -> bool:
    """Return whether an option for input rails, a flag or a list of names, leaves this rail on."""
    return rails is True or (isinstance(rails, list) and FLOW in rails)
