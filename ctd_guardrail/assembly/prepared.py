"""The one way from a configuration to a running guard: ``read`` a folder, ``load`` the models.

Everything that can refuse to start does so here, and every file is read once: the guard runs the very plan that
:class:`Prepared` shows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ctd_guardrail.assembly.budget import budget_of
from ctd_guardrail.assembly.cascades import CascadeFactory
from ctd_guardrail.assembly.experts import build_experts
from ctd_guardrail.assembly.folder import RailFolder, read_folder
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.observers import Keys, build_watch
from ctd_guardrail.assembly.pacing import check_pace, pace_rule
from ctd_guardrail.assembly.store import open_memory
from ctd_guardrail.config.experts import LocalExpertConfig, PythonExpertConfig, RailExpertConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.config.validation import naming
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.match import check_fingerprint, check_normaliser
from ctd_guardrail.policy.plan import Budget, Plan, plan
from ctd_guardrail.policy.store import MANIFEST_FILE, Policy, read_policy
from ctd_guardrail.runtime.factory import Factory
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.serving.record import check_record, read_record
from ctd_guardrail.text.refusals import Refusals

if TYPE_CHECKING:
    from ctd_guardrail.activations.scorer import Scorer
    from ctd_guardrail.experts.rail.expert import RailCollaborators
    from ctd_guardrail.probes.probes import Probes

__all__ = ["Prepared", "load_guard", "prepare", "prepare_folder", "read", "read_policy_digest"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that was read and checked. No model is loaded yet.

    Attributes:
        config: The user's section.
        folder: Folder that relative paths start from.
        policy: The content of the policy folder.
        budget: What the configuration asks of the policy.
        plan: The threshold that follows from policy and budget, and its certificate.
    """

    config: CtdConfig
    folder: Path
    policy: Policy
    budget: Budget
    plan: Plan

    def has_base_model_of(self, guard: Guard) -> bool:
        """Return whether this configuration names the base model that a guard has loaded."""
        return _base_model(self.config, self.policy) == _base_model(guard.config, guard.policy)

    def load(self, *, in_service: bool = False, runtime: Runtime | None = None) -> Guard:
        """Load the models and return the guard. Blocks while the base model is loaded.

        Args:
            in_service: Whether the inputs are traffic, for monitors, metrics and audit log; a trial's are not.
            runtime: Holds what guards share; None: the runtime of the process.

        Raises:
            PolicyMismatchError: The policy belongs to another base model or expert.
            ConfigError: A secret is missing, or the expert's section is wrong.
            ActivationError: The base model cannot be loaded.
            DependencyError: ``package:NAME`` is not installed.
        """
        return self.loader(in_service=in_service, runtime=runtime)()

    def loader(
        self,
        *,
        in_service: bool,
        rail_collaborators: RailCollaborators | None = None,
        refusals: Iterable[str] = (),
        runtime: Runtime | None = None,
    ) -> Callable[[], Guard]:
        """Check what takes milliseconds, and return the function that loads the models.

        Args:
            in_service: Whether the inputs are traffic, for monitors, metrics and audit log; a trial's are not.
            rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
            refusals: The host's own words for a refusal.
            runtime: Holds what guards share; None: the runtime of the process.

        Raises:
            PolicyMismatchError: The policy belongs to another expert.
            ConfigError: A secret is missing, or the expert's section is wrong.
        """
        config, manifest, folder = self.config, self.policy.manifest, self.folder
        runtime = runtime or Runtime.default()
        keys = Keys.of(config)
        memory = open_memory(config, keys.store, runtime)
        make_experts = partial(build_experts, config, manifest, folder, rail_collaborators, runtime)
        # A local expert is a model itself, and code of the operator may load one. Its identity is known only then.
        is_heavy = isinstance(config.expert, LocalExpertConfig | PythonExpertConfig)
        experts = None if is_heavy else make_experts()
        words = Refusals((*refusals, *config.refusals))

        def load() -> Guard:
            with naming(folder):
                loaded = experts or make_experts()
            start = perf_counter()
            from ctd_guardrail.probes.probes import Probes  # noqa: PLC0415  # torch

            probes = Probes(manifest.probe, self.policy.probe)
            with naming(folder):
                scorer = _open_scorer(config, manifest, probes, folder, runtime)
            watch = paced = None
            if in_service:
                load_s = perf_counter() - start
                paced = pace_rule(config, self.policy, self.plan, folder, runtime)
                watch = build_watch(
                    config, self.policy, self.plan, folder, keys, paced=paced, load_s=load_s, runtime=runtime
                )
            factory = CascadeFactory(
                config=config,
                policy=self.policy,
                budget=self.budget,
                plan=self.plan,
                scorer=scorer,
                probes=probes,
                keys=keys,
                refusals=words,
                paced=paced,
                watch=watch,
                memory=memory,
                runtime=runtime,
            )
            guard = Guard(factory, loaded, folder=folder)
            _log_ready(guard.plan)
            return guard

        return load


def load_guard(folder: Path | str, *, in_service: bool = False, runtime: Runtime | None = None) -> Guard:
    """Read, check and load a configuration folder. Blocks while the base model is loaded.

    Example:
        .. code-block:: python

            async with load_guard("config", in_service=True) as guard:
                decision = await guard.check([{"role": "user", "content": "How do I kill a Python process?"}])

    Args:
        folder: NeMo Guardrails configuration folder.
        in_service: Whether the inputs are traffic, for monitors, metrics and audit log; a trial's are not.
        runtime: Holds what guards share; None: the runtime of the process.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    return read(Path(folder)).load(in_service=in_service, runtime=runtime)


def read(folder: Path) -> Prepared:
    """Read and check a configuration folder and its policy. Takes milliseconds: no model is loaded.

    Args:
        folder: NeMo Guardrails configuration folder.

    Raises:
        CtdError: The configuration or the policy is not usable; see :func:`prepare`.
    """
    return prepare_folder(read_folder(folder))


def prepare_folder(rail: RailFolder) -> Prepared:
    """Prepare a folder that was read, as it is used without NeMo Guardrails; see :func:`prepare`."""
    config, expert = rail.config, rail.config.expert
    if isinstance(expert, RailExpertConfig) and expert.config is None:
        # There is no host with models, so the rail takes those of this folder.
        own = expert.model_copy(update={"config": rail.path.absolute()})
        config = config.model_copy(update={"expert": own})
    return prepare(config, folder=rail.path)


def prepare(config: CtdConfig, *, folder: Path) -> Prepared:
    """Read the policy of a configuration and derive the threshold. Takes milliseconds: no model is loaded.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.

    Raises:
        PolicyError: The policy folder cannot be used, or ``source.export`` is not its export.
        InfeasibleBudgetError: Its calibration scores cannot certify alpha at delta.
        ConfigError: A setting of the budget is not usable with this policy; see :func:`ctd_guardrail.policy.plan.plan`
            and :func:`ctd_guardrail.assembly.pacing.check_pace`.
    """
    policy = read_policy(folder / config.policy)
    check_normaliser(policy.manifest)
    if isinstance(config.source, VllmSourceConfig):
        export = folder / config.source.export
        check_record(read_record(export), policy.manifest, folder=export)
    budget = budget_of(config)
    running = plan(policy, budget)
    check_pace(config, policy, running)
    return Prepared(config, folder, policy, budget, running)


def read_policy_digest(config: CtdConfig, *, folder: Path) -> str:
    """Return the digest of the policy on disk. Reads one small file, unlike :func:`prepare`.

    Args:
        config: The user's section.
        folder: Folder that relative paths start from.

    Returns:
        The ``policy.digest`` of a :class:`Prepared` that is read now; an empty string if there is no manifest.
    """
    try:
        return hashlib.sha256((folder / config.policy / MANIFEST_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def _base_model(config: CtdConfig, policy: Policy) -> tuple[object, ...]:
    return policy.manifest.activations, config.base_model, config.device, config.source


def _open_scorer(config: CtdConfig, manifest: Manifest, probes: Probes, folder: Path, runtime: Runtime) -> Scorer:
    """Return the base model that the policy was calibrated on: in this process, or served."""
    if isinstance(config.source, VllmSourceConfig):
        from ctd_guardrail.serving.vllm import open_scorer  # noqa: PLC0415  # torch

        return open_scorer(config.source, manifest, probes, folder=folder, runtime=runtime)
    from ctd_guardrail.activations.python import open_base_model  # noqa: PLC0415  # torch

    spec = manifest.activations
    if config.base_model is not None:
        spec = spec.model_copy(update={"model": config.base_model, "revision": None})
    source = None if config.source is None else Factory(*config.source.call_in(folder))
    base_model = open_base_model(spec, source, device=config.device, runtime=runtime)
    check_fingerprint(manifest, base_model.fingerprint)
    return base_model


def _log_ready(running: Plan) -> None:
    certificate = running.certificate
    log.info(
        "ctd guard ready: alpha %g, delta %g, guarantee %s, lambda %.6g, n %d, expected rate %.4f",
        running.alpha,
        certificate.delta,
        certificate.guarantee,
        running.rule.threshold,
        certificate.n,
        running.expected_rate,
    )
