"""The base of every section, and the types that sections share."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = ["BaseUrl", "Count", "Price", "Seconds", "Section", "Share", "Text", "VariableName"]


class Section(BaseModel):
    """A section of a configuration file.

    The docstring under each field is its description. The JSON Schemas and the tables of the docs show it.
    """

    # A value in the wrong place may be a secret, so error messages do not quote values.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # brackets or port
        complete = False
    if not complete:
        raise _bad_url("not an address", "Write http://HOST:PORT or https://HOST, and the path if there is one")
    if parts.username is not None or parts.password is not None:
        raise _bad_url("an address must not hold credentials", "Put the key into the variable of api_key_env")
    if parts.query or parts.fragment:
        raise _bad_url("an address must end with its path", "Leave out ? and #")
    return value.rstrip("/")


def _bad_url(problem: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("address", "{problem}", {"problem": problem, "hint": hint})


BaseUrl = Annotated[str, Field(min_length=1), AfterValidator(_check_url)]
"""An HTTP address without credentials, query and trailing slash."""

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""

Text = Annotated[str, Field(min_length=1)]
"""A text that is not empty."""

Count = Annotated[int, Field(ge=1)]
"""A whole number, at least 1."""

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
"""A share or a probability, strictly between 0 and 1."""

Alpha = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
"""A budget: a share of the turns, or a mean number of calls per conversation, which may exceed 1."""

Seconds = Annotated[float, Field(gt=0.0, le=3600.0, allow_inf_nan=False)]
"""A time in seconds, at most one hour."""

Price = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
"""A price in any unit, 0 or more."""
