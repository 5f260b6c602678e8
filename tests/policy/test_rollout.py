import pytest
from pydantic import SecretBytes

from ctd_guardrail.policy.rollout import Rollout
from ctd_guardrail.text.conversation import Conversation

KEY = SecretBytes(b"a secret of the operator")


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation.from_messages([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def test_a_conversation_stays_on_its_side_while_it_grows() -> None:
    rollout = Rollout(0.5, KEY)
    for i in range(50):
        first = f"question {i}"
        modes = {
            rollout.enforces(conversation(first)),
            rollout.enforces(conversation(first, "answer", "more")),
            rollout.enforces(conversation(first, "another answer", "other", "answer", "end")),
        }
        assert len(modes) == 1


def test_the_share_is_enforced_and_a_larger_one_holds_the_smaller() -> None:
    conversations = [conversation(f"question {i}") for i in range(2000)]
    enforced = {
        share: {i for i, each in enumerate(conversations) if Rollout(share, KEY).enforces(each)}
        for share in (0.0, 0.1, 0.5, 1.0)
    }
    assert (len(enforced[0.0]), len(enforced[1.0])) == (0, 2000)
    # Five standard deviations.
    assert 130 < len(enforced[0.1]) < 270
    assert enforced[0.1] < enforced[0.5]


def test_another_key_draws_others() -> None:
    conversations = [conversation(f"question {i}") for i in range(200)]
    drawn = [[Rollout(0.5, key).enforces(each) for each in conversations] for key in (KEY, SecretBytes(b"b" * 16))]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("texts", [(), ("",)])
def test_a_conversation_without_words_has_a_side_too(texts: tuple[str, ...]) -> None:
    assert Rollout(1.0, KEY).enforces(conversation(*texts))


def test_all_conversations_of_a_principal_are_on_one_side_and_those_of_nobody_are_drawn_one_by_one() -> None:
    rollout = Rollout(0.5, KEY, by_principal=True)
    conversations = [conversation(f"question {i}") for i in range(50)]
    sides = [{rollout.enforces(each, f"principal {i}") for each in conversations} for i in range(50)]
    assert all(len(side) == 1 for side in sides)
    assert set().union(*sides) == {False, True}
    assert [rollout.enforces(each) for each in conversations] == [
        Rollout(0.5, KEY).enforces(each) for each in conversations
    ]
