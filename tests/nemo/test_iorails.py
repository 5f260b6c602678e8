"""The rail on NeMo's IORails engine."""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import Guardrails, RailsConfig
from nemoguardrails.guardrails import compiled_rail
from nemoguardrails.guardrails.iorails import IORails
from nemoguardrails.manifests import default_rail_catalog, registry

from ctd_guardrail.errors import ConfigError, HostError, InfeasibleBudgetError
from ctd_guardrail.nemo import iorails
from ctd_guardrail.runtime.runtime import Runtime
from tests.nemo.words import ANSWER, BROKEN, REFUSED

pytestmark = pytest.mark.usefixtures("installed_in_iorails")


@pytest.fixture
def make_config(make_rail_folder: Callable[..., Path], judge: Any) -> Callable[..., RailsConfig]:
    model = {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": {"base_url": judge.base_url}}

    def make(*, config: dict[str, Any] | None = None, **changes: Any) -> RailsConfig:
        folder = make_rail_folder(config={"models": [model], "import_paths": []} | (config or {}), **changes)
        return RailsConfig.from_path(str(folder))

    return make


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def ask(config: RailsConfig, *conversations: list[dict[str, Any]]) -> list[Any]:
    async with IORails(config) as engine:
        return [(await engine.generate_async(messages=messages))["content"] for messages in conversations]


@pytest.mark.parametrize(
    ("text", "answer", "expert_calls"),
    [
        ("a plain question", ANSWER, 0),
        ("a plain threat", REFUSED, 0),
        ("an odd question", ANSWER, 1),
        ("an odd and harmful wish", REFUSED, 1),
    ],
)
async def test_verdicts_reach_the_chat(
    make_config: Callable[..., RailsConfig], judge: Any, text: str, answer: str, expert_calls: int
) -> None:
    assert await ask(make_config(), user(text)) == [answer]
    assert judge.calls == expert_calls
    assert judge.answers == (answer == ANSWER)


async def test_a_broken_guard_is_told_apart_from_a_refusal(make_config: Callable[..., RailsConfig], judge: Any) -> None:
    judge.is_down = True
    assert await ask(make_config(), user("an odd question")) == [BROKEN]
    assert judge.answers == 0


async def test_the_guardrails_class_takes_the_engine_of_the_catalog(make_config: Callable[..., RailsConfig]) -> None:
    async with Guardrails(make_config(), require_iorails=True) as app:
        assert app.use_iorails_engine
        assert (await app.generate_async(messages=user("a plain threat")))["content"] == REFUSED
        checked = [await app.check_async(user(text)) for text in ("a plain question", "a plain threat")]
    assert [result.status.value for result in checked] == ["passed", "blocked"]


async def test_the_log_tells_route_and_reason_but_no_score(make_config: Callable[..., RailsConfig]) -> None:
    async with IORails(make_config()) as engine:
        options = {"log": {"activated_rails": True}}
        response = await engine.generate_async(messages=user("an odd and harmful wish"), options=options)
    (rail,) = response.log.activated_rails
    (action,) = rail.executed_actions
    verdict = {"allowed": False, "failed": False}
    assert action.return_value == {"route": "expert", "reason": "expert_unsafe"} | verdict
    assert rail.stop


@pytest.mark.parametrize("parallel", [False, True])
async def test_earlier_turns_are_screened_and_many_run_at_once(
    make_config: Callable[..., RailsConfig], *, parallel: bool
) -> None:
    config = make_config(config={"rails": {"input": {"flows": ["ctd check input"], "parallel": parallel}}})
    harmful = [*user("a plain threat"), {"role": "assistant", "content": "sure"}, *user("a plain question")]
    async with IORails(config) as engine:
        replies = await asyncio.gather(
            *(engine.generate_async(messages=m) for m in [harmful, user("a plain question")] * 8)
        )
    assert [reply["content"] for reply in replies[1::2]] == [ANSWER] * 8
    assert ANSWER not in [reply["content"] for reply in replies[::2]]


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {"url": "data:"}}], [7]])
async def test_content_that_is_not_text_does_not_pass_unread(
    make_config: Callable[..., RailsConfig], judge: Any, content: Any
) -> None:
    assert await ask(make_config(), user(content)) == [BROKEN]
    assert judge.answers == 0


def test_synchronous_calls_from_many_threads(make_config: Callable[..., RailsConfig], judge: Any) -> None:
    app = IORails(make_config())
    texts = ["a plain question", "a plain threat"] * 8
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: app.generate(messages=user(text))["content"], texts))
    assert replies == [ANSWER, REFUSED] * 8
    assert judge.calls == 0


def test_configurations_of_like_content_share_a_guard_and_others_do_not(
    make_config: Callable[..., RailsConfig], runtime: Runtime
) -> None:
    config = make_config()
    engines = [IORails(config), IORails(config.model_copy(deep=True)), IORails(make_config(alpha=0.3))]
    gates = iorails._gates(runtime)
    guards = [gates[id(engine.config)].guard for engine in engines]
    assert guards[0] is guards[1]
    assert guards[0] is not guards[2]
    gc.collect()
    assert len(gates) == 3
    del engines, guards, config
    gc.collect()
    assert not gates


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ({"alpha": 0.001}, InfeasibleBudgetError),
        ({"alfa": 0.1}, ConfigError),
        ({"config": {"custom_data": {}}}, ConfigError),
    ],
)
def test_what_does_not_fit_refuses_to_start(
    make_config: Callable[..., RailsConfig], damage: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Guardrails(make_config(**damage))


def test_installing_twice_changes_nothing() -> None:
    catalog = default_rail_catalog()
    iorails.install()
    assert default_rail_catalog() is catalog
    assert "content_safety" in catalog.records


def test_a_host_that_keeps_its_catalog_in_another_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compiled_rail, "_LOCAL_BACKEND_CHECKS")
    with pytest.raises(HostError, match=r"0\.24.*LLMRails engine or the sidecar"):
        iorails.install()


def test_a_host_that_does_not_read_the_catalog_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(registry, "_catalog")
    with pytest.raises(HostError):
        iorails.install()
