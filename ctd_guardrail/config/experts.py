"""The ``expert`` section of a configuration: the kind of expert and how to reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ctd_guardrail.config.factory import FactoryConfig
from ctd_guardrail.config.types import BaseUrl, Count, Section, Text, VariableName

__all__ = [
    "Completions",
    "ExpertAddress",
    "ExpertConfig",
    "LocalExpertConfig",
    "OpenAIExpertConfig",
    "PythonExpertConfig",
    "RailExpertConfig",
]

_Label = str | int
_CallSeconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


class OpenAIExpertConfig(Section):
    """A judge behind an OpenAI-compatible chat-completions endpoint."""

    type: Literal["openai"]
    """The kind: a chat model behind an OpenAI-compatible endpoint."""
    base_url: BaseUrl
    """Address of the endpoint up to and including the version, for example ``http://127.0.0.1:8000/v1``."""
    model: Text
    """Name of the model at the endpoint."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the endpoint's key. Leave it out if the endpoint needs none."""
    timeout_s: _CallSeconds = 10.0
    """Seconds for one call, from waiting for a free slot to the last byte. Raise it for a slow model."""
    scoring: Literal["logprobs", "json"] = "logprobs"
    """Source of P(unsafe): ``logprobs`` reads the log-probabilities of the answer token; ``json`` reads a verdict and a
    confidence that the model states. Use ``json`` if the endpoint gives no log-probabilities."""
    max_concurrency: Count = 64
    """Calls at the same time. In a rail, four times as many inputs may wait; the next one fails with
    ``expert_overloaded``. Set it to what the endpoint can bear."""
    instruction: Text | None = None
    """Replaces the built-in definition of what is unsafe. Write it if your app has other rules."""
    system_role: Literal["auto", "fold"] = "auto"
    """Place of the instruction: ``auto`` uses the system message, or the user message if the endpoint refuses system
    messages. Use ``fold`` (always the user message) if the model's chat template drops system messages in silence."""


class RailExpertConfig(Section):
    """An input rail of NeMo Guardrails."""

    type: Literal["rail"]
    """The kind: an input rail of NeMo Guardrails."""
    flow: Text
    """Name of the rail, as in ``rails.input.flows``: for example ``content safety check input
    $model=content_safety``."""
    config: Path | None = None
    """Folder of a NeMo Guardrails configuration with the rail's models and prompts. Calibration needs it; a rail uses
    the configuration around it if this is left out."""
    timeout_s: _CallSeconds = 10.0
    """Seconds for one run of the rail, from waiting for a free slot. Raise it for a slow model."""
    max_concurrency: Count = 64
    """Runs at the same time. Four times as many inputs may wait; the next one fails with ``expert_overloaded``."""


class Completions(Section):
    """The two answers whose likelihoods a causal language model compares."""

    unsafe: Text
    """Causal models only: the answer that means unsafe. Without ``completions``, it is Yes."""
    safe: Text
    """Causal models only: the answer that means safe. Without ``completions``, it is No."""


class LocalExpertConfig(Section):
    """A Hugging Face model in this process: a sequence classifier or a causal language model."""

    type: Literal["local"]
    """The kind: a Hugging Face model in this process."""
    model: Text
    """Hugging Face id, local path, or ``package:NAME`` for a model folder of an installed Python package."""
    revision: Text | None = None
    """Revision of a Hugging Face id. Name one so that a new upload cannot change the expert."""
    device: Text = "auto"
    """Torch device: ``auto`` (CUDA if there is one), ``cpu``, or for example ``cuda:1``."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights and the forward pass. ``bfloat16`` halves the memory of a large model."""
    unsafe_label: _Label | Annotated[tuple[_Label, ...], Field(min_length=1)] | None = None
    """Classifiers only: name or index of the label that means unsafe, or a list of them. By default it is found by the
    labels' names."""
    completions: Completions | None = None
    """Causal models only: the two answers to compare. By default Yes (unsafe) and No (safe)."""
    instruction: Text | None = None
    """Causal models only: replaces the built-in definition of what is unsafe."""


class PythonExpertConfig(FactoryConfig):
    """An expert that Python code of your own makes, see docs/write-your-own.md."""

    type: Literal["python"]
    """The kind: Python code of your own."""
    timeout_s: _CallSeconds = 10.0
    """Seconds for one call, from waiting for a free slot. Raise it for a slow expert."""
    max_concurrency: Count = 64
    """Calls at the same time. Four times as many inputs may wait; the next one fails with ``expert_overloaded``."""


ExpertConfig = Annotated[
    OpenAIExpertConfig | RailExpertConfig | LocalExpertConfig | PythonExpertConfig,
    Field(discriminator="type"),
]
"""One of the four kinds, told apart by ``type``."""


class ExpertAddress(Section):
    """Another address of the same expert, of type ``openai``. All other settings are those of ``expert``."""

    base_url: BaseUrl
    """Address of the endpoint up to and including the version."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the key of this endpoint. Leave it out if it needs none."""
    timeout_s: _CallSeconds | None = None
    """Seconds for one call. By default those of ``expert``."""

    def of(self, expert: OpenAIExpertConfig) -> OpenAIExpertConfig:
        """Return the expert at this address."""
        timeout_s = expert.timeout_s if self.timeout_s is None else self.timeout_s
        return expert.model_copy(
            update={"base_url": self.base_url, "api_key_env": self.api_key_env, "timeout_s": timeout_s}
        )
