"""What happens to an input when the guard cannot do its work, cause by cause."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from ctd_guardrail.decision import OnFailure, Reason

__all__ = ["OnFailureByCause", "on_failure_for"]

# Who writes the input chooses these, or the caller asked for what it may not have: the failure policy, which is meant
# for a guard that broke, has no say in them.
_ALWAYS_BLOCKED: Final = frozenset({Reason.NON_TEXT, Reason.OVERLONG, Reason.BAD_OVERRIDE, Reason.NOT_READY})


class OnFailureByCause(BaseModel):
    """The failure policy by cause; a cause that is not named has the default.

    Attributes:
        default: For every cause that is not named.
        expert_timeout: The expert did not answer within its ``timeout_s``.
        expert_unavailable: The expert could not be reached, refused, or failed.
        expert_bad_verdict: The expert answered, but not with a verdict. Who writes the input may provoke it.
        expert_overloaded: As many inputs as may are waiting for the expert already.
        expert_disabled: The expert is switched off, ``expert_enabled``.
        breaker_open: The expert failed too often just now and is left alone.
        cap_exhausted: Nothing is left under a cap. Who sends many inputs may provoke it.
        cap_unavailable: The store that the caps are kept in cannot be reached.
        deadline: The guard's own ``deadline_s`` has passed.
        overloaded: The queue in front of the base model is full.
        engine_unavailable: The serving engine of the base model could not be reached, refused, or failed.
        internal_error: Anything else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    default: OnFailure = OnFailure.BLOCK
    expert_timeout: OnFailure | None = None
    expert_unavailable: OnFailure | None = None
    expert_bad_verdict: OnFailure | None = None
    expert_overloaded: OnFailure | None = None
    expert_disabled: OnFailure | None = None
    breaker_open: OnFailure | None = None
    cap_exhausted: OnFailure | None = None
    cap_unavailable: OnFailure | None = None
    deadline: OnFailure | None = None
    overloaded: OnFailure | None = None
    engine_unavailable: OnFailure | None = None
    internal_error: OnFailure | None = None


def on_failure_for(on_failure: OnFailure | OnFailureByCause, reason: Reason) -> OnFailure | None:
    """Return the failure policy for a cause; None where it has no say and the input is blocked.

    Args:
        on_failure: What the operator stated: one policy for all causes, or one for each.
        reason: The cause.
    """
    if reason in _ALWAYS_BLOCKED:
        return None
    if isinstance(on_failure, OnFailure):
        return on_failure
    stated: OnFailure | None = getattr(on_failure, reason.value)
    return on_failure.default if stated is None else stated
