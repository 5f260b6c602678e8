"""A sidecar on loopback, with a real server on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from ctd_guardrail.sidecar import server as sidecar_server
from ctd_guardrail.sidecar.service import Service
from ctd_guardrail.sidecar.settings import ServeSettings

__all__ = ["Sidecar"]


class Sidecar:
    def __init__(self, folder: Path, settings: ServeSettings, *, loads: bool = True) -> None:
        self.service = Service(folder, test_again_s=0.05)
        self._settings = replace(settings, port=0)
        self._loads = loads
        self._listener = sidecar_server._listen(self._settings)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        config = sidecar_server._uvicorn_config(self.service, self._settings)
        self._server = sidecar_server._Server(config, self.service, self._settings.drain_delay_s)
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
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise TimeoutError

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
