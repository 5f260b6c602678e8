"""``ctd-guardrail serve``: the rail as an HTTP service."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import SecretStr
from rich.console import Console

from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.errors import ConfigError, DependencyError
from ctd_guardrail.sidecar.settings import Limits, ServeSettings

__all__ = ["serve"]

_DEFAULTS: Final = ServeSettings()


def serve(
    config: Annotated[Path, typer.Option(metavar="DIR", help="NeMo Guardrails configuration folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = _DEFAULTS.port,
    token_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the bearer token that clients must send."),
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Answer with scores and timings as well.")] = False,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="Largest request body in bytes.")
    ] = _DEFAULTS.limits.body_bytes,
    max_messages: Annotated[
        int, typer.Option(min=1, help="Most messages of a conversation, or contents of a call.")
    ] = _DEFAULTS.limits.messages,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Most requests at the same time; the next one gets 503 and Retry-After.")
    ] = _DEFAULTS.limits.concurrency,
    max_connections: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Most open connections, idle ones too; by default as many as ulimit -n allows.",
        ),
    ] = _DEFAULTS.limits.connections,
    header_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a client to send the headers of a request.")
    ] = _DEFAULTS.limits.header_s,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM in which new requests are still answered.")
    ] = _DEFAULTS.drain_delay_s,
    drain_deadline: Annotated[
        float, typer.Option(min=1, help="Seconds after that in which running requests may end.")
    ] = _DEFAULTS.drain_deadline_s,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Certificate chain, to serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Private key of the certificate.")] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Expose metrics to Prometheus at /metrics; needs the extra `prometheus`.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more; never texts, scores or secrets.")] = False,
) -> None:
    """Run the guard as an HTTP service.

    It answers in plain JSON, and as a detector for NeMo's own `hf classifier` rail.

    POST /v1/check: takes {"messages": [...]} or {"text": "..."}, answers with verdict, route and reason

    POST /api/v1/text/contents and /api/v1/text/chat, GET /health: the FMS detector API, for `engine: fms`

    GET /v1/stats: counts of decisions. GET /health/live, /health/ready. GET /metrics, with --metrics

    Only HTTP 200 with `"verdict": "allow"` allows an input. A client must treat every other answer as a block.

    SIGTERM ends it after the running requests. SIGHUP reads the configuration again. Needs the extra `serve`.

    [dim]ctd-guardrail serve --config config --port 8080 --token-env SIDECAR_TOKEN[/]

    Exit status: 0 ended on request; 2 an error, with file, key path and hint; 3 a budget that the policy cannot
    certify.
    """
    _log_to_stderr(verbose=verbose)
    console = Console(stderr=True)
    with exit_on_error():
        for package in ("fastapi", "uvicorn"):
            if importlib.util.find_spec(package) is None:
                raise DependencyError(
                    f"package {package!r} is not installed", hint="Run: pip install 'ctd-guardrail[serve]'"
                )
        if max_connections is not None and max_connections <= max_concurrency:
            raise ConfigError(
                f"{max_connections} connections cannot carry {max_concurrency} requests under way and health checks",
                key="--max-connections",
                hint="Give more than --max-concurrency, or lower that",
            )
        if (tls_cert is None) != (tls_key is None):
            raise ConfigError("HTTPS takes both", key="--tls-cert, --tls-key", hint="Give certificate and key")
        settings = ServeSettings(
            host=host,
            port=port,
            token=None if token_env is None else _read_token(token_env),
            limits=Limits(
                body_bytes=max_body_bytes,
                header_s=header_timeout,
                messages=max_messages,
                concurrency=max_concurrency,
                connections=max_connections,
            ),
            show_scores=scores,
            drain_delay_s=drain_delay,
            drain_deadline_s=drain_deadline,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        if metrics:
            settings = settings.with_metrics()

        from ctd_guardrail.sidecar import server  # noqa: PLC0415  # an extra

        asyncio.run(server.serve(config, settings, on_listening=lambda url: console.print(f"listening on {url}")))


def _log_to_stderr(*, verbose: bool) -> None:
    # Other libraries log at WARNING and above only: HTTP clients log headers, and so keys.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ctd_guardrail").setLevel(logging.DEBUG if verbose else logging.INFO)


def _read_token(variable: str) -> SecretStr:
    token = os.environ.get(variable, "").strip()
    if not (token and token.isascii() and token.isprintable()):
        raise ConfigError(
            f"environment variable {variable} holds no token",
            key="--token-env",
            hint="Export a long random word under this name",
        )
    return SecretStr(token)
