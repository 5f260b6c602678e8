"""The sections ``cap``, ``pace`` and ``principal``: limits on the use of the expert."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.config.types import Count, Section, Text
from ctd_guardrail.policy.pace import Period

__all__ = ["CapConfig", "PaceConfig", "PrincipalConfig"]


class CapConfig(Section):
    """A cap on what the expert may cost, for any traffic: calls, tokens, or both."""

    calls: Count | None = None
    """Calls in ``per_s`` seconds. Every attempt counts, not every input."""
    tokens: Count | None = None
    """Tokens of these calls in ``per_s`` seconds, prompt and answer together."""
    per_s: Annotated[float, Field(gt=0.0, le=31_536_000.0, allow_inf_nan=False)]
    """Length of the period of ``calls`` and ``tokens``, in seconds."""
    burst: Count | None = None
    """Calls that may be made at once after a quiet time; by default as many as ``calls``. Lower it to protect the
    endpoint from peaks."""
    per: Literal["all", "principal"] = "all"
    """Who shares the cap: ``all`` (one cap for all requests) or ``principal`` (one cap for each principal)."""

    @model_validator(mode="after")
    def _something_is_capped(self) -> CapConfig:
        if self.calls is None and self.tokens is None:
            raise PydanticCustomError("cap", "caps nothing", {"hint": "Set `calls`, `tokens` or both"})
        if self.burst is not None and self.calls is None:
            raise PydanticCustomError("cap", "`burst` is about `calls`", {"hint": "Set `calls`, or leave out `burst`"})
        return self


class PaceConfig(Section):
    """A pace that keeps the expert's calls at alpha per request, also if the scores rise."""

    per: Period
    """Time over which calls are balanced: ``minute``, ``hour`` or ``day``. The calls of any time exceed alpha x its
    requests by at most the budget of the busiest ``minute``, ``hour`` or ``day``, or by 20."""


class PrincipalConfig(Section):
    """Where a request names its principal. Use only places that clients cannot write to."""

    variable: Text | None = None
    """Context variable, for apps that use NeMo Guardrails (LLMRails) as a library. Behind NeMo's server, clients write
    context variables, so it is not read there."""
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """HTTP header of the sidecar and of NeMo's server. Your gateway must set it; a request that has it twice is
    refused."""

    @model_validator(mode="after")
    def _it_is_somewhere(self) -> PrincipalConfig:
        if self.variable is None and self.header is None:
            raise PydanticCustomError(
                "principal", "names no place", {"hint": "Set `variable` for NeMo Guardrails, `header` for the sidecar"}
            )
        return self
