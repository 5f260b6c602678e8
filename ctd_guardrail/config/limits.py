"""The sections ``cap``, ``cap_store``, ``principal`` and ``breaker``: what bounds the use of the expert."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["BreakerConfig", "CapConfig", "CapStoreConfig", "PrincipalConfig"]

_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Section(BaseModel):
    # Inputs stay out of error messages: a value in the wrong place may be a secret.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CapConfig(_Section):
    """A cap on what the expert may cost, whatever the traffic: calls, tokens, or both.

    Attributes:
        calls: Calls that may be made in ``per_s`` seconds, in the long run; attempts count, not requests.
        tokens: Tokens that these calls may take in ``per_s`` seconds, prompt and answer.
        per_s: The time that ``calls`` and ``tokens`` are for.
        burst: Calls that may be made at once after a quiet time; None: as many as ``calls``.
        per: ``all``: everybody together; ``principal``: each principal has as much.
    """

    calls: _Count | None = None
    tokens: _Count | None = None
    per_s: Annotated[float, Field(gt=0.0, le=31_536_000.0, allow_inf_nan=False)]
    burst: _Count | None = None
    per: Literal["all", "principal"] = "all"

    @model_validator(mode="after")
    def _something_is_capped(self) -> CapConfig:
        if self.calls is None and self.tokens is None:
            raise PydanticCustomError("cap", "caps nothing", {"hint": "Set `calls`, `tokens` or both"})
        if self.burst is not None and self.calls is None:
            raise PydanticCustomError("cap", "`burst` is about `calls`", {"hint": "Set `calls`, or leave out `burst`"})
        return self


class CapStoreConfig(_Section):
    """A Redis or Valkey server that several processes keep their caps in.

    Attributes:
        url_env: Name of the environment variable with the address, for example ``redis://127.0.0.1:6379/0``.
        name: All who use this name on the server share the caps.
        timeout_s: Seconds that the server may take to answer; beyond them, ``cap_unavailable``.
    """

    url_env: _Variable
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default"
    timeout_s: Annotated[float, Field(gt=0.0, le=60.0, allow_inf_nan=False)] = 0.5


class PrincipalConfig(_Section):
    """Where a request says on whose behalf it is made. Name only what clients cannot choose for themselves.

    Attributes:
        variable: Context variable of NeMo Guardrails (LLMRails) as a library. Behind NeMo's server context variables
            are the client's, and this one is not read.
        header: Header of a request to the sidecar or to NeMo's server, set by the operator's own gateway. A request
            that carries it twice is refused: one of the two is the client's.
        most: Principals that have caps of their own at a time; beyond them, all others share one.
    """

    variable: _Text | None = None
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    most: _Count = 10_000

    @model_validator(mode="after")
    def _it_is_somewhere(self) -> PrincipalConfig:
        if self.variable is None and self.header is None:
            raise PydanticCustomError(
                "principal", "names no place", {"hint": "Set `variable` for NeMo Guardrails, `header` for the sidecar"}
            )
        return self


class BreakerConfig(_Section):
    """When an expert that fails is left alone.

    Attributes:
        failures: Timeouts and transient faults in a row after which no call is made.
        open_s: Seconds until the expert is tried again.
        trials: Calls that may then be under way at a time, until one succeeds.
    """

    failures: _Count = 5
    open_s: Annotated[float, Field(gt=0.0, le=3600.0, allow_inf_nan=False)] = 10.0
    trials: _Count = 1
