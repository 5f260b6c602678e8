import json
import math
from collections import Counter

import numpy as np
import pytest

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import ClosedConversation, OpenConversations, Request


def request(
    name: str, at: float, *, earlier: int = 0, d: float | None = 0.0, calls: int = 0, is_placed: bool = True
) -> Request:
    scores = () if d is None else (d,)
    return Request(name, f"{name}{earlier}", scores, calls, is_placed, at, earlier=earlier)


def names(released: list[ClosedConversation]) -> list[str]:
    return [each.conversation for each in released]


def test_a_conversation_ends_after_half_an_hour_of_silence() -> None:
    table = OpenConversations(seed=1, max_turns=20)
    assert table.update(request("a", 0.0, d=0.5, calls=1)) == []
    assert table.update(request("a", 1_000.0, earlier=1, d=None)) == []
    assert table.update(request("b", 2_799.0)) == []
    assert table.update(request("b", 2_800.0, earlier=1)) == [ClosedConversation("a", 2, 1, 0.5)]


def test_a_conversation_ends_with_its_last_possible_turn() -> None:
    table = OpenConversations(seed=1, max_turns=2)
    table.update(request("a", 0.0))
    assert names(table.update(request("a", 1.0, earlier=1))) == ["a"]
    assert table.update(request("a", 2.0, earlier=2)) == []
    assert (table.left_out, len(table)) == (1, 0)


def test_conversations_of_one_turn_are_released_at_once() -> None:
    table = OpenConversations(seed=1)
    assert names(table.update(request("a", 0.0))) == ["a"]
    assert names(table.update(request("a", 1.0, earlier=1))) == ["a"]


def test_they_are_released_in_order_of_their_beginning() -> None:
    table = OpenConversations(seed=1, max_turns=2)
    for each in (request("slow", 0.0), request("fast", 1.0)):
        table.update(each)
    assert table.update(request("fast", 2.0, earlier=1)) == []
    assert names(table.update(request("slow", 3.0, earlier=1))) == ["slow", "fast"]


def test_a_conversation_that_goes_on_for_hours_is_released_at_its_worst_and_then_left_out() -> None:
    table = OpenConversations(seed=1, max_turns=20)
    for turn in range(5):
        table.update(request("slow", 1_700.0 * turn, earlier=turn, calls=1))
        table.update(request(f"other{turn}", 1_700.0 * turn + 1))
    released = table.update(request("late", 7_300.0))
    assert released[0] == ClosedConversation("slow", 20, 5, None, is_whole=False)
    assert names(released[1:]) == ["other0", "other1", "other2", "other3"][: len(released) - 1]
    table.update(request("slow", 7_301.0, earlier=5))
    assert table.left_out == 1


def test_late_turns_are_left_out() -> None:
    """The conversation is unknown, went on after its end, or began while there was no room."""
    table = OpenConversations(seed=1, max_turns=5, capacity=1)
    table.update(request("forged", 0.0, earlier=2, is_placed=False))
    table.update(request("forged", 1.0, earlier=3))
    assert (table.left_out, len(table)) == (2, 0)
    table.update(request("a", 2.0))
    table.update(request("no room", 3.0))
    assert names(table.update(request("b", 2_000.0))) == ["a"]
    table.update(request("a", 2_001.0, earlier=1))
    table.update(request("no room", 2_002.0, earlier=1))
    assert table.left_out == 5


def test_an_unplaced_request_is_left_out_even_where_each_request_counts_by_itself() -> None:
    table = OpenConversations(seed=1)
    assert table.update(request("a", 0.0, earlier=3, is_placed=False)) == []
    assert table.left_out == 1


def test_a_request_under_another_budget_counts_for_the_scores_only() -> None:
    table = OpenConversations(seed=1, max_turns=2)
    table.update(request("a", 0.0, d=0.1, calls=1))
    (closed,) = table.update(request("a", 1.0, earlier=1, d=0.2, calls=1)._replace(is_configured=False))
    assert (closed.requests, closed.calls) == (1, 1)
    assert closed.turn in {0.1, 0.2}


def test_each_readable_turn_is_drawn_equally_often() -> None:
    drawn: Counter[float | None] = Counter()
    table = OpenConversations(seed=7, max_turns=4)
    for number in range(3_000):
        for turn, d in enumerate((0.0, math.inf, 1.0, 2.0)):
            for closed in table.update(request(str(number), float(number), earlier=turn, d=d)):
                drawn[closed.turn] += 1
    assert set(drawn) == {0.0, 1.0, 2.0}
    assert all(abs(times - 1_000) < 5 * np.sqrt(667) for times in drawn.values())


def test_a_conversation_without_a_readable_turn_has_none_to_draw() -> None:
    table = OpenConversations(seed=7)
    (closed,) = table.update(request("a", 0.0, d=math.inf, calls=1))
    assert (closed.turn, closed.calls) == (None, 1)


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(3)
    stream = [
        request(str(name), float(at), earlier=int(rng.integers(3)), d=float(rng.random()), is_placed=rng.random() < 0.9)
        for at, name in zip(np.cumsum(rng.exponential(60, 600)), rng.integers(0, 40, 600), strict=True)
    ]
    whole, first = OpenConversations(seed=5, max_turns=6), OpenConversations(seed=5, max_turns=6)
    released = [whole.update(each) for each in stream]
    for each in stream[:250]:
        first.update(each)
    second = OpenConversations.from_state(json.loads(json.dumps(first.state())))
    assert second.places() == first.places()
    assert [second.update(each) for each in stream[250:]] == released[250:]
    assert second.state() == whole.state()


@pytest.mark.parametrize("change", [{"waiting": [{}]}, {"waiting": 1}, {"now": "x"}, {"max_turns": 0}, {"surplus": 1}])
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="open conversation"):
        OpenConversations.from_state(OpenConversations(seed=1).state() | change)
