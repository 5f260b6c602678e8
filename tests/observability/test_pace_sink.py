"""What a pace counts of the events of a guard."""

from typing import Any

import pytest

from ctd_guardrail.decision import Decision, Mode, Reason, Route, Verdict
from ctd_guardrail.observability.events import Audited, Decided, Event, Origin, Recalled, Routed, Served
from ctd_guardrail.observability.pace_sink import PaceSink
from ctd_guardrail.policy.pace import Pace


def decided(route: Route, reason: Reason, **fields: Any) -> Decided:
    origin = fields.pop("origin", Origin.CONFIGURED)
    made = Decision(verdict=Verdict.BLOCK, route=route, reason=reason, mode=Mode.ENFORCE, **fields)
    return Decided(made, at=0.0, origin=origin)


def served(origin: Origin = Origin.CONFIGURED) -> Served:
    return Served("c", "d", (0.5,), calls=1, is_placed=True, at=0.0, origin=origin)


@pytest.mark.parametrize(
    ("event", "lead"),
    [
        (served(), 4.9),
        (served(Origin.OTHER_BUDGET), 5.0),
        (served(Origin.SELF_TEST), 5.0),
        (Routed(0.5, is_delegated=True, is_audited=False), 5.0),  # the rule has counted it
        (Routed(0.5, is_delegated=True, is_audited=True), 6.0),
        (Routed(0.5, is_delegated=True, is_audited=True, origin=Origin.OTHER_BUDGET), 5.0),
        (decided(Route.EXPERT, Reason.EXPERT_UNSAFE), 6.0),  # no scores: it could not be read
        (decided(Route.EXPERT, Reason.EXPERT_UNSAFE, origin=Origin.SELF_TEST), 5.0),
        (decided(Route.EXPERT, Reason.EXPERT_UNSAFE, p=0.1, d=0.5), 5.0),
        (decided(Route.PROBE, Reason.OVERLONG), 5.0),
        (Recalled(), 5.0),
        (Audited(is_missed=False), 5.0),
    ],
    ids=str,
)
def test_a_request_pays_and_calls_without_a_threshold_count(event: Event, lead: float) -> None:
    pace = Pace(0.1, 3600.0, clock=lambda: 0.0)
    for _ in range(5):
        pace.count_call()
    PaceSink(pace)(event)
    assert pace.lead == pytest.approx(lead)
