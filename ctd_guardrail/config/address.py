"""Addresses and names of secrets in a configuration."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

__all__ = ["BaseUrl", "VariableName"]


def _check(value: str) -> str:
    try:
        parts = urlsplit(value)
        complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # brackets or port
        complete = False
    if not complete:
        raise _bad("not an address", "Write http://HOST:PORT or https://HOST, and the path where there is one")
    if parts.username is not None or parts.password is not None:
        raise _bad("an address must not hold credentials", "Put the key into the variable of api_key_env")
    if parts.query or parts.fragment:
        raise _bad("an address must end with its path", "Leave out ? and #")
    return value.rstrip("/")


def _bad(problem: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("address", "{problem}", {"problem": problem, "hint": hint})


BaseUrl = Annotated[str, Field(min_length=1), AfterValidator(_check)]
"""An HTTP address without credentials, query and trailing slash."""

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""
