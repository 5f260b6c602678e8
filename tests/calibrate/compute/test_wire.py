"""What goes to an actor comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.compute.wire import from_text, to_error, to_failure, to_text
from ctd_guardrail.errors import (
    ActivationError,
    ExpertCapError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    InputError,
    NonTextError,
    OverloadedError,
    OverlongError,
)
from ctd_guardrail.text.conversation import Conversation, Message

MESSAGES = st.builds(Message, st.sampled_from(["user", "assistant"]), st.text(st.characters(codec=None)), st.booleans())


@given(st.lists(st.builds(Conversation, st.lists(MESSAGES).map(tuple))))
def test_conversations_of_any_characters_come_back(conversations: list[Conversation]) -> None:
    assert from_text(to_text(conversations)) == conversations


@pytest.mark.parametrize(
    "kind",
    [
        ActivationError,
        ExpertCapError,
        ExpertTimeoutError,
        ExpertUnavailableError,
        ExpertVerdictError,
        InputError,
        NonTextError,
        OverloadedError,
        OverlongError,
    ],
)
def test_errors_come_back(kind: type[ActivationError]) -> None:
    error = to_error(to_failure(kind("it broke", hint="Mend it")))
    assert (type(error), error.problem, error.hint) == (kind, "it broke", "Mend it")
