"""The FMS detector API: what its orchestrator sends is taken, and what it gets back fits its types.

The types stand here as the orchestrator declares them: which fields an answer must have, which may be absent, and what
each may hold. Fields that it does not know it leaves alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from unittest.mock import AsyncMock

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ctd_guardrail.config.observability import MonitorConfig
from ctd_guardrail.sidecar.service import Status
from tests.support.internals import put_guard

Index = Annotated[int, Field(ge=0, strict=True)]


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Evidence(Wire):
    name: str
    value: str | None = None
    score: float | None = None


class DetectionResult(Wire):
    """Answer of a chat detector."""

    detection_type: str
    detection: str
    detector_id: str | None = None
    score: float
    evidence: list[Evidence] | None = None
    metadata: dict[str, Any] = {}


class ContentAnalysisResponse(DetectionResult):
    """Answer of a contents detector."""

    start: Index
    end: Index
    text: str


class DetectorError(Wire):
    code: Annotated[int, Field(ge=100, le=999)]
    message: str


class Health(Wire):
    status: str
    reason: str | None = None


CONTENTS = TypeAdapter(list[list[ContentAnalysisResponse]])
CHAT = TypeAdapter(list[DetectionResult])
HEADERS = {"detector-id": "ctd", "x-model-name": "ctd", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}


def post(sidecar: Any, route: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{sidecar.url}/api/v1/text/{route}", content=json.dumps(body), headers=HEADERS | TYPE)


TYPE = {"content-type": "application/json"}


@pytest.mark.parametrize("parameters", [{}, {"detector_params": {}}, {"detector_params": {"threshold": 0.5, "x": []}}])
def test_contents_are_answered_in_order_each_with_the_text_that_it_is_about(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], parameters: dict[str, Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    contents = ["a plain threat", "a plain question", "an odd and harmful wish, \u00e9\U0001f600"]
    response = post(sidecar, "contents", {"contents": contents, **parameters})
    first, second, third = CONTENTS.validate_json(response.content)
    assert second == []
    for content, (found,) in ((contents[0], first), (contents[2], third)):
        assert content[found.start : found.end] == found.text == content
        assert (found.detection_type, found.score) == ("ctd_block", 1.0)
        assert found.metadata["reason"] == found.detection


@pytest.mark.parametrize("route", ["contents", "chat"])
def test_null_stands_for_parameters_that_are_not_given(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], route: str
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    question = {"contents": ["a plain question"]} if route == "contents" else {"messages": [USER], "tools": None}
    response = post(sidecar, route, {**question, "detector_params": None})
    assert (response.status_code, response.json()) == (200, [[]] if route == "contents" else [])


USER = {"role": "user", "content": "a plain question"}
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("messages", "labels"),
    [
        ([USER], []),
        ([{"role": "user", "content": "a plain threat"}], ["ctd_block"]),
        ([{"role": "user", "content": [{"type": "text", "text": "a plain threat"}]}], ["ctd_block"]),
        ([{"role": "developer", "content": "a plain threat"}, USER], []),
        ([{"role": "user", "content": "a plain threat", "name": "ann"}, USER], ["ctd_block"]),
        (
            [
                USER,
                {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "a plain threat", "tool_call_id": "1"},
            ],
            ["ctd_block"],
        ),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}], BROKEN := [
            "ctd_block",
            "ctd_failure",
        ]),
        ([{"role": "wizard", "content": "a plain question"}], BROKEN),
    ],
)  # fmt: skip
def test_a_conversation_is_screened_as_a_whole(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], messages: list[Any], labels: list[str]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    response = post(sidecar, "chat", {"messages": messages, "tools": [TOOL], "detector_params": {}})
    assert response.status_code == 200
    found = CHAT.validate_json(response.content)
    assert [detection.detection_type for detection in found] == labels
    assert not {"start", "end", "text"} & {key for detection in response.json() for key in detection}


def test_half_of_a_surrogate_pair_comes_back_as_something_that_every_parser_takes(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    content = "a plain threat \ud800"
    (found,) = CONTENTS.validate_json(post(sidecar, "contents", {"contents": [content]}).content)
    assert found[0].detection_type == "ctd_block"
    assert found[0].text == "a plain threat \ufffd"
    assert found[0].end == len(content)


def test_an_error_has_the_fields_of_this_api_and_those_of_the_others(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    refused = [
        post(sidecar, "contents", {"contents": [None]}),
        post(sidecar, "contents", {"contents": ["x"] * 257}),
        post(sidecar, "contents", {"contents": ["x" * (1 << 20)]}),
        post(sidecar, "chat", {"messages": []}),
        post(sidecar, "chat", {"messages": [USER] * 257}),
        post(sidecar, "generation", {"prompt": "x", "generated_text": "x"}),
    ]
    assert [response.status_code for response in refused] == [422, 413, 413, 422, 413, 404]
    sidecar.service.status = Status.LOADING
    refused.append(post(sidecar, "chat", {"messages": [USER]}))
    for response in refused:
        error = DetectorError.model_validate_json(response.content)
        assert (error.code, error.message) == (response.status_code, response.json()["error"]["message"])
    other = httpx.post(f"{sidecar.url}/v1/check", json={})
    assert set(other.json()) == {"error", "request_id"}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (Status.READY, {"status": "HEALTHY"}),
        (Status.LOADING, {"status": "UNHEALTHY", "reason": "loading"}),
        (Status.DRAINING, {"status": "UNHEALTHY", "reason": "draining"}),
    ],
)
def test_health_says_that_the_process_lives_and_whether_traffic_should_come(
    gated: Callable[..., Any], status: Status, body: dict[str, str]
) -> None:
    sidecar, _ = gated()
    sidecar.service.status = status
    response = httpx.get(f"{sidecar.url}/health")
    assert (response.status_code, response.json()) == (200, body)
    assert Health.model_validate_json(response.content).status in {"HEALTHY", "UNHEALTHY", "UNKNOWN"}


def test_health_names_the_alarms_that_keep_traffic_away(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated()
    watch = SimpleNamespace(alarms={"rate": 7, "score_drift": None})
    config = SimpleNamespace(monitor=MonitorConfig(on_alarm="not_ready"))
    put_guard(sidecar.service, SimpleNamespace(watch=watch, config=config, aclose=AsyncMock()))
    assert httpx.get(f"{sidecar.url}/health").json() == {"status": "UNHEALTHY", "reason": "alarms: rate"}
