"""The life of guards in a host: loaded off the event loop, shared, replaced, gone."""

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.assembly import prepared
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.decision import Decision, Mode, Reason, Route, Verdict
from ctd_guardrail.errors import ActivationError, InfeasibleBudgetError
from ctd_guardrail.nemo.loading import LoadingGuard
from ctd_guardrail.observability.tally import Tally
from tests.nemo.apps import guard_of
from tests.nemo.hosts import refused_start
from tests.nemo.words import ANSWER, REFUSED, UNAVAILABLE
from tests.support.artefacts import edit
from tests.support.internals import batcher_of, scorer_of, thread_of


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class Allowing:
    """Stands for a cascade that allows everything."""

    async def check(self, messages: Any, overrides: object = None, **known: object) -> Decision:
        return Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)


def app_for(folder: Path) -> LLMRails:
    return LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[ANSWER] * 100))


async def test_the_first_inputs_wait_while_the_event_loop_goes_on() -> None:
    go, threads = threading.Event(), []

    def load() -> Any:
        threads.append(threading.current_thread())
        go.wait(30)
        return Allowing()

    guard = LoadingGuard(load)
    waiting = [asyncio.create_task(guard.check(user("x"))) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await asyncio.sleep(0)
    go.set()
    decisions = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(decisions[0], asyncio.CancelledError)
    assert [decision.verdict for decision in decisions[1:]] == [Verdict.ALLOW] * 4
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("error", [ActivationError("no model"), RuntimeError("canary"), MemoryError()])
async def test_models_that_cannot_be_loaded_leave_the_gate_closed(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Any:
        raise error

    guard = LoadingGuard(load)
    for _ in range(3):
        decision = await guard.check(user("x"))
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.NOT_READY)
    assert guard.has_failed
    assert guard.tally.snapshot().failures == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "said once"
    assert "canary" not in caplog.text
    shadow = LoadingGuard(load, mode=Mode.SHADOW)
    assert not (await shadow.check(user("x"))).is_blocking


class Hanging:
    """Stands for a cascade that gives no verdict."""

    tally = Tally()
    emit = staticmethod(tally)

    async def check(self, messages: Any, overrides: object = None, **known: object) -> Decision:
        return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_an_input_waits_for_the_models_no_longer_than_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    guard = LoadingGuard(lambda: (go.wait(30), Allowing())[1], deadline_s=0.02)  # type: ignore[arg-type,return-value]
    decisions = await asyncio.gather(*(guard.check(user("x")) for _ in range(3)))
    assert {(decision.verdict, decision.reason) for decision in decisions} == {(Verdict.BLOCK, Reason.DEADLINE)}
    assert {decision.on_failure for decision in decisions} == {None}, "no failure policy opens it"
    assert guard.tally.snapshot().failures == 3
    go.set()
    await asyncio.wrap_future(guard._loaded)
    assert (await guard.check(user("x"))).verdict is Verdict.ALLOW, "who leaves does not stop the loading"


async def test_the_wait_for_the_models_is_part_of_the_deadline() -> None:
    go = threading.Event()
    guard = LoadingGuard(lambda: (go.wait(30), Hanging())[1], deadline_s=0.05)  # type: ignore[arg-type,return-value]
    waiting = asyncio.create_task(guard.check(user("x")))
    await asyncio.sleep(0)
    go.set()
    assert (await waiting).reason is Reason.DEADLINE


async def test_the_deadline_of_the_configuration_holds_while_the_models_load(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    load = prepared._open_scorer
    monkeypatch.setattr("ctd_guardrail.assembly.prepared._open_scorer", lambda *parts: (go.wait(60), load(*parts))[1])
    expert = {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge", "timeout_s": 0.01}
    app = app_for(make_rail_folder(deadline_s=0.05, expert=expert, on_failure="allow"))
    reply = await app.generate_async(messages=user("a plain question"))
    go.set()
    assert reply["content"] == UNAVAILABLE
    assert await asyncio.wrap_future(guard_of(app)._loaded)


async def test_a_loop_that_ends_while_the_models_load_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    def impatient() -> LoadingGuard:
        async def ask() -> LoadingGuard:
            guard = LoadingGuard(lambda: (go.wait(30), Allowing())[1])  # type: ignore[arg-type,return-value]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guard.check(user("x")), 0.05)
            return guard

        return asyncio.run(ask())

    guard = await asyncio.to_thread(impatient)
    go.set()
    assert (await guard.check(user("x"))).verdict is Verdict.ALLOW
    assert not caplog.records


async def test_on_a_running_loop_an_app_is_built_at_once_and_waits_at_its_first_input(
    make_rail_folder: Callable[..., Path],
) -> None:
    app = app_for(make_rail_folder())
    assert isinstance(guard_of(app), LoadingGuard)
    reply = await app.generate_async(messages=user("a plain threat"))
    assert reply["content"] == REFUSED


async def test_on_a_running_loop_too_a_wrong_configuration_refuses_to_start(
    make_rail_folder: Callable[..., Path],
) -> None:
    with refused_start() as errors:
        app_for(make_rail_folder(alpha=0.001))
    assert isinstance(errors[0], InfeasibleBudgetError)


async def test_on_a_running_loop_another_base_model_blocks_every_input(
    make_rail_folder: Callable[..., Path], tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_for(make_rail_folder(base_model=str(tiny_llama)))
    for _ in range(2):
        reply = await app.generate_async(messages=user("a plain question"))
        assert reply["content"] == UNAVAILABLE
    said = [record for record in caplog.records if "could not be loaded" in record.getMessage()]
    assert len(said) == 1
    assert "plain question" not in said[0].getMessage()


def test_apps_of_one_configuration_share_a_guard_that_goes_with_the_last_of_them(
    make_rail_folder: Callable[..., Path], tiny_bert: Path, tmp_path: Path
) -> None:
    model = str(shutil.copytree(tiny_bert, tmp_path / "base"))  # a model that no other test holds
    folder = make_rail_folder(base_model=model)
    first, second = app_for(folder), app_for(folder)
    other = app_for(make_rail_folder(base_model=model, alpha=0.3))
    guard = weakref.ref(guard_of(first))
    assert guard_of(second) is guard()
    assert guard_of(other) is not guard()
    assert engine_of(other) is engine_of(first)
    engine = weakref.ref(engine_of(first))
    thread = thread_of(batcher_of(engine_of(first)))
    del first
    gc.collect()
    assert guard() is not None
    del second, other
    gc.collect()
    assert guard() is None
    assert engine() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_policy_that_changed_on_disk_is_taken_by_the_next_app_with_the_same_model(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    shutil.copytree(rail_policy, tmp_path / "policy")
    folder = make_rail_folder(policy=str(tmp_path / "policy"))
    old = app_for(folder)
    edit(tmp_path / "policy", decision_threshold=0.05)
    new = app_for(folder)
    assert guard_of(new) is not guard_of(old)
    assert engine_of(new) is engine_of(old)
    assert [say(app, "a plain question") for app in (old, new)] == [ANSWER, REFUSED]


def test_configurations_in_two_folders_do_not_leak_into_each_other(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    strict = shutil.copytree(rail_policy, tmp_path / "strict")
    edit(strict, decision_threshold=0.05)
    one = make_rail_folder(policy="policy")
    two = shutil.copytree(one, tmp_path / "other")
    (one / "policy").symlink_to(rail_policy)
    (two / "policy").symlink_to(strict)
    assert [say(app_for(folder), "a plain question") for folder in (one, two)] == [ANSWER, REFUSED]


def test_asyncio_run_again_and_again(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    app = app_for(make_rail_folder())
    for text, answer in [("an odd question", ANSWER), ("an odd and harmful wish", REFUSED)] * 3:
        assert say(app, text) == answer
    assert judge.calls == 2


def say(app: LLMRails, text: str) -> str:
    """Ask on an event loop of its own."""
    return str(asyncio.run(app.generate_async(messages=user(text)))["content"])


def engine_of(app: LLMRails) -> Any:
    guard = guard_of(app)
    assert isinstance(guard, Guard)
    return scorer_of(guard)


class Noting(Allowing):
    """Stands for a guard that remembers answers."""

    def __init__(self) -> None:
        self.answers: list[object] = []

    def note_answer(self, answer: object) -> None:
        self.answers.append(answer)


async def test_answers_before_and_after_the_models_are_loaded_reach_the_guard() -> None:
    go, loaded = threading.Event(), Noting()
    guard = LoadingGuard(lambda: (go.wait(30), loaded)[1])  # type: ignore[arg-type,return-value]
    guard.note_answer("early")
    assert loaded.answers == []
    go.set()
    guard.close()
    guard.note_answer("late")
    assert loaded.answers == ["early", "late"]


async def test_a_guard_that_cannot_be_loaded_takes_answers_without_an_error() -> None:
    def load() -> Any:
        raise ActivationError("no model")

    guard = LoadingGuard(load)
    guard.note_answer("early")
    guard.close()
    guard.note_answer("late")
    assert (await guard.check(user("x"))).reason is Reason.NOT_READY
