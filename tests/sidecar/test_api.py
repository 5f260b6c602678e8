"""The routes, through a real server: verdicts, and every way of not giving one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ctd_guardrail.runtime.runtime import Runtime
from tests.support.internals import loaded_guard

VERDICTS = [
    ("a plain question", "allow", "probe", "probe_safe"),
    ("a plain threat", "block", "probe", "probe_unsafe"),
    ("an odd question", "allow", "expert", "expert_safe"),
    ("an odd and harmful wish", "block", "expert", "expert_unsafe"),
]


def test_check_answers_with_verdict_route_and_reason(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], judge: Any
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    asked = judge.calls
    for text, verdict, route, reason in VERDICTS:
        for body in ({"text": text}, {"messages": [{"role": "user", "content": text}]}):
            response = httpx.post(f"{sidecar.url}/v1/check", json=body, headers={"X-Request-Id": "an-id-of-mine"})
            assert response.status_code == 200
            answer = response.json()
            assert (answer["verdict"], answer["route"], answer["reason"]) == (verdict, route, reason)
            assert answer["failed"] is False
            assert answer["request_id"] == response.headers["X-Request-Id"] == "an-id-of-mine"
            assert set(answer) == {"verdict", "mode", "route", "reason", "failed", "request_id"}
    assert judge.calls - asked in {2, 4}  # a judgement may be remembered


def test_an_answer_does_not_tell_whether_the_same_turn_was_sent_before(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    for text, *_ in VERDICTS:
        first, again = (httpx.post(f"{sidecar.url}/v1/check", json={"text": text}) for _ in range(2))
        assert sidecar.service.stats()["recalled"]
        told = [
            (response.status_code, {**response.json(), "request_id": None}, sorted(response.headers.keys()))
            for response in (first, again)
        ]
        assert told[0] == told[1]


def test_scores_are_shown_where_the_operator_says_so(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder(), show_scores=True)
    answer = httpx.post(f"{sidecar.url}/v1/check", json={"text": "an odd and harmful wish"}).json()
    assert (round(answer["p"], 3), round(answer["d"], 3)) == (0.1, 0.9)
    assert answer["p_expert"] == pytest.approx(0.98)
    assert answer["latency_ms"] > 0
    assert answer["request_id"]


def test_a_detector_finds_nothing_in_what_is_allowed_and_a_block_in_what_is_not(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    contents = [text for text, *_ in VERDICTS]
    body = {"contents": contents, "detector_params": {"threshold": 0.99}}
    answer = httpx.post(f"{sidecar.url}/api/v1/text/contents", json=body, headers={"detector-id": "ctd"}).json()
    assert [[d["detection_type"] for d in found] for found in answer] == [[], ["ctd_block"], [], ["ctd_block"]]
    assert answer[1] == [
        {
            "start": 0,
            "end": len("a plain threat"),
            "text": "a plain threat",
            "detection": "probe_unsafe",
            "detection_type": "ctd_block",
            "score": 1.0,
            "metadata": {"route": "probe", "reason": "probe_unsafe"},
        }
    ]


@pytest.mark.parametrize(("policy", "labels"), [("block", ["ctd_block", "ctd_failure"]), ("allow", [])])
def test_a_broken_guard_is_told_apart_and_closed(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], judge: Any, policy: str, labels: list[str]
) -> None:
    judge.is_down = True
    sidecar = make_sidecar(make_rail_folder(on_failure=policy))
    checked = httpx.post(f"{sidecar.url}/v1/check", json={"text": "an odd question"})
    assert checked.status_code == 200
    assert (checked.json()["failed"], checked.json()["reason"]) == (True, "expert_unavailable")
    assert checked.json()["verdict"] == policy
    (found,) = httpx.post(f"{sidecar.url}/api/v1/text/contents", json={"contents": ["an odd question"]}).json()
    assert [detection["detection_type"] for detection in found] == labels


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/check", b"", "body"),
        ("/v1/check", b"{canary", "body"),
        ("/v1/check", b"[" * 100_000, "bad request"),
        ("/v1/check", b'"canary"', "body"),
        ("/v1/check", b"{}", "messages"),
        ("/v1/check", b'{"text": "canary", "messages": [{}]}', "messages"),
        ("/v1/check", b'{"text": {"canary": 1}}', "body.text"),
        ("/v1/check", b'{"messages": []}', "body.messages"),
        ("/v1/check", b'{"messages": ["canary"]}', "body.messages.0"),
        ("/v1/check", b'{"text": "canary", "alpha": 1}', "body.alpha"),
        ("/v1/check", b'{"text": "canary", "overrides": "alpha"}', "body.overrides"),
        ("/api/v1/text/contents", b"{}", "body.contents"),
        ("/api/v1/text/contents", b'{"contents": "canary"}', "body.contents"),
        ("/api/v1/text/contents", b'{"contents": [null, "canary"]}', "body.contents.0"),
        ("/api/v1/text/contents", b'{"contents": []}', "body.contents"),
        ("/v1/check", b'{"text": "\xff canary"}', "bad request"),
    ],
)
def test_what_is_malformed_gets_no_verdict_and_is_not_quoted(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], path: str, body: bytes, where: str
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    response = httpx.post(f"{sidecar.url}{path}", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in {400, 422}
    error = response.json()["error"]
    assert error["code"] in {"invalid_request", "bad_request"}
    assert where in error["message"].lower()
    assert "canary" not in response.text
    assert sidecar.service.stats()["total"] == 2  # the self-test's


def test_an_unknown_path_or_method_is_an_error_of_the_same_shape(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    for response in (httpx.get(f"{sidecar.url}/nowhere"), httpx.get(f"{sidecar.url}/v1/check")):
        assert response.status_code in {404, 405}
        assert set(response.json()) == {"error", "request_id"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "oracle", "content": "x"}],
        [{"content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    ],
    ids=str,
)
def test_messages_that_cannot_be_read_are_blocked_as_a_failure(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], messages: list[Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    answer = httpx.post(f"{sidecar.url}/v1/check", json={"messages": messages}).json()
    assert (answer["verdict"], answer["reason"], answer["failed"]) == ("block", "non_text", True)


def test_overrides_count_where_they_are_allowed_and_block_where_not(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], judge: Any
) -> None:
    judge.is_down = True
    sidecar = make_sidecar(make_rail_folder(allow_overrides=["on_failure"], override_bounds={"on_failure": "allow"}))

    def ask(overrides: dict[str, Any]) -> tuple[str, str]:
        body = {"text": "an odd question", "overrides": overrides}
        answer = httpx.post(f"{sidecar.url}/v1/check", json=body).json()
        return answer["verdict"], answer["reason"]

    assert ask({"on_failure": "allow"}) == ("allow", "expert_unavailable")
    assert ask({"on_failure": "block"}) == ("block", "expert_unavailable")
    assert ask({"mode": "shadow"}) == ("block", "bad_override")


def test_in_shadow_mode_everything_passes_and_the_verdict_is_reported(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder(mode="shadow"))
    answer = httpx.post(f"{sidecar.url}/v1/check", json={"text": "a plain threat"}).json()
    assert (answer["verdict"], answer["mode"], answer["shadow_verdict"]) == ("allow", "shadow", "block")
    assert answer["reason"] == "probe_unsafe"
    found = httpx.post(f"{sidecar.url}/api/v1/text/contents", json={"contents": ["a plain threat"]}).json()
    assert found == [[]]


def test_stats_count_decisions_and_show_no_threshold(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    before = httpx.get(f"{sidecar.url}/v1/stats").json()
    for text, *_ in VERDICTS:
        httpx.post(f"{sidecar.url}/v1/check", json={"text": text})
    for _ in range(3):
        httpx.post(f"{sidecar.url}/v1/check", json={"txt": "a plain question"})
    loaded_guard(sidecar.service).count_unscreened_call("sidecar")
    after = httpx.get(f"{sidecar.url}/v1/stats").json()
    assert (before["unscreened_calls"], after["unscreened_calls"]) == (0, 1)
    assert after["refused"] == {"422": 3}
    assert after["total"] - before["total"] == 4
    assert after["delegated"] - before["delegated"] == 2
    assert (after["status"], after["alpha"], after["delta"], after["running"]) == ("ready", 0.2, 0.1, 0)
    assert sum(row["count"] for row in after["decisions"]) == after["total"]
    assert not {"threshold", "lambda", "rule"} & set(after)


def test_more_messages_or_contents_than_the_limit_are_refused(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any]
) -> None:
    from ctd_guardrail.sidecar.settings import Limits  # noqa: PLC0415

    sidecar = make_sidecar(make_rail_folder(), limits=Limits(messages=3))
    turn = {"role": "user", "content": "a plain question"}
    for path, key, item in (("/v1/check", "messages", turn), ("/api/v1/text/contents", "contents", "text")):
        for count, status in ((3, 200), (4, 413)):
            assert httpx.post(f"{sidecar.url}{path}", json={key: [item] * count}).status_code == status


def test_a_refusal_has_a_receipt_by_which_another_process_lets_the_conversation_go_on(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTD_TEST_KEY", "a secret of receipts")
    folder = make_rail_folder(receipt_key_env="CTD_TEST_KEY", refusals=["Not with me."])
    question, threat = ({"role": "user", "content": text} for text in ("a plain question", "a plain threat"))

    def ask(sidecar: Any, *messages: dict[str, Any]) -> dict[str, Any]:
        Runtime.default().memory.clear()  # what a process that has just begun knows
        return dict(httpx.post(f"{sidecar.url}/v1/check", json={"messages": messages}).json())

    refused = ask(make_sidecar(folder), threat)
    assert refused["verdict"] == "block"
    answer = {"role": "assistant", "content": "Not with me.", "metadata": {"ctd_receipt": refused["receipt"]}}
    other = make_sidecar(folder)
    assert ask(other, threat, answer, question)["verdict"] == "allow"
    assert "receipt" not in ask(other, question)
    assert ask(other, threat, answer)["verdict"] == "block"
    assert ask(other, threat, answer | {"metadata": {}}, question)["verdict"] == "block"
    assert ask(other, threat, answer | {"content": "Sure."}, question)["verdict"] == "block"
    monkeypatch.setenv("CTD_TEST_KEY", "a secret of another app")
    assert ask(make_sidecar(folder), threat, answer, question)["verdict"] == "block"


def test_without_a_key_or_in_shadow_mode_there_is_no_receipt(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTD_TEST_KEY", "a secret of receipts")
    for settings in ({}, {"receipt_key_env": "CTD_TEST_KEY", "mode": "shadow"}):
        sidecar = make_sidecar(make_rail_folder(**settings))
        assert "receipt" not in httpx.post(f"{sidecar.url}/v1/check", json={"text": "a plain threat"}).json()
