"""The forms of a request to a judge, of which an endpoint takes one.

Every form asks the same question in the same words. Endpoints differ in the parameters that they know. Some chat
templates take no system message; then the instruction precedes the user message.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ctd_guardrail.experts.complaint import Complaint
from ctd_guardrail.experts.prompt import RenderedPrompt

__all__ = ["RequestForm"]

# The most that OpenAI's own endpoint gives, and vLLM's default limit; and what endpoints with a lower limit give.
_TOP_LOGPROBS: Final = 20
_FEW_LOGPROBS: Final = 5
_MAX_JSON_TOKENS: Final = 64
_MARKED_TOKENS: Final = 4
# Models that take max_completion_tokens may reason before they answer, within the same limit.
_MAX_REASONED_TOKENS: Final = 1024

_VERDICT_SCHEMA: Final = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["safe", "unsafe"]}, "confidence": {"type": "number"}},
    "required": ["verdict", "confidence"],
    "additionalProperties": False,
}
_FORMATS: Final[dict[str, dict[str, Any]]] = {
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": _VERDICT_SCHEMA},
        }
    },
    "json_object": {"response_format": {"type": "json_object"}},
    "free": {},
}


@dataclass(frozen=True, slots=True)
class RequestForm:
    """One form of the request.

    Attributes:
        scoring: How the answer is read.
        is_folded: Whether the instruction stands in the user message.
        limit: The parameter that limits the answer.
        has_temperature: Whether a temperature of 0 is asked for.
        alternatives: Alternatives of the first token that are asked for.
        tokens: Tokens of an answer whose log-probabilities are read.
        answer: How the form of a stated verdict is asked for.
    """

    scoring: Literal["logprobs", "json"]
    is_folded: bool = False
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    has_temperature: bool = True
    alternatives: int = _TOP_LOGPROBS
    tokens: int = 1
    answer: Literal["json_schema", "json_object", "free"] = "json_schema"

    def payload(self, model: str, prompt: RenderedPrompt) -> dict[str, Any]:
        """Return the body of the request."""
        payload: dict[str, Any] = {"model": model, "messages": prompt.messages(fold=self.is_folded), "stream": False}
        if self.has_temperature:
            payload["temperature"] = 0
        if self.scoring == "logprobs":
            return payload | {self.limit: self.tokens, "logprobs": True, "top_logprobs": self.alternatives}
        most = _MAX_JSON_TOKENS if self.limit == "max_tokens" else _MAX_REASONED_TOKENS
        return payload | {self.limit: most} | _FORMATS[self.answer]

    def adapted(self, complaint: Complaint) -> RequestForm | None:
        """Return the form to try after a complaint about this one; None if there is none left.

        What the complaint names is changed first. One that names nothing may be about the system message: that is
        what servers say least about.
        """
        named = complaint.parts
        if "system" in named and not self.is_folded:
            return self.folded()
        if "max_tokens" in named and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if "temperature" in named and self.has_temperature:
            return replace(self, has_temperature=False)
        if "top_logprobs" in named and self.scoring == "logprobs" and self.alternatives > _FEW_LOGPROBS:
            return replace(self, alternatives=_FEW_LOGPROBS)
        if "response_format" in named and self.scoring == "json" and self.answer != "free":
            return replace(self, answer="json_object" if self.answer == "json_schema" else "free")
        return None if named or self.is_folded else self.folded()

    @property
    def is_short(self) -> bool:
        """Whether it asks for the first token of the answer only."""
        return self.tokens < _MARKED_TOKENS

    def longer(self) -> RequestForm:
        """Return the form for models that put a mark or two before the answer."""
        return replace(self, tokens=_MARKED_TOKENS)

    def folded(self, *, fold: bool = True) -> RequestForm:
        """Return the form with, or without, the instruction in the user message."""
        return replace(self, is_folded=fold)

    def described(self) -> str:
        """Return the form in words, for a log."""
        place = "the user message" if self.is_folded else "the system message"
        parts = [f"instruction in {place}", self.limit]
        parts += [f"top_logprobs {self.alternatives}"] if self.scoring == "logprobs" else [f"answer {self.answer}"]
        return ", ".join([*parts, "temperature 0" if self.has_temperature else "no temperature"])
