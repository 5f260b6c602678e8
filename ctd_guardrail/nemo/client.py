"""What a client sends in one request, sorted by how it reaches the main LLM.

A host lets a client send more than its last message: a history, system messages, tool results, definitions of tools,
context variables, events, a state. All of it is text of others. This module finds it; it does not judge it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ctd_guardrail.nemo.carried import texts_in
from ctd_guardrail.nemo.messages import ChatMessages, messages_from_events
from ctd_guardrail.text.conversation import RECEIPT
from ctd_guardrail.text.message_text import texts_of

__all__ = ["OVERRIDES", "ClientRequest", "asks_about_input", "read_safely", "roles_of"]

OVERRIDES: Final = "ctd"
"""The context variable of a request that holds its overrides."""

# Roles whose content is meant to be the operator's. A client may send them, too.
_SYSTEM: Final = frozenset({"system", "developer"})
# Roles that carry variables and events instead of text.
_CARRIERS: Final = frozenset({"context", "event"})
_SPEAKERS: Final = frozenset({"user", "assistant", "tool", "function"})
# Fields of a message that are read as dialogue.
_DIALOGUE_FIELDS: Final = frozenset({"role", "content", "name", "tool_calls", "function_call", "tool_call_id"})
_ASIDE_FIELDS: Final = frozenset({"role", "content", "name"})
_CARRIER_FIELDS: Final = frozenset({"role", "content", "event"})
# Names of variables, fields and parameters have this form. Any other name is text.
_LABEL: Final = re.compile(r"[\w.:-]{0,64}")
# Keys of JSON schemas under which the client chooses the names of the keys.
_NAMING: Final = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
# Variables that control the host. A client that sets one would switch rails off.
_HOST_VARIABLES: Final = frozenset({"config", "generation_options"})
# Events that make the runtime run code, or record that a rail has run. No external event has these types.
_HOST_EVENTS: Final = frozenset(
    {
        "EventHistoryUpdate",
        "InputRailFinished",
        "InputRailsFinished",
        "InternalSystemActionFinished",
        "StartInputRail",
        "StartInputRails",
        "StartInternalSystemAction",
        "start_flow",
    }
)
# Values of JSON schemas and of request fields. They are words of the protocol, and not of the client.
_PROTOCOL_WORDS: Final = frozenset(
    {
        "array", "auto", "boolean", "function", "integer", "json_object", "json_schema", "none", "null", "number",
        "object", "required", "string", "text",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """Text of others in one request.

    Attributes:
        messages: The dialogue: turns of users, tools and the assistant, oldest first.
        asides: Texts outside the dialogue that reach the main LLM in any case: system messages and the texts of the
            parameters of its call, such as definitions of tools.
        loose: Texts that reach the main LLM only where the host puts them into a prompt: context variables, and
            fields of events and of a state.
        variables: The context variables.
        refused_option: The option that the request sets without the operator's permission; None: no such option.
    """

    messages: ChatMessages = field(default_factory=list)
    asides: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    refused_option: str | None = None

    @classmethod
    def from_messages(
        cls,
        messages: Iterable[object],
        *,
        llm_params: Mapping[str, Any] | None = None,
        trusts_system: bool = False,
    ) -> ClientRequest:
        """Read chat messages and the parameters of the main LLM's call.

        Args:
            messages: Messages as the host takes them. A value that is not a message is kept: the guard refuses it.
            llm_params: Parameters of the call that the client sends.
            trusts_system: Whether system messages are the operator's own.
        """
        dialogue: ChatMessages = []
        asides: list[str] = []
        loose: list[str] = []
        variables: dict[str, Any] = {}
        events: list[Mapping[str, Any]] = []
        for message in messages:
            role = message.get("role") if isinstance(message, Mapping) else None
            if not isinstance(message, Mapping):
                dialogue.append(message)  # type: ignore[arg-type]  # the guard fails it
            elif role in _SYSTEM:
                if not trusts_system:
                    apart, unread = _read_aside(message)
                    asides += apart
                    dialogue += unread
                    loose += _field_texts(message, _ASIDE_FIELDS)
            elif role in _CARRIERS:
                # A host that forwards messages unchanged also forwards a variable that a later message overwrites.
                variables.update(_variables_of(message.get("content")))
                loose += _variable_texts(message.get("content")) + _field_texts(message, _CARRIER_FIELDS)
                if isinstance(message.get("event"), Mapping):
                    events.append(message["event"])
                else:
                    loose += texts_in(message.get("event"))
            else:
                # The host forwards unknown roles, and the guard reads their texts as those of a user.
                known = role if role in _SPEAKERS else "user"
                dialogue.append({**message, "role": known})
                labels = {name for name in ("id", "type") if _is_label(message.get(name))}
                loose += _field_texts(message, _DIALOGUE_FIELDS | labels) + ([] if role == known else texts_in(role))
        asides += ["\n".join(words) for value in (llm_params or {}).values() if (words := list(_words_of(value)))]
        return cls(messages=dialogue, asides=tuple(asides), loose=tuple(loose)).with_variables(variables).after(
            cls.from_events(events, trusts_system=trusts_system), is_live=True
        )  # fmt: skip

    @classmethod
    def from_events(cls, events: Iterable[object], *, trusts_system: bool = False) -> ClientRequest:
        """Read events of a Colang runtime.

        Args:
            events: The events, oldest first.
            trusts_system: Whether system messages are the operator's own.
        """
        read = [event for event in events if isinstance(event, Mapping)]
        variables: dict[str, Any] = {}
        loose: list[str] = []
        asides: list[str] = []
        unread: ChatMessages = []
        for event in read:
            kind = event.get("type")
            if kind == "ContextUpdate":
                variables.update(_variables_of(event.get("data")))
                loose += _variable_texts(event.get("data"))
            elif kind == "SystemMessage" and not trusts_system:
                apart, refused = _read_aside(event)
                asides += apart
                unread += refused
            if kind != "SystemMessage":
                loose += _field_texts(event, {"type", "data"} if kind == "ContextUpdate" else {"type"})
                loose += [] if _is_label(kind) else texts_in(kind)
        names = sorted({str(event.get("type")) for event in read} & _HOST_EVENTS)
        request = cls(
            messages=[*messages_from_events(read), *unread],
            asides=tuple(asides),
            loose=tuple(loose),
            refused_option=f"an event of type {names[0]}" if names else None,
        )
        return request.with_variables(variables)

    def with_variables(self, variables: Mapping[str, Any]) -> ClientRequest:
        """Return the request with these context variables beside its own."""
        taken = sorted(_HOST_VARIABLES & variables.keys())
        return replace(
            self,
            variables={**self.variables, **variables},
            refused_option=self.refused_option or (f"the context variable {taken[0]}" if taken else None),
        )

    def refusing(self, option: str) -> ClientRequest:
        """Return the request with the option that it sets without the operator's permission."""
        return replace(self, refused_option=self.refused_option or option)

    def after(self, earlier: ClientRequest, *, is_live: bool = False) -> ClientRequest:
        """Return this request behind an earlier part of it, such as the events of a state.

        Args:
            earlier: What stands before it.
            is_live: Whether the earlier part's options count. Those of a state were asked for in another request.
        """
        return replace(
            self,
            messages=[*earlier.messages, *self.messages],
            asides=(*earlier.asides, *self.asides),
            loose=(*earlier.loose, *self.loose),
            variables={**earlier.variables, **self.variables},
            refused_option=self.refused_option or (earlier.refused_option if is_live else None),
        )


def read_safely(read: Callable[[], ClientRequest]) -> ClientRequest:
    """Return the result of a function, or a request that the guard fails, counts and blocks.

    A door must raise only the host's own exceptions: NeMo logs an exception together with the user's text.
    """
    try:
        return read()
    except Exception:  # noqa: BLE001  # fails closed, whatever it is
        return ClientRequest([None])  # type: ignore[list-item]  # None is no message


def asks_about_input(messages: Iterable[Mapping[str, Any]], rail_types: Iterable[str] | None) -> bool:
    """Return whether a check is about input: because it says so, or because a message is not the assistant's.

    Args:
        messages: The messages under check.
        rail_types: The rails that the check names; None: the host chooses by the messages.
    """
    if rail_types is not None:
        return "input" in rail_types
    return any(role not in {"assistant", *_CARRIERS} for role in roles_of(messages))


def roles_of(messages: Iterable[object]) -> list[str]:
    """Return the role of each message as a string; "None" for a value that is not a message."""
    return [str(message.get("role") if isinstance(message, Mapping) else None) for message in messages]


def _read_aside(message: Mapping[str, Any]) -> tuple[list[str], ChatMessages]:
    """Return the texts of a system message; if it holds more than text, also the message as one of a user."""
    said = {"role": "user", **{key: message[key] for key in ("content", "name") if key in message}}
    texts = texts_of(said) or []
    return [text for text in texts if text is not None and text.strip()], [said] if None in texts else []


def _variables_of(content: Any) -> dict[str, Any]:
    """Return context variables from a mapping, or from the pairs that the host also accepts."""
    try:
        return dict(content)
    except (TypeError, ValueError):
        return {}


def _variable_texts(content: Any) -> list[str]:
    """Return the texts of context variables, without the guard's own settings."""
    variables = _variables_of(content)
    return _field_texts(variables, {OVERRIDES}) if variables else texts_in(content)


def _field_texts(fields: Mapping[Any, Any], known: AbstractSet[str]) -> list[str]:
    """Return the texts of the remaining fields, and of their names that are not labels."""
    if fields.keys() <= known:  # nearly every message
        return []
    others = {name: value for name, value in fields.items() if name not in known}
    receipt = others.get("metadata")
    if isinstance(receipt, Mapping) and RECEIPT in receipt:
        others["metadata"] = {name: value for name, value in receipt.items() if name != RECEIPT}
    return texts_in([[name for name in others if not _is_label(name)], *others.values()])


def _is_label(name: object) -> bool:
    return isinstance(name, str) and _LABEL.fullmatch(name) is not None


def _words_of(value: object) -> Iterator[str]:
    """Yield the names and texts inside a parameter of a call, without the words of the protocol."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _NAMING and isinstance(item, Mapping):
                yield from (str(name) for name in item if _is_label(name))
            if not _is_label(key):
                yield str(key)
            yield from _words_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words_of(item)
    elif isinstance(value, str) and value.strip() and value not in _PROTOCOL_WORDS:
        yield value
