import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctd_guardrail.cli.app import app
from tests.support.redis_process import PROGRAMS, RedisProcess

SAFE, UNSAFE = ["a plain question", "an odd question"], ["a plain threat", "an odd and harmful wish"]


def examined(folder: Path, *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", "--config", str(folder), "--json", *options])
    assert result.exit_code in {0, 1}, result.output
    answer = json.loads(result.stdout)
    assert answer["ready"] is (result.exit_code == 0)
    return result.exit_code, {found["subject"]: (found["outcome"], found["text"]) for found in answer["findings"]}


def test_a_sound_configuration_is_ready(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    folder = make_rail_folder(self_test={"safe": SAFE, "unsafe": UNSAFE}, cap={"calls": 5, "per_s": 60})
    status, found = examined(folder)
    assert status == 0
    assert {subject: outcome for subject, (outcome, _) in found.items() if subject.startswith("self_test")} == {
        "self_test.safe.0": "ok",
        "self_test.safe.1": "ok",
        "self_test.unsafe.0": "ok",
        "self_test.unsafe.1": "ok",
    }
    for subject in ("wiring in NeMo", "budget", "base model", "mode", "expert"):
        assert found[subject][0] == "ok", found[subject]
    assert "at most 20.0% of the inputs" in found["budget"][1]
    assert found["device"] == ("info", "cpu")
    assert found["nemoguardrails"][1].startswith("0.")
    assert found["door: sidecar"][1] == "available"
    assert found["cap"][1] == "5 calls, 5 at once in 60 s, for all"
    assert judge.calls >= 3


def test_a_wrong_verdict_is_named_by_its_place_and_not_by_its_text(make_rail_folder: Callable[..., Path]) -> None:
    status, found = examined(make_rail_folder(self_test={"safe": ["a plain threat"], "unsafe": UNSAFE}))
    assert status == 1
    outcome, text = found["self_test.safe.0"]
    assert outcome == "error"
    assert "block (probe_unsafe" in text
    assert "expected allow" in text
    assert "threat" not in json.dumps(found)


def test_built_in_inputs_only_warn(make_rail_folder: Callable[..., Path]) -> None:
    # One of them must be judged wrongly by the policy of this test, whose probes know four short texts.
    status, found = examined(make_rail_folder())
    assert status == 0
    assert {found[subject][0] for subject in ("built-in safe", "built-in unsafe")} <= {"ok", "warning"}


def test_a_self_test_asks_what_the_guard_can_do_now(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    folder = make_rail_folder(self_test={"unsafe": ["an odd and harmful wish"]})
    assert examined(folder)[0] == 0
    judge.is_down = True  # the process remembers what the expert said; that it is down shows all the same
    assert examined(folder)[0] == 1


def test_an_expert_that_is_down_is_not_ready(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    judge.is_down = True
    status, found = examined(make_rail_folder())
    assert status == 1
    assert found["expert"][0] == "error"
    assert "HTTP 503" in found["expert"][1]


def test_an_expert_that_hangs_is_given_up(make_rail_folder: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        expert = {"type": "openai", "base_url": url, "model": "judge", "timeout_s": 20}
        status, found = examined(make_rail_folder(expert=expert), "--deadline", "0.2")
    assert status == 1
    assert found["expert"] == ("error", "no answer within 0.2 s")


def test_every_named_expert_is_asked(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    spare = {"base_url": "http://127.0.0.1:9/v1"}
    status, found = examined(make_rail_folder(experts={"spare": spare}, allow_overrides=["expert"]))
    assert status == 1
    assert (found["expert"][0], found["expert spare"][0]) == ("ok", "error")


def test_what_lets_things_through_is_pointed_at(make_rail_folder: Callable[..., Path]) -> None:
    status, found = examined(make_rail_folder(mode="shadow", on_failure="allow"))
    assert status == 0
    assert found["mode"][0] == found["on_failure"][0] == "warning"


def test_a_rail_that_nemo_would_not_call_is_a_warning(make_rail_folder: Callable[..., Path]) -> None:
    status, found = examined(make_rail_folder(config={"rails": {}}))
    assert status == 0
    assert found["wiring in NeMo"][0] == "warning"
    assert "rails.input.flows" in found["wiring in NeMo"][1]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [({"alpha": 0.001}, 3, "smallest alpha"), ({"policy": "nowhere"}, 2, "cannot be read"), ({"alfa": 1}, 2, "alfa")],
)
def test_what_cannot_be_loaded_is_an_error(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any], status: int, message: str
) -> None:
    result = CliRunner().invoke(app, ["doctor", "--config", str(make_rail_folder(**changes)), "--json"])
    assert result.exit_code == status
    assert message in result.stderr
    assert not result.stdout


def test_people_get_a_table(make_rail_folder: Callable[..., Path]) -> None:
    result = CliRunner().invoke(app, ["doctor", "--config", str(make_rail_folder())])
    assert result.exit_code == 0
    assert "base model" in result.stdout
    assert result.stdout.rstrip().endswith("ready")


def test_the_memory_in_force_is_named(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, found = examined(make_rail_folder())
    assert found["memory"][0] == "info"
    assert "each process remembers by itself" in found["memory"][1]
    if not PROGRAMS:
        pytest.skip("no redis-server or valkey-server here")
    server = RedisProcess(tmp_path)
    monkeypatch.setenv("STORE_URL", server.url)
    monkeypatch.setenv("STORE_KEY", "a secret of the deployment")
    folder = make_rail_folder(store={"url_env": "STORE_URL", "key_env": "STORE_KEY", "name": "chat"})
    _, found = examined(folder)
    assert found["memory"] == (
        "ok",
        "shared by all processes of the store, under the name 'chat'; the server answers",
    )
    server.stop()
    code, found = examined(folder)
    assert code == 0, "each process remembers by itself then"
    assert found["memory"][0] == "warning"
    assert "did not answer" in found["memory"][1]
