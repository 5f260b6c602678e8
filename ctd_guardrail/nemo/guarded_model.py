"""The main LLM behind the gate: every call needs a verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nemoguardrails.types import LLMModel, LLMResponse, LLMResponseChunk

from ctd_guardrail.nemo.gate import Gate

__all__ = ["GuardedModel"]


class GuardedModel:
    """An LLM of NeMo Guardrails that asks the gate before each call, and otherwise answers with the app's refusal.

    Args:
        model: The model.
        gate: Admits or refuses calls.
    """

    def __init__(self, model: LLMModel, gate: Gate) -> None:
        self.guarded = model
        self.gate = gate

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.guarded.model_name

    @property
    def provider_name(self) -> str | None:
        """The name of its provider."""
        return self.guarded.provider_name

    @property
    def provider_url(self) -> str | None:
        """The address of its provider."""
        return self.guarded.provider_url

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model that is not part of the protocol."""
        return getattr(self.guarded, name)

    async def generate_async(self, prompt: Any, *, stop: list[str] | None = None, **kwargs: Any) -> LLMResponse:
        """Call the model if the gate admits the prompt."""
        if not await self.gate.admits(prompt, stop, kwargs):
            return LLMResponse(content=self.gate.words())
        response = await self.guarded.generate_async(prompt, stop=stop, **kwargs)
        self.gate.note_answer(response.content, response.tool_calls)
        return response

    async def stream_async(
        self, prompt: Any, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[LLMResponseChunk]:
        """Stream the answer of the model if the gate admits the prompt."""
        if not await self.gate.admits(prompt, stop, kwargs):
            yield LLMResponseChunk(delta_content=self.gate.words())
            return
        said: list[str] = []
        async for chunk in self.guarded.stream_async(prompt, stop=stop, **kwargs):
            said.append(chunk.delta_content or "")
            yield chunk
        self.gate.note_answer("".join(said))
