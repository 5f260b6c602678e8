import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.activations.ragged import Ragged
from ctd_guardrail.errors import PolicyFormatError
from ctd_guardrail.probes.plug_in import PlugInProbes

WIDTH = 6


def tensors(seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"weight": (4, WIDTH), "bias": (4,)}
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def test_d_is_the_formula_written_out() -> None:
    parameters = tensors(scale=0.2)
    h = np.random.default_rng(1).normal(size=WIDTH)
    logit_p, logit_eta, e1, e0 = parameters["weight"] @ h + parameters["bias"]
    p, eta = 1 / (1 + np.exp(-logit_p)), 1 / (1 + np.exp(-logit_eta))
    e1, e0 = np.clip([e1, e0], 0, 1)
    expected = [p, eta * (e1 - p) + (1 - eta) * (p - e0)]
    assert np.allclose(PlugInProbes(parameters).from_pooled(torch.tensor(h[None], dtype=torch.float32)), expected)


@given(st.integers(0, 1000), st.floats(0.01, 1e4))
def test_p_and_d_stay_in_range_for_any_activation(seed: int, scale: float) -> None:
    pooled = torch.tensor(np.random.default_rng(seed).normal(scale=scale, size=(5, WIDTH)), dtype=torch.float32)
    p, d = PlugInProbes(tensors(seed)).from_pooled(pooled).unbind(1)
    assert ((p >= 0) & (p <= 1)).all()
    assert ((d >= -1) & (d <= 1)).all()


def test_a_conversation_scores_the_same_alone_and_among_others() -> None:
    probes = PlugInProbes(tensors())
    parts = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (1, 7, 300)]
    together = probes(Ragged(torch.cat(parts), (1, 7, 300)))
    alone = torch.cat([probes(Ragged(part, (len(part),))) for part in parts])
    assert torch.allclose(together, alone, atol=1e-6)


def test_tensors_survive_a_round_trip() -> None:
    parameters = tensors()
    again = PlugInProbes(parameters).tensors()
    assert again.keys() == parameters.keys()
    assert all(np.array_equal(again[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": np.zeros(3, np.float32)},
        {"weight": np.zeros(4, np.float32)},
        {"extra": np.zeros(1, np.float32)},
        {"bias": np.array([0, 0, np.nan, 0], np.float32)},
        {"weight": np.full((4, WIDTH), np.inf, np.float32)},
    ],
)
def test_odd_tensors_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(PolicyFormatError):
        PlugInProbes(tensors() | change)
    with pytest.raises(PolicyFormatError):
        PlugInProbes({name: array for name, array in tensors().items() if name not in change} | {"x": np.zeros(1)})
