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


def test_one_answer_alone_is_certain() -> None:
    assert p_unsafe_from_logprobs(_top(Yes=0.9)) == 1.0
    assert p_unsafe_from_logprobs(_top(No=0.9)) == 0.0


def test_an_impossible_answer_counts_nothing() -> None:
    for never in (-9999.0, -math.inf, -(10**400)):
        assert p_unsafe_from_logprobs([*_top(Yes=0.9), {"token": "No", "logprob": never}]) == 1.0


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
        '```json\n{"verdict": "safe", "confidence": 0.9}\n```',
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
