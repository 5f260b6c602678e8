"""What the operator of the sidecar sets, and what it says when it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

__all__ = ["DETECTOR", "Limits", "Problem", "ServeSettings"]

DETECTOR: Final = "/api/v1/text/"
"""Where the routes of the FMS detector API begin."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a request is refused before the guard spends anything on it.

    Attributes:
        body_bytes: Size of a request's body, however it is sent.
        body_s: Seconds in which the whole body must have arrived.
        header_s: Seconds in which a request's headers must have arrived, and before them the TLS handshake.
        messages: Messages of one conversation, or contents of one detector call.
        concurrency: Requests under way at once. A request counts once its body is there.
        connections: Open connections, idle ones among them; None: as many as the process has descriptors for, less
            what it needs itself.
    """

    body_bytes: int = 1 << 20
    body_s: float = 10.0
    header_s: float = 10.0
    messages: int = 256
    concurrency: int = 256
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything about the service that is not about the guard.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        token: Bearer token that requests must carry; None: none is asked for.
        limits: Where requests are refused.
        show_scores: Whether answers carry p, d, the expert's score and the time that the guard took.
        drain_delay_s: After SIGTERM, seconds in which requests are still taken while ``/health/ready`` says no.
        drain_deadline_s: Then, seconds in which running requests may end.
        tls_cert: Certificate chain (PEM); None: plain HTTP.
        tls_key: Its private key (PEM).
        metrics: Returns the exposition for Prometheus; None: there is none.
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


class Problem(Exception):  # noqa: N818  # an answer to the client, named as in RFC 9457
    """Why a request gets no verdict. A client must treat every one of them as a block.

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
