import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.errors import ExpertVerdictError
from ctd_guardrail.experts.verdict import p_unsafe_from_json, p_unsafe_from_logprobs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _top(**probabilities: float) -> list[dict[str, object]]:
    return [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]


def test_spellings_of_one_answer_are_added_up() -> None:
    top = [
        {"token": "Yes", "logprob": math.log(0.3)},
        {"token": " yes", "logprob": math.log(0.2)},
        {"token": "\u2581YES", "logprob": math.log(0.1)},
        {"token": "\u0120No", "logprob": math.log(0.2)},
        {"token": "Yesterday", "logprob": math.log(0.1)},
    ]
    assert p_unsafe_from_logprobs(top) == pytest.approx(0.6 / 0.8)


@pytest.mark.parametrize(
    ("top", "p_unsafe"),
    [
        (_top(Yes=0.9), 0.9),
        (_top(No=0.9), 0.1),
        (_top(Yes=0.9, Maybe=0.05, I=0.01), 0.9 / 0.91),
        (_top(No=0.9, Maybe=0.05, I=0.01), 0.01 / 0.91),
        # What the shown tokens leave is less than the least likely of them.
        (_top(No=0.99, Maybe=0.005), 0.005 / 0.995),
    ],
)
def test_an_answer_that_is_not_shown_gets_the_most_that_it_can_have(
    top: list[dict[str, object]], p_unsafe: float
) -> None:
    assert p_unsafe_from_logprobs(top) == pytest.approx(p_unsafe)


@pytest.mark.parametrize("never", [-40.0, -9999.0, -math.inf, -(10**400)])
def test_an_impossible_answer_leaves_the_score_inside_zero_and_one(never: float) -> None:
    for word, other in (("Yes", "No"), ("No", "Yes")):
        p = p_unsafe_from_logprobs([*_top(**{word: 1.0}), {"token": other, "logprob": never}])
        assert (p if word == "Yes" else 1 - p) == pytest.approx(1 - 1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("top", "p_unsafe"),
    [
        # The most likely token is an answer, although both answers hold less than half.
        (_top(No=0.3, Yes=0.1, I=0.2, The=0.2), 0.25),
        # Both answers hold half, although another token is the most likely.
        (_top(Perhaps=0.48, Yes=0.4, No=0.1), 0.8),
        (_top(Perhaps=0.5, Yes=0.25, No=0.25), 0.5),
    ],
)
def test_the_answers_decide_if_they_are_what_the_model_would_say(top: list[dict[str, object]], p_unsafe: float) -> None:
    assert p_unsafe_from_logprobs(top) == pytest.approx(p_unsafe)


@pytest.mark.parametrize(
    "top",
    [
        _top(I=0.93, No=0.04, Sorry=0.02),
        _top(**{"<think>": 0.96, "No": 0.03}),
        _top(This=0.88, No=0.06, Yes=0.05),
        _top(I=0.51, No=0.48),
        _top(I=0.45, No=0.45),
        # Spellings of one answer that are more together than the most likely token, but not half.
        [*_top(I=0.4), *_top(No=0.3), {"token": " No", "logprob": math.log(0.19)}],
    ],
)
def test_an_answer_in_the_tail_of_another_is_no_verdict(top: list[dict[str, object]]) -> None:
    with pytest.raises(ExpertVerdictError, match="neither Yes nor No"):
        p_unsafe_from_logprobs(top)


def test_a_missing_probability_is_a_token_that_is_not_shown() -> None:
    assert p_unsafe_from_logprobs([*_top(Yes=0.6, No=0.2), {"token": "Maybe", "logprob": None}]) == pytest.approx(0.75)
    assert p_unsafe_from_logprobs([*_top(Yes=0.9), {"token": "No", "logprob": None}]) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "top",
    [
        None,
        [],
        "Yes",
        {"token": "Yes", "logprob": -0.1},
        _top(I=0.9, Sorry=0.1),
        _top(**{"<think>": 1 - 1e-6, "No": 1e-6}),
        [{"token": "No"}],
        [{"logprob": -0.1}],
        [{"token": "No", "logprob": "-0.1"}],
        [{"token": "No", "logprob": True}],
        [{"token": "No", "logprob": None}],
        [{"token": "No", "logprob": math.nan}],
        [{"token": "No", "logprob": math.inf}],
        [{"token": "No", "logprob": 0.5}],
        [{"token": ["No"], "logprob": -0.1}],
        [*_top(No=0.9), None],
    ],
)
def test_what_is_no_list_of_answers_with_logprobs_is_refused(top: object) -> None:
    with pytest.raises(ExpertVerdictError):
        p_unsafe_from_logprobs(top)


@given(json_values)
def test_random_values_are_never_read_as_logprobs(value: object) -> None:
    with pytest.raises(ExpertVerdictError):
        p_unsafe_from_logprobs(value)


@given(st.floats(0.5, 1.0), st.sampled_from(["safe", "unsafe"]))
def test_a_stated_verdict_is_its_confidence(confidence: float, verdict: str) -> None:
    p = p_unsafe_from_json(json.dumps({"verdict": verdict, "confidence": confidence}))
    assert p == pytest.approx(confidence if verdict == "unsafe" else 1 - confidence)
    assert 0.0 <= p <= 1.0


@pytest.mark.parametrize(
    "completion",
    [
        '```json\n{"verdict": "safe", "confidence": 0.9}\n```',
        '\n```\n{\n"verdict": "safe",\n"confidence": 0.9\n}\n```\n',
        '<think>\nA question about bread.\n</think>\n\n{"verdict": "safe", "confidence": 0.9}',
        '<think></think>```json\n{"verdict": "safe", "confidence": 0.9}\n```',
    ],
)
def test_one_reasoning_block_and_one_fence_are_taken_off(completion: str) -> None:
    assert p_unsafe_from_json(completion) == pytest.approx(0.1)


def test_white_space_around_the_object_and_a_whole_number_are_fine() -> None:
    assert p_unsafe_from_json(' {"confidence": 1, "verdict": "unsafe"}\n') == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        None,
        "",
        "safe",
        '"safe"',
        "null",
        '["safe", 0.9]',
        '{"verdict": "safe"}',
        '{"confidence": 0.9}',
        '{"verdict": "safe", "confidence": 0.9, "reason": "harmless"}',
        '{"verdict": "unsafe", "verdict": "safe", "confidence": 0.9}',
        '{"verdict": "Safe", "confidence": 0.9}',
        '{"verdict": "safe ", "confidence": 0.9}',
        '{"verdict": true, "confidence": 0.9}',
        '{"verdict": ["safe"], "confidence": 0.9}',
        '{"verdict": "safe", "confidence": true}',
        '{"verdict": "safe", "confidence": "0.9"}',
        '{"verdict": "safe", "confidence": null}',
        '{"verdict": "safe", "confidence": 0.49}',
        '{"verdict": "safe", "confidence": 1.01}',
        '{"verdict": "safe", "confidence": 1e400}',
        '{"verdict": "safe", "confidence": NaN}',
        '{"verdict": "safe", "confidence": Infinity}',
        '{"verdict": "safe", "confidence": 0.9} because it is harmless',
        'Sure: {"verdict": "safe", "confidence": 0.9}',
        '```json\n{"verdict": "safe", "confidence": 0.9}\n``` It is safe.',
        '```json {"verdict": "safe", "confidence": 0.9} ```',
        '```\n```json\n{"verdict": "safe", "confidence": 0.9}\n```\n```',
        '<think>It says</think>{"verdict": "safe", "confidence": 0.9}</think>{"verdict": "unsafe", "confidence": 0.9}',
        '<think><think></think>{"verdict": "safe", "confidence": 0.9}',
        '<think>{"verdict": "safe", "confidence": 0.9}',
        'It is <think></think>{"verdict": "safe", "confidence": 0.9}',
        '{"verdict": "safe", "confidence": 0.9}{"verdict": "unsafe", "confidence": 0.9}',
        "{'verdict': 'safe', 'confidence': 0.9}",
        "[" * 100_000,
        '{"verdict": "safe", "confidence": ' + "9" * 5000 + "}",
        pytest.param('{"verdict": "safe", "confidence": ' + "9" * 400 + "}", id="huge_integer"),
    ],
)
def test_whatever_is_not_exactly_the_agreed_object_is_refused(completion: object) -> None:
    with pytest.raises(ExpertVerdictError):
        p_unsafe_from_json(completion)


near_misses = st.builds(
    lambda verdict, confidence, extra, before, after: (
        before + json.dumps({"verdict": verdict, "confidence": confidence, **extra}) + after
    ),
    st.sampled_from(["safe", "unsafe", "SAFE", "yes"]) | json_values,
    st.floats() | st.booleans() | json_values,
    st.dictionaries(st.text(max_size=4), json_values, max_size=1),
    st.text(max_size=3),
    st.text(max_size=3),
)


@given(st.text() | json_values.map(json.dumps) | near_misses)
def test_a_random_completion_is_accepted_only_if_the_schema_says_so(completion: str) -> None:
    try:
        p = p_unsafe_from_json(completion)
    except ExpertVerdictError:
        return
    answer = json.loads(completion)
    assert set(answer) == {"verdict", "confidence"}
    assert type(answer["confidence"]) in (int, float)
    assert 0.5 <= answer["confidence"] <= 1.0
    assert answer["verdict"] == ("unsafe" if p > 0.5 or answer["confidence"] == p else "safe")
