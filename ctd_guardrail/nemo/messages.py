"""Converts the events of NeMo's engines to chat messages.

``context["user_message"]`` is only the last user turn. Earlier turns, such as the first of two user turns in a row,
would reach the main LLM unscreened. The events hold all turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["ChatMessages", "messages_from_events", "with_rewritten"]

ChatMessages = list[dict[str, Any]]


def messages_from_events(events: Iterable[object] | None) -> ChatMessages:
    """Return the dialogue in a history of events, oldest turn first.

    Args:
        events: The history of a Colang 1.0 or 2.x runtime, or of IORails.
    """
    messages: ChatMessages = []
    for event in events or ():
        # Colang 2.x puts its own objects between the events of the outside world.
        if isinstance(event, Mapping):
            messages += [message for message in _messages_of(event) if message not in messages[-1:]]
    return messages


def with_rewritten(messages: ChatMessages, current: object) -> ChatMessages:
    """Return a dialogue with the user turn that the main LLM gets.

    Args:
        messages: The dialogue as the client sent it.
        current: The host's variable ``user_message``. Earlier rails may have rewritten it; then it replaces the last
            user turn. None if the host has none.
    """
    users = [i for i, message in enumerate(messages) if isinstance(message, Mapping) and message.get("role") == "user"]
    if current is None or any(messages[i].get("content") == current for i in users):
        return messages
    rewritten = {"role": "user", "content": current}
    # Of several turns that wait, any may be the one that was rewritten: none is left out.
    if not users or (len(users) > 1 and users[-1] - users[-2] == 1):
        return [*messages, rewritten]
    return [*messages[: users[-1]], {**messages[users[-1]], **rewritten}, *messages[users[-1] + 1 :]]


def _messages_of(event: Mapping[str, Any]) -> ChatMessages:
    match event.get("type"):
        case "UtteranceUserActionFinished":
            return [{"role": "user", "content": event.get("final_transcript")}]
        case "UserMessage":
            # The utterance over again, or what the rails of its turn made of it.
            return [{"role": "user", "content": event.get("text")}]
        case "UserToolMessages":
            tools = [tool for tool in event.get("tool_messages") or () if isinstance(tool, Mapping)]
            return [{"role": "tool", "content": tool.get("content"), "name": tool.get("name")} for tool in tools]
        case "BotToolCalls":
            return [{"role": "assistant", "content": None, "tool_calls": event.get("tool_calls")}]
        case "StartUtteranceBotAction":
            return [{"role": "assistant", "content": event.get("script")}]
    return []
