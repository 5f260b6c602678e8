"""Caps, principals and the failure policy by cause, inside NeMo Guardrails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.cli.wiring import ConfigError, Engine, check_wiring
from ctd_guardrail.runtime.runtime import Runtime
from tests.nemo.words import ANSWER, UNAVAILABLE

EACH = {"cap": {"calls": 2, "per_s": 3600, "per": "principal"}, "principal": {"variable": "tenant"}}


async def told(app: LLMRails, tenant: object) -> str:
    Runtime.default().memory.clear()  # what is remembered costs nothing
    context = {} if tenant is None else {"tenant": tenant}
    messages = [{"role": "context", "content": context}, {"role": "user", "content": "an odd question"}]
    reply: Any = await app.generate_async(messages=messages)
    return str(reply["content"])


async def test_each_tenant_spends_its_own_share(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    folder = make_rail_folder(**EACH)
    app = LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[ANSWER] * 20))
    for tenant in ("a", 7, None):
        assert [await told(app, tenant) for _ in range(3)] == [ANSWER, ANSWER, UNAVAILABLE]
    # An invalid name counts as an unknown principal, whose cap is used up.
    assert [await told(app, odd) for odd in ("", ["b"], True)] == [UNAVAILABLE] * 3
    assert judge.calls == 6


async def test_a_cause_has_its_own_policy(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    causes = {"default": "block", "cap_exhausted": "allow"}
    folder = make_rail_folder(cap={"calls": 1, "per_s": 3600}, on_failure=causes)
    app = LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[ANSWER] * 20))
    judge.is_down = True
    assert [await told(app, None) for _ in range(2)] == [UNAVAILABLE, ANSWER]
    options = {"log": {"activated_rails": True}}
    response: Any = await app.generate_async(messages=[{"role": "user", "content": "an odd question"}], options=options)
    actions = [action for rail in response.log.activated_rails for action in rail.executed_actions]
    (outcome,) = [action.return_value for action in actions if action.action_name == "ctd_check_input"]
    assert outcome.metadata == {"route": "expert", "reason": "cap_exhausted", "on_failure": "allow"}


def test_iorails_shows_no_context_and_so_no_principal(make_rail_folder: Callable[..., Path]) -> None:
    rail = read_folder(make_rail_folder(**EACH))
    with pytest.raises(ConfigError, match="cannot tell principals apart") as caught:
        check_wiring(rail, engine=Engine.IORAILS)
    assert caught.value.key == "custom_data.ctd.principal"
