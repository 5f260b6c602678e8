"""From the section ``pace`` to the rule that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.pace import Pace, PacedRule, Period
from ctd_guardrail.policy.plan import Plan
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared

__all__ = ["check_pace", "pace_rule"]

_KEY: Final = f"{SECTION}.pace"


def check_pace(config: CtdConfig, policy: Policy, running: Plan) -> None:
    """Refuse a pace that does not fit the certificate.

    Raises:
        ConfigError: The policy certifies risks, which hold at one threshold only, or its budget counts conversations.
    """
    if config.pace is None:
        return
    if running.certificate.unit is BudgetUnit.CONVERSATION:
        raise ConfigError(
            "a pace counts calls per request, but alpha is a number of calls per conversation",
            key=_KEY,
            hint="Leave pace out, or use a budget of the unit turn",
        )
    if policy.manifest.performance is not None:
        raise ConfigError(
            "a pace raises the threshold, but the policy certifies its risks at one threshold",
            key=_KEY,
            hint="Leave pace out and bound the calls with cap, or calibrate a policy without budget.risk",
        )


def pace_rule(config: CtdConfig, policy: Policy, running: Plan, folder: Path, runtime: Runtime) -> PacedRule | None:
    """Return the plan's rule at the configured pace; None if there is none.

    All guards of one configuration and policy in a process count together, also across a reload.

    Args:
        config: The user's section.
        policy: The policy that runs.
        running: The threshold that runs.
        folder: Folder of the configuration.
        runtime: Holds the paces.
    """
    if config.pace is None:
        return None
    period = config.pace.per
    paces: Shared[tuple[str, str, float, Period], Pace] = runtime.shared("paces")
    key = (str(folder.resolve()), policy.manifest.tensors_sha256, running.alpha, period)
    pace = paces.get(key, lambda: Pace(running.alpha, period.seconds))
    return PacedRule.of(running.rule, policy.scores.d, period, pace)
