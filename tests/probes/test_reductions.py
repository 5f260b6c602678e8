"""Each kind against the loop that its definition says, one segment at a time, one token after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_guardrail.probes.reductions import matrix, reduce
from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import Component

KINDS = ("mean", "ema", "rolling", "attention", "multimax")
OUTPUTS = ("p", "eta")
Array = np.ndarray[Any, np.dtype[np.float64]]


def loop(component: Component, columns: Array) -> list[float]:
    """Return what one segment adds to each head."""
    tokens, heads = len(columns), component.heads
    match component.reduction:
        case "mean":
            return [math.fsum(column) / tokens for column in columns.T]
        case "ema":
            best = []
            for column in columns.T:
                running = [column[0]]
                for x in column[1:]:
                    running.append(component.decay * running[-1] + (1 - component.decay) * x)
                best.append(max(running))
            return best
        case "rolling":
            span = min(component.span, tokens)
            starts = range(tokens - span + 1)
            return [max(math.fsum(column[i : i + span]) / span for i in starts) for column in columns.T]
        case "attention":
            query, value = columns[:, :heads], columns[:, heads:].reshape(tokens, len(component.outputs), heads)
            weight = np.exp(query - query.max(axis=0))
            weight /= weight.sum(axis=0)
            return [sum(float(weight[:, h] @ value[:, o, h]) for h in range(heads)) for o in range(value.shape[1])]
        case "multimax":
            value = columns.reshape(tokens, len(component.outputs), heads)
            return [sum(float(value[:, o, h].max()) for h in range(heads)) for o in range(value.shape[1])]


components = st.builds(
    Component,
    reduction=st.sampled_from(KINDS),
    outputs=st.just(OUTPUTS),
    heads=st.integers(1, 4),
    decay=st.floats(0.05, 0.99),
    span=st.integers(1, 50),
)
lengths = st.lists(st.integers(1, 70), min_size=1, max_size=6)


def draw_columns(component: Component, sizes: list[int], seed: int, scale: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(scale=scale, size=(sum(sizes), component.columns)))


@settings(deadline=None)
@given(components, lengths, st.integers(0, 2**32 - 1))
def test_it_is_the_definition_written_out(component: Component, sizes: list[int], seed: int) -> None:
    columns = draw_columns(component, sizes, seed)
    found = reduce(component, columns, Segments.of(sizes, columns.device))
    expected = [loop(component, part.numpy()) for part in columns.split(sizes)]
    # A running mean leaves out terms that weigh less than 2^-30.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)


@settings(deadline=None)
@given(components, lengths, st.integers(0, 2**32 - 1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_nothing_leaks_from_a_neighbour(component: Component, sizes: list[int], seed: int, poison: float) -> None:
    columns = draw_columns(component, [9, *sizes, 9], seed).float()
    clean = reduce(component, columns, Segments.of([9, *sizes, 9], columns.device))
    columns[:9] = columns[-9:] = poison
    poisoned = reduce(component, columns, Segments.of([9, *sizes, 9], columns.device))
    assert torch.equal(clean[1:-1], poisoned[1:-1])


@settings(deadline=None)
@given(components, st.integers(0, 2**32 - 1))
def test_a_constant_is_found_again_and_added(component: Component, seed: int) -> None:
    """What moves every token's column by c moves the result by c, so that biases fold."""
    columns = draw_columns(component, [40, 3], seed)
    segments = Segments.of([40, 3], columns.device)
    moved = columns.clone()
    # A query is not a value: moving it changes nothing.
    moved[:, component.heads if component.reduction == "attention" else 0 :] += 2.0
    per_output = 2.0 * (component.heads if component.reduction in {"attention", "multimax"} else 1)
    found = reduce(component, moved, segments) - reduce(component, columns, segments)
    np.testing.assert_allclose(found, np.full((2, 2), per_output), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_long_segments_in_float32_keep_their_digits(kind: Any) -> None:
    component = Component(reduction=kind, outputs=OUTPUTS, heads=2)
    sizes = [4096, 5, 4096]
    columns = (draw_columns(component, sizes, 0, scale=1.0) + 50.0).float()
    found = reduce(component, columns, Segments.of(sizes, columns.device))
    expected = [loop(component, part.double().numpy()) for part in columns.split(sizes)]
    np.testing.assert_allclose(found, expected, rtol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: Any) -> None:
    component = Component(reduction=kind, outputs=OUTPUTS, heads=2, span=3)
    sizes = [1, 2, 7]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(sizes), 4, dtype=torch.float64, generator=generator)
    shapes = component.shapes(4)
    tensors = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes.values()
    ]

    def heads(*values: torch.Tensor) -> torch.Tensor:
        columns = tokens @ matrix(component, dict(zip(shapes, values, strict=True))).T
        return reduce(component, columns, Segments.of(sizes, tokens.device))

    assert torch.autograd.gradcheck(heads, tensors)


def test_queries_far_beyond_the_range_of_an_exponential_are_no_overflow() -> None:
    component = Component(reduction="attention", outputs=OUTPUTS, heads=1)
    columns = torch.tensor([[500.0, 1.0, 2.0], [-500.0, 7.0, 8.0], [499.0, 3.0, 4.0]])
    (found,) = reduce(component, columns, Segments.of([3], columns.device))
    share = 1 / (1 + math.exp(-1))
    assert found.tolist() == pytest.approx([share + 3 * (1 - share), 2 * share + 4 * (1 - share)])
