"""Whose share a request spends is what the gateway says, and not what the client says before it."""

import http.client
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

ROUTES = {
    "/v1/check": b'{"text": "a question"}',
    "/api/v1/text/contents": b'{"contents": ["a question"]}',
    "/api/v1/text/chat": b'{"messages": [{"role": "user", "content": "a question"}]}',
}


def ask(sidecar: Any, path: str, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(sidecar.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", path)
    for name, value in [("Content-Type", "application/json"), ("Content-Length", str(len(ROUTES[path]))), *headers]:
        connection.putheader(name, value)
    connection.endheaders(ROUTES[path])
    response = connection.getresponse()
    status, body = response.status, response.read()
    connection.close()
    return status, body


@pytest.mark.parametrize("path", ROUTES)
def test_a_header_that_comes_twice_is_refused_and_counted(gated: Callable[..., Any], path: str) -> None:
    sidecar, guard = gated(principal=SimpleNamespace(header="X-Tenant"))
    doubled = [
        [("X-Tenant", "forged"), ("X-Tenant", "true")],
        [("x-tenant", "forged"), ("X-TENANT", "true")],
        [("X-Tenant", "same"), ("X-Tenant", "same")],
        [("X-Tenant", ""), ("X-Tenant", "true")],
        [("X-Tenant", "forged, true")],
        [("X-Tenant", "forged,true")],
    ]
    for headers in doubled:
        status, body = ask(sidecar, path, headers)
        assert (status, b'"bad_principal"' in body) == (400, True)
        assert b"forged" not in body
    assert guard.started == 0
    assert sidecar.service.refused == {400: len(doubled)}
    for headers in ([], [("X-Tenant", "true")], [("X-Other", "a"), ("X-Other", "b"), ("X-Tenant", "true")]):
        assert ask(sidecar, path, headers)[0] == 200
    assert guard.principals == [None, "true", "true"]


def test_without_principals_the_header_is_any_other(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated()
    assert ask(sidecar, "/v1/check", [("X-Tenant", "a"), ("X-Tenant", "b")])[0] == 200
    assert guard.principals == [None]
