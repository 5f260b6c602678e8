"""From the configuration to what watches a guard in service."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretBytes

from ctd_guardrail.config.observability import AuditLogConfig, MonitorConfig, RolloutConfig
from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.gauges import register_gauges
from ctd_guardrail.observability.watch import Watch, shared_watch

__all__ = ["Keys", "build_watch"]

_SHORTEST_KEY = 16
_LONGEST_KEY = 64


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets that a guard in service needs beside its expert's.

    Attributes:
        audit_log: Hashes conversations in the audit log; None: there is no log.
        rollout: Draws who is enforced; None: everybody is.
        receipts: Signs refusals; None: none is signed.
    """

    audit_log: SecretBytes | None
    rollout: SecretBytes | None
    receipts: SecretBytes | None

    @classmethod
    def of(cls, config: CtdConfig) -> Self:
        """Read them from the environment.

        Raises:
            ConfigError: One is not set, too short or too long.
        """

        def read(name: str, section: AuditLogConfig | RolloutConfig | None) -> SecretBytes | None:
            return None if section is None else _read_key(section.key_env, key=f"{SECTION}.{name}.key_env")

        receipts = config.receipt_key_env
        return cls(
            read("audit_log", config.audit_log),
            read("rollout", config.rollout),
            None if receipts is None else _read_key(receipts, key=f"{SECTION}.receipt_key_env"),
        )


def build_watch(
    facts: Facts,
    *,
    scores: NDArray[np.float64],
    folder: Path,
    monitor: MonitorConfig | None,
    audit_log: AuditLogConfig | None,
    audit_key: SecretBytes | None,
    load_s: float,
) -> Watch:
    """Return the watch of a configuration, the one that its other guards in this process have where there is one.

    Args:
        facts: Policy and budget.
        scores: Delegation values of the calibration inputs, shape [n].
        folder: Folder that relative paths start from.
        monitor: What to watch.
        audit_log: Which audit log to keep.
        audit_key: Its secret.
        load_s: Seconds that loading took.

    Raises:
        ConfigError: The audit log cannot be written.
    """
    register_gauges()

    def make() -> Watch:
        kept = None if monitor is None else _keep(facts, scores, folder, monitor)
        written = None
        if audit_log is not None and audit_key is not None:
            written = AuditLog(
                folder / audit_log.path,
                key=audit_key,
                sample=audit_log.sample,
                scores=audit_log.scores,
                labels=facts.labels,
            )
        return Watch(facts, load_s=load_s, kept=kept, audit_log=written)

    return shared_watch((str(folder.resolve()), facts, monitor, audit_log), make)


def _keep(facts: Facts, scores: NDArray[np.float64], folder: Path, monitor: MonitorConfig) -> KeptMonitors:
    return KeptMonitors(
        MonitorSettings(
            alpha=facts.alpha,
            delta=monitor.delta,
            audit_share=monitor.audit_share,
            keep_scores=monitor.keep_scores,
        ),
        scores,
        folder=None if monitor.state is None else folder / monitor.state,
        save_every_s=monitor.save_every_s,
    )


def _read_key(variable: str, *, key: str) -> SecretBytes:
    secret = os.environ.get(variable, "").encode()
    if not _SHORTEST_KEY <= len(secret) <= _LONGEST_KEY:
        raise ConfigError(
            f"the environment variable {variable} holds {len(secret)} bytes, not {_SHORTEST_KEY} to {_LONGEST_KEY}",
            key=key,
            hint="Generate a secret with `python -c 'import secrets; print(secrets.token_hex(32))'`",
        )
    return SecretBytes(secret)
