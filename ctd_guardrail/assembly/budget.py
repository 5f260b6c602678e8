"""From the configuration to what it asks of the policy."""

from __future__ import annotations

import os

from pydantic import SecretBytes

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.policy.plan import Budget
from ctd_guardrail.policy.selection import Costs

__all__ = ["budget_of"]


def budget_of(config: CtdConfig) -> Budget:
    """Return the budget of a configuration. The tie key is read from the environment."""
    key = None if config.tie_key_env is None else SecretBytes(os.environ.get(config.tie_key_env, "").encode())
    return Budget(
        alpha=config.alpha,
        delta=config.delta,
        guarantee=config.guarantee,
        horizon=config.horizon,
        criterion=config.criterion,
        costs=Costs(**config.costs.model_dump()),
        audit_share=0.0 if config.monitor is None else config.monitor.audit_share,
        tie_key=key,
        section=SECTION,
    )
