"""From a configuration to a running cascade; everything that can refuse to start does so here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctd_guardrail.cascade import Cascade
from ctd_guardrail.config import SECTION, CtdConfig
from ctd_guardrail.errors import InfeasibleBudgetError, PolicyMismatchError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.match import check_expert, check_fingerprint
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy, read_policy

if TYPE_CHECKING:
    from ctd_guardrail.experts.rail import RailCollaborators

__all__ = ["Plan", "assemble", "plan"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration amounts to, before any model is loaded.

    Attributes:
        policy: The policy folder's content.
        certificate: The budget that was asked for, certified, with its threshold.
    """

    policy: Policy
    certificate: Certificate


def plan(config: CtdConfig, *, folder: Path) -> Plan:
    """Read the policy and derive the threshold. Takes milliseconds: no model is loaded.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.

    Raises:
        PolicyError: The policy folder cannot be used.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
    """
    policy = read_policy(folder / config.policy)
    calibration = policy.manifest.calibration
    alpha = calibration.alpha if config.alpha is None else config.alpha
    delta = calibration.delta if config.delta is None else config.delta
    certificate = certify(policy.scores, alpha, spent_delta(delta, len(policy.manifest.recalibrations)))
    if certificate.status is Status.INFEASIBLE:
        raise InfeasibleBudgetError(
            f"{SECTION}.alpha: {certificate.n} calibration rows cannot certify alpha = {alpha} at delta = {delta}",
            alpha=alpha,
            alpha_min=certificate.alpha_min,
            n_min=certificate.n_min,
            hint=f"The smallest alpha that they can certify is {certificate.alpha_min:.4f}; "
            f"alpha = {alpha} takes {certificate.n_min} rows",
        )
    return Plan(policy, certificate)


def assemble(config: CtdConfig, *, folder: Path, rail_collaborators: RailCollaborators | None = None) -> Cascade:
    """Build the cascade, loading the base model where this process has not loaded it yet.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.

    Raises:
        PolicyError: The policy folder cannot be used, or belongs to another base model or expert.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: The expert's section is wrong.
        ActivationError: The base model cannot be loaded.
        DependencyError: ``package:NAME`` is not installed.
    """
    planned = plan(config, folder=folder)
    manifest = planned.policy.manifest
    expert = build_expert(config.expert, rail_collaborators=rail_collaborators, base_dir=folder)
    check_expert(manifest, expert.identity)

    from ctd_guardrail.activations.engine import get_engine  # noqa: PLC0415  # torch
    from ctd_guardrail.probes.plug_in import PlugInProbes  # noqa: PLC0415

    probes = PlugInProbes(planned.policy.probe)
    spec = manifest.activations
    if config.base_model is not None:
        spec = spec.model_copy(update={"model": config.base_model, "revision": None})
    engine = get_engine(spec, device=config.device)
    check_fingerprint(manifest, engine.fingerprint)
    if probes.width != engine.fingerprint.hidden_size:
        raise PolicyMismatchError(
            f"the probes read activations of width {probes.width}, and the base model gives "
            f"{engine.fingerprint.hidden_size}",
            hint="Calibrate again",
        )
    certificate = planned.certificate
    log.info(
        "ctd guard ready: alpha %g, delta %g, lambda %.6g, n %d, expected rate %.4f",
        certificate.alpha,
        certificate.delta,
        certificate.threshold,
        certificate.n,
        certificate.mean_rate,
    )
    return Cascade(
        engine=engine,
        probes=probes,
        certificate=certificate,
        decision_threshold=manifest.decision_threshold,
        expert=expert,
        on_failure=config.on_failure,
    )
