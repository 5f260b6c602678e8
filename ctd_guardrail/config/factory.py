"""Settings of an object that the operator's own Python code makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from ctd_guardrail.config.types import Section

__all__ = ["FactoryConfig"]

_NAME: Final = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_FACTORY: Final = re.compile(rf"(?:{_NAME}|.+\.py):{_NAME}")


def _check(factory: str) -> str:
    if _FACTORY.fullmatch(factory) is None:
        raise PydanticCustomError(
            "factory",
            "this does not name a function",
            {"hint": "Write package.module:function, or file.py:function for a file in this folder"},
        )
    return factory


class FactoryConfig(Section):
    """A function of the operator, and the arguments of its call."""

    factory: Annotated[str, AfterValidator(_check)]
    """Function: ``package.module:function`` of an installed package, or ``file.py:function`` of a file. Its path starts
    from the configuration's folder."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function. For a secret, give the name of an environment variable."""

    def call_in(self, folder: Path) -> tuple[str, Mapping[str, JsonValue]]:
        """Return the name of the function, with the path of its file made absolute, and its arguments.

        Args:
            folder: Folder that the path of its file starts from.
        """
        return self.in_folder(folder).factory, self.options

    def in_folder(self, folder: Path) -> Self:
        """Return this section with the path of a factory's file made absolute."""
        place, _, function = self.factory.rpartition(":")
        if not place.endswith(".py"):
            return self
        return self.model_copy(update={"factory": f"{(folder / place).absolute()}:{function}"})
