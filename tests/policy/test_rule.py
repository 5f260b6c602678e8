import numpy as np
import pytest
from pydantic import SecretBytes

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.rule import ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy
from ctd_guardrail.text.conversation import Conversation

KEY = SecretBytes(b"a secret of some length")


def texts(count: int) -> list[Conversation]:
    return [Conversation.from_text(f"input {i}") for i in range(count)]


def test_the_plain_rule_is_strict() -> None:
    rule = ThresholdRule(0.5)
    conversation = Conversation.from_text("x")
    assert [rule.delegates(d, conversation) for d in (0.4, 0.5, np.nextafter(0.5, 1))] == [False, False, True]


@pytest.fixture
def tied(rail_policy: object) -> Policy:
    policy = read_policy(rail_policy)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    scores = CalibrationScores.from_rows(d=rng.integers(0, 3, 1000) / 2, p=np.zeros(1000))
    return Policy(policy.manifest, policy.probe, scores)


def test_drawn_ties_use_the_budget_that_strict_ones_leave(tied: Policy) -> None:
    certificate = certify(tied.scores, 0.5, 0.05)
    strict, drawn = ThresholdRule(certificate.threshold), TieBreakingRule.from_policy(tied, certificate, KEY)
    inputs = list(zip(np.random.default_rng(1).integers(0, 3, 6000) / 2, texts(6000), strict=True))
    rates = [np.mean([rule.delegates(d, text) for d, text in inputs]) for rule in (strict, drawn)]
    assert rates[0] == pytest.approx(1 / 3, abs=0.03)
    assert rates[1] == pytest.approx(certificate.mean_rate, abs=0.04)


def test_the_same_input_gets_the_same_answer_on_every_replica(tied: Policy) -> None:
    certificate = certify(tied.scores, 0.5, 0.05)
    one, other = (TieBreakingRule.from_policy(tied, certificate, KEY) for _ in range(2))
    assert one == other
    answers = [one.delegates(certificate.threshold, text) for text in texts(200)]
    assert answers == [other.delegates(certificate.threshold, text) for text in texts(200)]
    assert 0 < sum(answers) < 200
    foreign = TieBreakingRule.from_policy(tied, certificate, SecretBytes(b"another secret, as long"))
    assert answers != [foreign.delegates(certificate.threshold, text) for text in texts(200)]


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 65])
def test_unusable_keys_are_refused(tied: Policy, key: bytes) -> None:
    with pytest.raises(ConfigError, match="bytes, not 16 to 64"):
        TieBreakingRule.from_policy(tied, certify(tied.scores, 0.5, 0.05), SecretBytes(key))


def test_the_key_is_not_shown(tied: Policy) -> None:
    assert "of some length" not in repr(TieBreakingRule.from_policy(tied, certify(tied.scores, 0.5, 0.05), KEY))
