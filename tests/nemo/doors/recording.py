"""A main LLM that records what it gets, and a guard that refuses one word, in real apps of NeMo Guardrails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from faulty.guard import word_guard
from nemoguardrails.types import LLMResponse, LLMResponseChunk

from ctd_guardrail.config import parse_section
from ctd_guardrail.experts.guarded import GuardedExpert
from ctd_guardrail.overrides import OverridableCascade
from doors.shapes import MARK

__all__ = ["ANSWER", "RecordingLLM", "marking_guard"]

ANSWER: Final = "the main answer"


class RecordingLLM:
    """An ``LLMModel`` of NeMo Guardrails that answers one sentence and keeps what it was asked.

    Attributes:
        calls: All texts of each call, prompt and parameters, in order.
    """

    model_name = "recording"
    provider_name = "test"
    provider_url = None

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def carried(self) -> int:
        """Number of calls that carried the word."""
        return sum(MARK in call.casefold() for call in self.calls)

    def note(self, prompt: Any, params: dict[str, Any]) -> None:
        """Keep a call."""
        said = prompt if isinstance(prompt, str) else [m.to_dict() if hasattr(m, "to_dict") else m for m in prompt]
        self.calls.append(json.dumps([said, params], default=str, ensure_ascii=False))

    async def generate_async(self, prompt: Any, *, stop: Any = None, **params: Any) -> LLMResponse:
        """Answer."""
        self.note(prompt, params)
        await asyncio.sleep(0)
        return LLMResponse(content=ANSWER)

    async def stream_async(self, prompt: Any, *, stop: Any = None, **params: Any) -> AsyncIterator[LLMResponseChunk]:
        """Answer in two pieces."""
        self.note(prompt, params)
        await asyncio.sleep(0)
        for piece in ("the main ", "answer"):
            yield LLMResponseChunk(delta_content=piece)


def marking_guard(**section: Any) -> OverridableCascade:
    """Return a guard that refuses what holds the word, with the real cascade around the rule."""
    config = parse_section({"policy": "policy", "expert": {"type": "rail", "flow": "self check input"}, **section})
    cascade = word_guard()
    return OverridableCascade(config, {None: GuardedExpert(cascade._expert)}, lambda *_: cascade)


def write_config(folder: Path, **content: Any) -> Path:
    """Write a configuration folder with the rail."""
    import yaml  # noqa: PLC0415

    section = {"policy": "policy", "expert": {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "judge"}}
    config = {
        "import_paths": ["ctd_guardrail/nemo"],
        "custom_data": {"ctd": section},
        "rails": {"input": {"flows": ["ctd check input"]}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump(config | content))
    return folder
