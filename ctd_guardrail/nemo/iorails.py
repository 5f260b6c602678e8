"""The rail on NeMo's IORails engine: the action that its catalog names, and the gate of each engine.

IORails runs its input rails unless the options of a request switch them off. The rails also see the turns
before the last user turn. The gate sees all messages of the request, when the rails start and when the model is called.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, cast

from nemoguardrails import RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.guardrails.iorails import IORails
from nemoguardrails.llm.taskmanager import LLMTaskManager
from nemoguardrails.rails.llm.options import RailsResult, RailStatus, RailType
from nemoguardrails.types import LLMResponse, LLMResponseChunk

from ctd_guardrail.assembly.folder import FLOW
from ctd_guardrail.config.section import SECTION
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.rail.expert import RailCollaborators
from ctd_guardrail.nemo import catalog
from ctd_guardrail.nemo.action import ACTION_NAME, screen
from ctd_guardrail.nemo.client import ClientRequest, asks_about_input, read_safely
from ctd_guardrail.nemo.gate import Gate, OpenRequest, current_request, enter, entered
from ctd_guardrail.nemo.guards import guard_for, refusals_of, section_of
from ctd_guardrail.nemo.messages import messages_from_events
from ctd_guardrail.nemo.server import mark_guarded
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["ctd_check_input", "install"]

_llms: ContextVar[Mapping[str, Any]] = ContextVar("ctd_iorails_llms")
_MAIN: Final = "main"


def install() -> None:
    """Make ``ctd check input`` known to the IORails engine of this process. Calling it again changes nothing.

    Raises:
        HostError: This version of NeMo Guardrails keeps its catalog, or calls its models, in another way.
    """
    catalog.install(_prepare)
    if getattr(IORails.__init__, "ctd_gate", False):
        return
    begin = IORails.__init__

    @wraps(begin)
    def __init__(self: IORails, config: RailsConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        begin(self, config, *args, **kwargs)
        gate = _gate_of(config)
        if gate is not None:
            _guard_doors(self, gate)

    __init__.ctd_gate = True  # type: ignore[attr-defined]
    setattr(IORails, "__init__", __init__)  # noqa: B010  # there is no hook for an engine that has been built


@action(name=ACTION_NAME, is_system_action=True)
async def ctd_check_input(
    config: RailsConfig,
    user_message: object = None,
    events: list[Any] | None = None,
    llms: Mapping[str, Any] | None = None,
) -> RailOutcome:
    """Screen the current request, with the last user turn as earlier rails rewrote it."""
    _llms.set(llms or {})

    def client() -> ClientRequest:
        return ClientRequest([*messages_from_events(events), {"role": "user", "content": user_message}])

    return await screen(_gate_of(config), client, user_message=user_message or None)


def _prepare(config: RailsConfig) -> None:
    """Build the gate of a configuration, once.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    if _gate_of(config) is None:
        section = section_of(config)
        if section.principal is not None:
            raise ConfigError(
                "the IORails engine passes no variables or headers to a rail, so it cannot tell principals apart",
                file=config.config_path,
                key=f"{SECTION}.principal",
                hint="Use LLMRails, or the sidecar",
            )
        collaborators = RailCollaborators(config=config, llms=_llms.get, llm_task_manager=LLMTaskManager(config))
        gates = _gates(Runtime.default())
        gates[id(config)] = Gate(
            guard_for(config, section, collaborators), section, refusals=refusals_of(config), operator_texts=tuple
        )
        weakref.finalize(config, gates.pop, id(config), None)


def _gate_of(config: RailsConfig) -> Gate | None:
    return _gates(Runtime.default()).get(id(config))


def _gates(runtime: Runtime) -> dict[int, Gate]:
    """Return the gates by the identity of their configurations.

    IORails hands a configuration to a rail, and copies it for each synchronous call. A configuration has no hash, so
    its identity is the key. The entry is removed when the configuration is collected.
    """
    return runtime.own("gates of IORails", dict)


def _guard_doors(engine: Any, gate: Gate) -> None:
    """Put the gate in front of an engine's rails and of its main model."""
    try:
        doors = _Doors(engine, gate)
        engine.rails_manager.is_input_safe = doors.is_input_safe
        engine.rails_manager.is_output_safe = doors.is_output_safe
        engine.engine_registry.model_call = doors.model_call
        engine.engine_registry.stream_model_call = doors.stream_model_call
        engine.check_async = doors.check_async
        if doors.main is not None:
            doors.main.generate_from_messages = doors.generate_from_messages
            doors.main.stream_from_messages = doors.stream_from_messages
        mark_guarded(engine, gate)
    except AttributeError as error:
        raise catalog.changed("calls its models") from error


class _Doors:
    """The guarded methods of one engine.

    Args:
        engine: The engine, with its methods as they were.
        gate: Its gate.

    Attributes:
        main: The main model; None if the configuration has none.
    """

    def __init__(self, engine: Any, gate: Gate) -> None:
        self._gate = gate
        self._flows: list[str] = engine.rails_manager.input_flows
        self._is_input_safe = engine.rails_manager.is_input_safe
        self._is_output_safe = engine.rails_manager.is_output_safe
        self._check = engine.check_async
        self._model_call = engine.engine_registry.model_call
        self._stream_model_call = engine.engine_registry.stream_model_call
        self.main = engine.engine_registry.llms.get(_MAIN)
        if self.main is not None:
            self._generate = self.main.generate_from_messages
            self._stream = self.main.stream_from_messages
        # Rails and model may run concurrently. Both get the same list, which identifies the request.
        self._under_way: weakref.WeakValueDictionary[int, OpenRequest] = weakref.WeakValueDictionary()

    async def is_input_safe(self, messages: list[dict[str, Any]], *, enabled: bool | list[str] = True) -> Any:
        """As ``RailsManager.is_input_safe``, with the whole request known to the rail, which no option switches off."""
        is_enabled = enabled is True or (enabled is not False and FLOW in enabled)
        client = self._read(messages)
        if not is_enabled:
            client = client.refusing("an option that switches the input rail off")
        request = self._request(messages, client)
        enter(request)
        if not is_enabled and not request.is_waived:
            enabled = [FLOW]
        return await self._is_input_safe(messages, enabled=enabled)

    async def is_output_safe(self, messages: list[dict[str, Any]], response: str, **options: Any) -> Any:
        """As ``RailsManager.is_output_safe``: rails that ask the main LLM do so in the request of these messages."""
        with entered(self._request(messages, self._read(messages))):
            return await self._is_output_safe(messages, response, **options)

    async def model_call(self, model_type: str, messages: list[dict[str, Any]], **kwargs: Any) -> Any:
        """As ``EngineRegistry.model_call``, in the request that these messages are of."""
        if model_type == _MAIN:
            self._enter(messages, kwargs)
        return await self._model_call(model_type, messages, **kwargs)

    async def stream_model_call(
        self, model_type: str, messages: list[dict[str, Any]], **kwargs: Any
    ) -> AsyncIterator[Any]:
        """As ``EngineRegistry.stream_model_call``, in the request that these messages are of."""
        if model_type == _MAIN:
            self._enter(messages, kwargs)
        async for chunk in self._stream_model_call(model_type, messages, **kwargs):
            yield chunk

    async def generate_from_messages(self, messages: list[dict[str, Any]], **kwargs: Any) -> LLMResponse:
        """As ``ModelEngine.generate_from_messages``, if the gate admits the messages."""
        if not await self._gate.admits(messages, kwargs):
            return LLMResponse(content=self._gate.words())
        response: LLMResponse = await self._generate(messages, **kwargs)
        self._gate.note_answer(response.content, response.tool_calls)
        return response

    async def stream_from_messages(
        self, messages: list[dict[str, Any]], **kwargs: Any
    ) -> AsyncIterator[LLMResponseChunk]:
        """As ``ModelEngine.stream_from_messages``, if the gate admits the messages."""
        if not await self._gate.admits(messages, kwargs):
            yield LLMResponseChunk(delta_content=self._gate.words())
            return
        said: list[str] = []
        async for chunk in self._stream(messages, **kwargs):
            said.append(chunk.delta_content or "")
            yield chunk
        self._gate.note_answer("".join(said))

    async def check_async(
        self, messages: list[dict[str, Any]], rail_types: list[RailType] | None = None
    ) -> RailsResult:
        """As ``IORails.check_async``, also for input without user text."""
        if not asks_about_input(messages, rail_types):
            return cast("RailsResult", await self._check(messages, rail_types))
        client = self._read(messages)
        with entered(self._request(messages, client)) as request:  # the rails find it by its messages
            decision = await self._gate.judge(request)
            result: RailsResult = await self._check(messages, rail_types)
        if decision.is_blocking and result.status is not RailStatus.BLOCKED:
            return RailsResult(status=RailStatus.BLOCKED, content=self._gate.words(decision), rail=FLOW)
        return result

    def _read(self, messages: list[dict[str, Any]], params: Mapping[str, Any] | None = None) -> ClientRequest:
        trusts_system = self._gate.trusts_system
        return read_safely(
            lambda: ClientRequest.from_messages(messages, llm_params=params, trusts_system=trusts_system)
        )

    def _enter(self, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> None:
        """Make the request of these messages the current one, with the parameters of the call."""
        request = self._request(messages, self._read(messages))
        # The rails do not see the parameters of the call.
        request.late = self._read([], params).asides
        enter(request)

    def _request(self, messages: list[dict[str, Any]], client: ClientRequest) -> OpenRequest:
        """Return the request of these messages."""
        listed, current = self._under_way.get(id(messages)), current_request(self._gate)
        if listed is not None and listed.source is messages:
            request = listed
        elif current is not None and current.is_judged and current.client == client:
            request = current
        else:
            request = self._under_way[id(messages)] = self._gate.opened(client, source=messages)
        return request
