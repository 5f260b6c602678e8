"""The decision of a guard: verdict, route, reason, scores and times, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from operator import add
from typing import Final, NamedTuple

__all__ = [
    "ALWAYS_BLOCKED",
    "Decision",
    "Mode",
    "OnFailure",
    "OnHistory",
    "OnUnreadable",
    "Reason",
    "RefusedTurns",
    "Route",
    "Timings",
    "Verdict",
]


class Verdict(StrEnum):
    """What happens to the input."""

    ALLOW = "allow"
    BLOCK = "block"


class Route(StrEnum):
    """Where the input was assigned: ``expert`` if d(x) > lambda or the audit's coin falls on it, else ``probe``."""

    PROBE = "probe"
    EXPERT = "expert"


class Reason(StrEnum):
    """Why the verdict is what it is.

    The first four are judgements of the content. ``blank`` means that there was nothing to judge, ``abstained`` that
    the score lies in the policy's abstain band. All others mean that the guard could not do its work. ``on_failure``
    then chooses the verdict; ``non_text`` and ``overlong`` have settings of their own.
    """

    PROBE_SAFE = "probe_safe"
    PROBE_UNSAFE = "probe_unsafe"
    EXPERT_SAFE = "expert_safe"
    EXPERT_UNSAFE = "expert_unsafe"
    BLANK = "blank"
    ABSTAINED = "abstained"

    EXPERT_TIMEOUT = "expert_timeout"
    EXPERT_UNAVAILABLE = "expert_unavailable"
    EXPERT_BAD_VERDICT = "expert_bad_verdict"
    EXPERT_OVERLOADED = "expert_overloaded"
    EXPERT_DISABLED = "expert_disabled"
    BREAKER_OPEN = "breaker_open"
    CAP_EXHAUSTED = "cap_exhausted"
    CAP_UNAVAILABLE = "cap_unavailable"
    DEADLINE = "deadline"
    BAD_OVERRIDE = "bad_override"
    NOT_READY = "not_ready"
    NON_TEXT = "non_text"
    OVERLONG = "overlong"
    OVERLOADED = "overloaded"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    INTERNAL_ERROR = "internal_error"

    @property
    def is_failure(self) -> bool:
        """Whether the guard could not do its work; False for a judgement of the content."""
        return self not in _JUDGEMENTS


_JUDGEMENTS = frozenset(
    {Reason.PROBE_SAFE, Reason.PROBE_UNSAFE, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE, Reason.BLANK, Reason.ABSTAINED}
)

ALWAYS_BLOCKED: Final = frozenset({Reason.NON_TEXT, Reason.OVERLONG, Reason.BAD_OVERRIDE, Reason.NOT_READY})
"""Failures that block under every failure policy.

The sender of an input chooses these, or asks for a setting that the operator did not allow. The failure policy is for
a guard that failed.
"""


class OnFailure(StrEnum):
    """What to do with an input when the guard cannot do its work.

    ``probe`` uses the verdict of the safety probe, and blocks if the probe has not run.
    """

    BLOCK = "block"
    PROBE = "probe"
    ALLOW = "allow"


class Mode(StrEnum):
    """Whether verdicts count: ``shadow`` screens, counts and reports, and lets every input through."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class OnUnreadable(StrEnum):
    """What to do with an input that the probes cannot read: content that is not text, or too much of it.

    ``expert`` asks the expert, who may read more than the base model does. ``on_failure`` does not apply: the author of
    the input chooses its form, and a setting for outages would be a way around the guard.
    """

    ALLOW = "allow"
    BLOCK = "block"
    EXPERT = "expert"


class OnHistory(StrEnum):
    """What to do with the assistant's messages in the history that a client sends.

    ``screen`` judges each message that no unit shows. ``trust`` judges none, for apps that keep the history themselves.
    """

    SCREEN = "screen"
    TRUST = "trust"


class RefusedTurns(StrEnum):
    """What to do with an earlier turn that was refused.

    ``forgive`` lets the conversation continue after a refusal of this guard. ``strict`` stops it while the turn is part
    of it.
    """

    FORGIVE = "forgive"
    STRICT = "strict"


class Timings(NamedTuple):
    """Wall-clock milliseconds of one decision.

    Attributes:
        probe_ms: Tokenising, queueing, forward pass and both probes.
        expert_ms: The expert's answer; 0 if it was not asked.
        total_ms: All of it.
        queue_ms: Of ``probe_ms``, the wait for the device.
        forward_ms: Of ``probe_ms``, the batch on the device.
    """

    probe_ms: float = 0.0
    expert_ms: float = 0.0
    total_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0

    def plus(self, other: Timings) -> Timings:
        """Return the times of one decision after another."""
        return Timings(*map(add, self, other))


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for one conversation.

    Attributes:
        verdict: Allow or block.
        route: Where the budget rule assigned the input.
        reason: Why.
        p: Safety probe, P(unsafe) in [0, 1]; None if it did not run.
        d: Delegation value, the predicted improvement by the expert, in [-1, 1]; None if it did not run.
        p_expert: Expert, P(unsafe) in [0, 1]; None if it was not asked or gave no score.
        mode: Whether the verdict counts.
        timings: How long it took.
        on_failure: The value of ``on_failure`` that chose the verdict; None if the setting did not apply.
        receipt: Proof that this guard refused this turn, if it has a key for receipts; None otherwise.
    """

    verdict: Verdict
    route: Route
    reason: Reason
    p: float | None = None
    d: float | None = None
    p_expert: float | None = None
    mode: Mode = Mode.ENFORCE
    timings: Timings = field(default_factory=Timings)
    on_failure: OnFailure | None = None
    receipt: str | None = None

    @property
    def is_bypass(self) -> bool:
        """Whether the guard could not do its work, and ``on_failure`` was not ``block``."""
        return self.on_failure is not None and self.on_failure is not OnFailure.BLOCK

    @property
    def is_blocking(self) -> bool:
        """Whether the input has to be stopped."""
        return self.verdict is Verdict.BLOCK and self.mode is Mode.ENFORCE
