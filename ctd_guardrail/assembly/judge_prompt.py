"""The judge's instruction as a prompt of NeMo Guardrails: the task ``ctd_judge`` under ``prompts``.

The user writes the instruction only: what counts as unsafe. The conversation follows it between marker lines, and is
never rendered into a template. This module does not import NeMo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.errors import ConfigError

__all__ = ["TASK", "with_judge_prompt"]

TASK: Final = "ctd_judge"

_KEY: Final = f"prompts.{TASK}"


def with_judge_prompt(
    config: CtdConfig, prompts: Iterable[Mapping[str, Any]], *, file: Path | str | None = None
) -> CtdConfig:
    """Return the section with the prompt as the instruction of its judges; unchanged if there is no such prompt.

    Args:
        config: The section.
        prompts: ``prompts`` of the configuration, as it is written.
        file: The file that holds it, for error messages.

    Raises:
        ConfigError: There are two such prompts, the prompt has variables or is no text, or no expert uses it.
    """
    contents = [prompt.get("content") for prompt in prompts if prompt.get("task") == TASK]
    if not contents:
        return config
    if len(contents) > 1:
        raise ConfigError("there are several prompts for this task", file=file, key=_KEY, hint="Keep one of them")
    (instruction,) = contents
    if not isinstance(instruction, str) or not instruction.strip():
        raise ConfigError("is not a text", file=file, key=_KEY, hint="Write content: what counts as unsafe")
    if "{{" in instruction or "{%" in instruction:
        raise ConfigError(
            "has template variables, but the guard does not render this prompt",
            file=file,
            key=_KEY,
            hint="Write what counts as unsafe; the guard adds the conversation behind it",
        )
    if not isinstance(config.expert, OpenAIExpertConfig):
        raise ConfigError("no expert of type openai uses this prompt", file=file, key=_KEY, hint="Remove the prompt")
    if config.expert.instruction is not None:
        raise ConfigError("is set together with expert.instruction", file=file, key=_KEY, hint="Keep one of them")
    return config.model_copy(update={"expert": config.expert.model_copy(update={"instruction": instruction})})
