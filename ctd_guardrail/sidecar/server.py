"""The process around the service: socket, signals and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from ctd_guardrail.assembly.prepared import read
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.sidecar.api import create_api
from ctd_guardrail.sidecar.connections import Connections, Listener, fit_to_descriptors
from ctd_guardrail.sidecar.gate import Gate
from ctd_guardrail.sidecar.protocol import Config
from ctd_guardrail.sidecar.service import Service
from ctd_guardrail.sidecar.settings import ServeSettings

__all__ = ["serve"]

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_KEEP_ALIVE_S: Final = 30


async def serve(folder: Path, settings: ServeSettings, *, on_listening: Callable[[str], None] = log.info) -> None:
    """Serve a configuration folder until the process is asked to end.

    SIGTERM drains: ``/health/ready`` fails at once, new requests are answered for ``settings.drain_delay_s``, and the
    requests then in progress get ``settings.drain_deadline_s`` to end. SIGINT, or a second SIGTERM, skips the delay.
    SIGHUP reads the configuration again.

    Args:
        folder: NeMo Guardrails configuration folder.
        settings: Settings of the service itself.
        on_listening: Called with the address once connections are accepted. The guard is still loading then.

    Raises:
        CtdError: The configuration is wrong, the address is not available, or the guard cannot be loaded.
    """
    prepared = await asyncio.to_thread(read, folder)
    service = Service(folder)
    with _listen(settings) as listener:
        server = _Server(_uvicorn_config(service, settings), service, settings.drain_delay_s)
        loop = asyncio.get_running_loop()
        background: set[asyncio.Task[bool]] = set()

        async def replace() -> bool:
            gc.unfreeze()  # the replaced guard has to be collected
            try:
                return await service.reload()
            finally:
                _settle()

        def reload() -> None:
            task = loop.create_task(replace())
            background.add(task)
            task.add_done_callback(background.discard)

        starting = loop.create_task(service.start(prepared))
        del prepared  # a reload shall free its policy
        starting.add_done_callback(server.end_if_failed)
        starting.add_done_callback(lambda _: _settle())
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or Windows
            loop.add_signal_handler(signal.SIGHUP, reload)
        scheme = "http" if settings.tls_cert is None else "https"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_listening(f"{scheme}://{host}:{listener.getsockname()[1]}")
        try:
            await server.serve(sockets=[listener])
        finally:
            starting.cancel()
            await asyncio.gather(starting, *background, return_exceptions=True)
            await service.aclose()
        if not starting.cancelled():
            starting.result()


def _settle() -> None:
    """Exclude loaded objects from garbage collection: one pass over them delayed requests by 0.3 s."""
    gc.collect()
    gc.freeze()


def _listen(settings: ServeSettings) -> Listener:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror})",
            key="--port",
            hint="Choose another port, or end what listens there",
        ) from error
    return Listener(fileno=listener.detach())


def _uvicorn_config(service: Service, settings: ServeSettings) -> Config:
    limits = fit_to_descriptors(settings.limits)
    settings = replace(settings, limits=limits)
    return Config(
        Gate(create_api(service, settings), service, settings),
        Connections(limits, service.connections, idle_s=_KEEP_ALIVE_S),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_deadline_s)),
        ssl_certfile=None if settings.tls_cert is None else str(settings.tls_cert),
        ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
    )


class _Server(uvicorn.Server):
    """Drains before it ends."""

    def __init__(self, config: Config, service: Service, drain_delay_s: float) -> None:
        super().__init__(config)
        self._connections = config.connections
        self._service = service
        self._drain_delay_s = drain_delay_s
        self._loop = asyncio.get_running_loop()
        self._is_draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        for listener in sockets or ():
            if isinstance(listener, Listener):
                listener.connections = self._connections
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down, and log the closed connections that were not logged yet."""
        await super().shutdown(sockets)
        self._connections.report()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Start to drain; at a second signal, shut down."""
        delay = self._drain_delay_s if sig == signal.SIGTERM and not self._is_draining else 0.0
        self._is_draining = True
        self._loop.call_soon_threadsafe(self._drain, delay)

    def end_if_failed(self, starting: asyncio.Task[None]) -> None:
        """Shut down if the guard could not be loaded, so that a supervisor sees the failure and its reason."""
        if not starting.cancelled() and starting.exception() is not None:
            self.should_exit = True

    def _drain(self, delay: float) -> None:
        self._service.drain()
        self._loop.call_later(delay, self._end)

    def _end(self) -> None:
        self.should_exit = True
