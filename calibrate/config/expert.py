"""The ``expert`` section of CALIBRATE.yml: the section of the rail, and the limit of refused rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StrictFloat, StrictInt
from pydantic_core import PydanticCustomError

from ctd_guardrail.config.experts import (
    LocalExpertConfig,
    OpenAIExpertConfig,
    PythonExpertConfig,
    RailExpertConfig,
)
from ctd_guardrail.config.types import Section

__all__ = ["AskedLocalExpert", "AskedOpenAIExpert", "AskedPythonExpert", "AskedRailExpert", "ExpertSection"]


def _count_or_share(value: float) -> float:
    if isinstance(value, float) and not value < 1.0:
        raise PydanticCustomError(
            "refused_rows",
            "this is neither a whole number of rows nor a share below 1",
            {"hint": "Write for example 20, or 0.01 for 1%"},
        )
    return value


_MaxRefusedRows = Annotated[StrictInt | StrictFloat, Field(ge=0), AfterValidator(_count_or_share)]


class _MayRefuseRows(Section):
    """How many rows an expert may refuse."""

    max_refused_rows: _MaxRefusedRows = 0.01
    """Rows that the expert may refuse before the run ends: a whole number of rows, or a share of them below 1."""


class AskedOpenAIExpert(_MayRefuseRows, OpenAIExpertConfig):
    """A judge behind an OpenAI-compatible chat-completions endpoint, and how many rows it may refuse."""


class AskedRailExpert(_MayRefuseRows, RailExpertConfig):
    """An input rail of NeMo Guardrails, and how many rows it may refuse."""


class AskedLocalExpert(_MayRefuseRows, LocalExpertConfig):
    """A Hugging Face model in this process, and how many rows it may refuse."""


class AskedPythonExpert(_MayRefuseRows, PythonExpertConfig):
    """An expert that Python code of your own makes, and how many rows it may refuse."""


ExpertSection = Annotated[
    AskedOpenAIExpert | AskedRailExpert | AskedLocalExpert | AskedPythonExpert, Field(discriminator="type")
]
