import pytest

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ExpertCapError
from ctd_guardrail.experts.capped import CappedExpert, countdown
from ctd_guardrail.experts.protocol import ExpertScore

INPUT = Conversation.from_text("a plain question")


class Double:
    identity = "double"

    def __init__(self, attempts: int = 1) -> None:
        self.calls = 0
        self.is_closed = False
        self._attempts = attempts

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        return ExpertScore(0.5, attempts=self._attempts)

    async def aclose(self) -> None:
        self.is_closed = True


async def test_calls_beyond_the_cap_do_not_reach_the_expert() -> None:
    expert = Double()
    capped = CappedExpert(expert, countdown(2))
    assert capped.identity == "double"
    for _ in range(2):
        assert (await capped.score(INPUT)).p_unsafe == 0.5
    for _ in range(3):
        with pytest.raises(ExpertCapError, match="used up"):
            await capped.score(INPUT)
    assert expert.calls == 2
    await capped.aclose()
    assert expert.is_closed


async def test_what_was_tried_again_is_paid_for() -> None:
    expert = Double(attempts=3)
    capped = CappedExpert(expert, countdown(4))
    await capped.score(INPUT)
    await capped.score(INPUT)
    with pytest.raises(ExpertCapError):
        await capped.score(INPUT)
    assert expert.calls == 2


async def test_no_calls_at_all() -> None:
    with pytest.raises(ExpertCapError):
        await CappedExpert(Double(), countdown(0)).score(INPUT)
