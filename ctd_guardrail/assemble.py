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
from time import perf_counter
from typing import TYPE_CHECKING

from pydantic import SecretBytes

from ctd_guardrail.cascade import Cascade
from ctd_guardrail.config import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError, OverrideError
from ctd_guardrail.experts.bounded import guarded, shared_caps
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.config import LocalExpertConfig
from ctd_guardrail.experts.guarded import GuardedExpert
from ctd_guardrail.guards.audit_floor import budget_beside_audit
from ctd_guardrail.observability.build import Keys, build_watch
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.override_bounds import Bounds
from ctd_guardrail.overrides import OverridableCascade
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.manifest import Manifest, PerformanceRecord
from ctd_guardrail.policy.match import check_expert, check_fingerprint, check_normaliser
from ctd_guardrail.policy.rule import DelegationRule, ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.refusals import Receipts, Refusals
from ctd_guardrail.rollout import Rollout
from ctd_guardrail.serving.record import check_record, read_record
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
    return _plan(config, policy)


def _plan(config: CtdConfig, policy: Policy) -> Plan:
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


def assemble(
    config: CtdConfig,
    *,
    folder: Path,
    rail_collaborators: RailCollaborators | None = None,
    refusals: Iterable[str] = (),
    in_service: bool = True,
) -> OverridableCascade:
    """Build the cascade, loading the base model where this process has not loaded it yet.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
        refusals: The host's own words for a refusal.
        in_service: Whether its inputs are traffic, for monitors, metrics and audit log; not those of a trial.

    Raises:
        PolicyError: The policy folder cannot be used, or belongs to another base model or expert.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: The expert's section is wrong.
        ActivationError: The base model cannot be loaded.
        DependencyError: ``package:NAME`` is not installed.
    """
    return prepare(
        config, folder=folder, rail_collaborators=rail_collaborators, refusals=refusals, in_service=in_service
    )()


def prepare(
    config: CtdConfig,
    *,
    folder: Path,
    rail_collaborators: RailCollaborators | None = None,
    refusals: Iterable[str] = (),
    in_service: bool = True,
) -> Callable[[], OverridableCascade]:
    """Check all that can be checked in milliseconds, and return the function that loads the models.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
        refusals: The host's own words for a refusal.
        in_service: Whether its inputs are traffic, for monitors, metrics and audit log; not those of a trial.

    Raises:
        PolicyError: The policy folder cannot be used, or belongs to another expert.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: The expert's section is wrong.
    """
    planned = plan(config, folder=folder)
    manifest = planned.policy.manifest
    keys = Keys.of(config)
    build_experts = partial(_build_experts, config, manifest, folder, rail_collaborators)
    # A local expert is a model itself, and known only when it is loaded.
    sections = (config.expert, *config.experts.values())
    experts = None if any(isinstance(each, LocalExpertConfig) for each in sections) else build_experts()

    def load() -> OverridableCascade:
        watch = partial(_watch, config, planned, folder, keys) if in_service else None
        return _load(
            config,
            planned,
            experts or build_experts(),
            folder,
            refusals=Refusals((*refusals, *config.refusals)),
            keys=keys,
            make_watch=watch,
        )

    return load


def _watch(config: CtdConfig, planned: Plan, folder: Path, keys: Keys, load_s: float) -> Watch:
    policy = planned.policy
    facts = Facts(
        guard=folder.resolve().name,
        policy=policy.manifest.tensors_sha256[:12],
        alpha=planned.alpha,
        delta=planned.certificate.delta,
        threshold=planned.rule.threshold,
        expected_rate=planned.expected_rate,
    )
    return build_watch(
        facts,
        scores=policy.scores,
        folder=folder,
        monitor=config.monitor,
        audit_log=config.audit_log,
        audit_key=keys.audit_log,
        load_s=load_s,
    )


def _load(
    config: CtdConfig,
    planned: Plan,
    experts: Mapping[str | None, GuardedExpert],
    folder: Path,
    *,
    refusals: Refusals,
    keys: Keys,
    make_watch: Callable[[float], Watch] | None,
) -> OverridableCascade:
    start = perf_counter()
    from ctd_guardrail.probes.probes import Probes  # noqa: PLC0415  # torch

    manifest = planned.policy.manifest
    probes = Probes(manifest.probe, planned.policy.probe)
    reader = _open_reader(config, manifest, probes, folder)
    watch = None if make_watch is None else make_watch(perf_counter() - start)
    bounds = _bounds(config, planned)
    certificate = planned.certificate
    log.info(
        "ctd guard ready: alpha %g, delta %g, guarantee %s, lambda %.6g, n %d, expected rate %.4f",
        planned.alpha,
        certificate.delta,
        certificate.guarantee,
        planned.rule.threshold,
        certificate.n,
        planned.expected_rate,
    )

    def build(settings: CtdConfig, expert: GuardedExpert, tally: Tally) -> Cascade:
        rollout = settings.rollout
        rule = planned.rule if settings is config else _rule_of_request(settings, config, planned, bounds)
        policy = _hash(manifest, expert, rule, settings)
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
            history=settings.history,
            refused_turns=settings.refused_turns,
            refusals=refusals,
            receipts=None if keys.receipts is None else Receipts(keys.receipts, policy),
            policy=policy,
            # Requests that ask for another budget say nothing about this one.
            tally=tally
            if watch is None or rule == planned.rule
            else tally.told_to(watch.observer(is_configured=False)),
            rollout=None
            if rollout is None or keys.rollout is None
            else Rollout(rollout.enforce_share, keys.rollout, by_principal=rollout.by == "principal"),
            audit_share=0.0 if settings.monitor is None else settings.monitor.audit_share,
        )

    return OverridableCascade(config, experts, build, bounds=bounds, watch=watch)


def _bounds(config: CtdConfig, planned: Plan) -> Bounds:
    delta = planned.policy.manifest.calibration.delta if config.delta is None else config.delta
    return Bounds.of(
        config.override_bounds, alpha=planned.alpha, delta=delta, mode=config.mode, on_failure=config.on_failure
    )


def _rule_of_request(settings: CtdConfig, config: CtdConfig, planned: Plan, bounds: Bounds) -> DelegationRule:
    """Return the rule of a request's own budget.

    Raises:
        OverrideError: Another guarantee or horizon delegates more than the bounds do.
    """
    asked = _plan(settings, planned.policy)
    if asked.certificate.k > planned.certificate.k:
        widest = _plan(config.model_copy(update={"alpha": bounds.alpha, "delta": bounds.delta}), planned.policy)
        if asked.certificate.k > widest.certificate.k:
            raise OverrideError(
                "guarantee and horizon delegate more than alpha and delta at their bounds",
                hint="Ask for a smaller alpha, or name a wider bound in override_bounds.alpha",
            )
    return asked.rule


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
