"""The key of remembered decisions covers every setting that can change a judgement."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretBytes

from ctd_guardrail.assembly.judgement_key import judgement_key
from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.cascade.settings import CascadeSettings, is_judgement
from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.decision import Mode, OnFailure, OnHistory, OnUnreadable, RefusedTurns, Verdict
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.pace import Pace, PacedRule, Period
from ctd_guardrail.policy.rollout import Rollout
from ctd_guardrail.policy.rule import ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.store import read_policy
from ctd_guardrail.policy.ties import TieThreshold
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.text.conversation import Context

KEY, OTHER_KEY = SecretBytes(b"a secret of the operator"), SecretBytes(b"another secret of it")
SETTINGS = CascadeSettings(rule=ThresholdRule(0.5), decision_threshold=0.5, on_failure=OnFailure.BLOCK)
# Another value of each field, and of each field of what stands in it.
OTHERS: dict[str, list[Any]] = {
    "rule": [
        ThresholdRule(0.25),
        ThresholdRule(float("inf")),
        TieBreakingRule(TieThreshold(0.5, 0.1), KEY),
        TieBreakingRule(TieThreshold(0.5, 0.2), KEY),
        TieBreakingRule(TieThreshold(0.5, 0.1), OTHER_KEY),
        PacedRule.of(ThresholdRule(0.5), np.zeros(1), Period.HOUR, Pace(0.1, 3600.0)),
        PacedRule.of(ThresholdRule(0.5), np.zeros(1), Period.DAY, Pace(0.1, 3600.0)),
    ],
    "decision_threshold": [0.4, 0.5000000000000001],
    "merge": [
        Merge(kind="average"),
        Merge(weight=0.25),
        Merge(expert_scale=(1.0, 0.0)),
        Merge(expert_scale=(1.0, 0.1)),
    ],
    "abstain_band": [0.1],
    "on_abstain": [Verdict.ALLOW],
    "on_nontext": [OnUnreadable.ALLOW, OnUnreadable.EXPERT],
    "on_overlong": [OnUnreadable.ALLOW, OnUnreadable.EXPERT],
    "on_failure": [OnFailure.ALLOW, OnFailureByCause()],
    "deadline_s": [1.0],
    "mode": [Mode.SHADOW],
    "rollout": [Rollout(0.5, KEY)],
    "context": [Context.LAST_TURN],
    "history": [OnHistory.TRUST],
    "refused_turns": [RefusedTurns.STRICT],
    "audit_share": [0.01],
    "max_expert_calls": [2],
}
CHANGES_NO_JUDGEMENT = {"on_failure", "deadline_s", "mode", "rollout", "history", "refused_turns", "max_expert_calls"}


@pytest.fixture(scope="module")
def manifest(rail_policy: Path) -> Manifest:
    return read_policy(rail_policy).manifest


def key(manifest: Manifest, settings: CascadeSettings = SETTINGS, **parts: Any) -> str:
    return judgement_key(settings, **{"policy": manifest, "expert": "judge", "source": None} | parts)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CascadeSettings)])
def test_each_field_changes_the_key_unless_it_is_marked_with_a_reason(field: str, manifest: Manifest) -> None:
    keys = {key(manifest, dataclasses.replace(SETTINGS, **{field: value})) for value in OTHERS[field]}
    if field in CHANGES_NO_JUDGEMENT:
        assert keys == {key(manifest)}
    else:
        assert len(keys) == len(OTHERS[field])
        assert key(manifest) not in keys


def test_a_mark_states_its_reason() -> None:
    marked = [field for field in dataclasses.fields(CascadeSettings) if not is_judgement(field)]
    assert {field.name for field in marked} == CHANGES_NO_JUDGEMENT
    assert all(len(str(*field.metadata.values()).split()) > 5 for field in marked)


def test_policy_expert_and_source_change_the_key(manifest: Manifest) -> None:
    other = manifest.model_copy(update={"tensors_sha256": "0" * 64})
    keys = [key(manifest), key(other), key(manifest, expert="other"), key(manifest, source="vllm")]
    assert len({*keys}) == 4
    assert key(manifest) == keys[0]


def test_a_key_reveals_no_secret_and_a_setting_without_a_canonical_form_is_refused(manifest: Manifest) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        key(manifest, dataclasses.replace(SETTINGS, rule=object()))  # type: ignore[arg-type]
    assert "secret" not in key(manifest, dataclasses.replace(SETTINGS, rule=OTHERS["rule"][2]))


def test_requests_that_change_no_judgement_share_what_is_remembered(make_rail_folder: Callable[..., Path]) -> None:
    names = ["alpha", "mode", "on_failure"]
    bounds = {"mode": "shadow", "on_failure": "allow"}
    guard = load_guard(make_rail_folder(allow_overrides=names, override_bounds=bounds))
    build, config, expert = guard._factory.build, guard.config, guard.experts[None]

    def key_of(**changes: Any) -> str | None:
        cascade = build(config.model_copy(update=changes), expert, guard.emit)
        return cascade._dialogue.judgement_key

    configured = key_of()
    assert configured is not None
    assert key_of(mode=Mode.SHADOW) == key_of(on_failure=OnFailure.ALLOW) == configured
    assert key_of(alpha=0.15) != configured
