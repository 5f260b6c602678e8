"""The ``source`` section of a configuration: where the base model runs, if not in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.config.address import BaseUrl, VariableName

__all__ = ["VllmSourceConfig"]

_Text = Annotated[str, Field(min_length=1)]


class VllmSourceConfig(BaseModel):
    """A vLLM server that serves what ``ctd-guardrail export`` wrote.

    Attributes:
        type: ``vllm``.
        base_url: Address of the server without ``/v1``, for example ``http://127.0.0.1:8000``.
        model: Name that it serves the export under, ``--served-model-name``.
        export: Folder that ``ctd-guardrail export`` wrote, relative to the configuration's. The guard reads its
            tokenizer and ``ctd_export.json``; the weights may be missing.
        api_key_env: Name of the environment variable that holds the key; None where none is needed.
        timeout_s: Deadline of one reading, from waiting for a free slot to the last byte, further attempts included.
        max_concurrency: Requests that may be under way at once; others wait within their deadline.
        embed_dtype: Data type of the numbers on the wire. ``float16`` halves the answer and rounds scores to about
            three digits.
    """

    # Inputs stay out of error messages: a value in the wrong place may be a secret.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    type: Literal["vllm"]
    base_url: BaseUrl
    model: _Text
    export: Path
    api_key_env: VariableName | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 5.0
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    embed_dtype: Literal["float32", "float16"] = "float32"
