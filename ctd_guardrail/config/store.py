"""The section ``store``: the server that several processes of one deployment share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ctd_guardrail.config.types import Section, VariableName

__all__ = ["StoreConfig"]


class StoreConfig(Section):
    """A Redis or Valkey server that holds the caps and, with ``key_env``, the memory of several processes."""

    url_env: VariableName
    """Name of the environment variable with the server's address, for example ``redis://127.0.0.1:6379/0``."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default"
    """Name of the deployment on the server. Processes with the same name share caps and memory; give each deployment
    its own."""
    key_env: VariableName | None = None
    """Name of the environment variable with a secret of 16 to 64 bytes, the same for all processes. With it, they share
    the memory of judgements, see docs/replicas.md. By default each process has its own memory."""
    keep_s: Annotated[float, Field(ge=60.0, le=31_536_000.0, allow_inf_nan=False)] = 86_400.0
    """Seconds for which the server keeps a judgement."""
