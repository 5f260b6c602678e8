"""The process as an orchestrator sees it: start, signals, end."""

import asyncio
import shutil
import signal
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ctd_guardrail.assembly.prepared import Prepared
from ctd_guardrail.cli.app import app
from ctd_guardrail.sidecar import service as sidecar_service
from tests.support.internals import loaded_guard, scorer_of
from tests.support.sidecar import sidecar_process
from tests.support.waiting import eventually


def test_ready_reload_drain(make_rail_folder: Callable[..., Path], judge: Any, tmp_path: Path) -> None:
    folder = make_rail_folder(on_failure="block")
    with sidecar_process(folder, tmp_path / "log", "--drain-delay", "1", "--drain-deadline", "20") as server:
        server.wait_for(lambda: server.status() == 200)
        judge.is_down = True
        assert server.check("an odd question")["verdict"] == "block"

        # SIGHUP takes what is sound, and keeps what it has where the new is not.
        make_rail_folder(on_failure="allow")
        server.popen.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "configuration reloaded" in server.log)
        assert server.check("an odd question")["verdict"] == "allow"
        make_rail_folder(on_failure="sometimes")
        server.popen.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "reload refused" in server.log)
        assert "custom_data.ctd.on_failure" in server.log
        assert server.check("an odd question")["verdict"] == "allow"
        assert server.status() == 200

        # SIGTERM: no more traffic is asked for, what still comes is answered, what runs may end.
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.status() == 503)
        assert server.check("a plain question")["verdict"] == "allow"
        assert server.popen.wait(30) == 0
        assert "plain question" not in server.log
        assert "odd question" not in server.log
        assert server.url.rpartition(":")[2] not in server.log.replace(server.url, "")


@pytest.mark.parametrize(
    ("changes", "message", "status"),
    [
        ({"alfa": 1}, "custom_data.ctd.alfa", 2),
        ({"alpha": 0.001}, "smallest alpha", 3),
        ({"base_model": "no"}, "no", 2),
    ],
)
def test_what_cannot_be_served_ends_with_file_key_and_hint(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any], message: str, status: int
) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", str(make_rail_folder(**changes)), "--port", "0"])
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_options_that_do_not_do_are_errors(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAR_TOKEN", " ")
    folder = str(make_rail_folder())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, message in (
            (["--token-env", "SIDECAR_TOKEN"], "SIDECAR_TOKEN holds no token"),
            (["--tls-cert", "cert.pem"], "HTTPS takes both"),
            (["--max-connections", "256"], "--max-connections"),
            (["--max-connections", "1000000000"], "too few of"),
            (["--max-connections", "8", "--max-concurrency", "8"], "8 connections cannot carry 8 requests"),
            (["--port", str(taken.getsockname()[1])], "cannot listen on 127.0.0.1"),
        ):
            result = CliRunner().invoke(app, ["serve", "--config", folder, *options])
            assert result.exit_code == 2
            assert message in result.stderr


async def test_a_self_test_that_fails_keeps_traffic_away_until_it_passes(
    make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    judge.is_down = True
    folder = make_rail_folder(self_test={"safe": ["an odd question"], "unsafe": ["an odd and harmful wish"]})
    service = sidecar_service.Service(folder, test_again_s=0.05)
    starting = asyncio.create_task(service.start())
    await eventually(lambda: service.status is not sidecar_service.Status.LOADING)
    assert service.status is sidecar_service.Status.FAILING_SELF_TEST
    assert not service.is_ready
    assert not service.is_serving
    judge.is_down = False
    await asyncio.wait_for(starting, 30)
    assert service.is_ready
    await service.aclose()


async def test_a_guard_that_fails_its_self_test_can_be_replaced_by_a_reload(
    make_rail_folder: Callable[..., Path],
) -> None:
    service = sidecar_service.Service(make_rail_folder(self_test={"safe": ["a plain threat"]}), test_again_s=0.05)
    starting = asyncio.create_task(service.start())
    await eventually(lambda: service.status is sidecar_service.Status.FAILING_SELF_TEST)
    make_rail_folder(self_test={"unsafe": ["a plain threat"]})
    assert await asyncio.wait_for(service.reload(), 30)
    assert service.is_ready
    await asyncio.wait_for(starting, 30)
    assert service.is_ready
    await service.aclose()


async def test_a_reload_that_fails_its_self_test_is_refused(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    service = sidecar_service.Service(folder)
    await service.start()
    before = loaded_guard(service)
    content = yaml.safe_load((folder / "config.yml").read_text())
    content["custom_data"]["ctd"]["self_test"] = {"safe": ["a plain threat"]}
    (folder / "config.yml").write_text(yaml.safe_dump(content))
    assert not await service.reload()
    assert loaded_guard(service) is before
    assert service.is_ready
    content["custom_data"]["ctd"]["self_test"] = {"unsafe": ["a plain threat"]}
    (folder / "config.yml").write_text(yaml.safe_dump(content))
    assert await service.reload()
    assert loaded_guard(service) is not before
    assert scorer_of(loaded_guard(service)) is scorer_of(before)  # one base model
    await service.aclose()


async def test_another_base_model_is_loaded_when_the_old_one_has_gone(
    make_rail_folder: Callable[..., Path], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):  # of one fingerprint, and two models to the process that no other test holds
        shutil.copytree(tiny_bert, tmp_path / name)
    service = sidecar_service.Service(make_rail_folder(base_model=str(tmp_path / "old")))
    await service.start()
    old = weakref.ref(scorer_of(loaded_guard(service)))
    load = Prepared.load
    seen: list[tuple[bool, bool]] = []

    def watched(prepared: Prepared, **options: Any) -> Any:
        seen.append((old() is None, service.is_ready))
        return load(prepared, **options)

    monkeypatch.setattr(Prepared, "load", watched)
    make_rail_folder(base_model=str(tmp_path / "new"))
    assert await service.reload()
    assert seen == [(True, False)]
    assert service.is_ready

    # Where the new one cannot be loaded there is nothing to go back to: no verdict, until a reload works.
    make_rail_folder(base_model=str(tmp_path / "nowhere"))
    assert not await service.reload()
    assert service.status is sidecar_service.Status.FAILED
    assert not service.is_serving
    make_rail_folder()
    assert await service.reload()
    assert service.is_ready
    await service.aclose()
