from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.errors import ConfigError, OverlongError
from ctd_guardrail.experts.local.windows import MAX_TOKENS, check_length, overlapping


@given(st.integers(0, 3000), st.integers(1, 500))
def test_every_token_is_in_a_window_and_neighbours_share_an_eighth(tokens: int, capacity: int) -> None:
    windows = overlapping(tuple(range(tokens)), capacity)
    assert windows
    assert {token for window in windows for token in window} == set(range(tokens))
    assert all(len(window) <= capacity for window in windows)
    assert all(len(window) == capacity for window in windows[:-1])
    for window, following in pairwise(windows):
        assert window[capacity - capacity // 8 :] == following[: capacity // 8]


def test_what_fits_is_one_window() -> None:
    assert overlapping((1, 2, 3), 3) == [(1, 2, 3)]
    assert overlapping((), 3) == [()]


def test_a_window_without_room_for_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no room for the conversation"):
        overlapping((1,), 0)


def test_the_limit_is_the_last_length_that_passes() -> None:
    check_length(MAX_TOKENS)
    check_length(16 * MAX_TOKENS, characters=True)
    with pytest.raises(OverlongError):
        check_length(MAX_TOKENS + 1)
    with pytest.raises(OverlongError):
        check_length(16 * MAX_TOKENS + 1, characters=True)
