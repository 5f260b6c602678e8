"""The id of a request at its door, for the audit log."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["REQUEST_ID"]

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("ctd_request_id", default=None)
"""Set by the sidecar for the task of a request. A host may set it too."""
