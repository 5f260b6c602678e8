from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_guardrail.errors import ConfigError, PolicyFormatError
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from ctd_guardrail.probes.spec import Component, DelegationCosts, ProbeSpec

WIDTH = 6
KINDS = ("mean", "ema", "rolling", "attention", "multimax")
PLUG_IN = ("p", "eta", "e1", "e0")

# One of each kind, and heads that share some of them.
MIXED = ProbeSpec(
    components=(
        Component(outputs=PLUG_IN),
        Component(reduction="attention", outputs=("e1", "p"), heads=3),
        Component(reduction="multimax", outputs=("p",), heads=2),
        Component(reduction="ema", outputs=("eta", "e0")),
        Component(reduction="rolling", outputs=PLUG_IN, span=5),
    ),
    features=("length", "logit", "uncertainty"),
)


def tensors(spec: ProbeSpec, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in spec.shapes(WIDTH).items()}


def ragged(*lengths: int, seed: int = 0) -> Ragged:
    return Ragged(torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(seed)), lengths)


def test_d_is_the_formula_written_out() -> None:
    spec = ProbeSpec(costs=DelegationCosts(missed=1.0, false_alarm=4.0))
    parameters = tensors(spec, scale=0.2)
    h = np.random.default_rng(1).normal(size=WIDTH)
    logit_p, logit_eta, e1, e0 = parameters["0.weight"] @ h + parameters["bias"]
    p, eta = 1 / (1 + np.exp(-logit_p)), 1 / (1 + np.exp(-logit_eta))
    e1, e0 = np.clip([e1, e0], 0, 1)
    expected = [p, 0.25 * eta * (e1 - p) + (1 - eta) * (p - e0)]
    pooled = torch.tensor(h[None], dtype=torch.float32)
    assert np.allclose(Probes(spec, parameters).from_pooled(pooled), expected)


def test_features_add_to_the_delegation_heads_and_leave_p_alone() -> None:
    spec = ProbeSpec(delegation="binary", components=(Component(outputs=("p", "value")),))
    with_features = spec.model_copy(update={"features": ("length", "logit", "uncertainty")})
    parameters = tensors(spec, scale=0.3)
    extra = np.array([[0.5, -0.25, 2.0]], np.float32)
    tokens = ragged(1, 20)
    p, plain = Probes(spec, parameters)(tokens).unbind(1)
    same_p, d = Probes(with_features, {**parameters, "extra": extra})(tokens).unbind(1)
    logit = torch.logit(p)
    expected = torch.logit(plain) + 0.5 * torch.tensor([1.0, 20.0]).log() - 0.25 * logit + 2 * (p - 0.5).abs()
    assert torch.equal(p, same_p)
    assert torch.allclose(torch.logit(d), expected, atol=1e-5)


def test_a_direct_value_is_held_in_range() -> None:
    spec = ProbeSpec(delegation="direct", components=(Component(outputs=("p", "value")),))
    parameters = {"bias": np.array([0.0, -3.0], np.float32), "0.weight": np.zeros((2, WIDTH), np.float32)}
    parameters["0.weight"][1, 0] = 1.0
    d = Probes(spec, parameters)(Ragged(torch.tensor([[0.0], [2.5], [9.0]]) * torch.eye(1, WIDTH), (1, 1, 1)))[:, 1]
    assert d.tolist() == [-1.0, -0.5, 1.0]


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    outputs = ("p", "value")
    single = ProbeSpec(delegation="direct", components=(Component(reduction="attention", outputs=outputs),))
    both = ProbeSpec(delegation="direct", components=single.components * 2)
    members = [tensors(single, seed, scale=0.1) for seed in (1, 2)]
    joined = {"bias": (members[0]["bias"] + members[1]["bias"]) / 2}
    for number, member in enumerate(members):
        joined |= {f"{number}.query": member["0.query"], f"{number}.value": member["0.value"] / 2}
    tokens = ragged(3, 30)
    expected = sum(Probes(single, member)(tokens)[:, 1] for member in members) / 2
    assert torch.allclose(Probes(both, joined)(tokens)[:, 1], expected, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1e4), st.sampled_from(["plug_in", "direct", "binary"]))
def test_p_and_d_stay_in_range_for_any_activation(seed: int, scale: float, delegation: Any) -> None:
    outputs = PLUG_IN if delegation == "plug_in" else ("p", "value")
    components = tuple(Component(reduction=kind, outputs=outputs) for kind in KINDS)
    spec = ProbeSpec(delegation=delegation, components=components)
    tokens = ragged(1, 4, 50, seed=seed)
    p, d = Probes(spec, tensors(spec, seed))(Ragged(tokens.values * scale, tokens.lengths)).unbind(1)
    assert ((p >= 0) & (p <= 1)).all()
    assert ((d >= -1) & (d <= 1)).all()


def test_a_window_scores_the_same_alone_and_among_others() -> None:
    probes = Probes(MIXED, tensors(MIXED, scale=0.2))
    together = ragged(1, 7, 300, 40)
    alone = [probes(Ragged(part, (len(part),))) for part in together.values.split(list(together.lengths))]
    assert torch.allclose(probes(together), torch.cat(alone), atol=1e-6)


def test_a_half_precision_token_counts_at_its_own_value() -> None:
    probes = Probes(MIXED, tensors(MIXED, scale=0.2))
    tokens = ragged(5, 60)
    half = Ragged(tokens.values.bfloat16(), tokens.lengths)
    assert torch.equal(probes(half), probes(Ragged(half.values.float(), half.lengths)))


def test_pooled_activations_are_enough_for_means_and_for_nothing_else() -> None:
    spec = ProbeSpec(features=("length",))
    probes = Probes(spec, tensors(spec, scale=0.3))
    tokens = ragged(1, 7, 300)
    assert torch.allclose(probes(tokens), probes.from_pooled(segment_mean(tokens), tokens.lengths), atol=1e-6)
    with pytest.raises(ConfigError, match="read the length"):
        probes.from_pooled(segment_mean(tokens))
    with pytest.raises(ConfigError, match="read every token"):
        Probes(MIXED, tensors(MIXED)).from_pooled(segment_mean(tokens), tokens.lengths)


def test_tensors_survive_a_round_trip() -> None:
    parameters = tensors(MIXED)
    probes = Probes(MIXED, parameters)
    assert probes.width == WIDTH
    again = probes.tensors()
    assert again.keys() == parameters.keys()
    assert all(np.array_equal(again[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": np.zeros(3, np.float32)}, "'bias' is float32"),
        ({"0.weight": np.zeros(4, np.float32)}, "'0.weight'|tensor"),
        ({"surplus": np.zeros(1, np.float32)}, "no tensor 'surplus'"),
        ({"1.weight": np.zeros((4, WIDTH), np.float32)}, "no tensor '1.weight'"),
        ({"1.query": None}, "lack tensor '1.query'"),
        ({"extra": None}, "lack tensor 'extra'"),
        ({"2.value": np.zeros((1, 3, WIDTH), np.float32)}, "not float32"),
        ({"bias": np.zeros(4)}, "is float64"),
        ({"bias": np.array([0, 0, np.nan, 0], np.float32)}, "not finite"),
        ({"4.weight": np.full((4, WIDTH), np.inf, np.float32)}, "not finite"),
    ],
)
def test_odd_tensors_are_refused(change: dict[str, np.ndarray[Any, Any] | None], message: str) -> None:
    changed = {name: array for name, array in (tensors(MIXED) | change).items() if array is not None}
    with pytest.raises(PolicyFormatError, match=message):
        Probes(MIXED, changed)


def test_no_tensors_at_all_are_refused() -> None:
    with pytest.raises(PolicyFormatError, match="lack tensor"):
        Probes(ProbeSpec(), {})


def test_columns_that_were_projected_elsewhere_give_the_same_scores() -> None:
    rng = np.random.default_rng(0)
    shapes = MIXED.shapes(WIDTH).items()
    probes = Probes(MIXED, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes})
    tokens = Ragged(torch.from_numpy(rng.normal(size=(11, WIDTH)).astype(np.float32)), (4, 1, 6))
    columns = tokens.values @ torch.from_numpy(probes.projection).T
    assert torch.equal(probes.from_columns(columns, tokens.lengths), probes(tokens))
