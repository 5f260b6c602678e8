from typing import Any

import pytest
from pydantic import ValidationError

from ctd_guardrail.probes.spec import Component, DelegationCosts, ProbeSpec


def test_what_is_not_said_is_four_linear_heads_on_the_mean() -> None:
    spec = ProbeSpec()
    assert spec.outputs == ("p", "eta", "e1", "e0")
    assert spec.shapes(7) == {"bias": (4,), "0.weight": (4, 7)}
    assert spec.is_linear_in_mean
    assert ProbeSpec.model_validate_json(spec.model_dump_json()) == spec


def test_shapes_follow_kinds_heads_and_features() -> None:
    spec = ProbeSpec(
        delegation="direct",
        components=(
            Component(reduction="attention", outputs=("p", "value"), heads=3),
            Component(reduction="multimax", outputs=("value",), heads=5),
            Component(reduction="rolling", outputs=("p",)),
        ),
        features=("logit", "length"),
    )
    assert spec.shapes(7) == {
        "bias": (2,),
        "extra": (1, 2),
        "0.query": (3, 7),
        "0.value": (2, 3, 7),
        "1.value": (1, 5, 7),
        "2.weight": (1, 7),
    }
    assert [component.columns for component in spec.components] == [9, 5, 1]
    assert not spec.is_linear_in_mean


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"components": []}, "at least 1 item"),
        ({"components": [{"outputs": ["p", "eta", "e1"]}]}, "add to p, eta, e1, e0, and no other head"),
        ({"components": [{"outputs": ["p", "eta", "e1", "e0", "value"]}]}, "and no other head"),
        ({"delegation": "direct"}, "direct probes add to p, value"),
        ({"components": [{"outputs": ["p", "p", "eta", "e1", "e0"]}]}, "repeats a name"),
        ({"features": ["length", "length"]}, "repeats a name"),
        ({"features": ["weekday"]}, "'logit', 'uncertainty' or 'length'"),
        ({"components": [{"outputs": ["p"], "reduction": "median"}]}, "'multimax'"),
        ({"components": [{"outputs": ["p"], "span": 0}]}, "greater than or equal to 1"),
        ({"components": [{"outputs": ["p"], "heads": 1_000_000}]}, "less than or equal to 4096"),
        ({"components": [{"outputs": ["p"], "decay": 1.0}]}, "less than 1"),
        ({"costs": {"missed": 0}}, "greater than 0"),
        ({"costs": {"missed": float("inf")}}, "finite"),
        ({"kind": "mean"}, "Extra inputs"),
    ],
)
def test_odd_specs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProbeSpec.model_validate(fields)


def test_costs_are_shares_of_the_larger_one() -> None:
    assert DelegationCosts(missed=5.0, false_alarm=1.0).relative == (1.0, 0.2)
    assert DelegationCosts().relative == (1.0, 1.0)
