"""The first burst of each event fires its alert and no other, under the names of every way to Prometheus."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from pydantic import SecretBytes, SecretStr

from ctd_guardrail.decision import Reason
from ctd_guardrail.observability.events import UnscreenedCall
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared_memory import SharedMemory, shared_memories
from ctd_guardrail.sidecar.service import Status
from tests.operations.station import WAYS, Station
from tests.operations.translators import Key, Series

ALERTS: Final = Path(__file__).parents[2] / "docs" / "operations" / "alerts.yml"
RULES: Final = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PROVOKED: Final = ("expert_bad_verdict", "cap_exhausted", "non_text", "overlong", "bad_override")
CALM_MINUTES: Final = 8
BURST_MINUTES: Final = 6

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

Event = Callable[[Station, int], None]
"""What happens in a minute, of which the first of the burst is 0. It happens between two exports."""


def once(act: Callable[[Station], None]) -> Event:
    def event(station: Station, minute: int) -> None:
        if not minute:
            act(station)

    return event


def fail(reason: Reason) -> Event:
    return once(lambda station: station.decide(reason, count=100))


def become_unready(station: Station) -> None:
    station.service.status = Status.FAILING_SELF_TEST


def refuse(status: int) -> Event:
    def act(station: Station) -> None:
        station.service.refused[status] += 60

    return once(act)


def lose_audit_lines(station: Station) -> None:
    shutil.rmtree(station.audit_file.parent)
    station.audit_file.parent.write_text("no folder any more")
    station.note()


def drop_an_observation(_: Station) -> None:
    event_queue().dropped += 1


def lose_the_memory(station: Station) -> None:
    pytest.importorskip("redis")
    server = RedisServer(SecretStr("redis://127.0.0.1:1/0"))
    key = SecretBytes(b"a secret of the test")

    def make() -> SharedMemory:
        return SharedMemory(server, name="app", key=key, keep_s=60.0, local=Runtime.default().memory)

    station.memory = shared_memories(Runtime.default()).get("memory", make)
    asyncio.run(station.memory.recall("key", "unit"))


SCENES: Final[dict[str, tuple[set[str], Event]]] = {
    "calm": (set(), lambda *_: None),
    "not ready": ({"CtdNotReady"}, once(become_unready)),
    "bypass": ({"CtdBypass"}, once(Station.bypass)),
    "unscreened call": ({"CtdUnscreenedCall"}, once(lambda station: station.metrics(UnscreenedCall("unknown")))),
    "rate": ({"CtdRateAlarm"}, once(Station.delegate)),
    "drift": ({"CtdScoreDrift"}, once(Station.drift)),
    "missed harm": ({"CtdMissedHarm"}, once(Station.miss)),
    "slow": ({"CtdSlow"}, once(Station.wait_for_the_device)),
    "lost audit lines": ({"CtdAuditLogIncomplete"}, once(lose_audit_lines)),
    "dropped observations": ({"CtdAuditLogIncomplete"}, once(drop_an_observation)),
    "memory": ({"CtdMemoryNotShared"}, once(lose_the_memory)),
    **{f"refused {status}": ({"CtdRefusesAtTheDoor"}, refuse(status)) for status in (408, 413, 500, 503)},
    "refused 422": (set(), refuse(422)),
    **{
        reason.value: ({"CtdProvoked" if reason in PROVOKED else "CtdFailures"}, fail(reason))
        for reason in Reason
        if reason.is_failure
    },
}


def recorded(station: Station, event: Event) -> dict[str, list[Series]]:
    """Return what each way exports, minute by minute: calm traffic, and from some minute on the event beside it."""
    ways: dict[str, list[Series]] = {way: [] for way in WAYS}
    for minute in range(CALM_MINUTES + BURST_MINUTES):
        if minute >= CALM_MINUTES:
            event(station, minute - CALM_MINUTES)
        for way, series in station.export().items():
            ways[way].append(series)
        station.decide(count=100, p=0.1, d=0.0)
    return ways


def input_series(minutes: list[Series]) -> list[dict[str, str]]:
    asked = ALERTS.read_text()
    keys = dict.fromkeys(key for series in minutes for key in series if key[0] in asked)
    return [
        {"series": _text(key), "values": " ".join(str(series[key]) if key in series else "_" for series in minutes)}
        for key in keys
    ]


def _text(key: Key) -> str:
    name, labels = key
    return f"{name}{{{', '.join(f'{label}={json.dumps(value)}' for label, value in labels)}}}"


def promtool(folder: Path, tests: list[dict[str, Any]]) -> str:
    """Return what fails; nothing where all is as expected."""
    shutil.copy(ALERTS, folder)
    file = folder / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "15s", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return "" if done.returncode == 0 else done.stdout + done.stderr


def scene(name: str, minutes: list[Series], fired: set[str], *, calm: int = CALM_MINUTES - 1) -> dict[str, Any]:
    """Return a test of promtool: before the burst nothing fires, and at its end just these alerts do or have done."""
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    ever = f'group by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}[{BURST_MINUTES}m]))'
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(fired)]
    expected = [(calm, firing, []), (len(minutes) - 1, ever, samples)]
    return {
        "name": name,
        "interval": "1m",
        "input_series": input_series(minutes),
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minute}m", "exp_samples": wanted}
            for minute, expression, wanted in expected
        ],
    }


@pytest.mark.parametrize("name", SCENES)
def test_the_first_burst_fires_its_alert(name: str, station: Station, tmp_path: Path) -> None:
    fired, event = SCENES[name]
    ways = recorded(station, event)
    tests = [scene(f"{name}, {way}", ways[way], fired) for way in WAYS]
    assert not promtool(tmp_path, tests)


@pytest.mark.parametrize("name", ["bypass", "unscreened call"])
def test_an_event_before_the_first_export_pages_too(name: str, station: Station, tmp_path: Path) -> None:
    fired, event = SCENES[name]
    absent: list[Series] = [{("ctd_ready", ()): 1.0}] * CALM_MINUTES
    ways = recorded(station, lambda *_: None)
    event(station, 0)
    late = station.export()
    tests = [scene(f"{name}, {way}", [*absent, *[late[way]] * 3], fired) for way in WAYS if ways[way]]
    assert not promtool(tmp_path, tests)


def test_no_guard_that_is_scraped_is_an_alert(station: Station, tmp_path: Path) -> None:
    present = [{("ctd_ready", ()): 1.0}] * CALM_MINUTES
    assert not promtool(tmp_path, [scene("absent", [*present, *[{("up", ()): 1.0}] * 10], {"CtdAbsent"})])


def test_every_alert_has_a_scene() -> None:
    shown = {alert for fired, _ in SCENES.values() for alert in fired}
    assert shown | {"CtdAbsent"} == {rule["alert"] for rule in RULES}


def test_what_senders_can_cause_does_not_page() -> None:
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    assert severity["CtdProvoked"] == "ticket"
    assert {alert for alert, each in severity.items() if each == "page"} == {
        "CtdNotReady",
        "CtdAbsent",
        "CtdFailures",
        "CtdBypass",
        "CtdUnscreenedCall",
    }
