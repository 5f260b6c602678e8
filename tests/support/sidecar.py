"""A sidecar on loopback: on a thread of this process, or in a process of its own."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from ctd_guardrail.sidecar import server as sidecar_server
from ctd_guardrail.sidecar.service import Service
from ctd_guardrail.sidecar.settings import ServeSettings
from tests.support.waiting import wait_until

__all__ = ["Sidecar", "SidecarProcess", "sidecar_process"]

ROOT = Path(__file__).parents[2]


class Sidecar:
    def __init__(self, folder: Path, settings: ServeSettings, *, loads: bool = True) -> None:
        self.service = Service(folder, test_again_s=0.05)
        self._settings = replace(settings, port=0)
        self._loads = loads
        self._config = sidecar_server._uvicorn_config(self.service, self._settings)
        self.gate: Any = self._config.app
        self.connections = self._config.connections
        self._listener = sidecar_server._listen(self._settings)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._server = sidecar_server._Server(self._config, self.service, self._settings.drain_delay_s)
        starting = asyncio.create_task(self.service.start()) if self._loads else None
        await self._server.serve(sockets=[self._listener])
        if starting is not None:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await self.service.aclose()
        self._listener.close()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def wait_until_ready(self, seconds: float = 60) -> Sidecar:
        wait_until(lambda: _readiness(self.url) == 200, within_s=seconds, every_s=0.02)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def _readiness(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/health/ready").status_code
    except httpx.TransportError:
        return None


# A process that limits its own descriptors before it becomes the sidecar.
LIMITED = (
    "import resource, runpy, sys\n"
    "most = int(sys.argv.pop(1))\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n"
    "runpy.run_module('ctd_guardrail.cli', run_name='__main__')\n"
)


class SidecarProcess:
    """`ctd-guardrail serve`."""

    def __init__(self, folder: Path, log: Path, *arguments: str, descriptors: int | None = None) -> None:
        module = ["-m", "ctd_guardrail.cli"] if descriptors is None else ["-c", LIMITED, str(descriptors)]
        command = [
            sys.executable,
            *module,
            "serve",
            "--config",
            str(folder),
            "--port",
            "0",
            *arguments,
        ]
        self._log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(  # noqa: S603  # fixed words
                command, cwd=ROOT, stderr=file, stdout=file
            )
        self.wait_for(lambda: re.search(r"listening on (\S+)", self.log) or self.popen.poll() is not None)
        found = re.search(r"listening on (\S+)", self.log)
        self.url = found[1] if found else ""

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], Any], seconds: float = 90) -> None:
        wait_until(condition, within_s=seconds, every_s=0.02, explain=lambda: self.log)

    def status(self) -> int | None:
        return _readiness(self.url)

    def check(self, text: str) -> dict[str, Any]:
        return dict(httpx.post(f"{self.url}/v1/check", json={"text": text}, timeout=30).json())


@contextmanager
def sidecar_process(
    folder: Path, log: Path, *arguments: str, descriptors: int | None = None
) -> Iterator[SidecarProcess]:
    running = SidecarProcess(folder, log, *arguments, descriptors=descriptors)
    try:
        yield running
    finally:
        if running.popen.poll() is None:
            running.popen.kill()
        running.popen.wait(30)
