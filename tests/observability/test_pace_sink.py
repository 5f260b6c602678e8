"""What a pace counts of the events of a guard."""

import numpy as np
import pytest

from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.decision import OnUnreadable
from ctd_guardrail.observability.events import Audited, Event, Origin, Recalled, Routed, Served
from ctd_guardrail.observability.pace_sink import PaceSink
from ctd_guardrail.policy.pace import Pace, PacedRule, Period
from ctd_guardrail.policy.rule import ThresholdRule
from tests.support.word_guard import WordJudge, word_guard

ALPHA = 0.1
ALWAYS = 1.0 - 2.0**-53


def new_pace() -> Pace:
    return Pace(ALPHA, 3600.0, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("event", "lead"),
    [
        (Served("c", "d", (0.5,), 1, is_placed=True, at=0.0, by_rule=1), 4.8),
        (Served("c", "d", (0.5,), 2, is_placed=True, at=0.0, by_rule=1), 5.8),
        (Served("c", "d", (0.5, 0.5, 0.5), 2, is_placed=True, at=0.0, by_rule=3), 3.8),
        (Served("c", "d", (0.5,), 1, is_placed=True, at=0.0, origin=Origin.OTHER_BUDGET), 4.9),
        (Served("c", "d", (0.5,), 1, is_placed=True, at=0.0, origin=Origin.SELF_TEST), 4.9),
        (Routed(0.5, is_delegated=True, is_audited=True), 4.9),
        (Recalled(), 4.9),
        (Audited(is_missed=False), 4.9),
    ],
    ids=str,
)
def test_a_request_pays_and_calls_without_a_threshold_count(event: Event, lead: float) -> None:
    pace = new_pace()
    pace.count_request(5)
    PaceSink(pace)(event)
    assert pace.lead == pytest.approx(lead)


def paced_guard(pace: Pace, **settings: object) -> tuple[Cascade, WordJudge]:
    judge = WordJudge()
    rule = PacedRule.of(ThresholdRule(0.0), np.linspace(-1.0, 1.0, 50), Period.HOUR, pace)
    return word_guard(judge=judge, rule=rule, emit=PaceSink(pace), **settings), judge


def turns(*texts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": text} for text in texts]


async def test_the_lead_is_the_calls_less_alpha_for_each_request() -> None:
    pace = new_pace()
    guard, judge = paced_guard(pace, judgement_key="key")
    for i in range(10):
        await guard.check(turns(f"a doubtful question {i}"))
    for _ in range(20):
        await guard.check(turns("a doubtful question 0"))  # recalled: a request without a call
    assert len(judge.seen) == 10
    assert pace.lead == pytest.approx(10 - ALPHA * 30)


async def test_audits_count_also_those_of_recalled_turns() -> None:
    pace = new_pace()
    guard, judge = paced_guard(pace, judgement_key="key", audit_share=ALWAYS)
    for text in ("a doubtful question", "a plain question", "a plain question"):
        await guard.check(turns(text))
    # The expert has answered the plain question once, so the recalled turn asks it nothing.
    assert len(judge.seen) == 2
    assert pace.lead == pytest.approx(2 - ALPHA * 3, abs=1e-9)


async def test_inputs_that_the_probes_cannot_read_count() -> None:
    pace = new_pace()
    guard, judge = paced_guard(pace, unreadable=OnUnreadable.EXPERT)
    picture = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]
    await guard.check(turns(picture))
    assert len(judge.seen) == 1
    assert pace.lead == pytest.approx(1 - ALPHA)


async def test_inputs_under_a_raised_threshold_get_the_probes_verdict() -> None:
    pace = new_pace()
    guard, judge = paced_guard(pace)
    routes = [(await guard.check(turns(f"a doubtful question {i}"))).route for i in range(200)]
    assert routes.count("expert") == len(judge.seen)
    assert 15 < len(judge.seen) <= ALPHA * 200 + 20
    await guard.for_self_test().check(turns("a doubtful question"))
    assert len(judge.seen) == routes.count("expert") + 1
