"""From a configuration to a running cascade; everything that can refuse to start does so here."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretBytes

from ctd_guardrail.cascade import Cascade
from ctd_guardrail.config import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError
from ctd_guardrail.experts.bounded import guarded, shared_caps
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.config import LocalExpertConfig
from ctd_guardrail.experts.guarded import GuardedExpert
from ctd_guardrail.overrides import OverridableCascade
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.manifest import Manifest, PerformanceRecord
from ctd_guardrail.policy.match import check_expert, check_fingerprint, check_normaliser
from ctd_guardrail.policy.rule import DelegationRule, ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.refusals import Refusals
from ctd_guardrail.tally import Tally

if TYPE_CHECKING:
    from ctd_guardrail.activations.reading import Reader
    from ctd_guardrail.experts.rail import RailCollaborators
    from ctd_guardrail.probes.probes import Probes

__all__ = ["Plan", "assemble", "plan", "prepare"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration amounts to, before any model is loaded.

    Attributes:
        policy: The policy folder's content.
        certificate: The budget that was asked for, certified.
        rule: Says which inputs go to the expert: by the certificate's lambda, a larger one that the criterion prefers,
            or the one that the policy's performance risks were certified at.
        expected_rate: Share of the inputs that is expected at the expert.
    """

    policy: Policy
    certificate: Certificate
    rule: DelegationRule
    expected_rate: float


def plan(config: CtdConfig, *, folder: Path) -> Plan:
    """Read the policy and derive the threshold. Takes milliseconds: no model is loaded.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.

    Raises:
        PolicyError: The policy folder cannot be used.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: ``horizon`` does not fit ``guarantee``, the criterion needs labels that the policy lacks, the tie
            key is not usable, or a setting would void the policy's performance certificate.
    """
    policy = read_policy(folder / config.policy)
    check_normaliser(policy.manifest)
    return _plan(config, policy)


def _plan(config: CtdConfig, policy: Policy) -> Plan:
    calibration, looks = policy.manifest.calibration, len(policy.manifest.recalibrations)
    alpha = calibration.alpha if config.alpha is None else config.alpha
    delta = calibration.delta if config.delta is None else config.delta
    certificate = certify(
        policy.scores, alpha, spent_delta(delta, looks), guarantee=config.guarantee, horizon=config.horizon
    )
    if certificate.status is Status.INFEASIBLE:
        raise InfeasibleBudgetError(
            f"{SECTION}.alpha: {certificate.n} calibration rows cannot certify alpha = {alpha} at delta = {delta}",
            alpha=alpha,
            alpha_min=certificate.alpha_min,
            n_min=certificate.n_min,
            hint=f"The smallest alpha that they can certify is {certificate.alpha_min:.4f}; "
            f"alpha = {alpha} takes {certificate.n_min} rows",
        )
    if policy.manifest.performance is not None:
        threshold = _performance_threshold(config, policy.manifest.performance)
        rate = float((policy.scores > threshold).mean())
        return Plan(policy, certificate, ThresholdRule(threshold), rate)
    if config.tie_key_env is not None:
        rule = TieBreakingRule.from_policy(policy, certificate, _tie_key(config))
        return Plan(policy, certificate, rule, certificate.mean_rate)
    if config.criterion is Criterion.BUDGET:
        return Plan(policy, certificate, ThresholdRule(certificate.threshold), certificate.mean_rate)
    choice = _choose(config, policy, certificate)
    return Plan(policy, certificate, ThresholdRule(choice.threshold), choice.exceedances / policy.calibration.d.size)


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
    rows = policy.calibration
    if rows.expert is None or rows.label is None:
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


def assemble(
    config: CtdConfig,
    *,
    folder: Path,
    rail_collaborators: RailCollaborators | None = None,
    refusals: Iterable[str] = (),
) -> OverridableCascade:
    """Build the cascade, loading the base model where this process has not loaded it yet.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
        refusals: The host's own words for a refusal.

    Raises:
        PolicyError: The policy folder cannot be used, or belongs to another base model or expert.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: The expert's section is wrong.
        ActivationError: The base model cannot be loaded.
        DependencyError: ``package:NAME`` is not installed.
    """
    return prepare(config, folder=folder, rail_collaborators=rail_collaborators, refusals=refusals)()


def prepare(
    config: CtdConfig,
    *,
    folder: Path,
    rail_collaborators: RailCollaborators | None = None,
    refusals: Iterable[str] = (),
) -> Callable[[], OverridableCascade]:
    """Check all that can be checked in milliseconds, and return the function that loads the models.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
        refusals: The host's own words for a refusal.

    Raises:
        PolicyError: The policy folder cannot be used, or belongs to another expert.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: The expert's section is wrong.
    """
    planned = plan(config, folder=folder)
    manifest = planned.policy.manifest
    build_experts = partial(_build_experts, config, manifest, folder, rail_collaborators)
    # A local expert is a model itself, and known only when it is loaded.
    sections = (config.expert, *config.experts.values())
    experts = None if any(isinstance(each, LocalExpertConfig) for each in sections) else build_experts()

    def load() -> OverridableCascade:
        return _load(config, planned, experts or build_experts(), Refusals(refusals), folder)

    return load


def _load(
    config: CtdConfig, planned: Plan, experts: Mapping[str | None, GuardedExpert], refusals: Refusals, folder: Path
) -> OverridableCascade:
    from ctd_guardrail.probes.probes import Probes  # noqa: PLC0415  # torch

    manifest = planned.policy.manifest
    probes = Probes(manifest.probe, planned.policy.probe)
    reader = _open_reader(config, manifest, probes, folder)
    certificate = planned.certificate
    log.info(
        "ctd guard ready: alpha %g, delta %g, guarantee %s, lambda %.6g, n %d, expected rate %.4f",
        certificate.alpha,
        certificate.delta,
        certificate.guarantee,
        planned.rule.threshold,
        certificate.n,
        planned.expected_rate,
    )

    def build(settings: CtdConfig, expert: GuardedExpert, tally: Tally) -> Cascade:
        rule = planned.rule if settings is config else _plan(settings, planned.policy).rule
        return Cascade(
            engine=reader,
            probes=probes,
            rule=rule,
            decision_threshold=manifest.decision_threshold,
            expert=expert,
            merge=manifest.merge,
            on_failure=settings.on_failure,
            deadline_s=settings.deadline_s,
            abstain_band=0.0 if manifest.performance is None else manifest.performance.band,
            on_abstain=settings.on_abstain,
            on_nontext=settings.on_nontext,
            on_overlong=settings.on_overlong,
            mode=settings.mode,
            context=manifest.context,
            refusals=refusals,
            policy=_hash(manifest, expert, rule, settings),
            tally=tally,
        )

    return OverridableCascade(config, experts, build)


def _open_reader(config: CtdConfig, manifest: Manifest, probes: Probes, folder: Path) -> Reader:
    """Return the base model, in this process or served, that the policy was calibrated on."""
    if config.source is not None:
        from ctd_guardrail.serving.vllm import open_reader  # noqa: PLC0415  # torch

        return open_reader(config.source, manifest, probes, folder=folder)
    from ctd_guardrail.activations.engine import get_engine  # noqa: PLC0415  # torch

    spec = manifest.activations
    if config.base_model is not None:
        spec = spec.model_copy(update={"model": config.base_model, "revision": None})
    engine = get_engine(spec, device=config.device)
    check_fingerprint(manifest, engine.fingerprint)
    return engine


def _hash(manifest: Manifest, expert: GuardedExpert, rule: DelegationRule, settings: CtdConfig) -> str:
    """Return a hash of all that the judgement of a unit depends on beside the unit."""
    source = "" if settings.source is None else settings.source.model_dump_json()
    parts = (manifest.model_dump_json(), expert.identity, repr(rule), settings.on_abstain, settings.on_overlong, source)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _build_experts(
    config: CtdConfig, manifest: Manifest, folder: Path, rail_collaborators: RailCollaborators | None
) -> dict[str | None, GuardedExpert]:
    """Return the experts by name, all of them the one that the policy was calibrated with, and under one cap."""
    caps = shared_caps(config, folder)
    experts: dict[str | None, GuardedExpert] = {}
    for name, section in ((None, config.expert), *config.experts.items()):
        expert = build_expert(section, rail_collaborators=rail_collaborators, base_dir=folder)
        check_expert(manifest, expert.identity)
        experts[name] = guarded(expert, section, config, caps)
    return experts
