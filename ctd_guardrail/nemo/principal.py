"""The principal of a request, as far as the host can know it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ctd_guardrail.config.limits import PrincipalConfig

__all__ = ["principal_of"]


def principal_of(where: PrincipalConfig | None, variables: Mapping[str, Any]) -> tuple[object, bool]:
    """Return the principal, and whether the request names it twice.

    Behind NeMo's server, context variables come from the client, who could name any principal. There only the header
    of the operator's gateway counts. Two of these headers mean that the client has sent one too.

    Args:
        where: Where a request names its principal; None: nowhere.
        variables: The context variables of the request.
    """
    if where is None:
        return None, False
    headers = _server_headers()
    if headers is None:
        return (None if where.variable is None else variables.get(where.variable)), False
    if where.header is None:
        return None, False
    # Proxies join lines of one header with a comma.
    named = [name for line in headers.getlist(where.header) for name in line.split(",")]
    return (named[-1] if named else None), len(named) > 1


def _server_headers() -> Any:
    """Return the headers of the request that NeMo's server is answering; None outside of it."""
    server = sys.modules.get("nemoguardrails.server.api")
    return None if server is None else server.api_request_headers.get(None)
