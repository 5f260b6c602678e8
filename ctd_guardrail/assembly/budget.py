"""From the configuration to what it asks of the policy."""

from __future__ import annotations

import os

from pydantic import SecretBytes

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.decision import OnUnreadable
from ctd_guardrail.policy.plan import Budget
from ctd_guardrail.policy.selection import Costs
from ctd_guardrail.policy.unreadable import Unreadable

__all__ = ["budget_of"]


def budget_of(config: CtdConfig) -> Budget:
    """Return the budget of a configuration. The tie key is read from the environment."""
    key = None if config.tie_key_env is None else SecretBytes(os.environ.get(config.tie_key_env, "").encode())
    settings = {Unreadable.OVERLONG: config.on_overlong, Unreadable.NONTEXT: config.on_nontext}
    return Budget(
        alpha=config.alpha,
        delta=config.delta,
        unit=config.unit,
        guarantee=config.guarantee,
        horizon=config.horizon,
        criterion=config.criterion,
        costs=Costs(**config.costs.model_dump()),
        audit_share=0.0 if config.monitor is None else config.monitor.audit_share,
        unreadable=frozenset(cause for cause, setting in settings.items() if setting is OnUnreadable.EXPERT),
        tie_key=key,
        section=SECTION,
    )
