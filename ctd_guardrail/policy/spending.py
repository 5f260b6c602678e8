"""The cost of audits and of repeated recalibrations to a budget.

A certificate at delta is for one look at one set of scores. Repeated recalibrations at delta each, until one looks
good, give false certificates far more often: 19% instead of 5% after 38 looks. So the i-th recalibration uses
delta_i = 6 delta / (pi^2 i^2). These sum to delta over all i, so

    P(any of the recalibrated certificates is false, however many there are and whichever is kept) <= delta,

also if later scores contain earlier ones. The policy's first certificate is a separate statement at delta, made before
any choice. The cost is small because n enters under a root. At n = 10,000 and alpha = .1 the mean rate falls from .95
alpha to .93 alpha at the second look, and to .90 alpha at the twelfth.
"""

from __future__ import annotations

import math

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["budget_beside_audit", "spent_delta"]


def spent_delta(delta: float, looks: int) -> float:
    """Return the error probability at which the certificate after so many recalibrations is made.

    Args:
        delta: Error probability in (0, 1) for all recalibrations together.
        looks: Number of recalibrations so far; 0 is the policy as it was calibrated, at delta itself.

    Raises:
        ConfigError: delta lies outside (0, 1).
    """
    check_share("delta", delta)
    return delta if looks == 0 else 6.0 * delta / (math.pi * looks) ** 2


def budget_beside_audit(alpha: float, share: float) -> float:
    """Return the budget to certify the threshold at when a share of all inputs is audited by a coin.

    (alpha - share) / (1 - share): an input is delegated by the coin, or else by d > lambda.

    Args:
        alpha: The whole budget, in (0, 1).
        share: The audited share, in (0, alpha).

    Raises:
        ConfigError: A value lies outside its range.
    """
    for name, value in (("alpha", alpha), ("share", share)):
        check_share(name, value)
    if share >= alpha:
        raise ConfigError(f"{share!r} is not below alpha = {alpha!r}", key="share", hint="Audit less, or raise alpha")
    return (alpha - share) / (1.0 - share)
