"""A pace as the operator of a sidecar sees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ctd_guardrail.assembly.prepared import read
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.pace import LEAST_RESERVE
from ctd_guardrail.policy.store import read_policy, write_policy
from ctd_guardrail.runtime.runtime import Runtime

ODD, PLAIN = "an odd question", "a plain question"
ALPHA = 0.2


def check(sidecar: Any, text: str = ODD) -> str:
    Runtime.default().memory.clear()  # what is remembered costs nothing
    answer = httpx.post(f"{sidecar.url}/v1/check", json={"text": text}, timeout=60).json()
    return str(answer["route"])


def pace(sidecar: Any) -> dict[str, Any]:
    return dict(httpx.get(f"{sidecar.url}/v1/stats").json()["pace"])


def test_a_flood_raises_the_threshold_and_quiet_requests_bring_it_back(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    folder = make_rail_folder(pace={"per": "day"}, self_test={"safe": [ODD]})
    sidecar = make_sidecar(folder)
    quiet = pace(sidecar)
    assert quiet["threshold"] == quiet["certified_threshold"] == read(folder).plan.rule.threshold
    # The self-test asked the expert. That is no traffic, and it runs at the certified threshold.
    assert (judge.calls, quiet["lead"], quiet["share"], quiet["reserve"]) == (1, 0.0, 1.0, LEAST_RESERVE)
    routes = [check(sidecar) for _ in range(60)]
    calls = routes.count("expert")
    assert routes[:5] == ["expert"] * 5
    assert LEAST_RESERVE / 2 <= calls <= ALPHA * len(routes) + LEAST_RESERVE
    assert judge.calls == 1 + calls
    raised = pace(sidecar)
    assert raised["share"] < 1.0
    assert raised["threshold"] is None or raised["threshold"] > quiet["threshold"]
    for _ in range(60):
        assert check(sidecar, PLAIN) == "probe"
    assert pace(sidecar)["share"] == 1.0
    assert check(sidecar) == "expert"


def test_a_reload_forgives_no_lead_and_another_policy_begins_at_its_own_threshold(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    sidecar = make_sidecar(make_rail_folder(pace={"per": "hour"}))
    for _ in range(8):
        check(sidecar)
    lead = pace(sidecar)["lead"]
    assert lead > 3
    make_rail_folder(pace={"per": "hour"}, on_abstain="allow")
    assert sidecar.call(sidecar.service.reload())
    assert pace(sidecar)["lead"] == lead
    make_rail_folder(pace={"per": "hour"}, alpha=0.3)
    assert sidecar.call(sidecar.service.reload())
    assert pace(sidecar)["lead"] == 0.0


def test_without_the_section_there_is_no_pace(
    make_sidecar: Callable[..., Any], make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    stats = httpx.get(f"{make_sidecar(make_rail_folder()).url}/v1/stats").json()
    assert stats["pace"] is None


def test_a_policy_that_certifies_risks_is_not_paced(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    old = read_policy(rail_policy)
    fields = old.manifest.model_dump(exclude={"tensors_sha256"})
    fields["performance"] = {"risks": [{"metric": "fnr", "max": 0.2}], "threshold": 0.5, "band": 0.0}
    write_policy(tmp_path / "risks", fields, old.probe, old.calibration)
    with pytest.raises(ConfigError, match=r"custom_data\.ctd\.pace"):
        read(make_rail_folder(policy=str(tmp_path / "risks"), alpha=None, delta=None, pace={"per": "hour"}))


def test_a_budget_of_conversations_is_not_paced(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    old = read_policy(rail_policy)
    fields = old.manifest.model_dump(exclude={"tensors_sha256"})
    fields["calibration"] |= {"unit": "conversation"}
    write_policy(tmp_path / "conversations", fields, old.probe, old.calibration)
    folder = make_rail_folder(policy=str(tmp_path / "conversations"), pace={"per": "hour"})
    with pytest.raises(ConfigError, match="per conversation"):
        read(folder)
