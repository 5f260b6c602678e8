"""What the sidecar says of an alarm."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ctd_guardrail.config.observability import MonitorConfig
from ctd_guardrail.sidecar.api import create_api
from ctd_guardrail.sidecar.service import Service, Status
from ctd_guardrail.sidecar.settings import ServeSettings
from tests.support.internals import put_guard


@pytest.mark.parametrize(
    ("on_alarm", "raised_at", "status", "body"),
    [
        ("report", None, 200, {"status": "ready"}),
        ("report", 7, 200, {"status": "ready", "alarms": ["rate"]}),
        ("not_ready", None, 200, {"status": "ready"}),
        ("not_ready", 7, 503, {"status": "ready", "alarms": ["rate"]}),
    ],
)
async def test_an_alarm_is_named_and_keeps_traffic_away_only_where_that_was_asked_for(
    on_alarm: Any, raised_at: int | None, status: int, body: dict[str, Any]
) -> None:
    service: Any = Service(Path("nowhere"))
    config = SimpleNamespace(monitor=MonitorConfig(on_alarm=on_alarm))
    watch = SimpleNamespace(alarms={"rate": raised_at, "score_drift": None})
    put_guard(service, SimpleNamespace(watch=watch, config=config))
    service.status = Status.READY
    transport = httpx.ASGITransport(create_api(service, ServeSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://sidecar") as client:
        answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (status, body)
    # What comes all the same is answered.
    assert service.is_serving
