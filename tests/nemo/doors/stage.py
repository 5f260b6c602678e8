"""Apps of NeMo Guardrails with and without the rail, and a main LLM that records what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import yaml
from nemoguardrails.types import LLMResponse, LLMResponseChunk

from ctd_guardrail.assembly.folder import FLOW
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import parse_section
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Context
from tests.support.word_guard import word_guard

__all__ = ["ANSWER", "RecordingLLM", "Stage", "marking_guard"]

ANSWER: Final = "the main LLM's answer"

_SECTION: Final = {
    "policy": "policy",
    "expert": {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "judge"},
}


class RecordingLLM:
    """A model by the protocol ``LLMModel`` that answers one sentence.

    Attributes:
        calls: All texts of each call, prompt and parameters, in order.
    """

    model_name = "recording"
    provider_name = "test"
    provider_url = None

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def generate_async(self, prompt: Any, *, stop: Any = None, **params: Any) -> LLMResponse:
        """Answer."""
        self._note(prompt, params | {"stop": stop})
        await asyncio.sleep(0)
        # NeMo's self check reads "no" as safe.
        return LLMResponse(content="no" if "Is this unsafe?" in self.calls[-1] else ANSWER)

    async def stream_async(self, prompt: Any, *, stop: Any = None, **params: Any) -> AsyncIterator[LLMResponseChunk]:
        """Answer in two pieces."""
        self._note(prompt, params | {"stop": stop})
        await asyncio.sleep(0)
        for piece in (ANSWER[:8], ANSWER[8:]):
            yield LLMResponseChunk(delta_content=piece)

    def _note(self, prompt: Any, params: dict[str, Any]) -> None:
        said = prompt if isinstance(prompt, str) else [m.to_dict() if hasattr(m, "to_dict") else m for m in prompt]
        self.calls.append(json.dumps([said, params], default=str, ensure_ascii=False))


class Stage:
    """Where one app plays.

    Args:
        root: Folder for configurations.
        endpoint: The main LLM over HTTP, ``LoopbackJudge`` of tests/support.
        is_guarded: Whether apps have the rail.

    Attributes:
        llm: The main LLM in this process.
    """

    def __init__(self, root: Path, endpoint: Any, *, is_guarded: bool) -> None:
        self.llm = RecordingLLM()
        self.is_guarded = is_guarded
        self.endpoint = endpoint
        self._root = root
        self._before = len(endpoint.answered_bodies)

    @property
    def calls(self) -> list[str]:
        """What the main LLM got, over both ways."""
        return [*self.llm.calls, *self.endpoint.answered_bodies[self._before :]]

    def write(self, name: str, files: dict[str, str] | None = None, **content: Any) -> Path:
        """Write a configuration folder.

        Args:
            name: Of the folder.
            files: Further files, by name.
            content: Keys of config.yml.
        """
        config: dict[str, Any] = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": _SECTION},
            "rails": {"input": {"flows": [FLOW]}},
            **content,
        }
        if not self.is_guarded:
            config.pop("import_paths")
            config.pop("custom_data")
            inputs = config["rails"].get("input", {})
            flows = [flow for flow in inputs.get("flows", ()) if flow != FLOW]
            config["rails"] = config["rails"] | {"input": inputs | {"flows": flows}}
        folder = self._root / f"{'guarded' if self.is_guarded else 'bare'}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        return folder

    def over_http(self) -> list[dict[str, Any]]:
        """Return the section ``models`` with the main LLM over HTTP."""
        parameters = {"base_url": self.endpoint.base_url}
        return [{"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": parameters}]


def marking_guard(context: Context, **settings: Any) -> Guard:
    """Return a guard with the real cascade, whose probe and expert refuse one word.

    Args:
        context: What a unit shows.
        settings: Of the cascade. One whose `judgement_key` has a name remembers what it judged.
    """
    config = parse_section(_SECTION)
    cascade = word_guard(context=context, **settings)
    bounds = Bounds.of(config.override_bounds, alpha=0.1, delta=0.1, mode=config.mode, on_failure=config.on_failure)
    factory: Any = SimpleNamespace(
        config=config, bounds=bounds, watch=None, paced=None, runtime=Runtime.default(), build=lambda *_: cascade
    )
    return Guard(factory, {None: BoundedExpert(cascade._expert)}, folder=Path())
