"""From a policy and the user's section to the threshold that runs: no model is loaded for it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretBytes

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError
from ctd_guardrail.monitors.audit_floor import budget_beside_audit
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.manifest import PerformanceRecord
from ctd_guardrail.policy.match import check_normaliser
from ctd_guardrail.policy.rule import DelegationRule, ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.serving.record import check_record, read_record

__all__ = ["Plan", "plan", "plan_with"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration amounts to, before any model is loaded.

    Attributes:
        policy: The policy folder's content.
        certificate: The budget that was asked for, certified.
        rule: Says which inputs go to the expert: by the certificate's lambda, a larger one that the criterion prefers,
            or the one that the policy's performance risks were certified at.
        expected_rate: Share of the inputs that is expected at the expert, audits included.
        alpha: The budget that was asked for. The certificate's is smaller where audits are paid out of it.
    """

    policy: Policy
    certificate: Certificate
    rule: DelegationRule
    expected_rate: float
    alpha: float


def plan(config: CtdConfig, *, folder: Path) -> Plan:
    """Read the policy and derive the threshold. Takes milliseconds: no model is loaded.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.

    Raises:
        PolicyError: The policy folder cannot be used, or ``source.export`` is not its export.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: ``horizon`` does not fit ``guarantee``, the criterion needs labels that the policy lacks, the tie
            key is not usable, or a setting would void the policy's performance certificate.
    """
    policy = read_policy(folder / config.policy)
    check_normaliser(policy.manifest)
    if config.source is not None:
        export = folder / config.source.export
        check_record(read_record(export), policy.manifest, folder=export)
    return plan_with(config, policy)


def plan_with(config: CtdConfig, policy: Policy) -> Plan:
    """Derive the threshold from a policy that has been read. It reads no file; see :func:`plan` for what it raises."""
    calibration, looks = policy.manifest.calibration, len(policy.manifest.recalibrations)
    alpha = calibration.alpha if config.alpha is None else config.alpha
    delta = calibration.delta if config.delta is None else config.delta
    audited = 0.0 if config.monitor is None else config.monitor.audit_share
    certificate = certify(
        policy.scores,
        _budget_of_rule(config, policy, alpha, audited),
        spent_delta(delta, looks),
        guarantee=config.guarantee,
        horizon=config.horizon,
    )
    if certificate.status is Status.INFEASIBLE:
        raise InfeasibleBudgetError(
            f"{SECTION}.alpha: {certificate.n} calibration rows cannot certify alpha = {certificate.alpha:.6g} at "
            f"delta = {delta}",
            alpha=certificate.alpha,
            alpha_min=certificate.alpha_min,
            n_min=certificate.n_min,
            hint=f"The smallest alpha that they can certify is {certificate.alpha_min:.4f}; "
            f"alpha = {certificate.alpha:.6g} takes {certificate.n_min} rows",
        )
    rule, rate = _rule(config, policy, certificate)
    return Plan(policy, certificate, rule, audited + (1.0 - audited) * rate, alpha)


def _budget_of_rule(config: CtdConfig, policy: Policy, alpha: float, audited: float) -> float:
    """Return the alpha that the threshold is certified at: what audits leave of the budget."""
    if not audited:
        return alpha
    key = f"{SECTION}.monitor.audit_share"
    if policy.manifest.performance is not None or config.guarantee is Guarantee.NEXT:
        raise ConfigError(
            "this certificate leaves no share of the budget for audits",
            key=key,
            hint="Leave audit_share out, or use a policy that holds the budget alone with a guarantee other than next",
        )
    if audited >= alpha:
        raise ConfigError(f"is not below alpha = {alpha:g}", key=key, hint="Audit less, or raise alpha")
    return budget_beside_audit(alpha, audited)


def _rule(config: CtdConfig, policy: Policy, certificate: Certificate) -> tuple[DelegationRule, float]:
    """Return the rule, and the share of the inputs that it is expected to delegate."""
    if policy.manifest.performance is not None:
        threshold = _performance_threshold(config, policy.manifest.performance)
        return ThresholdRule(threshold), float((policy.scores > threshold).mean())
    if config.tie_key_env is not None:
        return TieBreakingRule.from_policy(policy, certificate, _tie_key(config)), certificate.mean_rate
    if config.criterion is Criterion.BUDGET:
        return ThresholdRule(certificate.threshold), certificate.mean_rate
    choice = _choose(config, policy, certificate)
    return ThresholdRule(choice.threshold), float((policy.calibration.d > choice.threshold).mean())


def _performance_threshold(config: CtdConfig, performance: PerformanceRecord) -> float:
    """Return lambda of a setting that holds more than the budget, after refusing whatever would move it."""
    for key in ("alpha", "delta", "guarantee", "horizon", "criterion", "tie_key_env"):
        if getattr(config, key) != CtdConfig.model_fields[key].default:
            raise ConfigError(
                f"the policy's {performance.method} certificate holds risks at the alpha, delta and threshold that it "
                "was made with",
                key=f"{SECTION}.{key}",
                hint=f"Leave {key} out, or calibrate again with other values",
            )
    return math.inf if performance.threshold is None else performance.threshold


def _tie_key(config: CtdConfig) -> SecretBytes:
    if config.criterion is not Criterion.BUDGET:
        raise ConfigError(
            "ties are drawn at the budget's own threshold",
            key=f"{SECTION}.tie_key_env",
            hint="Use it with criterion: budget",
        )
    value = os.environ.get(str(config.tie_key_env), "")
    return SecretBytes(value.encode())


def _choose(config: CtdConfig, policy: Policy, certificate: Certificate) -> Choice:
    rows = policy.calibration.scored
    if rows.expert is None or rows.label is None or not rows.label.size:
        raise ConfigError(
            f"criterion {config.criterion.value!r} needs labelled calibration rows, and this policy has none",
            key=f"{SECTION}.criterion",
            hint="Set criterion: budget, or calibrate on labelled rows",
        )
    return best_threshold(
        certificate,
        config.criterion,
        d=rows.d,
        probe=rows.p,
        expert=policy.manifest.merge(rows.p, rows.expert),
        label=rows.label,
        tau=policy.manifest.decision_threshold,
        costs=Costs(**config.costs.model_dump()),
    )
