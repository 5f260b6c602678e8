"""The id under which a door knows a request, for the audit log."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["REQUEST_ID", "SELF_TEST"]

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("ctd_request_id", default=None)
"""Set by the sidecar for the task of a request; a host may set it too."""

SELF_TEST: Final = "self-test"
"""The id of the rail's own inputs, which are no traffic: neither monitors nor metrics nor audit log see them."""
