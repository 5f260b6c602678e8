"""Everything that a judgement depends on beside the unit, the models and the expert."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, Final

from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.decision import Mode, OnFailure, OnHistory, OnUnreadable, Reason, RefusedTurns, Verdict
from ctd_guardrail.errors import InputError, OverlongError
from ctd_guardrail.policy.rollout import Rollout
from ctd_guardrail.policy.rule import DelegationRule
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.text.conversation import Context

__all__ = ["CascadeSettings", "is_judgement"]

_CHANGES_NO_JUDGEMENT: Final = "changes_no_judgement"


def _outside(reason: str) -> dict[str, str]:
    """Mark a field that cannot change the judgement of a unit, with the reason. All others are part of its key."""
    return {_CHANGES_NO_JUDGEMENT: reason}


def is_judgement(setting: Field[Any]) -> bool:
    """Return whether a field of the settings can change the judgement of a unit."""
    return _CHANGES_NO_JUDGEMENT not in setting.metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSettings:
    """The settings of a cascade.

    Attributes:
        rule: Decides which inputs the expert judges.
        decision_threshold: tau: a score of at least tau blocks.
        merge: Combines the scores of the probe and the expert.
        abstain_band: Half-width of the band around tau in which a score decides nothing.
        on_abstain: The verdict in that band.
        on_nontext: What to do with a turn that holds content other than text.
        on_overlong: What to do with a unit that has more tokens than the policy allows.
        on_failure: What to do when the guard cannot do its work, for all causes or by cause.
        deadline_s: Seconds until a request has its decision; None: no deadline.
        mode: Whether verdicts count.
        rollout: Draws the conversations for which verdicts count, if ``mode`` is ``enforce``; None: all.
        context: What a unit shows beside the user's turn.
        history: What to do with the assistant's messages that no unit shows.
        refused_turns: What to do with an earlier turn that was refused.
        audit_share: Share of the inputs that the expert judges in addition, drawn at random.
        max_expert_calls: Most calls of the expert for one request; None: no limit.
    """

    rule: DelegationRule
    decision_threshold: float
    merge: Merge = Merge()  # noqa: RUF009  # frozen
    abstain_band: float = 0.0
    on_abstain: Verdict = Verdict.BLOCK
    on_nontext: OnUnreadable = OnUnreadable.BLOCK
    on_overlong: OnUnreadable = OnUnreadable.BLOCK
    on_failure: OnFailure | OnFailureByCause = field(
        metadata=_outside("it decides about units that could not be judged, and those are not remembered")
    )
    deadline_s: float | None = field(
        default=None, metadata=_outside("a unit that misses it is not judged, and is not remembered")
    )
    mode: Mode = field(default=Mode.ENFORCE, metadata=_outside("it decides whether a verdict counts, not the verdict"))
    rollout: Rollout | None = field(
        default=None, metadata=_outside("it decides whether a verdict counts, not the verdict")
    )
    context: Context = Context.CONVERSATION
    history: OnHistory = field(
        default=OnHistory.SCREEN, metadata=_outside("it decides which units are judged, not the verdict on one")
    )
    refused_turns: RefusedTurns = field(
        default=RefusedTurns.FORGIVE,
        metadata=_outside("it decides what follows from the verdict on an earlier turn, not the verdict"),
    )
    audit_share: float = 0.0
    max_expert_calls: int | None = field(
        default=None, metadata=_outside("a unit beyond it is not judged, and is not remembered")
    )

    def judge(self, score: float, safe: Reason, unsafe: Reason) -> tuple[Verdict, Reason]:
        """Return the verdict on a score: by tau, or by ``on_abstain`` in the band around it."""
        if abs(score - self.decision_threshold) < self.abstain_band:
            return self.on_abstain, Reason.ABSTAINED
        return (Verdict.BLOCK, unsafe) if score >= self.decision_threshold else (Verdict.ALLOW, safe)

    def on_unreadable(self, error: InputError) -> OnUnreadable:
        """Return what to do with a unit that the probes cannot read."""
        return self.on_overlong if isinstance(error, OverlongError) else self.on_nontext
