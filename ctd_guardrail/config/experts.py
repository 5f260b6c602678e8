"""The ``expert`` section of a configuration: which expert judges the hard cases, and how it is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.config.address import BaseUrl, VariableName

__all__ = ["Completions", "ExpertConfig", "LocalExpertConfig", "OpenAIExpertConfig", "RailExpertConfig"]

_Text = Annotated[str, Field(min_length=1)]
_Label = str | int
_Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


class _Section(BaseModel):
    # Inputs stay out of error messages: a value in the wrong place may be a secret.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class OpenAIExpertConfig(_Section):
    """A judge behind an OpenAI-compatible chat-completions endpoint.

    Attributes:
        type: ``openai``.
        base_url: Address up to and including the version, for example ``http://127.0.0.1:8000/v1``.
        model: Name of the model, as the endpoint knows it.
        api_key_env: Name of the environment variable that holds the key; None where none is needed.
        timeout_s: Deadline of one call, from waiting for a free slot to the last byte.
        scoring: ``logprobs``: P(unsafe) from the log-probabilities of the answer token. ``json``: from a verdict and
            a confidence that the model states; for endpoints without log-probabilities.
        max_concurrency: Calls that may be under way at once; others wait within their deadline.
        max_waiting: Inputs that may wait for one of these calls in a rail; one more is a failure,
            ``expert_overloaded``. Calibration asks at its own pace.
        instruction: Replaces the built-in definition of what is unsafe.
        system_role: ``auto``: the instruction is the system message, and stands in the user message if the endpoint
            refuses system messages. ``fold``: it always stands in the user message; for models whose chat template
            drops system messages in silence.
    """

    type: Literal["openai"]
    base_url: BaseUrl
    model: _Text
    api_key_env: VariableName | None = None
    timeout_s: _Seconds = 10.0
    scoring: Literal["logprobs", "json"] = "logprobs"
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    max_waiting: Annotated[int, Field(ge=0)] = 256
    instruction: _Text | None = None
    system_role: Literal["auto", "fold"] = "auto"


class RailExpertConfig(_Section):
    """An input rail of NeMo Guardrails.

    Attributes:
        type: ``rail``.
        flow: The rail as ``rails.input.flows`` would name it, for example
            ``content safety check input $model=content_safety``.
        config: Folder of a NeMo Guardrails configuration that holds the rail's models and prompts. Offline it is
            required; inside NeMo Guardrails the surrounding configuration is used where it is left out.
        timeout_s: Deadline of one run of the rail, from waiting for a free slot.
        max_concurrency: Runs that may be under way at once; others wait within their deadline.
        max_waiting: Inputs that may wait for one of these runs; one more is a failure, ``expert_overloaded``.
    """

    type: Literal["rail"]
    flow: _Text
    config: Path | None = None
    timeout_s: _Seconds = 10.0
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    max_waiting: Annotated[int, Field(ge=0)] = 256


class Completions(_Section):
    """The two answers whose likelihoods a causal language model is asked for.

    Attributes:
        unsafe: The answer that means unsafe.
        safe: The answer that means safe.
    """

    unsafe: _Text
    safe: _Text


class LocalExpertConfig(_Section):
    """A Hugging Face model in this process: a sequence classifier or a causal language model.

    Attributes:
        type: ``local``.
        model: Hugging Face id, local path, or ``package:NAME`` for a model folder that an installed Python package
            carries.
        revision: Revision of a Hugging Face id.
        device: ``auto`` (CUDA where there is one), ``cpu``, or a torch device such as ``cuda:1``.
        dtype: Data type of the weights and the forward pass.
        window: Tokens in one forward window; None: what the model's positions allow, at most 4096. Longer
            conversations are scored in overlapping windows, of which the highest score counts.
        max_tokens: Conversations with more tokens are refused, never cut.
        unsafe_label: Classifiers only: name or index of the label that means unsafe, or a list of them; None: found by
            their names.
        completions: Causal models only: the two answers; None: Yes (unsafe) and No (safe).
        instruction: Causal models only: replaces the built-in definition of what is unsafe.
    """

    type: Literal["local"]
    model: _Text
    revision: _Text | None = None
    device: _Text = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    window: Annotated[int, Field(ge=8)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 32_768
    unsafe_label: _Label | Annotated[tuple[_Label, ...], Field(min_length=1)] | None = None
    completions: Completions | None = None
    instruction: _Text | None = None


ExpertConfig = Annotated[
    OpenAIExpertConfig | RailExpertConfig | LocalExpertConfig,
    Field(discriminator="type"),
]
"""One of the three kinds, told apart by ``type``."""
