from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Verdict
from ctd_guardrail.observability.events import (
    Audited,
    Decided,
    ExpertCalled,
    Origin,
    Recalled,
    Routed,
    UnscreenedCall,
)
from ctd_guardrail.observability.tally import Tally

SAFE = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)


def test_every_event_is_counted_whatever_its_origin() -> None:
    tally = Tally()
    bypassed = Decision(
        Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_TIMEOUT, mode=Mode.SHADOW, on_failure=OnFailure.ALLOW
    )
    for event in (
        Decided(SAFE, 0.0),
        Decided(SAFE, 0.0, origin=Origin.SELF_TEST),
        Decided(bypassed, 0.0, origin=Origin.OTHER_BUDGET),
        Routed(0.5, is_delegated=True, is_audited=False),
        Audited(is_missed=True),
        ExpertCalled(2, 30),
        ExpertCalled(1, 10, Origin.SELF_TEST),
        Recalled(),
        UnscreenedCall("unknown"),
    ):
        tally(event)
    counts = tally.snapshot()
    assert counts.decisions == {
        (Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE): 2,
        (Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_TIMEOUT): 1,
    }
    assert counts.bypasses == {(Reason.EXPERT_TIMEOUT, OnFailure.ALLOW, Verdict.ALLOW): 1}
    assert (counts.total, counts.delegated, counts.failures, counts.shadow) == (3, 1, 1, 1)
    assert (counts.expert_attempts, counts.expert_tokens) == (3, 40)
    assert (counts.recalled, counts.unscreened_calls) == (1, 1)
