"""The loop of the runbook: recent scores are fed to `recalibrate`, and the plan that runs then keeps the budget.

The file, the command and the plan are the product's own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from calibrate.cli.app import app
from ctd_guardrail.decision import OnUnreadable
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.events import Arrived, Emit, Event, Served, discard
from ctd_guardrail.observability.monitor_sink import MonitorSink
from ctd_guardrail.observability.queue import EventQueue
from ctd_guardrail.policy.plan import Budget, Plan, plan
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy
from tests.support.clocks import ManualClock
from tests.support.deployment import Deployment, by_text, name_turns, serve
from tests.support.policies import write_plain_policy
from tests.support.requests import requests
from tests.support.traffic import Conversations, Turns, interleave

ALPHA, DELTA = 0.1, 0.05
PAUSED = 0.1
LAWS = {
    "four turns": Conversations(correlation=0.5),
    "four turns, alike, that drift": Conversations(correlation=0.8, drift=0.1),
    "ten turns, some unreadable": Conversations(mean=10, longest=50, correlation=0.5, unreadable=0.01),
}


def write_policy(folder: Path, rng: np.random.Generator) -> Policy:
    """Write a policy that was calibrated on other traffic."""
    old = CalibrationScores.from_rows(d=rng.normal(size=400) - 0.5, p=rng.random(400))
    calibration = {"rows": 400, "alpha": ALPHA, "delta": DELTA, "seed": 0}
    return write_plain_policy(folder / "policy", rows=400, scores=old, calibration=calibration)


def watch(policy: Policy, law: Conversations, folder: Path) -> KeptMonitors:
    """Return the monitors of the policy, which keep their files in a folder."""
    return KeptMonitors(
        MonitorSettings(ALPHA, delta=DELTA, max_turns=law.longest), policy.scores, folder=folder / "monitors"
    )


def feed_back(folder: Path, kept: KeptMonitors) -> Plan:
    """Feed the file of recent scores to the command, and return the plan that runs from then on."""
    kept.close()
    assert kept.scores_file is not None
    command = ["recalibrate", "--policy", str(folder / "policy"), "--scores", str(kept.scores_file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return plan(read_policy(folder / "policy"), Budget())


def recalibrate(
    folder: Path, law: Conversations, rng: np.random.Generator, *, conversations: int, paused: float = 0.0
) -> Plan:
    """Serve traffic, and return the plan that runs from then on."""
    policy = write_policy(folder, rng)
    kept = watch(policy, law, folder)
    sink = MonitorSink(kept)
    threshold = plan(policy, Budget()).rule.threshold
    for event in requests(law.draw(rng, conversations), threshold, 20, rng, paused=paused):
        sink(event)
    return feed_back(folder, kept)


@pytest.mark.parametrize("name", LAWS)
def test_recent_scores_fed_back_keep_the_budget(
    name: str, draws: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    law = LAWS[name]
    rng = np.random.default_rng(len(name))
    stated = spent_delta(DELTA, 1)
    trials = max(10, draws // 10)
    rates = np.array(
        [
            law.rate(recalibrate(tmp_path_factory.mktemp("draw"), law, rng, conversations=800).rule.threshold)
            for _ in range(trials)
        ]
    )
    violations = int((rates > ALPHA).sum())
    print(f"{name}: violated in {violations / trials:.3f}, mean rate / alpha {rates.mean() / ALPHA:.3f}")  # noqa: T201
    assert violations <= binom.ppf(1 - 1e-4, trials, stated)
    assert rates.mean() / ALPHA > 0.5


def test_late_turns_count_though_their_conversations_had_paused(
    draws: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The alarms close a conversation that pauses. Without its late turns, scores that rise would look lower."""
    law = Conversations(mean=10, longest=50, drift=0.1)
    rng = np.random.default_rng(10)
    trials = max(10, draws // 10)
    rates = np.array(
        [
            law.rate(
                recalibrate(tmp_path_factory.mktemp("draw"), law, rng, conversations=400, paused=PAUSED).rule.threshold
            )
            for _ in range(trials)
        ]
    )
    assert int((rates > ALPHA).sum()) <= binom.ppf(1 - 1e-4, trials, spent_delta(DELTA, 1))
    assert rates.mean() / ALPHA > 0.5


def test_the_plan_that_runs_is_the_certificate_that_was_printed(tmp_path: Path) -> None:
    running = recalibrate(tmp_path, LAWS["four turns"], np.random.default_rng(0), conversations=500)
    record = read_policy(tmp_path / "policy").manifest.recalibrations[-1]
    assert running.rule.threshold == record.threshold == running.certificate.threshold
    assert running.certificate.conversations == record.conversations > 400


async def test_the_loop_closes_around_the_real_cascade(tmp_path: Path) -> None:
    """Requests, events, queue, monitors, file, command and plan; then requests again, at the new threshold."""
    law = Conversations(unreadable=0.01)
    rng = np.random.default_rng(1)
    policy = write_policy(tmp_path, rng)
    kept = watch(policy, law, tmp_path)
    queue, clock = EventQueue(), ManualClock()
    emit = queue.emitter(later=[MonitorSink(kept)])
    first, second = law.draw(rng, 500), law.draw(rng, 500)

    def at_drawn_times(event: Event) -> None:
        clock.now += 10.0 * isinstance(event, Arrived)
        emit(event._replace(at=clock.now) if isinstance(event, Arrived | Served) else event)

    async def deploy(turns: Turns, threshold: float, emit: Emit) -> int:
        texts = name_turns(turns)
        deployment = Deployment(threshold, by_text(texts, turns.d), emit=emit, on_overlong=OnUnreadable.EXPERT)
        calls = await serve(deployment, texts, turns.conversation, interleave(turns, 20, rng))
        deployment.close()
        return int(calls.sum())

    before = plan(policy, Budget()).rule.threshold
    assert await deploy(first, before, at_drawn_times) == (first.d > before).sum() > 2 * ALPHA * first.d.size
    queue.close()
    # All but the conversations that are still open, each in one piece.
    rows = Counter(line.split(",")[1] for line in kept.monitors.recent.csv().splitlines()[1:])
    assert len(rows) > 350
    assert sum(rows.values()) > 0.7 * first.d.size
    after = feed_back(tmp_path, kept).rule.threshold
    assert await deploy(second, after, discard) == (second.d > after).sum()
    assert 0.5 * ALPHA < law.rate(after) <= ALPHA
