from typing import Any

import pytest
from pydantic import ValidationError

from ctd_guardrail.probes.spec import OUTPUTS, Component, ProbeSpec


def test_what_is_not_said_is_four_linear_heads_on_the_mean() -> None:
    spec = ProbeSpec()
    assert OUTPUTS == ("p", "eta", "e1", "e0")
    assert spec.shapes(7) == {"bias": (4,), "0.weight": (4, 7)}
    assert spec.is_linear_in_mean
    assert ProbeSpec.model_validate_json(spec.model_dump_json()) == spec


def test_shapes_follow_kinds_and_heads() -> None:
    spec = ProbeSpec(
        components=(
            Component(reduction="attention", outputs=("p", "eta"), heads=3),
            Component(reduction="multimax", outputs=("e1",), heads=5),
            Component(reduction="rolling", outputs=("e0", "p")),
        ),
    )
    assert spec.shapes(7) == {
        "bias": (4,),
        "0.query": (3, 7),
        "0.value": (2, 3, 7),
        "1.value": (1, 5, 7),
        "2.weight": (2, 7),
    }
    assert [component.columns for component in spec.components] == [9, 5, 2]
    assert not spec.is_linear_in_mean


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"components": []}, "at least 1 item"),
        ({"components": [{"outputs": ["p", "eta", "e1"]}]}, "no component contributes to e0"),
        ({"components": [{"outputs": ["p", "eta", "e1", "e0", "value"]}]}, "'e1' or 'e0'"),
        ({"delegation": "direct"}, "Extra inputs"),
        ({"components": [{"outputs": ["p", "p", "eta", "e1", "e0"]}]}, "repeats a name"),
        ({"components": [{"outputs": ["p"], "reduction": "median"}]}, "'multimax'"),
        ({"components": [{"outputs": ["p"], "span": 0}]}, "greater than or equal to 1"),
        ({"components": [{"outputs": ["p"], "heads": 1_000_000}]}, "less than or equal to 4096"),
        ({"components": [{"outputs": ["p"], "decay": 1.0}]}, "less than 1"),
        ({"kind": "mean"}, "Extra inputs"),
    ],
)
def test_odd_specs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProbeSpec.model_validate(fields)
