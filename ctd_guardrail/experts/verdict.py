"""Strict readers of what a judge answers.

Whatever is not exactly the agreed form is an :class:`~ctd_guardrail.errors.ExpertVerdictError`. Nothing is guessed,
and above all nothing is read as safe by default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeGuard

from ctd_guardrail.errors import ExpertVerdictError

__all__ = ["SAFE_WORD", "UNSAFE_WORD", "p_unsafe_from_json", "p_unsafe_from_logprobs"]

UNSAFE_WORD: Final = "Yes"
SAFE_WORD: Final = "No"

_GUESS: Final = 0.5
# What tokenizers put in front of a word instead of a space, where a server shows tokens raw.
_SPACE_MARKS: Final = "\u2581\u0120"
# Below this share the two answers are noise in the tail of some other answer, for example of a reasoning preamble.
_LEAST_ANSWER_MASS: Final = 0.01
# Rounding may lift the logarithm of a certain token a little above 0.
_LARGEST_LOGPROB: Final = 1e-3
# Below this a probability is 0 in any case; servers write -9999 or an even larger integer for "never".
_SMALLEST_LOGPROB: Final = -1e4


def p_unsafe_from_logprobs(top_logprobs: object) -> float:
    """Return P(unsafe) from the alternatives for the answer token.

    The probabilities of all tokens that spell the same answer are added up, and the two sums are normalised to one:
    the two-way softmax of the paper's expert (arXiv 2604.14251, section 4) for one-token answers.

    Args:
        top_logprobs: ``choices[0].logprobs.content[0].top_logprobs`` of a chat completion: a list of objects with
            ``token`` and ``logprob``.

    Raises:
        ExpertVerdictError: It is not such a list, or neither answer is among the alternatives.
    """
    if not isinstance(top_logprobs, Sequence) or isinstance(top_logprobs, str) or not top_logprobs:
        raise ExpertVerdictError(
            "the expert's answer has no log-probabilities",
            hint="Set scoring: json for endpoints and models that have none",
        )
    mass = {UNSAFE_WORD.casefold(): 0.0, SAFE_WORD.casefold(): 0.0}
    for entry in top_logprobs:
        token, logprob = _read_alternative(entry)
        word = token.strip().strip(_SPACE_MARKS).casefold()
        if word in mass:
            mass[word] += math.exp(logprob)
    unsafe, safe = mass[UNSAFE_WORD.casefold()], mass[SAFE_WORD.casefold()]
    if unsafe + safe < _LEAST_ANSWER_MASS:
        raise ExpertVerdictError(
            f"the expert's first token is neither {UNSAFE_WORD} nor {SAFE_WORD}",
            hint="Use an instruction-tuned model without reasoning preamble, or set scoring: json",
        )
    return unsafe / (unsafe + safe)


def _read_alternative(entry: object) -> tuple[str, float]:
    if isinstance(entry, dict):
        token, logprob = entry.get("token"), entry.get("logprob")
        if isinstance(token, str) and _is_number(logprob) and logprob <= _LARGEST_LOGPROB:
            return token, max(logprob, _SMALLEST_LOGPROB)
    raise ExpertVerdictError("the expert's log-probabilities are not a list of tokens with their logprob")


def p_unsafe_from_json(completion: object) -> float:
    """Return P(unsafe) from a stated verdict: the confidence if unsafe, 1 - confidence if safe.

    Args:
        completion: The whole answer, ``{"verdict": "safe" | "unsafe", "confidence": c}`` with 0.5 <= c <= 1.

    Raises:
        ExpertVerdictError: It is anything else: other text around it, other or repeated keys, another verdict, or a
            confidence that is no number or out of range.
    """
    if not isinstance(completion, str):
        raise _bad_json()
    try:
        # Python's reader would take NaN, and the last of two verdicts.
        answer = json.loads(completion, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise _bad_json() from None
    if not isinstance(answer, dict) or answer.keys() != {"verdict", "confidence"}:
        raise _bad_json()
    verdict, confidence = answer["verdict"], answer["confidence"]
    if not isinstance(verdict, str) or verdict not in {"safe", "unsafe"}:
        raise _bad_json()
    if not _is_number(confidence) or not _GUESS <= confidence <= 1:
        raise _bad_json()
    return float(confidence if verdict == "unsafe" else 1 - confidence)


def _bad_json() -> ExpertVerdictError:
    return ExpertVerdictError(
        "the expert's answer is not the agreed JSON object",
        hint="Use a model that follows the form, or one with log-probabilities and scoring: logprobs",
    )


def _is_number(value: object) -> TypeGuard[float]:
    # A Boolean is an int to Python, but no number to the judge that wrote it.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    answer = dict(pairs)
    if len(answer) != len(pairs):
        raise ValueError("repeated key")
    return answer
