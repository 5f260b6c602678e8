"""Cascades of one guard: the configured one, and those of requests that change settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctd_guardrail.assembly.judgement_key import judgement_key
from ctd_guardrail.assembly.observers import Keys
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.errors import OverrideError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.observability.events import Emit, Origin
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.pace import PacedRule
from ctd_guardrail.policy.plan import Budget, Plan, plan
from ctd_guardrail.policy.rollout import Rollout
from ctd_guardrail.policy.rule import DelegationRule
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.runtime.memory import Memory
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.refusals import Receipts, Refusals

if TYPE_CHECKING:
    from ctd_guardrail.activations.scorer import Scorer
    from ctd_guardrail.probes.probes import Probes

__all__ = ["CascadeFactory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeFactory:
    """Builds the cascades of one guard from what is loaded.

    Attributes:
        config: The user's section.
        policy: The policy.
        budget: What the section asks of it.
        plan: The threshold that follows, and its certificate.
        scorer: The base model.
        probes: The policy's probes.
        keys: Secrets.
        refusals: The answers by which the app refuses.
        paced: The plan's rule at a pace; None: the plan's rule runs unchanged.
        watch: Observes decisions; None: nothing does.
        memory: Remembers judgements and conversations.
        runtime: Remembers answers.
    """

    config: CtdConfig
    policy: Policy
    budget: Budget
    plan: Plan
    scorer: Scorer
    probes: Probes
    keys: Keys
    refusals: Refusals
    paced: PacedRule | None
    watch: Watch | None
    memory: Memory
    runtime: Runtime

    @property
    def bounds(self) -> Bounds:
        """How far a request may move a setting."""
        config, in_force = self.config, self.policy.manifest.in_force
        return Bounds.of(
            config.override_bounds,
            alpha=self.plan.alpha,
            delta=in_force.delta if config.delta is None else config.delta,
            mode=config.mode,
            on_failure=config.on_failure,
        )

    def build(self, config: CtdConfig, expert: BoundedExpert, emit: Emit) -> Cascade:
        """Return the cascade of a configuration: the user's, or one that a request has changed.

        Args:
            config: The configuration.
            expert: Judges what is delegated.
            emit: Reports events.

        Raises:
            OverrideError: Another guarantee or horizon delegates more than the bounds do.
            ConfigError, InfeasibleBudgetError: The policy cannot give what the request asks for.
        """
        rule = self._rule(config)
        is_configured = rule == self.plan.rule
        settings = self._settings(config, self.paced if is_configured and self.paced is not None else rule)
        source = None if config.source is None else config.source.model_dump_json()
        key = judgement_key(settings, policy=self.policy.manifest, expert=expert.identity, source=source)
        return Cascade(
            settings,
            scorer=self.scorer,
            probes=self.probes,
            expert=expert,
            refusals=self.refusals,
            receipts=None if self.keys.receipts is None else Receipts(self.keys.receipts, key),
            judgement_key=key,
            emit=emit,
            origin=Origin.CONFIGURED if is_configured else Origin.OTHER_BUDGET,
            memory=self.memory,
            runtime=self.runtime,
        )

    def _settings(self, config: CtdConfig, rule: DelegationRule) -> CascadeSettings:
        manifest = self.policy.manifest
        return CascadeSettings(
            rule=rule,
            decision_threshold=manifest.decision_threshold,
            merge=manifest.merge,
            abstain_band=0.0 if manifest.performance is None else manifest.performance.band,
            on_abstain=config.on_abstain,
            on_nontext=config.on_nontext,
            on_overlong=config.on_overlong,
            on_failure=config.on_failure,
            deadline_s=config.deadline_s,
            mode=config.mode,
            rollout=self._rollout(config),
            context=manifest.context,
            history=config.history,
            refused_turns=config.refused_turns,
            audit_share=self.budget.audit_share,
            max_expert_calls=config.max_expert_calls,
        )

    def _rollout(self, config: CtdConfig) -> Rollout | None:
        if config.rollout is None or self.keys.rollout is None:
            return None
        by_principal = config.rollout.by == "principal"
        return Rollout(config.rollout.enforce_share, self.keys.rollout, by_principal=by_principal)

    def _rule(self, config: CtdConfig) -> DelegationRule:
        """Return the configured rule, or the one of a request's own budget."""
        asked = replace(
            self.budget, alpha=config.alpha, delta=config.delta, guarantee=config.guarantee, horizon=config.horizon
        )
        if asked == self.budget:
            return self.plan.rule
        found = plan(self.policy, asked)
        if found.certificate.k > self.plan.certificate.k:
            bounds = self.bounds
            widest = plan(self.policy, replace(self.budget, alpha=bounds.alpha, delta=bounds.delta))
            if found.certificate.k > widest.certificate.k:
                raise OverrideError(
                    "guarantee and horizon would delegate more than alpha and delta may at their bounds",
                    hint="Ask for a smaller alpha, or name a wider bound in override_bounds.alpha",
                )
        return found.rule
