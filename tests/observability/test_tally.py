from typing import Any

from ctd_guardrail.decision import Decision, Mode, Reason, Route, Verdict
from ctd_guardrail.observability.tally import Tally


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def decided(self, decision: Decision, unit: str | None) -> None:
        self.seen.append((decision, unit))

    def routed(self, d: float, *, delegated: bool, audited: bool) -> None:
        self.seen.append((d, delegated, audited))

    def audited(self, *, missed: bool) -> None:
        self.seen.append((missed,))

    def asked(self, attempts: int, tokens: int | None) -> None:
        self.seen.append((attempts, tokens))

    def recalled(self) -> None:
        self.seen.append(())

    def unscreened(self, door: str) -> None:
        self.seen.append((door,))


def test_an_observer_is_told_of_all_that_is_counted() -> None:
    recorder = Recorder()
    tally = Tally(recorder)
    decision = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)
    tally.count(decision, "digest")
    tally.count(decision)
    tally.count_routed(0.5, delegated=True, audited=False)
    tally.count_audit(missed=True)
    tally.count_expert_attempts(2, 30)
    tally.count_recalled()
    tally.count_unscreened_call("unknown")
    assert recorder.seen == [
        (decision, "digest"),
        (decision, None),
        (0.5, True, False),
        (True,),
        (2, 30),
        (),
        ("unknown",),
    ]
    counts = tally.snapshot()
    assert (counts.total, counts.expert_attempts, counts.recalled, counts.unscreened_calls) == (2, 2, 1, 1)


def test_a_tally_that_tells_somebody_else_adds_to_the_same_counters() -> None:
    first, second = Recorder(), Recorder()
    tally = Tally(first)
    tally.told_to(second).count(Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, mode=Mode.SHADOW))
    assert (len(first.seen), len(second.seen)) == (0, 1)
    assert (tally.snapshot().total, tally.snapshot().shadow) == (1, 1)
