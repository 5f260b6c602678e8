import json
import math

import pytest

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.recent_scores import RecentScores


def request(name: str, *scores: float, earlier: int = 0, is_placed: bool = True) -> Request:
    return Request(name, name, scores, 0, is_placed, at=0.0, earlier=earlier)


def serve(recent: RecentScores, name: str, *scores: float) -> None:
    """Take a conversation of one request, and release it."""
    recent.update(request(name, *scores))
    recent.release(name)


def test_the_oldest_conversation_goes_as_a_whole() -> None:
    recent = RecentScores(4)
    for name, scores in {"a": (0.1, 0.2), "b": (1 / 3,), "c": (), "d": (0.4, math.inf)}.items():
        serve(recent, name, *scores)
    assert recent.csv() == f"dv,conversation\n{1 / 3!r},b\n0.4,d\nexpert,d\n"
    assert len(recent) == 3


def test_a_conversation_longer_than_the_buffer_is_kept_whole() -> None:
    recent = RecentScores(2)
    serve(recent, "a", 0.1)
    serve(recent, "b", 0.1, 0.2, 0.3)
    assert recent.csv() == "dv,conversation\n0.1,b\n0.2,b\n0.3,b\n"


def test_conversations_are_written_in_the_order_of_their_release() -> None:
    recent = RecentScores(9, max_turns=5)
    recent.update(request("a", 0.1))
    recent.update(request("b", 0.2))
    recent.release("b")
    assert recent.csv() == "dv,conversation\n0.2,b\n"
    recent.release("a")
    assert recent.csv() == "dv,conversation\n0.2,b\n0.1,a\n"


def test_conversations_that_go_on_take_no_room_from_those_that_are_written() -> None:
    recent = RecentScores(4, max_turns=20)
    recent.update(request("long", *[0.0] * 9))
    for number in range(6):
        recent.update(request(f"open {number}", 0.5))
    for number in range(3):
        serve(recent, str(number), 0.1, 0.2)
    assert recent.csv() == "dv,conversation\n0.1,1\n0.2,1\n0.1,2\n0.2,2\n"
    recent.release("long")
    assert len(recent) == 9


def test_a_turn_after_a_pause_joins_its_conversation() -> None:
    recent = RecentScores(9, max_turns=3)
    serve(recent, "a", 0.1)
    serve(recent, "b", 0.2)
    recent.update(request("a", 0.7, 0.8, 0.9, earlier=1))
    assert recent.csv() == "dv,conversation\n0.1,a\n0.7,a\n0.8,a\n0.2,b\n", "three turns at most"
    assert len(recent) == 4


@pytest.mark.parametrize("late", [request("x", 0.5, earlier=2), request("x", 0.5, is_placed=False)])
def test_late_turns_of_an_unknown_conversation_are_left_out(late: Request) -> None:
    recent = RecentScores(9, max_turns=5)
    recent.update(late)
    recent.release("x")
    assert len(recent) == 0


def test_conversations_that_go_on_are_bounded() -> None:
    recent = RecentScores(3)
    for number in range(8_200):
        recent.update(request(str(number)))
    assert len(recent.state()["conversations"]) == 8_192


def test_the_buffer_goes_on_where_it_was_saved() -> None:
    recent = RecentScores(5, max_turns=4)
    serve(recent, "a", 0.5, math.inf)
    serve(recent, "b", -1.0)
    recent.update(request("c", 0.25))
    state = json.loads(json.dumps(recent.state(), allow_nan=False))
    again = RecentScores.from_state(state)
    for each in (recent, again):
        each.update(request("a", 2.0, earlier=2))
        each.release("c")
    assert again.csv() == recent.csv() == "dv,conversation\n0.5,a\nexpert,a\n2.0,a\n-1.0,b\n0.25,c\n"
    assert RecentScores.from_state(state, capacity=2).csv() == "dv,conversation\n-1.0,b\n"


@pytest.mark.parametrize("row", [["a", True, "x"], ["a", True, float("nan")], ["a", 0.5], ["a"], [1, True, 0.5]])
def test_a_damaged_row_is_refused(row: list[object]) -> None:
    with pytest.raises(DataError, match="scores"):
        RecentScores.from_state({"capacity": 3, "max_turns": 1, "conversations": [row]})


@pytest.mark.parametrize("rows", [[[]], 3])
def test_a_damaged_state_is_refused(rows: object) -> None:
    with pytest.raises(DataError, match="scores"):
        RecentScores.from_state({"capacity": 3, "max_turns": 1, "conversations": rows})
