from __future__ import annotations

import math

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.ties import TieThreshold, sort_with_ties, tie_threshold, uniform
from ctd_guardrail.text.conversation import Conversation

KEY = bytes(range(32))


def test_the_same_input_has_the_same_uniform_and_another_key_gives_another() -> None:
    digest = Conversation.from_text("hello").digest()
    assert uniform(digest, KEY) == uniform(digest, KEY)
    assert uniform(digest, KEY) != uniform(digest, KEY[::-1])


def test_uniforms_are_uniform() -> None:
    values = np.sort([uniform(str(i), KEY) for i in range(20_000)])
    assert values[0] >= 0.0
    assert values[-1] < 1.0
    # Kolmogorov's distance of 20,000 uniforms exceeds 2.23 / sqrt(n) once in ten thousand times.
    assert np.abs(values - (np.arange(20_000) + 0.5) / 20_000).max() < 2.23 / math.sqrt(20_000)


@pytest.mark.parametrize("key", [b"", b"short", bytes(65)])
def test_keys_that_hide_nothing_or_do_not_fit_are_refused(key: bytes) -> None:
    with pytest.raises(ConfigError, match="tie_key"):
        uniform("digest", key)


def test_with_random_ties_exactly_k_rows_lie_above_the_threshold() -> None:
    rng = np.random.default_rng(0)
    scores, uniforms = sort_with_ties(rng.integers(0, 5, 1000) / 4, rng.random(1000))
    certificate = certify(scores, 0.1, 0.05)
    rule = tie_threshold(certificate, scores, uniforms)
    delegated = sum(rule.delegates(d, v) for d, v in zip(scores.tolist(), uniforms.tolist(), strict=True))
    assert delegated == certificate.k == 84
    assert (scores > certificate.threshold).sum() == 0


def test_an_infeasible_budget_delegates_nothing() -> None:
    certificate = certify(np.zeros(5), 0.1, 0.05)
    rule = tie_threshold(certificate, np.zeros(5), np.full(5, 0.5))
    assert rule == TieThreshold(math.inf, 1.0)
    assert not rule.delegates(1e300, 0.999)


def test_columns_that_do_not_match_or_hold_nan_are_refused() -> None:
    with pytest.raises(DataError, match="uniforms"):
        sort_with_ties(np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match="row 2"):
        sort_with_ties(np.array([0.0, math.nan]), np.zeros(2))
