"""From the events of a Colang 1.0 runtime to chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["messages_from_events"]


def messages_from_events(
    events: Iterable[Mapping[str, Any]] | None, context: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the conversation that is about to reach the main LLM, oldest turn first.

    ``context["user_message"]`` alone is only the last user turn: two user turns in a row, or a harmful turn before an
    assistant's, would reach the main LLM unseen. The events hold them all.

    Args:
        events: The runtime's history.
        context: The runtime's variables. Earlier rails may have rewritten ``user_message``; what they made of it is
            what the main LLM gets, so it replaces the last user turn.
    """
    messages: list[dict[str, Any]] = []
    for event in events or ():
        kind = event.get("type")
        if kind == "UtteranceUserActionFinished":
            messages.append({"role": "user", "content": event.get("final_transcript")})
        elif kind == "StartUtteranceBotAction":
            messages.append({"role": "assistant", "content": event.get("script")})
    current = {"role": "user", "content": (context or {}).get("user_message")}
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if last is None:
        messages.append(current)
    elif current["content"] is not None:
        messages[last] = current
    return messages
