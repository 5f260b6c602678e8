import json
import math

import pytest

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import ClosedConversation
from ctd_guardrail.monitors.recent_scores import RecentScores


def closed(name: str, *scores: float) -> ClosedConversation:
    return ClosedConversation(name, len(scores), 0, scores, None)


def test_the_oldest_conversation_goes_as_a_whole() -> None:
    recent = RecentScores(4)
    for conversation in (closed("a", 0.1, 0.2), closed("b", 1 / 3), closed("c"), closed("d", 0.4, math.inf)):
        recent.update(conversation)
    assert recent.csv() == f"dv,conversation\n{1 / 3!r},b\n0.4,d\nexpert,d\n"
    assert len(recent) == 3


def test_a_conversation_longer_than_the_buffer_is_kept_whole() -> None:
    recent = RecentScores(2)
    recent.update(closed("a", 0.1))
    recent.update(closed("b", 0.1, 0.2, 0.3))
    assert recent.csv() == "dv,conversation\n0.1,b\n0.2,b\n0.3,b\n"


def test_the_buffer_goes_on_where_it_was_saved() -> None:
    recent = RecentScores(5)
    recent.update(closed("a", 0.5, math.inf))
    recent.update(closed("b", -1.0))
    state = json.loads(json.dumps(recent.state(), allow_nan=False))
    assert RecentScores.from_state(state).csv() == recent.csv()
    assert RecentScores.from_state(state, capacity=2).csv() == "dv,conversation\n-1.0,b\n"


@pytest.mark.parametrize("rows", [[["a", "x"]], [["a", float("nan")]], [["a", True]], [[]], 3])
def test_a_damaged_state_is_refused(rows: object) -> None:
    with pytest.raises(DataError, match="scores"):
        RecentScores.from_state({"capacity": 3, "conversations": rows})
