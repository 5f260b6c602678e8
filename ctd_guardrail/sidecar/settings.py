"""The settings of the sidecar, and its error answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from pydantic import SecretStr

from ctd_guardrail.errors import DependencyError

__all__ = ["DETECTOR", "Limits", "Problem", "ServeSettings"]

DETECTOR: Final = "/api/v1/text/"
"""Path prefix of the FMS detector API."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits at which a request is refused before it reaches the guard.

    Attributes:
        body_bytes: Largest body of a request, also with chunked encoding.
        body_s: Seconds in which the whole body must have arrived.
        header_s: Seconds in which a request's headers must have arrived, and before them the TLS handshake.
        messages: Messages of one conversation, or contents of one detector call.
        concurrency: Most requests in progress. A request counts after its body has arrived.
        connections: Most open connections, including idle ones; None: as many as the limit of open files allows,
            less the files of the process itself.
    """

    body_bytes: int = 1 << 20
    body_s: float = 10.0
    header_s: float = 10.0
    messages: int = 256
    concurrency: int = 256
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The settings of the service itself.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        token: Bearer token that requests must carry; None: no token is needed.
        limits: Limits at which requests are refused.
        show_scores: Whether answers carry p, d, the expert's score and the time that the guard took.
        drain_delay_s: After SIGTERM, seconds in which new requests are answered while ``/health/ready`` fails.
        drain_deadline_s: After that, seconds for the requests in progress to end.
        tls_cert: Certificate chain (PEM); None: plain HTTP.
        tls_key: Its private key (PEM).
        metrics: Returns the exposition for Prometheus; None: no metrics route.
        metrics_type: Its media type.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: SecretStr | None = None
    limits: Limits = field(default_factory=Limits)
    show_scores: bool = False
    drain_delay_s: float = 5.0
    drain_deadline_s: float = 30.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    metrics: Callable[[], bytes] | None = None
    metrics_type: str = "text/plain"

    def with_metrics(self) -> Self:
        """Return these settings with a metrics route for Prometheus.

        Raises:
            DependencyError: The extra ``prometheus`` is not installed.
        """
        try:
            from ctd_guardrail.observability.prometheus import CONTENT_TYPE, Exposition  # noqa: PLC0415  # an extra
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"package {error.name!r} is not installed", hint="Run: pip install 'ctd-guardrail[prometheus]'"
            ) from error
        return replace(self, metrics=Exposition().text, metrics_type=CONTENT_TYPE)


class Problem(Exception):  # noqa: N818  # an answer to the client, named as in RFC 9457
    """The reason why a request gets no verdict. A client must treat each of them as a block.

    Args:
        status: HTTP status.
        code: A word for programs.
        message: A sentence for people; never the conversation's text.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self, request_id: str, *, path: str) -> dict[str, Any]:
        """Return the answer's body. On the routes of the FMS detector API it has that API's fields as well."""
        body = {"error": {"code": self.code, "message": str(self)}, "request_id": request_id}
        return {"code": self.status, "message": str(self), **body} if path.startswith(DETECTOR) else body
