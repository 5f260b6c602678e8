"""Bodies that are no requests get an answer that says so, and the server goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

BODIES = {
    "nothing": b"",
    "no JSON": b"\x80\x04\x95",
    "no object": b"[1]",
    "brackets": b"[" * 100_000,
    "braces": b'{"messages":' * 20_000,
    "no UTF-8": b'{"text":"\xff"}',
    "NaN": b'{"text":NaN}',
    "an integer of 5,000 digits": b'{"text":' + b"9" * 5000 + b"}",
    "both": b'{"text":"a","messages":[]}',
    "a message that is none": b'{"messages":[null]}',
    "an unknown field": b'{"text":"a","__proto__":{}}',
    "null": b"null",
}
READ = {
    "half of a surrogate pair": b'{"text":"\\ud800"}',
    "content of other kinds": b'{"messages":[{"role":"user","content":7}]}',
    "nested content": b'{"messages":[{"role":"user","content":' + b"[" * 500 + b"]" * 500 + b"}]}",
    "an unknown role": b'{"messages":[{"role":"wizard","content":"a"}]}',
    "a role of another kind": b'{"messages":[{"role":["user"],"content":"a"}]}',
    "tag characters": '{"text":"\U000e0041"}'.encode(),
}


def test_hostile_bodies_are_refused_or_judged_and_never_break_the_server(
    make_rail_folder: Callable[..., Path], make_sidecar: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    sidecar = make_sidecar(make_rail_folder())
    header = {"Content-Type": "application/json"}
    for path in ("/v1/check", "/api/v1/text/contents"):
        for name, body in BODIES.items():
            response = httpx.post(f"{sidecar.url}{path}", content=body, headers=header)
            assert 400 <= response.status_code < 500, (path, name, response.status_code)
    for name, body in READ.items():
        answer = httpx.post(f"{sidecar.url}/v1/check", content=body, headers=header)
        assert answer.status_code == 200, name
        assert answer.json()["verdict"] in {"allow", "block"}
    assert httpx.post(f"{sidecar.url}/v1/check", json={"text": "a plain question"}).json()["verdict"] == "allow"
    assert "Traceback" not in capfd.readouterr().err
