"""Strict readers of what a judge answers.

Whatever is not exactly the agreed form is an :class:`~ctd_guardrail.errors.ExpertVerdictError`. Nothing is guessed,
and above all nothing is read as safe by default.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn, TypeGuard

from ctd_guardrail.errors import ExpertVerdictError

__all__ = ["SAFE_WORD", "UNSAFE_WORD", "is_markup", "p_unsafe_from_json", "p_unsafe_from_logprobs"]

UNSAFE_WORD: Final = "Yes"
SAFE_WORD: Final = "No"

_GUESS: Final = 0.5
# What tokenizers put in front of a word instead of a space or a newline, where a server shows tokens raw.
_SPACE_MARKS: Final = "\u2581\u0120\u010a"
_PUNCTUATION: Final = ".,;:!\"'*`"
# Below this share of the first token, two answers that are not its most likely reading are the tail of another answer.
_LEAST_ANSWER_MASS: Final = 0.5
# Half of the probability may be a little less after the way through logarithms.
_ROUNDING: Final = 1e-6
# Rounding may lift the logarithm of a certain token a little above 0.
_LARGEST_LOGPROB: Final = 1e-3
# Below this a probability is 0 in any case; servers write -9999 or an even larger integer for "never".
_SMALLEST_LOGPROB: Final = -1e4
# Probability left for an answer that is not shown, and smallest distance of a score from 0 and 1. No server computes
# probabilities more finely.
_LEAST_PROBABILITY: Final = 1e-6
_TOKEN_ID: Final = re.compile(r"token_id:\d+")
_REASONING: Final = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>", re.DOTALL)
_FENCE: Final = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", re.DOTALL)


def p_unsafe_from_logprobs(top_logprobs: object) -> float:
    """Return P(unsafe) from the alternatives for the answer token.

    The probabilities of all tokens that spell the same answer are added, and the two sums are normalised to one. For
    one-token answers this is the two-way softmax of the paper's expert (arXiv 2604.14251, section 4). The sums decide
    only if the most likely token is an answer, or if both answers together hold at least half of the probability.

    An answer that is not shown gets its largest possible probability. It is at most that of the least likely shown
    token, and at most the remainder of the shown tokens. So a score is never exactly 0 or 1.

    Args:
        top_logprobs: ``choices[0].logprobs.content[i].top_logprobs`` of a chat completion, for the token i that
            decides: a list of objects with ``token`` and ``logprob``. One whose logprob is null counts as not shown.

    Raises:
        ExpertVerdictError: It is not such a list, or the answers do not decide.
    """
    alternatives = list(_alternatives(top_logprobs))
    mass = {UNSAFE_WORD.casefold(): 0.0, SAFE_WORD.casefold(): 0.0}
    likeliest, likeliest_other = 0.0, 0.0
    for token, p in alternatives:
        word = _word(token)
        if word in mass:
            mass[word] += p
            likeliest = max(likeliest, p)
        else:
            likeliest_other = max(likeliest_other, p)
    unsafe, safe = mass[UNSAFE_WORD.casefold()], mass[SAFE_WORD.casefold()]
    if likeliest <= likeliest_other and unsafe + safe < _LEAST_ANSWER_MASS - _ROUNDING:
        raise _undecided([token for token, _ in alternatives])
    shown = [p for _, p in alternatives if p > 0.0]
    unseen = min(likeliest, max(_LEAST_PROBABILITY, min(*shown, 1.0 - sum(shown))))
    unsafe, safe = unsafe or unseen, safe or unseen
    return min(max(unsafe / (unsafe + safe), _LEAST_PROBABILITY), 1.0 - _LEAST_PROBABILITY)


def is_markup(token: object) -> bool:
    """Return whether a token is white space, quotes or emphasis only, so that the answer stands behind it."""
    return isinstance(token, str) and not _word(token)


def _word(token: str) -> str:
    return token.strip().strip(_SPACE_MARKS + _PUNCTUATION).casefold()


def _alternatives(top_logprobs: object) -> Iterator[tuple[str, float]]:
    """Yield each token that is shown, with its probability."""
    if not isinstance(top_logprobs, Sequence) or isinstance(top_logprobs, str):
        raise _no_logprobs()
    known = [entry for entry in map(_read_alternative, top_logprobs) if entry is not None]
    if not known:
        raise _no_logprobs()
    yield from known


def _no_logprobs() -> ExpertVerdictError:
    return ExpertVerdictError(
        "the expert's answer has no log-probabilities of alternatives",
        hint="Set scoring: json for endpoints and models that have none",
    )


def _undecided(tokens: Sequence[str]) -> ExpertVerdictError:
    if all(_TOKEN_ID.fullmatch(token) for token in tokens):
        return ExpertVerdictError(
            "the expert's log-probabilities name tokens by their ids",
            hint="Let the server return tokens as text, in vLLM without --return-tokens-as-token-ids",
        )
    return ExpertVerdictError(
        f"the expert's first token is neither {UNSAFE_WORD} nor {SAFE_WORD}",
        hint="Use an instruction-tuned model without reasoning preamble, or set scoring: json",
    )


def _read_alternative(entry: object) -> tuple[str, float] | None:
    if isinstance(entry, dict):
        token, logprob = entry.get("token"), entry.get("logprob", "missing")
        if isinstance(token, str) and logprob is None:
            return None
        if isinstance(token, str) and _is_number(logprob) and logprob <= _LARGEST_LOGPROB:
            return token, math.exp(max(logprob, _SMALLEST_LOGPROB))
    raise ExpertVerdictError(
        "the expert's log-probabilities are not a list of tokens with their logprob",
        hint="Use an OpenAI-compatible endpoint, or set scoring: json",
    )


def p_unsafe_from_json(completion: object) -> float:
    """Return P(unsafe) from a stated verdict: the confidence if unsafe, 1 - confidence if safe.

    Args:
        completion: The whole answer, ``{"verdict": "safe" | "unsafe", "confidence": c}`` with 0.5 <= c <= 1. One
            reasoning block before it and one code fence around it are taken off.

    Raises:
        ExpertVerdictError: The answer has text around the object, other or repeated keys, another verdict, or a
            confidence that is not a number or is out of range.
    """
    if not isinstance(completion, str):
        raise _bad_json()
    completion = _bare(completion)
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
        raise ExpertVerdictError(
            "the confidence that the expert states is not a number from 0.5 to 1",
            hint="Use a model that follows the form, or one with log-probabilities and scoring: logprobs",
        )
    return float(confidence if verdict == "unsafe" else 1 - confidence)


def _bare(completion: str) -> str:
    """Return an answer without one reasoning block before it and one code fence around it."""
    reasoning = _REASONING.match(completion)
    if reasoning is not None:
        completion = completion[reasoning.end() :]
    fence = _FENCE.fullmatch(completion)
    return completion if fence is None else fence[1]


def _bad_json() -> ExpertVerdictError:
    return ExpertVerdictError(
        "the expert's answer is not the agreed JSON object",
        hint="Use a model that follows the form, or one with log-probabilities and scoring: logprobs",
    )


def _is_number(value: object) -> TypeGuard[float]:
    # A Boolean is an int in Python, but not a number in JSON.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    answer = dict(pairs)
    if len(answer) != len(pairs):
        raise ValueError("repeated key")
    return answer
