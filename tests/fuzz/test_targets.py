"""The fuzzer's targets on random inputs; `make fuzz` lets atheris look for the ones that matter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, WORDS

inputs = st.lists(st.binary(max_size=8) | st.sampled_from(WORDS).map(str.encode), max_size=16).map(b"".join)


@pytest.mark.parametrize("name", TARGETS)
@given(inputs)
@settings(max_examples=200)
def test_a_target_holds_on_random_inputs(name: str, data: bytes) -> None:
    TARGETS[name](data)
