"""What the cascade answers: a frozen value that says what was decided, by whom, why, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from operator import add
from typing import NamedTuple

__all__ = [
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
    """Who the input was assigned to: ``expert`` if d(x) > lambda or an audit's coin says so, else ``probe``."""

    PROBE = "probe"
    EXPERT = "expert"


class Reason(StrEnum):
    """Why the verdict is what it is.

    The first four are judgements of the content. ``blank`` means that there was nothing to judge, ``abstained`` that
    the score lies in the policy's abstain band. All others mean that the guard could not do its work, and that the
    stated failure policy chose the verdict.
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
        """Whether the guard broke, as opposed to having judged the content."""
        return self not in _JUDGEMENTS


_JUDGEMENTS = frozenset(
    {Reason.PROBE_SAFE, Reason.PROBE_UNSAFE, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE, Reason.BLANK, Reason.ABSTAINED}
)


class OnFailure(StrEnum):
    """What to do with an input when the guard cannot do its work.

    ``probe`` falls back to the safety probe's own verdict, and blocks where not even the probe has run.
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

    ``expert`` asks the expert, who may read more than the base model does. The failure policy has no say here: who
    writes the input chooses its form, and a policy that is meant for outages would be a way around the guard.
    """

    ALLOW = "allow"
    BLOCK = "block"
    EXPERT = "expert"


class OnHistory(StrEnum):
    """What to do with the assistant's messages in the history that a client sends.

    ``screen`` judges each that no unit shows; ``trust`` does not: the app keeps the history itself.
    """

    SCREEN = "screen"
    TRUST = "trust"


class RefusedTurns(StrEnum):
    """What to do with an earlier turn that was refused.

    ``forgive`` lets the conversation go on behind a refusal that this guard gave; ``strict`` stops it as long as the
    turn is part of it.
    """

    FORGIVE = "forgive"
    STRICT = "strict"


class Timings(NamedTuple):
    """Wall-clock milliseconds of one decision.

    Attributes:
        probe_ms: Tokenising, queueing, forward pass and both probes.
        expert_ms: The expert's answer, 0 where it was not asked.
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
        route: Whom the budget rule assigned the input to.
        reason: Why.
        p: Safety probe, P(unsafe) in [0, 1]; None where it did not run.
        d: Delegation value, the predicted improvement by the expert, in [-1, 1]; None where it did not run.
        p_expert: Expert, P(unsafe) in [0, 1]; None where it was not asked or gave no score.
        mode: Whether the verdict counts.
        timings: How long it took.
        on_failure: The failure policy that chose the verdict; None where the guard did its work, or where the failure
            policy has no say.
        receipt: Proof that this guard refused this turn, where it has a key for receipts; None elsewhere.
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
        """Whether the guard could not do its work, and a failure policy other than ``block`` took its place."""
        return self.on_failure is not None and self.on_failure is not OnFailure.BLOCK

    @property
    def is_blocking(self) -> bool:
        """Whether the input has to be stopped."""
        return self.verdict is Verdict.BLOCK and self.mode is Mode.ENFORCE
