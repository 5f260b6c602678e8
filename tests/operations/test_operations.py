"""Dashboard, rules and runbook speak of metrics, alerts and reasons that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ctd_guardrail.decision import Reason
from tests.operations.station import Station

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
DASHBOARD = json.loads((OPERATIONS / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
RUNBOOK = (OPERATIONS / "runbook.md").read_text()
LABELS = {"guard", "policy", "verdict", "route", "reason", "mode", "on_failure", "bound", "alarm", "status", "door"}


@pytest.fixture
def existing(station: Station) -> set[str]:
    """Names under which Prometheus knows the metrics of a guard to which everything has happened once."""
    for act in (station.bypass, station.wait_for_the_device, station.delegate, station.miss):
        act()
    station.decide(Reason.EXPERT_SAFE)
    return {name for name, _ in station.export()["python"]}


def expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return targets + [rule["expr"] for rule in RULES]


def test_every_panel_and_rule_asks_for_metrics_that_exist(existing: set[str]) -> None:
    for expression in expressions():
        asked = set(re.findall(r"\bctd_\w+", expression))
        assert asked
        assert asked <= existing, expression
        named = {name for part in re.findall(r"\{([^}]*)\}", expression) for name in re.findall(r"(\w+)\s*[=!]", part)}
        grouped = {name.strip() for part in re.findall(r"by \(([^)]*)\)", expression) for name in part.split(",")}
        assert named | grouped <= LABELS | {"le", "instance"}, expression


def test_every_metric_is_on_the_dashboard(existing: set[str]) -> None:
    shown = " ".join(expressions())
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in existing}
    # How often a configuration was read again says nothing by itself.
    assert {stem for stem in stems if stem not in shown} == {"ctd_reloads_total"}


def test_the_dashboard_has_the_form_that_grafana_loads() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in panels:
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["description"]
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])))
        assert used <= variables | {"__rate_interval"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules_and_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$guard", ".*")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (OPERATIONS / "alerts.yml", tmp_path / "panels.yml"):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)  # noqa: S603, S607
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_runbook_has_an_entry_for_each_alert_and_each_reason_of_a_failure() -> None:
    entries = set(re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE))
    assert entries == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"runbook.md#{rule['alert'].lower()}"
    reasons = set(re.findall(r"^\| `(\w+)` \|", RUNBOOK, re.MULTILINE))
    assert reasons == {reason.value for reason in Reason if reason.is_failure}
