"""What a door of NeMo Guardrails is, and how a request goes through one."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from nemoguardrails import LLMRails, RailsConfig

from tests.nemo.doors.shapes import Shape
from tests.nemo.doors.stage import Stage

__all__ = [
    "DOORS",
    "INPUT",
    "Door",
    "Send",
    "app_on",
    "checking",
    "generating",
    "messages_of",
    "options_of",
    "register",
    "said_in",
    "streaming",
]

Send = Callable[[Shape], Awaitable[str]]
"""Sends a request, and returns all that the client reads."""


@dataclass(frozen=True, slots=True)
class Door:
    """One way in.

    Attributes:
        engine: The engine of NeMo Guardrails behind it.
        name: In Markdown.
        open: Builds the app, and yields the function that sends.
        takes: Whether a shape can be sent through it at all.
        calls_main: Whether the main LLM answers there.
    """

    engine: str
    name: str
    open: Callable[[Stage], AbstractAsyncContextManager[Send]]
    takes: Callable[[Shape], bool]
    calls_main: bool


DOORS: Final[list[Door]] = []

INPUT: Final = {"flows": ["ctd check input"]}


def _anything(_: Shape) -> bool:
    return True


def register(
    engine: str, name: str, *, takes: Callable[[Shape], bool] = _anything, calls_main: bool = True
) -> Callable[[Callable[[Stage], AsyncIterator[Send]]], None]:
    def add(function: Callable[[Stage], AsyncIterator[Send]]) -> None:
        DOORS.append(Door(engine, name, asynccontextmanager(function), takes, calls_main))

    return add


def app_on(stage: Stage, name: str, files: dict[str, str] | None = None, **content: Any) -> LLMRails:
    return LLMRails(RailsConfig.from_path(str(stage.write(name, files, **content))), llm=stage.llm)


def options_of(shape: Shape) -> dict[str, Any] | None:
    return copy.deepcopy(shape.options) or None


def messages_of(shape: Shape) -> list[dict[str, Any]]:
    return copy.deepcopy(shape.messages)


def generating(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        return said_in(await rails.generate_async(messages=messages_of(shape), options=options_of(shape)))

    return send


def streaming(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        chunks = rails.stream_async(messages=messages_of(shape), options=options_of(shape))
        return "".join([str(chunk) async for chunk in chunks])

    return send


def checking(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        return str((await rails.check_async(messages_of(shape))).status.value)

    return send


def said_in(answer: Any) -> str:
    """Return what the client reads: the last message, without what differs from call to call."""
    message = answer.response[-1] if hasattr(answer, "response") else answer
    content = message["content"] if isinstance(message, dict) else message
    return str(content["type"]) if isinstance(content, dict) else str(content)
