"""From a configuration to a running cascade; everything that can refuse to start does so here."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ctd_guardrail.assembly.experts import bounded, shared_caps
from ctd_guardrail.assembly.observers import Keys, build_watch
from ctd_guardrail.assembly.overrides import Guard
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.errors import OverrideError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.observability.events import Emit, Origin
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.match import check_expert, check_fingerprint
from ctd_guardrail.policy.plan import Plan, plan, plan_with
from ctd_guardrail.policy.rollout import Rollout
from ctd_guardrail.policy.rule import DelegationRule
from ctd_guardrail.text.refusals import Receipts, Refusals

if TYPE_CHECKING:
    from ctd_guardrail.activations.scorer import Scorer
    from ctd_guardrail.experts.rail.expert import RailCollaborators
    from ctd_guardrail.probes.probes import Probes

__all__ = ["assemble", "prepare"]

log = logging.getLogger(__name__)


def assemble(
    config: CtdConfig,
    *,
    folder: Path,
    rail_collaborators: RailCollaborators | None = None,
    refusals: Iterable[str] = (),
    in_service: bool = True,
) -> Guard:
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
) -> Callable[[], Guard]:
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

    def load() -> Guard:
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
    experts: Mapping[str | None, BoundedExpert],
    folder: Path,
    *,
    refusals: Refusals,
    keys: Keys,
    make_watch: Callable[[float], Watch] | None,
) -> Guard:
    start = perf_counter()
    from ctd_guardrail.probes.probes import Probes  # noqa: PLC0415  # torch

    manifest = planned.policy.manifest
    probes = Probes(manifest.probe, planned.policy.probe)
    scorer = _open_scorer(config, manifest, probes, folder)
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

    def build(settings: CtdConfig, expert: BoundedExpert, emit: Emit) -> Cascade:
        rollout = settings.rollout
        rule = planned.rule if settings is config else _rule_of_request(settings, config, planned, bounds)
        judgement_key = _hash(manifest, expert, rule, settings)
        return Cascade(
            CascadeSettings(
                rule=rule,
                decision_threshold=manifest.decision_threshold,
                merge=manifest.merge,
                abstain_band=0.0 if manifest.performance is None else manifest.performance.band,
                on_abstain=settings.on_abstain,
                on_nontext=settings.on_nontext,
                on_overlong=settings.on_overlong,
                on_failure=settings.on_failure,
                deadline_s=settings.deadline_s,
                mode=settings.mode,
                rollout=None
                if rollout is None or keys.rollout is None
                else Rollout(rollout.enforce_share, keys.rollout, by_principal=rollout.by == "principal"),
                context=manifest.context,
                history=settings.history,
                refused_turns=settings.refused_turns,
                audit_share=0.0 if settings.monitor is None else settings.monitor.audit_share,
            ),
            scorer=scorer,
            probes=probes,
            expert=expert,
            refusals=refusals,
            receipts=None if keys.receipts is None else Receipts(keys.receipts, judgement_key),
            judgement_key=judgement_key,
            emit=emit,
            origin=Origin.CONFIGURED if rule == planned.rule else Origin.OTHER_BUDGET,
        )

    return Guard(config, experts, build, bounds=bounds, watch=watch)


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
    asked = plan_with(settings, planned.policy)
    if asked.certificate.k > planned.certificate.k:
        widest = plan_with(config.model_copy(update={"alpha": bounds.alpha, "delta": bounds.delta}), planned.policy)
        if asked.certificate.k > widest.certificate.k:
            raise OverrideError(
                "guarantee and horizon delegate more than alpha and delta at their bounds",
                hint="Ask for a smaller alpha, or name a wider bound in override_bounds.alpha",
            )
    return asked.rule


def _open_scorer(config: CtdConfig, manifest: Manifest, probes: Probes, folder: Path) -> Scorer:
    """Return the base model, in this process or served, that the policy was calibrated on."""
    if config.source is not None:
        from ctd_guardrail.serving.vllm import open_scorer  # noqa: PLC0415  # torch

        return open_scorer(config.source, manifest, probes, folder=folder)
    from ctd_guardrail.activations.base_model import load_base_model  # noqa: PLC0415  # torch

    spec = manifest.activations
    if config.base_model is not None:
        spec = spec.model_copy(update={"model": config.base_model, "revision": None})
    engine = load_base_model(spec, device=config.device)
    check_fingerprint(manifest, engine.fingerprint)
    return engine


def _hash(manifest: Manifest, expert: BoundedExpert, rule: DelegationRule, settings: CtdConfig) -> str:
    """Return a hash of all that the judgement of a unit depends on beside the unit."""
    source = "" if settings.source is None else settings.source.model_dump_json()
    parts = (manifest.model_dump_json(), expert.identity, repr(rule), settings.on_abstain, settings.on_overlong, source)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _build_experts(
    config: CtdConfig, manifest: Manifest, folder: Path, rail_collaborators: RailCollaborators | None
) -> dict[str | None, BoundedExpert]:
    """Return the experts by name, all of them the one that the policy was calibrated with, and under one cap."""
    caps = shared_caps(config, folder)
    experts: dict[str | None, BoundedExpert] = {}
    for name, section in ((None, config.expert), *config.experts.items()):
        expert = build_expert(section, rail_collaborators=rail_collaborators, base_dir=folder)
        check_expert(manifest, expert.identity)
        experts[name] = bounded(expert, section, config, caps)
    return experts
