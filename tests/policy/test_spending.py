from __future__ import annotations

import pytest

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.spending import spent_delta


def test_a_policy_as_calibrated_uses_all_of_delta() -> None:
    assert spent_delta(0.05, 0) == 0.05


def test_all_recalibrations_together_spend_at_most_delta() -> None:
    parts = [spent_delta(0.05, look) for look in range(1, 20_000)]
    assert parts == sorted(parts, reverse=True)
    assert 0.0499 < sum(parts) < 0.05


def test_delta_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta"):
        spent_delta(0.0, 3)
