"""The exposition for Prometheus, of a process of its own: a meter provider is set once in a process."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.observability.metrics import DOORS
from ctd_guardrail.sidecar.settings import ServeSettings
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
TOKEN = "a-token"  # noqa: S105  # of a test


@pytest.fixture
def serve(make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SIDECAR_TOKEN", TOKEN)
    folder = make_rail_folder(monitor={"state": "state"})
    command = [sys.executable, "-m", "ctd_guardrail.cli", "serve", "--config", str(folder), "--port", "0"]
    process = subprocess.Popen(  # noqa: S603  # fixed words
        [*command, "--metrics", "--token-env", "SIDECAR_TOKEN", "--drain-delay", "0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while not (found := re.search(r"listening on (\S+)", said)):
        line = process.stderr.readline()
        assert line, said
        said += line
    with httpx.Client(base_url=found[1], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        yield client
    process.terminate()
    process.communicate(timeout=60)
    assert (folder / "state").exists()


def test_the_exposition_shows_what_was_decided_and_asks_for_the_token(serve: httpx.Client) -> None:
    assert httpx.get(f"{serve.base_url}/metrics").status_code == 401
    # Before the guard is loaded already.
    assert re.search(r"^ctd_ready [01]\.0$", serve.get("/metrics").text, re.MULTILINE)
    wait_until(lambda: serve.get("/health/ready").status_code == 200)
    for text in ("a plain question", "a plain threat", "a secret word that nobody may read"):
        serve.post("/v1/check", json={"text": text})
    answer = serve.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    decisions = families["ctd_decisions"].samples
    assert sum(sample.value for sample in decisions) == 3
    assert {"guard", "policy", "mode", "reason", "route", "verdict"} == set(decisions[0].labels)
    assert families["ctd_ready"].samples[0].value == 1
    assert [sample.value for sample in families["ctd_unscreened_calls"].samples] == [0] * len(DOORS)
    assert families["ctd_rate_requests"].samples[0].value == 3
    assert {sample.labels["alarm"] for sample in families["ctd_alarm_raised"].samples} >= {"rate", "score_drift"}
    assert "secret" not in answer.text
    assert families["ctd_connections_open"].samples[0].value >= 1
    host, port = str(serve.base_url.host), serve.base_url.port
    with socket.create_connection((host, port or 0)) as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert re.search(
        r'^ctd_connections_closed_total\{.*reason="malformed".*\} 1\.0$', serve.get("/metrics").text, re.MULTILINE
    )
    assert serve.get("/v1/stats").json()["connections"]["closed"] == {
        "evicted": 0,
        "malformed": 1,
        "refused": 0,
        "too_slow": 0,
    }


def test_without_the_option_there_is_no_exposition(make_sidecar: Any, make_rail_folder: Callable[..., Path]) -> None:
    sidecar = make_sidecar(make_rail_folder())
    assert httpx.get(f"{sidecar.url}/metrics").status_code == 404
    assert ServeSettings().metrics is None


def test_a_process_that_sends_its_metrics_elsewhere_keeps_them() -> None:
    code = (
        "from opentelemetry import metrics; from opentelemetry.sdk.metrics import MeterProvider\n"
        "from ctd_guardrail.observability.prometheus import Exposition\n"
        f"from ctd_guardrail.errors import {ConfigError.__name__}\n"
        "metrics.set_meter_provider(MeterProvider())\n"
        "try: Exposition()\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    assert "--metrics" in done.stdout
