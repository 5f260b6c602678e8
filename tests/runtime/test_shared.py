import gc
import threading

import pytest

from ctd_guardrail.runtime.shared import Shared


class Value:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_a_value_is_made_once_and_lives_as_long_as_it_is_held() -> None:
    shared: Shared[str, Value] = Shared()
    made: list[int] = []

    def make() -> Value:
        made.append(1)
        return Value()

    value = shared.get("a", make)
    assert shared.get("a", make) is value
    assert shared.get("b", make) is not value
    assert list(shared) == [value], "the value of b was held by nothing"
    del value
    gc.collect()
    assert shared.find("a") is None
    shared.get("a", make)
    assert len(made) == 3


def test_a_slow_make_delays_callers_of_its_key_only_and_they_share_its_value() -> None:
    shared: Shared[str, Value] = Shared()
    begun, go = threading.Event(), threading.Event()
    found: list[Value] = []

    def slow() -> Value:
        begun.set()
        assert go.wait(30)
        return Value()

    def never() -> Value:
        raise AssertionError

    first = threading.Thread(target=lambda: found.append(shared.get("slow", slow)))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: found.append(shared.get("slow", never)))
    second.start()
    assert isinstance(shared.get("other", Value), Value)
    assert not found
    go.set()
    first.join(30)
    second.join(30)
    assert len(found) == 2
    assert found[0] is found[1]


def test_a_make_that_fails_leaves_the_key_to_the_next_caller() -> None:
    shared: Shared[str, Value] = Shared()

    def broken() -> Value:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        shared.get("a", broken)
    assert isinstance(shared.get("a", Value), Value)


def test_a_forgotten_value_is_made_again() -> None:
    shared: Shared[str, Value] = Shared()
    value = shared.get("a", Value)
    shared.forget("a")
    assert shared.get("a", Value) is not value


def test_a_value_that_is_made_while_all_are_closed_is_closed_too() -> None:
    shared: Shared[str, Value] = Shared()
    early, late = shared.get("early", Value), Value()

    def make() -> Value:
        shared.close()
        return late

    with pytest.raises(RuntimeError, match="closed"):
        shared.get("late", make)
    assert early.is_closed
    assert late.is_closed
