"""The running rail, watched: what stands in its configuration reaches monitors, audit log and gauges."""

import asyncio
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from calibrate.cli.scores import read_scores
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import load_guard, read
from ctd_guardrail.assembly.self_test import self_test
from ctd_guardrail.decision import Mode, Route, Verdict
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.observability.gauges import register_gauges
from ctd_guardrail.observability.metrics import DOORS, Metrics
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.policy.spending import budget_beside_audit
from ctd_guardrail.policy.store import read_policy, write_policy
from ctd_guardrail.policy.unreadable import Unreadable, UnreadableTurns
from ctd_guardrail.runtime.runtime import Runtime
from tests.support.runtimes import as_default

KEYS = {"CTD_TEST_KEY": "a secret of the operator"}
MONITOR = {"state": "state"}
SAFE, THREAT, HARMFUL = "a plain question", "a plain threat", "an odd and harmful wish"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(guard: Guard, texts: list[str], overrides: Any = None) -> list[Any]:
    async def run() -> list[Any]:
        decisions = []
        for text in texts:
            Runtime.default().memory.clear()
            decisions.append(await guard.check(user(text), overrides))
        await guard.aclose()
        return decisions

    return asyncio.run(run())


def test_the_rail_feeds_its_monitors_and_they_outlive_it(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(monitor=MONITOR)
    ask(load_guard(folder, in_service=True), [SAFE, HARMFUL, THREAT])
    gc.collect()
    guard = load_guard(folder, in_service=True)
    assert guard.watch is not None
    assert (guard.watch.rates.requests, guard.watch.rates.calls) == (3, 1)
    report = json.loads(json.dumps(guard.watch.report()))
    assert (report["unit"], report["requests"], report["calls"], report["conversations"]) == ("turn", 3, 1, 3)
    rates = [report[f"calls_per_{unit}"] for unit in ("request", "judged_turn", "conversation")]
    assert rates == pytest.approx([1 / 3] * 3)
    assert report["band"][0] < 1 / 3 < report["band"][1]
    assert report["alarm_limit"] == {"rate": 0.2, "kind": "budget", "delta": 0.05}
    (scores,) = (folder / "state").glob("scores-*.csv")
    # As `ctd-calibrate recalibrate` reads them.
    assert read_scores(scores, "dv").d == pytest.approx([0.0, 0.9, 0.0], abs=0.02)


def test_a_conversation_goes_on_after_a_restart(make_rail_folder: Callable[..., Path], rail_policy: Path) -> None:
    """Its name, its turns and its calls: the monitors see one conversation."""
    folder = make_rail_folder(monitor=MONITOR, policy="policy")
    policy = read_policy(rail_policy)
    record = policy.manifest.calibration.model_dump() | {"max_turns": 2}
    fields = policy.manifest.model_dump(exclude={"calibration", "tensors_sha256", "pins_sha256"})
    write_policy(folder / "policy", fields | {"calibration": record}, policy.probe, policy.calibration)
    first, second = user(SAFE), [*user(SAFE), {"role": "assistant", "content": "Here."}, *user(HARMFUL)]
    for number, messages in enumerate((first, second), start=1):
        with as_default(Runtime()) as runtime:
            guard = load_guard(folder, in_service=True)
            asyncio.run(guard.check(messages))
            watch = guard.watch
            assert watch is not None
            runtime.close()
        assert watch.rates.requests == number
        assert watch.left_out == 0
    ((requests, _, conversations),) = watch.rates.state()["conversations"]
    assert (requests, conversations) == (2, 1)


def test_the_rate_alarm_of_an_expected_budget_tests_against_a_bound(make_rail_folder: Callable[..., Path]) -> None:
    guard = load_guard(make_rail_folder(monitor=MONITOR, guarantee="expected", max_expert_calls=None), in_service=True)
    assert guard.watch is not None
    report = guard.watch.report()
    limit = report["alarm_limit"]
    assert (limit["kind"], limit["delta"]) == ("calibration_bound", 0.025)
    assert 0.2 < limit["rate"] < 0.3
    assert report["band"] == [0.0, None]


def test_that_bound_includes_the_turns_that_go_to_the_expert_unread(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    policy = read_policy(rail_policy)
    n = policy.scores.turns
    fields = policy.manifest.model_dump(exclude={"tensors_sha256"})
    unreadable = UnreadableTurns(n + np.arange(n // 20), np.ones(n // 20, dtype=np.bool_))
    write_policy(tmp_path / "policy", fields, policy.probe, policy.calibration, unreadable=unreadable)

    def limit(on_overlong: str) -> float:
        changes = {"policy": str(tmp_path / "policy"), "on_overlong": on_overlong, "guarantee": "expected"}
        guard = load_guard(make_rail_folder(monitor=MONITOR, **changes), in_service=True)
        assert guard.watch is not None
        scores = guard.policy.scores_with({Unreadable.OVERLONG} if on_overlong == "expert" else ())
        realised = scores.rate_above(guard.plan.rule.threshold)
        found: float = guard.watch.report()["alarm_limit"]["rate"]
        assert realised < found < 0.3
        return found

    assert limit("expert") == pytest.approx(limit("block"), rel=0.1)


def test_guards_of_one_configuration_share_their_monitors(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(monitor=MONITOR)
    guards = [load_guard(folder, in_service=True) for _ in range(2)]
    for guard in guards:
        ask(guard, [SAFE])
    assert guards[0].watch is guards[1].watch
    assert guards[0].watch is not None
    assert guards[0].watch.rates.requests == 2


def test_requests_with_a_budget_of_their_own_do_not_count_towards_the_rate(
    make_rail_folder: Callable[..., Path],
) -> None:
    guard = load_guard(
        make_rail_folder(monitor=MONITOR, allow_overrides=["alpha", "mode"], override_bounds={"mode": "shadow"}),
        in_service=True,
    )
    ask(guard, [HARMFUL], {"alpha": 0.15})
    ask(guard, [HARMFUL], {"mode": "shadow"})
    watch = guard.watch
    assert watch is not None
    assert watch.kept is not None
    assert watch.rates.requests == 1
    assert len(watch.kept.monitors.recent) == 2
    assert guard.tally.snapshot().total == 2


def test_self_tests_and_trials_are_no_traffic(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(
        monitor=MONITOR, audit_log={"path": "audit.jsonl", "key_env": "CTD_TEST_KEY", "sample": 1}
    )
    guard = load_guard(folder, in_service=True)
    asyncio.run(self_test(guard))
    event_queue().flush()
    assert guard.watch is not None
    assert guard.watch.rates.requests == 0
    trial = load_guard(folder)
    ask(trial, [SAFE])
    assert trial.watch is None
    assert (folder / "audit.jsonl").read_text() == ""
    assert not (folder / "state").exists()


def test_the_audit_log_of_a_rail_holds_no_word_of_the_conversation(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(audit_log={"path": "audit.jsonl", "key_env": "CTD_TEST_KEY", "sample": 1.0})
    ask(load_guard(folder, in_service=True), [SAFE, THREAT])
    text = (folder / "audit.jsonl").read_text()
    written = [json.loads(line) for line in text.splitlines()]
    assert [line["reason"] for line in written] == ["probe_safe", "probe_unsafe"]
    assert len({line["unit"] for line in written}) == 2
    assert all(line["ms"]["forward"] > 0 for line in written)
    assert not any(word in text for word in ("plain", "question", "threat", KEYS["CTD_TEST_KEY"]))


@pytest.mark.parametrize("section", ["audit_log", "rollout"])
@pytest.mark.parametrize("secret", [None, "short", "x" * 65])
def test_a_missing_or_unusable_secret_refuses_to_start(
    section: str, secret: str | None, make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if secret is not None:
        monkeypatch.setenv("CTD_OTHER_KEY", secret)
    rest = {"path": "audit.jsonl"} if section == "audit_log" else {"enforce_share": 0.5}
    folder = make_rail_folder(**{section: {"key_env": "CTD_OTHER_KEY", **rest}})
    with pytest.raises(ConfigError, match=rf"custom_data\.ctd\.{section}\.key_env: .* CTD_OTHER_KEY") as error:
        load_guard(folder)
    assert secret is None or secret not in str(error.value)


def test_a_share_of_the_conversations_is_enforced_and_the_rest_is_in_shadow(
    make_rail_folder: Callable[..., Path],
) -> None:
    shadowed, enforced = (
        load_guard(make_rail_folder(rollout={"enforce_share": share, "key_env": "CTD_TEST_KEY"}))
        for share in (0.0, 1.0)
    )
    (decision,) = ask(shadowed, [THREAT])
    assert (decision.verdict, decision.mode, decision.is_blocking) == (Verdict.BLOCK, Mode.SHADOW, False)
    assert shadowed.tally.snapshot().shadow == 1
    (decision,) = ask(enforced, [THREAT])
    assert decision.is_blocking
    assert enforced.tally.snapshot().shadow == 0


def test_audits_are_paid_out_of_the_budget(make_rail_folder: Callable[..., Path]) -> None:
    planned = read(make_rail_folder(monitor={"audit_share": 0.05})).plan
    assert planned.alpha == 0.2
    assert planned.certificate.alpha == budget_beside_audit(0.2, 0.05)
    rate = planned.certificate.mean_rate
    assert planned.expected_rate == pytest.approx(0.05 + 0.95 * rate)
    assert planned.expected_rate < 0.2


@pytest.mark.parametrize(
    "changes",
    [{"monitor": {"audit_share": 0.2}}, {"monitor": {"audit_share": 0.01}, "guarantee": "next", "horizon": 50}],
)
def test_a_budget_that_leaves_nothing_for_audits_is_refused(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any]
) -> None:
    folder = make_rail_folder(**changes)
    with pytest.raises(ConfigError, match=r"monitor\.audit_share"):
        read(folder)


def test_audited_inputs_reach_the_expert_and_the_floor(make_rail_folder: Callable[..., Path]) -> None:
    guard = load_guard(make_rail_folder(alpha=0.6, monitor={"audit_share": 0.5}), in_service=True)
    decisions = ask(guard, [SAFE] * 40)
    audited = sum(decision.route is Route.EXPERT for decision in decisions)
    watch = guard.watch
    assert watch is not None
    assert watch.kept is not None
    assert watch.kept.monitors.audit is not None
    assert watch.kept.monitors.audit.audits == watch.rates.calls == audited
    assert 0 < audited < 40


def test_a_call_without_a_verdict_reaches_the_metrics_of_its_guard(make_rail_folder: Callable[..., Path]) -> None:
    guard = load_guard(make_rail_folder(), in_service=True)
    watch = guard.watch
    assert watch is not None
    metered = Metrics(watch.facts.labels, meter=MeterProvider([reader := InMemoryMetricReader()]).get_meter("t"))
    guard.emit = event_queue().emitter(at_once=[guard.tally], later=[metered])
    guard.count_unscreened_call("unknown")
    event_queue().flush()
    data = reader.get_metrics_data()
    assert data is not None
    metrics: Any = data.resource_metrics[0].scope_metrics[0].metrics
    (counted,) = [metric for metric in metrics if metric.name == "ctd.unscreened_calls"]
    totals = {point.attributes["door"]: point.value for point in counted.data.data_points}
    assert totals == {**dict.fromkeys(DOORS, 0), "unknown": 1}
    assert guard.tally.snapshot().unscreened_calls == 1


def test_gauges_say_what_the_budget_is_and_what_became_of_it(make_rail_folder: Callable[..., Path]) -> None:
    gc.collect()  # the guards of other tests
    reader = InMemoryMetricReader()
    register_gauges(MeterProvider([reader]).get_meter("test"))
    guard = load_guard(make_rail_folder(monitor=MONITOR), in_service=True)
    ask(guard, [SAFE, SAFE, SAFE, HARMFUL])
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[tuple[str, ...], Any] = {}
    metrics: Any = data.resource_metrics[0].scope_metrics[0].metrics
    for metric in metrics:
        for point in metric.data.data_points:
            words = [
                str(value) for key, value in dict(point.attributes).items() if key in {"bound", "alarm", "per", "kind"}
            ]
            found[metric.name, *words] = point.value
    assert found["ctd.alpha",] == 0.2
    assert found["ctd.lambda",] == guard.plan.rule.threshold
    assert found["ctd.rate.realised", "request"] == found["ctd.rate.realised", "turn"] == 0.25
    assert found["ctd.rate.realised", "conversation"] == 0.25
    assert found["ctd.rate.bound", "low", "request"] < 0.25 < found["ctd.rate.bound", "high", "request"]
    assert found["ctd.rate.limit", "budget"] == 0.2
    assert found["ctd.rate.requests",] == found["ctd.scores.kept",] == 4
    assert found["ctd.rate.left_out",] == 0
    assert {name[1]: value for name, value in found.items() if name[0] == "ctd.alarm.raised"} == {
        "rate": 0,
        "score_drift": 0,
        "score_exceedance": 0,
    }
    assert found["ctd.load.duration",] > 0
