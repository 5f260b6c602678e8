"""From the configuration to the observers of a guard in service: monitors, metrics and audit log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import SecretBytes

from ctd_guardrail.assembly.budget import budget_of
from ctd_guardrail.config.observability import AuditLogConfig, MonitorConfig, RolloutConfig
from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.monitors.rate_limit import LimitKind, RateLimit, rate_bound
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.gauges import register_gauges
from ctd_guardrail.observability.watch import Watch, shared_watch
from ctd_guardrail.policy.budget import Certificate
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.pace import PacedRule
from ctd_guardrail.policy.plan import Plan
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from ctd_guardrail.runtime.memory import LocalMemory
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["Keys", "build_watch"]

_SHORTEST_KEY = 16
_LONGEST_KEY = 64


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets of a guard, apart from those of its expert.

    Attributes:
        audit_log: Hashes conversations in the audit log; None: no log is kept.
        rollout: Draws the conversations that are enforced; None: all are.
        receipts: Signs refusals; None: they are not signed.
        store: Signs what replicas remember together; None: each process remembers by itself.
    """

    audit_log: SecretBytes | None
    rollout: SecretBytes | None
    receipts: SecretBytes | None
    store: SecretBytes | None

    @classmethod
    def of(cls, config: CtdConfig) -> Self:
        """Read the secrets from the environment.

        Raises:
            ConfigError: A secret is not set, too short or too long.
        """

        def read(name: str, section: AuditLogConfig | RolloutConfig | None) -> SecretBytes | None:
            return None if section is None else _read_key(section.key_env, key=f"{SECTION}.{name}.key_env")

        receipts = config.receipt_key_env
        store = None if config.store is None else config.store.key_env
        return cls(
            read("audit_log", config.audit_log),
            read("rollout", config.rollout),
            None if receipts is None else _read_key(receipts, key=f"{SECTION}.receipt_key_env"),
            None if store is None else _read_key(store, key=f"{SECTION}.store.key_env"),
        )


def build_watch(
    config: CtdConfig,
    policy: Policy,
    running: Plan,
    folder: Path,
    keys: Keys,
    *,
    paced: PacedRule | None = None,
    load_s: float,
    runtime: Runtime,
) -> Watch:
    """Return the watch of a configuration. All guards of one configuration share it.

    Args:
        config: The user's section.
        policy: The policy that runs.
        running: The threshold that runs.
        folder: Folder that relative paths start from.
        keys: Secrets.
        paced: The rule at its pace; None: no pace is configured.
        load_s: Seconds that loading took.
        runtime: Holds the watches.

    Raises:
        ConfigError: The audit log cannot be written.
    """
    register_gauges()
    facts = Facts(
        guard=folder.resolve().name,
        policy=policy.manifest.tensors_sha256[:12],
        alpha=running.alpha,
        delta=running.certificate.delta,
        threshold=running.rule.threshold,
        expected_rate=running.expected_rate,
        unit=running.certificate.unit,
        max_turns=running.certificate.max_turns,
        max_calls=_most_calls(config),
    )
    monitor, audit_log = config.monitor, config.audit_log

    def make() -> Watch:
        # With the turns that go to the expert unread: the calls of the traffic include theirs.
        scores = policy.scores_with(budget_of(config).unreadable)
        kept = None if monitor is None else _keep(facts, scores, running.certificate, folder, monitor)
        if kept is not None:
            _continue_conversations(kept, runtime.memory)
        written = None
        if audit_log is not None and keys.audit_log is not None:
            written = AuditLog(
                folder / audit_log.path,
                key=keys.audit_log,
                sample=audit_log.sample,
                scores=audit_log.scores,
                labels=facts.labels,
            )
        return Watch(facts, load_s=load_s, paced=paced, kept=kept, audit_log=written, runtime=runtime)

    return shared_watch((str(folder.resolve()), facts, monitor, audit_log, config.pace), make, runtime=runtime)


def _most_calls(config: CtdConfig) -> int | None:
    """Return the largest number of calls of a request, with its audits; None: no limit."""
    is_audited = config.monitor is not None and config.monitor.audit_share > 0.0
    return None if config.max_expert_calls is None else config.max_expert_calls * (2 if is_audited else 1)


def _keep(
    facts: Facts, scores: TurnScores, certificate: Certificate, folder: Path, monitor: MonitorConfig
) -> KeptMonitors:
    settings = MonitorSettings(
        alpha=facts.alpha,
        delta=monitor.delta,
        audit_share=monitor.audit_share,
        unit=certificate.unit,
        max_turns=certificate.max_turns,
        limit=_limit(facts.alpha, scores, certificate, monitor),
    )
    return KeptMonitors(settings, scores, folder=None if monitor.state is None else folder / monitor.state)


def _continue_conversations(kept: KeptMonitors, memory: LocalMemory) -> None:
    """Let the conversations that were open in an earlier process go on under their names."""
    if kept.conversation_key:
        memory.restore(kept.conversation_key, kept.monitors.conversations.places())
    kept.conversation_key = memory.key


def _limit(alpha: float, scores: TurnScores, certificate: Certificate, monitor: MonitorConfig) -> RateLimit | None:
    """Return the rate that the rate alarm tests against; None: alpha."""
    if certificate.guarantee is not Guarantee.EXPECTED:
        return None
    bound = rate_bound(
        scores,
        certificate.threshold,
        certificate.alpha,
        monitor.delta / 2,
        unit=certificate.unit,
        max_turns=certificate.max_turns,
    )
    if certificate.unit is BudgetUnit.TURN:
        audited = bound + monitor.audit_share * (1.0 - bound)
    else:
        audited = bound + monitor.audit_share * scores.turns / scores.conversations
    return RateLimit(max(alpha, audited), LimitKind.CALIBRATION_BOUND)


def _read_key(variable: str, *, key: str) -> SecretBytes:
    secret = os.environ.get(variable, "").encode()
    if not _SHORTEST_KEY <= len(secret) <= _LONGEST_KEY:
        raise ConfigError(
            f"the environment variable {variable} holds {len(secret)} bytes, not {_SHORTEST_KEY} to {_LONGEST_KEY}",
            key=key,
            hint="Generate a secret with `python -c 'import secrets; print(secrets.token_hex(32))'`",
        )
    return SecretBytes(secret)
