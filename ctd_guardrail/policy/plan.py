"""From a policy and a budget to the threshold that runs. A pure function: no file, no configuration, no model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pydantic import SecretBytes

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Certificate, Method, Status, certify, infeasible, round_up
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.manifest import PerformanceRecord
from ctd_guardrail.policy.rule import DelegationRule, ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.spending import budget_beside_audit, spent_delta
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.policy.unreadable import Unreadable

__all__ = ["Budget", "Plan", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an operator, or a single request, asks of a policy.

    Attributes:
        alpha: Largest share of the inputs that the expert may see; None: the policy's.
        delta: Admissible probability that calibration misses the budget; None: the policy's.
        unit: What alpha is a share or a number of; None: the policy's.
        guarantee: What alpha bounds.
        horizon: Number of inputs that ``guarantee: next`` covers.
        criterion: Which of the certified thresholds is used.
        costs: Prices for ``criterion: cost``.
        audit_share: Share of the inputs that the expert audits. It is paid out of alpha.
        unreadable: Causes for which the expert judges turns that the base model cannot read. They are paid out of
            alpha: each costs a call whatever the threshold.
        tie_key: Secret of 16 to 64 bytes that draws inputs that tie with lambda; None: they stay with the probe.
        section: Dotted path of the settings in the operator's file, for error messages.
    """

    alpha: float | None = None
    delta: float | None = None
    unit: BudgetUnit | None = None
    guarantee: Guarantee = Guarantee.EXACT
    horizon: int | None = None
    criterion: Criterion = Criterion.BUDGET
    costs: Costs = Costs()  # noqa: RUF009  # frozen
    audit_share: float = 0.0
    unreadable: frozenset[Unreadable] = frozenset()
    tie_key: SecretBytes | None = None
    section: str = ""

    def key(self, name: str) -> str:
        """Return the dotted path of one of the settings."""
        return f"{self.section}.{name}" if self.section else name


# The settings that a performance certificate fixes, and their names in the operator's file.
_FIXED_BY_PERFORMANCE = {
    "alpha": "alpha",
    "delta": "delta",
    "unit": "unit",
    "guarantee": "guarantee",
    "horizon": "horizon",
    "criterion": "criterion",
    "tie_key": "tie_key_env",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The threshold that a policy gives under a budget, and its certificate.

    Attributes:
        certificate: The certificate of the requested budget.
        rule: Decides which inputs the expert judges. Its lambda is that of the certificate, a larger one that the
            criterion prefers, or the one at which the policy's performance risks were certified.
        expected_rate: Expected share of the turns at the expert, audits included, or calls per conversation, as the
            unit of alpha says. It is that of the scores behind the certificate.
        alpha: The requested budget. That of the certificate is smaller if audits are part of it.
    """

    certificate: Certificate
    rule: DelegationRule
    expected_rate: float
    alpha: float

    @property
    def statement(self) -> str:
        """What the budget bounds, in words for an operator."""
        if self.certificate.unit is BudgetUnit.CONVERSATION:
            return f"at most {self.alpha:.4g} calls of the expert per conversation on average"
        return f"at most {self.alpha:.1%} of the inputs reach the expert"

    @property
    def expectation(self) -> str:
        """What is expected of the budget, in words for an operator."""
        is_share = self.certificate.unit is BudgetUnit.TURN
        return f"{self.expected_rate:.1%} expected" if is_share else f"{self.expected_rate:.4g} expected"

    @property
    def smallest_alpha(self) -> str:
        """The smallest alpha that these scores can certify at this delta, in digits for an operator."""
        return f"{round_up(self.certificate.alpha_min):f}"

    @property
    def data(self) -> str:
        """The data behind the certificate, in words for an operator."""
        certificate = self.certificate
        if certificate.conversations == certificate.turns:
            return f"{certificate.n} calibration rows"
        return f"{certificate.conversations} conversations of up to {certificate.max_turns} turns"


def plan(policy: Policy, budget: Budget) -> Plan:
    """Derive the threshold.

    Args:
        policy: The policy.
        budget: The requested budget.

    Raises:
        InfeasibleBudgetError: The calibration scores cannot certify alpha at delta.
        ConfigError: The unit is another one than the policy's and alpha is missing, the scores in force lack turns that
            go to the expert unread, ``horizon`` does not fit ``guarantee``, the criterion needs labels that the policy
            lacks, the tie key is not usable, a setting would void the policy's performance certificate, or the
            threshold that would run lies below the certified one.
    """
    in_force = policy.manifest.in_force
    _check_units(budget, policy)
    alpha = in_force.alpha if budget.alpha is None else budget.alpha
    delta = in_force.delta if budget.delta is None else budget.delta
    audited = budget.audit_share
    scores = policy.scores_with(budget.unreadable)
    certificate = certify(
        scores,
        _alpha_of_rule(budget, policy, alpha),
        spent_delta(delta, in_force.looks),
        unit=in_force.unit if budget.unit is None else budget.unit,
        max_turns=in_force.max_turns,
        first_look=in_force.first_look,
        guarantee=budget.guarantee,
        horizon=budget.horizon,
    )
    if certificate.status is Status.INFEASIBLE:
        raise infeasible(certificate, key=budget.key("alpha"), audit_share=audited)
    rule = _rule(budget, policy, certificate)
    if rule.threshold < certificate.threshold:
        raise ConfigError(
            f"the threshold that would run, {rule.threshold:.6g}, lies below the certified one, "
            f"{certificate.threshold:.6g}, for alpha = {alpha:.6g} at delta = {certificate.delta:.6g}",
            key=budget.key("alpha"),
            hint="Calibrate again, or drop the risks with ctd-calibrate recalibrate --drop-risks",
        )
    is_of_a_known_law = budget.criterion is Criterion.BUDGET and policy.manifest.performance is None
    if is_of_a_known_law and certificate.method is Method.EXACT_BINOMIAL:
        rate = certificate.mean_rate
    else:
        rate = scores.rate_above(rule.threshold, certificate.unit)
    return Plan(certificate, rule, audited + (1.0 - audited) * rate, alpha)


def _check_units(budget: Budget, policy: Policy) -> None:
    """Refuse a unit without its alpha, and calls that the scores of a recalibration do not hold."""
    in_force = policy.manifest.in_force
    if budget.unit not in (None, in_force.unit) and budget.alpha is None:
        raise ConfigError(
            f"the policy's alpha, {in_force.alpha:g}, is per {in_force.unit}, and not per {budget.unit}",
            key=budget.key("unit"),
            hint="Write alpha beside unit, or leave unit out",
        )
    if budget.unreadable and not in_force.holds_unread:
        cause = min(budget.unreadable)
        raise ConfigError(
            "the scores of the last recalibration do not state the turns that go to the expert unread",
            key=budget.key(f"on_{cause}"),
            hint="Recalibrate with --with-unread on scores recorded under this setting, or block these turns",
        )


def _alpha_of_rule(budget: Budget, policy: Policy, alpha: float) -> float:
    """Return the alpha that the threshold is certified at: what audits leave of the budget."""
    audited = budget.audit_share
    if not audited:
        return alpha
    key = budget.key("monitor.audit_share")
    unit = policy.manifest.in_force.unit if budget.unit is None else budget.unit
    is_per_turn = unit is BudgetUnit.TURN and budget.guarantee is not Guarantee.NEXT
    if policy.manifest.performance is not None or not is_per_turn:
        raise ConfigError(
            "this certificate leaves no share of the budget for audits",
            key=key,
            hint="Leave audit_share out, or use a policy that holds the budget alone, per turn and not for the next T",
        )
    if audited >= alpha:
        raise ConfigError(f"is not below alpha = {alpha:g}", key=key, hint="Audit less, or raise alpha")
    return budget_beside_audit(alpha, audited)


def _rule(budget: Budget, policy: Policy, certificate: Certificate) -> DelegationRule:
    if policy.manifest.performance is not None:
        threshold = _performance_threshold(budget, policy.manifest.performance)
        return ThresholdRule(threshold)
    if budget.tie_key is not None:
        if budget.criterion is not Criterion.BUDGET:
            raise ConfigError(
                "the tie key works only at the budget's own threshold",
                key=budget.key("tie_key_env"),
                hint="Set criterion: budget, or leave the key out",
            )
        if certificate.method is not Method.EXACT_BINOMIAL:
            raise ConfigError(
                "the tie key needs a certificate on conversations of one turn",
                key=budget.key("tie_key_env"),
                hint="Leave the key out",
            )
        if certificate.always:
            raise ConfigError(
                "the tie key does not cover turns that go to the expert unread",
                key=budget.key("tie_key_env"),
                hint="Leave the key out, or block these turns with on_overlong and on_nontext",
            )
        return TieBreakingRule.from_policy(policy, certificate, budget.tie_key)
    if budget.criterion is Criterion.BUDGET:
        return ThresholdRule(certificate.threshold)
    return ThresholdRule(_choose(budget, policy, certificate).threshold)


def _performance_threshold(budget: Budget, performance: PerformanceRecord) -> float:
    """Return lambda of a policy that holds more than the budget. Refuse every setting that would move it."""
    defaults = {field.name: field.default for field in fields(Budget)}
    for name, key in _FIXED_BY_PERFORMANCE.items():
        if getattr(budget, name) != defaults[name]:
            raise ConfigError(
                "the policy certifies its risks only at its own alpha, delta and threshold",
                key=budget.key(key),
                hint=f"Leave {key} out, or calibrate again with other values",
            )
    return math.inf if performance.threshold is None else performance.threshold


def _choose(budget: Budget, policy: Policy, certificate: Certificate) -> Choice:
    rows = policy.calibration.scored
    if rows.expert is None or rows.label is None or not rows.label.size:
        raise ConfigError(
            f"criterion {budget.criterion.value!r} needs labelled calibration rows, but this policy has none",
            key=budget.key("criterion"),
            hint="Set criterion: budget, or calibrate on labelled rows",
        )
    return best_threshold(
        certificate,
        budget.criterion,
        d=rows.d,
        probe=rows.p,
        expert=policy.manifest.merge(rows.p, rows.expert),
        label=rows.label,
        tau=policy.manifest.decision_threshold,
        costs=budget.costs,
    )
