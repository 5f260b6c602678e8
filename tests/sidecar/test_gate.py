"""What is refused before it is parsed, through a real server with a guard that only counts."""

import http.client
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from ctd_guardrail.sidecar.service import Status
from ctd_guardrail.sidecar.settings import Limits
from tests.support.waiting import wait_until

BODY = {"text": "a canary of a text"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic right"},
        {"Authorization": "right"},
        {"Authorization": "Bearer right right"},
        {"Authorization": "Bearer r\u00edght".encode("latin-1")},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_served_but_health(gated: Callable[..., Any], headers: Any) -> None:
    sidecar, guard = gated(token=SecretStr("right"))
    for method, path in (
        ("POST", "/v1/check"),
        ("POST", "/api/v1/text/contents"),
        ("GET", "/v1/stats"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
    ):
        response = httpx.request(method, f"{sidecar.url}{path}", json=BODY, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "unauthorized"
        assert "right" not in response.text
    assert guard.started == 0
    for path in ("/health", "/health/live", "/health/ready"):
        assert httpx.get(f"{sidecar.url}{path}", headers=headers).status_code == 200


def test_with_the_token_requests_are_served(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(token=SecretStr("right"))
    for scheme in ("Bearer", "bearer"):
        answer = httpx.post(f"{sidecar.url}/v1/check", json=BODY, headers={"Authorization": f"{scheme} right"})
        assert answer.status_code == 200
    assert guard.ended == 2


def chunks(total: int, size: int = 64) -> Iterator[bytes]:
    text = b'{"text": "' + b"x" * (total - 12) + b'"}'
    for start in range(0, len(text), size):
        yield text[start : start + size]


@pytest.mark.parametrize("sent", ["at once", "in chunks"])
def test_a_body_beyond_the_limit_is_refused_however_it_is_sent(gated: Callable[..., Any], sent: str) -> None:
    sidecar, guard = gated(limits=Limits(body_bytes=1000))
    headers = {"Content-Type": "application/json"}
    for size, status in ((1000, 200), (1001, 413), (100_000, 413)):
        content = chunks(size) if sent == "in chunks" else b"".join(chunks(size))
        response = httpx.post(f"{sidecar.url}/v1/check", content=content, headers=headers)
        assert response.status_code == status
    assert response.json()["error"]["code"] == "too_large"
    assert guard.started == 1


def test_a_chunked_body_is_refused_before_it_has_ended(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated(limits=Limits(body_bytes=1000))
    connection = http.client.HTTPConnection(sidecar.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/v1/check")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(3):
        connection.send(b"200\r\n" + b"x" * 512 + b"\r\n")
    # No last chunk: the answer comes while the client could go on for ever.
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers["Connection"] == "close"
    connection.close()


def test_a_body_that_drips_is_refused(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(body_s=0.2))
    connection = http.client.HTTPConnection(sidecar.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/v1/check")
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    connection.send(b"{")
    assert connection.getresponse().status == 408
    connection.close()
    assert guard.started == 0


def test_requests_beyond_the_limit_are_told_to_come_again(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(concurrency=4))
    guard.seconds = 0.5
    barrier = threading.Barrier(20)

    def ask(_: int) -> httpx.Response:
        barrier.wait()
        return httpx.post(f"{sidecar.url}/v1/check", json=BODY)

    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(ask, range(20)))
    refused = [response for response in responses if response.status_code == 503]
    assert {response.status_code for response in responses} == {200, 503}
    assert all(response.headers["Retry-After"] == "1" for response in refused)
    assert all(response.json()["error"]["code"] == "overloaded" for response in refused)
    assert guard.started == guard.ended == 20 - len(refused)
    guard.seconds = 0.0
    assert httpx.post(f"{sidecar.url}/v1/check", json=BODY).status_code == 200  # no slot was lost


def test_work_for_clients_that_left_is_given_up(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(concurrency=50))
    guard.seconds = 30.0
    for _ in range(20):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{sidecar.url}/v1/check", json=BODY, timeout=httpx.Timeout(5, read=0.05))
    wait_until(lambda: guard.cancelled == guard.started == 20)
    guard.seconds = 0.0
    with ThreadPoolExecutor(16) as pool:
        url = f"{sidecar.url}/v1/check"
        assert {r.status_code for r in pool.map(lambda _: httpx.post(url, json=BODY), range(50))} == {200}


def test_a_cut_body_reaches_no_guard(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated()
    host, port = sidecar.url.removeprefix("http://").split(":")
    for _ in range(10):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.post(f"{sidecar.url}/v1/check", json=BODY).status_code == 200
    assert guard.started == 1


@pytest.mark.parametrize("status", [Status.LOADING, Status.FAILING_SELF_TEST])
def test_before_it_is_ready_it_lives_and_gives_no_verdict(gated: Callable[..., Any], status: Status) -> None:
    sidecar, guard = gated()
    sidecar.service.status = status
    refused = httpx.post(f"{sidecar.url}/v1/check", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["Retry-After"]
    assert httpx.get(f"{sidecar.url}/health/live").status_code == 200
    ready = httpx.get(f"{sidecar.url}/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": status.value})
    assert guard.started == 0


def test_while_it_drains_it_asks_for_no_traffic_and_answers_what_comes(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated()
    sidecar.service.drain()
    assert httpx.get(f"{sidecar.url}/health/ready").json() == {"status": "draining"}
    assert httpx.post(f"{sidecar.url}/v1/check", json=BODY).status_code == 200
    assert guard.ended == 1


def test_while_it_drains_every_answer_asks_the_client_to_go_elsewhere(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated(token=SecretStr("right"))
    asked = (("GET", "/health/live", {}), ("POST", "/v1/check", {"Authorization": "Bearer right"}), ("GET", "/x", {}))
    with httpx.Client(base_url=sidecar.url) as client:
        for method, path, headers in asked[:2]:
            assert "connection" not in client.request(method, path, json=BODY, headers=headers).headers
        sidecar.service.drain()
        for method, path, headers in asked:
            answer = client.request(method, path, json=BODY, headers=headers)
            assert answer.headers.get_list("connection") == ["close"]
    wait_until(lambda: sidecar.service.connections.open == 0)


def test_what_was_never_ready_gives_no_verdict_while_it_drains(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated()
    sidecar.service.status = Status.FAILING_SELF_TEST
    sidecar.service.drain()
    refused = httpx.post(f"{sidecar.url}/v1/check", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert guard.started == 0


def test_a_bug_is_an_error_without_a_verdict_and_without_a_word_of_the_request(
    gated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sidecar, guard = gated()
    guard.error = ValueError("the text was: a canary of a text")
    response = httpx.post(f"{sidecar.url}/v1/check", json=BODY)
    assert response.status_code == 500
    assert response.json()["error"] == {"code": "internal_error", "message": "the request could not be served"}
    wait_until(lambda: "request failed: ValueError" in caplog.text)  # after the answer
    assert "canary" not in caplog.text + response.text


def test_an_odd_request_id_is_replaced(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated()
    for given in ("x" * 129, "a b", "<script>"):
        response = httpx.post(f"{sidecar.url}/v1/check", json=BODY, headers={"X-Request-Id": given})
        assert len(response.json()["request_id"]) == 32


@pytest.mark.parametrize(("deadline", "seconds", "answered"), [(20.0, 1.0, 1), (1.0, 60.0, 0)])
def test_running_requests_end_before_the_server_does_or_at_the_deadline(
    gated: Callable[..., Any], deadline: float, seconds: float, answered: int
) -> None:
    sidecar, guard = gated(drain_delay_s=0.0, drain_deadline_s=deadline)
    guard.seconds = seconds
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{sidecar.url}/v1/check", json=BODY, timeout=30)
        wait_until(lambda: guard.started == 1)
        sidecar._server.handle_exit(signal.SIGTERM, None)
        sidecar.thread.join(20)
        assert not sidecar.thread.is_alive()
        if answered:
            assert asked.result().json()["verdict"] == "allow"
        else:
            assert isinstance(asked.exception(), httpx.TransportError) or asked.result().status_code != 200
    assert (guard.ended, guard.cancelled) == (answered, 1 - answered)


def test_a_second_signal_leaves_out_the_delay(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated(drain_delay_s=3600.0)
    assert httpx.get(f"{sidecar.url}/health/live").status_code == 200
    for _ in range(2):
        assert sidecar.thread.is_alive()
        sidecar._server.handle_exit(signal.SIGTERM, None)
    sidecar.thread.join(20)
    assert not sidecar.thread.is_alive()
