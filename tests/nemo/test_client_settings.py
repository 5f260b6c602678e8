"""What a client may set at NeMo's server, and what only the operator and the operator's gateway may."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.server import api
from nemoguardrails.testing import FakeLLMModel
from typer.testing import CliRunner

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.cli.app import app as command
from ctd_guardrail.nemo import init
from tests.nemo.apps import gate_of, guard_of
from tests.nemo.hosts import refused_start
from tests.nemo.words import ANSWER, REFUSED, UNAVAILABLE

PER_TENANT = {"cap": {"calls": 100, "per_s": 60, "per": "principal"}}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def app_for(folder: Path) -> LLMRails:
    return LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[ANSWER] * 100))


@pytest.fixture
def principals(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The principals that the guard received."""
    told: list[object] = []
    check = Guard.check

    async def noting(self: Guard, messages: Any, *values: Any, **options: Any) -> Any:
        told.append(options["principal"])
        return await check(self, messages, *values, **options)

    monkeypatch.setattr(Guard, "check", noting)
    return told


@pytest.fixture
def _a_servers_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(api, "_get_rails", api._get_rails)
    monkeypatch.setattr(api, "llm_rails_instances", {})
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    yield
    api.app.rails_config_path = ""


@asynccontextmanager
async def server(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    api.app.rails_config_path = str(root)
    transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, text: str, *headers: tuple[str, str], **guardrails: Any) -> httpx.Response:
    body = {"model": "gpt-4o-mini", "messages": user(text), "guardrails": {"config_id": "rails", **guardrails}}
    return await client.post("/v1/chat/completions", json=body, headers=list(headers))


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def over_http(judge: Any) -> dict[str, Any]:
    main = {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": {"base_url": judge.base_url}}
    return {"models": [main]}


@pytest.mark.parametrize("options", [{"rails": {"input": False}}, {"rails": ["dialog"]}])
async def test_an_option_that_switches_the_rail_off_is_refused_or_allowed_by_the_operator(
    make_rail_folder: Callable[..., Path], options: dict[str, Any]
) -> None:
    app = app_for(make_rail_folder())
    reply: Any = await app.generate_async(messages=user("a plain question"), options=options)
    assert reply.response[0]["content"] == UNAVAILABLE
    assert app.llm.inference_count == 0

    app = app_for(make_rail_folder(client_options="allow"))
    reply = await app.generate_async(messages=user("a plain threat"), options=options)
    assert reply.response[0]["content"] == ANSWER
    await app.generate_async(messages=user("a plain question"))
    assert guard_of(app).tally.snapshot().unscreened_calls == 1, "it is counted all the same"


async def test_the_apps_own_system_messages_may_be_trusted(make_rail_folder: Callable[..., Path]) -> None:
    messages = [{"role": "system", "content": "a plain threat"}, *user("a plain question")]
    assert (await app_for(make_rail_folder()).generate_async(messages=messages))["content"] == REFUSED
    trusting = app_for(make_rail_folder(system_messages="trust"))
    assert (await trusting.generate_async(messages=messages))["content"] == ANSWER


async def test_a_call_outside_of_any_request_is_refused_and_counted(make_rail_folder: Callable[..., Path]) -> None:
    app = app_for(make_rail_folder())
    await app.generate_async(messages=user("a plain question"))
    calls = app.llm.inference_count
    assert (await app.llm.generate_async("a plain question")).content == UNAVAILABLE
    assert app.llm.inference_count == calls
    assert guard_of(app).tally.snapshot().unscreened_calls == 1


async def test_a_model_that_an_app_exchanges_is_behind_the_gate_too(make_rail_folder: Callable[..., Path]) -> None:
    app = app_for(make_rail_folder())
    other = FakeLLMModel(responses=["another answer"] * 5)
    app.update_llm(other)
    assert (await app.generate_async(messages=user("a plain question")))["content"] == "another answer"
    tool = {"role": "tool", "tool_call_id": "1", "content": "a plain threat"}
    reply = await app.generate_async(messages=[*user("a plain question"), tool])
    assert reply["content"] == REFUSED
    assert other.inference_count == 1
    assert app.llm.gate is gate_of(app)


@pytest.mark.usefixtures("_a_servers_state")
async def test_behind_the_server_only_the_gateways_header_names_a_principal(
    make_rail_folder: Callable[..., Path], judge: Any, principals: list[object]
) -> None:
    where = {"variable": "tenant", "header": "X-Tenant"}
    folder = make_rail_folder(principal=where, config=over_http(judge), **PER_TENANT)
    async with server(folder.parent) as client:
        assert said(await ask(client, "a plain question", ("X-Tenant", "a"), context={"tenant": "forged"})) == ANSWER
        assert said(await ask(client, "a plain question", context={"tenant": "forged"})) == ANSWER
        assert principals == ["a", None]
        for headers in ([("X-Tenant", "mine"), ("X-Tenant", "a")], [("X-Tenant", "mine, a")]):
            answer = await ask(client, "a plain question", *headers)
            assert said(answer) == UNAVAILABLE, "one of the two is the client's"


async def test_in_a_library_the_apps_variable_names_the_principal(
    make_rail_folder: Callable[..., Path], principals: list[object]
) -> None:
    app = app_for(make_rail_folder(principal={"variable": "tenant"}, **PER_TENANT))
    context = {"role": "context", "content": {"tenant": "a"}}
    await app.generate_async(messages=[context, *user("a plain question")])
    assert principals == ["a"]


@pytest.mark.usefixtures("_a_servers_state")
async def test_a_server_refuses_a_configuration_without_the_rail(
    make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    root = make_rail_folder(config=over_http(judge)).parent
    for name, more in (("bare", {}), ("meant", {"custom_data": {"ctd": "unguarded"}})):
        (root / name).mkdir()
        (root / name / "config.yml").write_text(yaml.safe_dump(over_http(judge) | more))
    init(api.app)
    async with server(root) as client:
        assert said(await ask(client, "a plain threat")) == REFUSED
        assert (await ask(client, "a plain threat", config_id="bare")).status_code == 400
        assert said(await ask(client, "a plain threat", config_id="meant")) == ANSWER
        joined = await ask(client, "a plain threat", config_id=None, config_ids=["bare", "rails"])
        assert said(joined) == REFUSED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_of_joined_configurations_the_policy_lies_with_the_one_that_holds_the_section(
    make_rail_folder: Callable[..., Path], rail_policy: Path, order: tuple[int, int], tmp_path: Path
) -> None:
    folder = make_rail_folder(policy="policy")
    (folder / "policy").symlink_to(rail_policy)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.yml").write_text("instructions: [{type: general, content: Be kind.}]")
    parts = [RailsConfig.from_path(str(path)) for path in (folder, tmp_path / "part")]
    joined = parts[order[0]] + parts[order[1]]
    app = LLMRails(joined, llm=FakeLLMModel(responses=[ANSWER] * 2))
    assert (await app.generate_async(messages=user("a plain threat")))["content"] == REFUSED


def test_two_sections_in_joined_configurations_refuse_to_start(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    other = shutil.copytree(folder, folder.parent / "other")
    with refused_start() as errors:
        LLMRails(RailsConfig.from_path(str(folder)) + RailsConfig.from_path(str(other)), llm=FakeLLMModel(responses=[]))
    assert "2 of the 2 configurations that a request joins hold the section" in str(errors[0])


def test_validate_finds_the_configurations_of_a_root_that_have_no_rail(make_rail_folder: Callable[..., Path]) -> None:
    root = make_rail_folder().parent
    (root / "bare").mkdir()
    (root / "bare" / "config.yml").write_text("models: []")
    refused = CliRunner().invoke(command, ["validate", str(root)])
    assert refused.exit_code == 2
    assert "a client can select this configuration, but it has no rail" in " ".join(refused.stderr.split())

    (root / "bare" / "config.yml").write_text("custom_data: {ctd: unguarded}")
    sound = CliRunner().invoke(command, ["validate", str(root)])
    assert sound.exit_code == 0
    assert "from ctd_guardrail.nemo import init" in sound.stdout
    (root / "config.py").write_text("from ctd_guardrail.nemo import init\n")
    assert "note" not in CliRunner().invoke(command, ["validate", str(root)]).stdout


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"principal": {"variable": "tenant"}, **PER_TENANT}, "context variables are the client's"),
        ({"client_options": "allow"}, "a client may reach the main LLM without a verdict"),
        ({"system_messages": "trust"}, "system messages of a client"),
    ],
)
def test_validate_says_what_a_client_may_do(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any], note: str
) -> None:
    result = CliRunner().invoke(command, ["validate", str(make_rail_folder(**changes))])
    assert result.exit_code == 0
    assert note in result.stdout
