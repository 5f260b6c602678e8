"""The model answers of each NeMo rail that count as verdicts.

NeMo's rails turn every answer into a verdict. Topic safety allows every answer except ``off-topic``. Llama Guard blocks
an answer that it cannot read. A self check reads *Not safe.* as safe. An expert must be stricter: other answers are
errors. The forms here are those that the actions and parsers of ``nemoguardrails.library`` and
``nemoguardrails.llm.output_parsers`` read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from ctd_guardrail.errors import ConfigError

__all__ = ["RailVerdicts"]

_Reader = Callable[[str], bool | None]
"""Returns whether a completion is the verdict unsafe; None if it is no verdict."""

# Codes of categories, such as S1 or O14, as Llama Guard states them behind its verdict.
_CODES: Final = r"(?:[\s,:]+[A-Za-z]{1,3}\d{1,3})*"


def _words(unsafe: str, safe: str, *, around: str = r"\s") -> _Reader:
    """Return a reader of answers that are one of two expressions and nothing else."""
    says_unsafe = re.compile(rf"[{around}]*(?:{unsafe})[{around}]*", re.IGNORECASE)
    says_safe = re.compile(rf"[{around}]*(?:{safe})[{around}]*", re.IGNORECASE)

    def read(completion: str) -> bool | None:
        if says_unsafe.fullmatch(completion):
            return True
        return False if says_safe.fullmatch(completion) else None

    return read


def _lines(field: str, unsafe: str, safe: str) -> _Reader:
    """Return a reader of answers in which exactly one line states a field."""
    stated = re.compile(rf"{re.escape(field)}\s*:\s*(\w+)", re.IGNORECASE)
    line = re.compile(rf"^\s*{re.escape(field)}\s*:\s*({unsafe}|{safe})\s*$", re.IGNORECASE | re.MULTILINE)

    def read(completion: str) -> bool | None:
        lines = line.findall(completion)
        if len(lines) != 1 or len(stated.findall(completion)) != 1:
            return None
        return bool(lines[0].lower() == unsafe)

    return read


def _user_safety(completion: str) -> bool | None:
    """Read the JSON object of NVIDIA's content safety models."""
    try:
        answer = json.loads(completion)
    except (ValueError, RecursionError):
        return None
    stated = answer.get("User Safety") if isinstance(answer, dict) else None
    return {"unsafe": True, "safe": False}.get(stated.lower()) if isinstance(stated, str) else None


# NeMo takes whole reasoning blocks off an answer. What is left of one means that it was cut off.
_THOUGHT: Final = re.compile(r"</?think>")

# By the name of the rail's action.
_ACTIONS: Final[Mapping[str, _Reader]] = {
    "topic_safety_check_input": _words("off-topic", "on-topic"),
    "llama_guard_check_input": _words(rf"unsafe{_CODES}", "safe"),
}
# By the name of the output parser of the rail's prompt.
_PARSERS: Final[Mapping[str, _Reader]] = {
    "is_content_safe": _words(rf"unsafe{_CODES}|yes", "safe|no", around=r"\W"),
    "nemoguard_parse_prompt_safety": _user_safety,
    "nemotron_content_safety_parse_prompt_safety": _lines("User Safety", "unsafe", "safe"),
    "nemotron_reasoning_parse_prompt_safety": _lines("Prompt harm", "harmful", "unharmful"),
}
# What a rail reads with where its prompt names no parser; None: it cannot do without.
_DEFAULT_PARSERS: Final[Mapping[str, str | None]] = {
    "self_check_input": "is_content_safe",
    "content_safety_check_input": None,
}
# Parsers of NeMo that read something else than a verdict on the user's message.
_OTHER_PARSERS: Final = frozenset(
    {
        "user_intent",
        "bot_intent",
        "bot_message",
        "verbose_v1",
        "nemoguard_parse_response_safety",
        "nemotron_content_safety_parse_response_safety",
        "nemotron_reasoning_parse_response_safety",
    }
)


class RailVerdicts:
    """The verdicts that the model behind one rail may give.

    Args:
        action: Name of the rail's action.
        parser: The ``output_parser`` of its prompt; None: it names none.

    Raises:
        ConfigError: The prompt names no parser although the rail needs one, or one that reads something else.
    """

    def __init__(self, action: str, parser: str | None) -> None:
        self._parser: str | None = None
        self._reader = _ACTIONS.get(action)
        if action in _DEFAULT_PARSERS:
            self._parser = parser or _DEFAULT_PARSERS[action]
            if self._parser is None or self._parser in _OTHER_PARSERS:
                problem = "names no output_parser" if self._parser is None else f"has the output_parser {parser}"
                raise ConfigError(
                    f"the prompt of {action} {problem}, so that the rail cannot read a verdict",
                    key="expert.flow",
                    hint=f"Set output_parser to one of {', '.join(sorted(_PARSERS))} in the NeMo configuration",
                )
            # A parser of the operator's own knows its forms by itself.
            self._reader = _PARSERS.get(self._parser)

    def include(self, completion: str, *, is_blocked: bool, registered: Collection[Any]) -> bool:
        """Return whether a rail's outcome is the verdict of its model.

        Args:
            completion: The model's answer.
            is_blocked: The rail's outcome.
            registered: Names of the parsers that NeMo knows. Where it does not know one, it takes every answer for
                safe.
        """
        if not completion.strip() or _THOUGHT.search(completion):
            return False
        if self._parser is not None and self._parser not in registered:
            return False
        return self._reader is None or self._reader(completion) is is_blocked
