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
from ctd_guardrail.probes.spec import OUTPUTS, Component, ProbeSpec

WIDTH = 6
KINDS = ("mean", "ema", "rolling", "attention", "multimax")

# One of each kind, and heads that share some of them.
MIXED = ProbeSpec(
    components=(
        Component(outputs=OUTPUTS),
        Component(reduction="attention", outputs=("e1", "p"), heads=3),
        Component(reduction="multimax", outputs=("p",), heads=2),
        Component(reduction="ema", outputs=("eta", "e0")),
        Component(reduction="rolling", outputs=OUTPUTS, span=5),
    ),
)


def tensors(spec: ProbeSpec, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in spec.shapes(WIDTH).items()}


def ragged(*lengths: int, seed: int = 0) -> Ragged:
    return Ragged(torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(seed)), lengths)


def test_d_is_the_formula_written_out() -> None:
    spec = ProbeSpec()
    parameters = tensors(spec, scale=0.2)
    h = np.random.default_rng(1).normal(size=WIDTH)
    logit_p, logit_eta, e1, e0 = parameters["0.weight"] @ h + parameters["bias"]
    p, eta = 1 / (1 + np.exp(-logit_p)), 1 / (1 + np.exp(-logit_eta))
    e1, e0 = np.clip([e1, e0], 0, 1)
    expected = [p, eta * (e1 - p) + (1 - eta) * (p - e0)]
    pooled = torch.tensor(h[None], dtype=torch.float32)
    assert np.allclose(Probes(spec, parameters).from_pooled(pooled), expected)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    single = ProbeSpec(components=(Component(reduction="attention", outputs=OUTPUTS),))
    both = ProbeSpec(components=single.components * 2)
    members = [tensors(single, seed, scale=0.1) for seed in (1, 2)]
    joined = {"bias": (members[0]["bias"] + members[1]["bias"]) / 2}
    for number, member in enumerate(members):
        joined |= {f"{number}.query": member["0.query"], f"{number}.value": member["0.value"] / 2}
    tokens = ragged(3, 30)
    expected = sum(torch.logit(Probes(single, member)(tokens)[:, 0]) for member in members) / 2
    assert torch.allclose(torch.logit(Probes(both, joined)(tokens)[:, 0]), expected, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1e4))
def test_p_and_d_stay_in_range_for_any_activation(seed: int, scale: float) -> None:
    spec = ProbeSpec(components=tuple(Component(reduction=kind, outputs=OUTPUTS) for kind in KINDS))
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
    spec = ProbeSpec()
    probes = Probes(spec, tensors(spec, scale=0.3))
    tokens = ragged(1, 7, 300)
    assert torch.allclose(probes(tokens), probes.from_pooled(segment_mean(tokens)), atol=1e-6)
    with pytest.raises(ConfigError, match="read every token"):
        Probes(MIXED, tensors(MIXED)).from_pooled(segment_mean(tokens))


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
