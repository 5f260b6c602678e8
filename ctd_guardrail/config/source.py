"""The section ``source``: a serving engine that runs the base model outside of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ctd_guardrail.config.factory import FactoryConfig
from ctd_guardrail.config.types import BaseUrl, Section, Text, VariableName

__all__ = ["PythonSourceConfig", "SourceConfig", "VllmSourceConfig"]


class VllmSourceConfig(Section):
    """A vLLM server that serves an export of ``ctd-guardrail export``."""

    type: Literal["vllm"]
    """The kind of engine: ``vllm``."""
    base_url: BaseUrl
    """Address of the server without ``/v1``, for example ``http://127.0.0.1:8000``."""
    model: Text
    """Name under which the server serves the export, vLLM's ``--served-model-name``."""
    export: Path
    """Folder of the export, relative to the configuration's folder. The guard reads its tokenizer and
    ``ctd_export.json``; the weights may be missing."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the server's key. Leave it out if the server needs none."""
    timeout_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 5.0
    """Seconds for one conversation, from waiting for a free slot to the last byte, further attempts included. Raise it
    for a slow server or long conversations."""


class PythonSourceConfig(FactoryConfig):
    """A source of activations that Python code of your own makes, see docs/write-your-own.md."""

    type: Literal["python"]
    """The kind: Python code of your own."""


SourceConfig = Annotated[VllmSourceConfig | PythonSourceConfig, Field(discriminator="type")]
"""One of the two kinds, told apart by ``type``."""
