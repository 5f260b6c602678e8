"""From the events of NeMo's engines to chat messages.

``context["user_message"]`` alone is only the last user turn: two user turns in a row, or a harmful turn before an
assistant's, would reach the main LLM unseen. The events hold them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["messages_from_events", "messages_from_iorails"]

ChatMessages = list[dict[str, Any]]


def messages_from_events(events: Iterable[object] | None, context: Mapping[str, Any] | None) -> ChatMessages:
    """Return the conversation that is about to reach the main LLM, oldest turn first.

    Args:
        events: The history of a Colang 1.0 or 2.x runtime.
        context: The runtime's variables. Earlier rails may have rewritten ``user_message``; what they made of it is
            what the main LLM gets, so it replaces the last user turn.
    """
    messages = _read(events)
    current = (context or {}).get("user_message")
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if any(messages[i]["content"] == current for i in users):
        return messages
    if len(users) > 1 and users[-1] - users[-2] == 1:
        # Of several turns that wait, any may be the one that was rewritten: none is left out.
        return [*messages, {"role": "user", "content": current}]
    if users and current is not None:
        messages[users[-1]] = {"role": "user", "content": current}
        return messages
    return messages if users else [*messages, {"role": "user", "content": current}]


def messages_from_iorails(events: Iterable[object] | None, user_message: object) -> ChatMessages:
    """Return the conversation up to the turn under check.

    Args:
        events: The turns before it, as IORails shows them: tool results and all that follows the turn are left out.
        user_message: The turn under check.
    """
    return [*_read(events), {"role": "user", "content": user_message}]


def _read(events: Iterable[object] | None) -> ChatMessages:
    messages: ChatMessages = []
    for event in events or ():
        # Colang 2.x puts its own objects between the events of the outside world.
        if isinstance(event, Mapping):
            messages += [message for message in _messages_of(event) if message not in messages[-1:]]
    return messages


def _messages_of(event: Mapping[str, Any]) -> ChatMessages:
    match event.get("type"):
        case "UtteranceUserActionFinished":
            return [{"role": "user", "content": event.get("final_transcript")}]
        case "UserMessage":
            # The utterance over again, or what the rails of its turn made of it.
            return [{"role": "user", "content": event.get("text")}]
        case "UserToolMessages":
            tools = event.get("tool_messages") or ()
            return [{"role": "tool", "content": tool.get("content")} for tool in tools]
        case "StartUtteranceBotAction":
            return [{"role": "assistant", "content": event.get("script")}]
    return []
