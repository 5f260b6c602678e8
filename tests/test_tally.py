from typing import Any

from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.tally import Tally


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def decided(self, decision: Decision, unit: str | None) -> None:
        self.seen.append((decision, unit))

    def asked(self, attempts: int, tokens: int | None) -> None:
        self.seen.append((attempts, tokens))

    def recalled(self) -> None:
        self.seen.append(())


def test_an_observer_is_told_of_all_that_is_counted() -> None:
    recorder = Recorder()
    tally = Tally(recorder)
    decision = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)
    tally.count(decision, "digest")
    tally.count(decision)
    tally.count_expert_attempts(2, 30)
    tally.count_recalled()
    assert recorder.seen == [(decision, "digest"), (decision, None), (2, 30), ()]
    assert (tally.snapshot().total, tally.snapshot().expert_attempts, tally.snapshot().recalled) == (2, 2, 1)
