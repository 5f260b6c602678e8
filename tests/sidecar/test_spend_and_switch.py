"""Caps, bypasses and the kill switch, as the operator of a sidecar sees them."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ctd_guardrail.runtime.runtime import Runtime

ODD, PLAIN = "an odd question", "a plain question"


def check(sidecar: Any, text: str = ODD, **headers: str) -> dict[str, Any]:
    Runtime.default().memory.clear()  # what is remembered costs nothing
    return dict(httpx.post(f"{sidecar.url}/v1/check", json={"text": text}, headers=headers, timeout=60).json())


def stats(sidecar: Any) -> dict[str, Any]:
    return dict(httpx.get(f"{sidecar.url}/v1/stats").json())


def test_each_principal_of_the_header_has_its_own_share_and_a_bypass_is_shown(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    folder = make_rail_folder(
        cap={"calls": 2, "per_s": 3600, "per": "principal"},
        principal={"header": "X-Tenant"},
        on_failure={"cap_exhausted": "allow"},
    )
    sidecar = make_sidecar(folder)
    before = stats(sidecar)
    for headers in ({"X-Tenant": "a"}, {"X-Tenant": "b"}):
        answers = [check(sidecar, **headers) for _ in range(3)]
        assert [answer["reason"] for answer in answers] == ["expert_safe", "expert_safe", "cap_exhausted"]
        assert "on_failure" not in answers[0]
        assert (answers[2]["verdict"], answers[2]["failed"], answers[2]["on_failure"]) == ("allow", True, "allow")
    Runtime.default().memory.clear()
    body = {"contents": [ODD]}
    detected = httpx.post(f"{sidecar.url}/api/v1/text/contents", json=body, headers={"X-Tenant": "a"}, timeout=60)
    assert detected.json() == [[]]
    after = stats(sidecar)
    assert after["bypassed"] == 3
    assert after["bypasses"] == [{"reason": "cap_exhausted", "on_failure": "allow", "verdict": "allow", "count": 3}]
    assert after["expert_attempts"] - before["expert_attempts"] == 4
    assert after["expert_tokens"] > before["expert_tokens"]
    assert after["experts"]["default"]["breaker"] == "closed"


def test_the_kill_switch_works_by_a_reload_and_leaves_the_probe_alone(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    needs_the_expert = {"safe": [ODD]}
    sidecar = make_sidecar(make_rail_folder(self_test=needs_the_expert))
    make_rail_folder(self_test=needs_the_expert, expert_enabled=False, on_failure={"expert_disabled": "probe"})
    assert sidecar.call(sidecar.service.reload())
    asked = judge.calls
    # The probe alone finds this question unsafe; the expert would have let it through.
    assert [check(sidecar)[key] for key in ("verdict", "reason", "on_failure")] == ["block", "expert_disabled", "probe"]
    assert check(sidecar, PLAIN)["reason"] == "probe_safe"
    assert judge.calls == asked
    assert stats(sidecar)["experts"]["default"]["enabled"] is False
    make_rail_folder(self_test=needs_the_expert)
    assert sidecar.call(sidecar.service.reload())
    assert check(sidecar)["reason"] == "expert_safe"


def test_a_reload_that_leaves_the_caps_as_they_were_gives_nobody_a_new_share(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path]
) -> None:
    cap = {"calls": 1, "per_s": 3600}
    sidecar = make_sidecar(make_rail_folder(cap=cap))
    assert check(sidecar)["reason"] == "expert_safe"
    make_rail_folder(cap=cap, alpha=0.3)
    assert sidecar.call(sidecar.service.reload())
    assert check(sidecar)["reason"] == "cap_exhausted"


@pytest.mark.parametrize(("policy", "verdict"), [("block", "block"), ("allow", "allow"), ("probe", "block")])
def test_a_store_that_is_down_makes_no_call_and_its_policy_holds(
    make_sidecar: Callable[..., Any],
    make_rail_folder: Callable[..., Path],
    judge: Any,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    verdict: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("STORE_URL", f"redis://127.0.0.1:{free.getsockname()[1]}/0")
    folder = make_rail_folder(
        cap={"calls": 100, "per_s": 60}, store={"url_env": "STORE_URL"}, on_failure={"cap_unavailable": policy}
    )
    sidecar = make_sidecar(folder)
    answer = check(sidecar)
    assert (answer["verdict"], answer["reason"], answer["on_failure"]) == (verdict, "cap_unavailable", policy)
    assert check(sidecar, PLAIN)["reason"] == "probe_safe"
    assert judge.calls == 0
